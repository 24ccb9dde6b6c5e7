"""TODO: module docstring."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, overload

import cv2
import numpy as np
import torch

from film.analysis.plan import Plan
from film.io.planes import Box


@dataclass
class ShotRecord:
    """What a finished shot was colored by and looks like."""

    index: int  # from 0
    start_frame: int  # in the film, or counted from --start on
    end_frame: int  # exclusive
    start_time: float  # seconds in the film
    end_time: float
    gray: np.ndarray  # the middle frame, RGB uint8 (H, W, 3), THUMBNAIL wide
    result: np.ndarray
    truth: np.ndarray | None  # where the input is in color
    slot_ids: list[int]  # image ids of the memory's best slots, best first; [] where none is read
    slot_scores: list[float]  # their cosine similarities
    confidence: float  # mean of Known.sure over the shot, a share of its colors; nan where no spatial memory is read
    feature: np.ndarray  # float32 (D,), what the backbone sees, mean over some frames; (0,) without memory
    kept: bool = False  # in color already, and left as it was
    cdc: float = math.nan  # color distribution consistency of the result; nan with color_only, and of one frame
    cdc_truth: float = math.nan  # nan where there is no truth
    recalled: float = math.nan  # mean of Known.recalled
    box: Box | None = None  # what was colored, without the bars; None is all
    seconds: float = field(default=0.0, compare=False)  # of work on the shot
    blend: int = 0  # how many of its last frames show the next shot, too

    @property
    def middle(self) -> int:
        """The middle one of the frames that show this shot alone."""
        return (self.start_frame + self.end_frame - self.blend) // 2

    def log_line(self) -> dict[str, Any]:
        """The entry of the shot in <output>_shots.jsonl, a dict of plain values."""
        names = ("index", "start_frame", "end_frame", "blend", "slot_ids", "kept")
        line = {name: getattr(self, name) for name in names}
        line["slot_scores"] = [round(score, 4) for score in self.slot_scores]
        for name, digits in (("confidence", 4), ("recalled", 4), ("cdc", 6), ("cdc_truth", 6)):
            value = getattr(self, name)
            line[name] = None if math.isnan(value) else round(value, digits)
        return line | {name: round(getattr(self, name), 3) for name in ("start_time", "end_time", "seconds")}


class Records(Sequence[ShotRecord]):
    """A sequence of ShotRecords, whose pictures stay compressed (WebP) until a record is asked for. ``pts`` are the
    times of all colored frames, in the film's time base, and ``response`` is the Response of the film."""

    PICTURES = ("gray", "result", "truth")

    def __init__(self, plan: Plan, states: list[dict[str, Any]]) -> None:
        self.pts, self.response, self.states = plan.pts, plan.response, states

    def __len__(self) -> int:
        return len(self.states)

    @overload
    def __getitem__(self, index: int) -> ShotRecord: ...

    @overload
    def __getitem__(self, index: slice) -> list[ShotRecord]: ...

    def __getitem__(self, index: int | slice) -> ShotRecord | list[ShotRecord]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        state = dict(self.states[index])
        for name in self.PICTURES:
            if state[name] is not None:
                state[name] = cv2.imdecode(state[name].numpy(), cv2.IMREAD_COLOR_RGB)
        return ShotRecord(**{**state, "feature": state["feature"].numpy()})

    @classmethod
    def pack(cls, record: ShotRecord) -> dict[str, Any]:
        """A record as plain values and tensors."""
        state = dict(vars(record))
        for name in cls.PICTURES:
            if state[name] is not None:
                bgr = cv2.cvtColor(state[name], cv2.COLOR_RGB2BGR)
                state[name] = torch.from_numpy(cv2.imencode(".webp", bgr, [cv2.IMWRITE_WEBP_QUALITY, 85])[1])
        return {**state, "feature": torch.from_numpy(record.feature)}

THUMBNAIL = 320  # width of the pictures in a ShotRecord, and of those that its CDC is measured on
