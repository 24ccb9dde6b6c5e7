"""Records of finished shots, from which the report, the log and the suggestions are made."""

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import torch

from colorizer.adaptation.fallback import FallbackFit
from colorizer.adaptation.film_response import FilmResponse
from film.analysis.transitions import Boundary
from film.io.planes import Box

THUMBNAIL = 320  # width in pixels of the pictures in a ShotRecord, and of the frames for measuring its CDC


@dataclass
class ShotRecord:
    """Colors, confidence and pictures of a finished shot."""

    index: int  # from 0
    start_frame: int  # number in the film; with --start, counted from there
    end_frame: int  # exclusive
    start_time: float  # seconds in the film
    end_time: float
    gray: np.ndarray  # the middle frame, RGB uint8 (H, W, 3), THUMBNAIL wide
    result: np.ndarray
    ground_truth: np.ndarray | None  # None for a grayscale input
    slot_ids: list[int]  # image ids of the best memory slots, best first; [] if the memory is not read
    slot_scores: list[float]  # their cosine similarities
    confidence: float  # mean of Confidence.probability over the shot, in [0, 1]; nan without a spatial memory
    embedding: np.ndarray  # float32 (D,), mean over some frames; (0,) without a memory
    left_unchanged: bool = False  # the shot was already in color and was copied
    cdc: float = math.nan  # color distribution consistency of the result; nan with color_only and for a single frame
    cdc_ground_truth: float = math.nan  # nan without ground truth
    recalled: float = math.nan  # mean of Confidence.recalled, in [0, 1]
    box: Box | None = None  # the colored picture without letterbox; None: the whole frame
    fallback: float = math.nan  # share of the frame area whose colors come from another program; nan if there is none
    lacking_fallback: int = 0  # number of frames for which that program has no frame
    seconds: float = field(default=0.0, compare=False)  # spent on the shot
    transition_frames: int = 0  # number of its last frames that also show the next shot
    wipe: bool = False  # whether each of their pixels shows only one of both shots
    scores: list[dict[str, dict[str, float]]] = field(default_factory=list)  # ``FrameScores`` of its scored frames

    @property
    def frames(self) -> int:
        """Number of frames."""
        return self.end_frame - self.start_frame

    @property
    def middle(self) -> int:
        """Index of the middle one of the frames that show only this shot."""
        return (self.start_frame + self.end_frame - self.transition_frames) // 2

    @property
    def known_confidence(self) -> float:
        """The confidence in [0, 1]: 1 for a shot that was left unchanged, 0 where it was not measured."""
        return 1.0 if self.left_unchanged else self.confidence if math.isfinite(self.confidence) else 0.0

    def log_line(self) -> dict[str, Any]:
        """Return the entry of the shot in <output>_shots.jsonl, a dict of plain values."""
        names = ("index", "start_frame", "end_frame", "transition_frames", "slot_ids", "left_unchanged")
        line = {"shot": self.index + 1, **{name: getattr(self, name) for name in names}}
        line["slot_scores"] = [round(score, 4) for score in self.slot_scores]
        for name, digits in (("confidence", 4), ("recalled", 4), ("cdc", 6), ("cdc_ground_truth", 6),
                             ("fallback", 4)):
            value = getattr(self, name)
            line[name] = None if math.isnan(value) else round(value, digits)
        return line | {name: round(getattr(self, name), 3) for name in ("start_time", "end_time", "seconds")}


class Records(Sequence[ShotRecord]):
    """A sequence of ShotRecords whose pictures stay compressed (WebP) until a record is accessed.

    ``pts`` are the timestamps of all colored frames in the film's time base, ``response`` is the film response, and
    ``fallback`` describes the colors of another program, if there are any.
    """

    PICTURES = ("gray", "result", "ground_truth")

    def __init__(self, pts: array, response: FilmResponse | None, states: list[dict[str, Any]],
                 fallback: FallbackFit | None = None) -> None:
        self.pts, self.response, self.states, self.fallback = pts, response, states, fallback

    def __len__(self) -> int:
        return len(self.states)

    def __getitem__(self, index: int) -> ShotRecord:  # type: ignore[override]  # no slices
        state = dict(self.states[index])
        for name in self.PICTURES:
            if state[name] is not None:
                state[name] = cv2.imdecode(state[name].numpy(), cv2.IMREAD_COLOR_RGB)
        return ShotRecord(**{**state, "embedding": state["embedding"].numpy()})

    def boundaries(self) -> list[Boundary]:
        """Return the end of each shot."""
        return [Boundary(state["end_frame"] - state["transition_frames"], state["end_frame"], state["wipe"])
                for state in self.states]

    def fallback_facts(self) -> dict[str, Any]:
        """Return how much comes from the colors of another program, as plain values; {} if there are none."""
        if self.fallback is None:
            return {}
        frames = [state["end_frame"] - state["start_frame"] for state in self.states]
        shares = [state["fallback"] for state in self.states]
        return {"share": round(float(np.average(shares, weights=frames)), 4),
                "share_of_shots": [round(share, 4) for share in shares],
                "frames_without": sum(state["lacking_fallback"] for state in self.states),
                "grade": str(self.fallback.grade or "none"), "estimated_error": round(self.fallback.error, 2)}

    @classmethod
    def pack(cls, record: ShotRecord) -> dict[str, Any]:
        """Return a record as plain values and tensors."""
        state = dict(vars(record))
        for name in cls.PICTURES:
            if state[name] is not None:
                bgr = cv2.cvtColor(state[name], cv2.COLOR_RGB2BGR)
                state[name] = torch.from_numpy(cv2.imencode(".webp", bgr, [cv2.IMWRITE_WEBP_QUALITY, 85])[1])
        return {**state, "embedding": torch.from_numpy(record.embedding)}
