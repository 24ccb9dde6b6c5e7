"""What does a colored film leave behind? A record of each shot, for the log and the report; until the film and all that
goes with it are written, its finished shots, from which an interrupted run goes on; and then what was read for them, by
which a run with other references finds those that change.
"""

import lzma
import math
import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, overload

import cv2
import numpy as np
import torch

from film.plan import FilmPainter, Plan, Target
from film.planes import Box, Planes
from utils import UserError, load_checkpoint, save_checkpoint

THUMBNAIL = 320  # width of the pictures in a ShotRecord, and of those that its CDC is measured on


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


class Parts:
    """The hidden folder beside an output that holds its plan and its finished shots with their records until the film
    and all that goes with it are written; and then, without the pictures, what tells which shots other references
    change. A plan of another ``key`` is ignored, and so is all that belongs to it."""

    def __init__(self, output: Path, key: str) -> None:
        self.output, self.folder, self.key = output, parts_folder(output), key

    def plan(self) -> Plan | None:
        """The Plan of an earlier run of the same key, or None."""
        plan, whole = self.plan_so_far() or (None, False)
        return plan if whole else None

    def plan_so_far(self) -> tuple[Plan, bool] | None:
        """``plan``, or as much of it as was found by now, and whether it is whole."""
        content = _read(self.folder / PLAN)  # there may be none, or not a whole one
        if content is None or content["key"] != self.key:
            return None
        return Plan.of(content["plan"]), content["whole"]

    def begin(self, plan: Plan, whole: bool = True) -> None:
        """Save a plan, ``whole`` or as much of it as is found. The folder is emptied before, but while this plan is
        found: what is finished of shots of the same ``Plan.outline`` stays so."""
        _, begun_anew = self.plan_so_far() or (None, True)
        if self.folder.exists() and begun_anew:
            shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        save_checkpoint(self.folder / PLAN, {"key": self.key, "plan": plan.state(), "whole": whole})

    def go_on(self) -> None:
        """Note that all that goes with the film may be written anew."""
        (self.folder / FINISHED).unlink(missing_ok=True)

    def part(self, index: int) -> Path:
        return self.folder / f"{index:06d}.part"

    def known(self, index: int) -> Path:
        """The file of what is known of the frames of a shot, for the map."""
        return self.part(index).with_suffix(".known")

    def save(self, plan: Plan, record: ShotRecord, looks: np.ndarray, reading: str) -> dict[str, Any]:
        """Note that a shot of a plan is finished, with the looks (n, D) of its drawings and what was read for them;
        returns the packed ShotRecord, whose feature is that of the plan."""
        state = Records.pack(record)
        save_checkpoint(self.part(record.index).with_suffix(".pt"), {
            "record": {**state, "feature": None}, "looks": pack_looks(looks), "reading": reading,
            "outline": plan.outline(record.index)})
        return state

    def finished(self, plan: Plan, index: int) -> dict[str, Any] | None:
        """What ``save`` noted of a shot that was finished by a plan: record (packed), looks, reading; else None."""
        content = _read(self.part(index).with_suffix(".pt"))
        if content is None or content["outline"] != plan.outline(index):
            return None
        return {**content, "looks": unpack_looks(content["looks"])}

    def forget(self, index: int) -> None:
        """Note that the shot is not finished."""
        self.part(index).with_suffix(".pt").unlink(missing_ok=True)

    def held(self) -> list[str]:
        """What was read for each shot of the film that is there as the output; [] where none of ours is."""
        content = _read(self.folder / JOINED)
        return next((film["readings"] for film in content["films"] if film["file"] == _identity(self.output)),
                    []) if content is not None and self.output.exists() else []

    def note_joined(self, path: Path, readings: Sequence[str]) -> None:
        """Note that the file at ``path``, which will now be renamed to the output, is the whole film, for whose shots
        ``readings`` were read. What is known of the film that it replaces stays known, should it not be renamed."""
        films = [{"file": _identity(path), "readings": list(readings)}]
        if held := self.held():
            films.append({"file": _identity(self.output), "readings": held})
        save_checkpoint(self.folder / JOINED, {"films": films})

    def drop_pictures(self) -> None:
        """Remove the parts of a film that is joined; the records stay."""
        for path in self.folder.glob("*.part"):
            path.unlink()

    def finish(self, painter: FilmPainter) -> None:
        """Note that all is written, as ``painter`` colors."""
        self.drop_pictures()
        finished = Finished(painter.identity, painter.identity != painter.origin)
        save_checkpoint(self.folder / FINISHED, finished._asdict())

    def remove(self) -> None:
        shutil.rmtree(self.folder)


PLAN, JOINED, FINISHED = "plan.pt", "joined.pt", "finished.pt"


def _read(path):
    """What ``save_checkpoint`` wrote, or None where it is not there or not whole."""
    try:
        return load_checkpoint(path)
    except UserError:
        return None


def pack_looks(looks: np.ndarray) -> dict[str, Any]:
    """Looks, int16 (n, D), in few bytes."""
    packed = lzma.compress(np.stack([looks & 255, looks >> 8]).astype(np.uint8).tobytes())
    return {"shape": list(looks.shape), "packed": torch.from_numpy(np.frombuffer(packed, np.uint8).copy())}


def unpack_looks(state: dict[str, Any]) -> np.ndarray:
    """The inverse of ``pack_looks``."""
    planes = np.frombuffer(lzma.decompress(state["packed"].numpy().tobytes()), np.uint8).reshape(2, *state["shape"])
    return planes[0] + (planes[1].view(np.int8).astype(np.int16) << 8)


def parts_folder(output: Path) -> Path:
    return output.with_name(f".{output.name}.parts")


class Finished(NamedTuple):
    """By what a film was colored."""

    painter: str  # its identity
    references: bool  # whether it had any


def finished_by(output: Path) -> Finished | None:
    """By what the film ``output`` was colored, if all that goes with it was written; None where that is not known, or
    another film is there."""
    content = _read(parts_folder(output) / FINISHED)
    if content is None or not Parts(output, "").held():
        return None
    return Finished(content["painter"], content["references"])


def is_joined(output: Path) -> bool:
    """Whether the film ``output`` is whole, but what goes with it was not written yet, or is to be written again."""
    return bool(Parts(output, "").held()) and finished_by(output) is None


def _identity(path):
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]


class Writer(Protocol):
    """What writes a colored film: into a file (``encoding.py``), or picture by picture (``sequence.py``)."""

    target: Target
    cuts: bool  # whether it can take shots out of a film that it wrote

    def replaces(self) -> bool:
        """Whether there is a file already that ``join`` would replace."""

    def shot(self, part: Path, times: Sequence[int]) -> AbstractContextManager[Callable[[Planes, int], None]]:
        """Yield a function that takes planes and pts of each frame of a shot in order; ``times`` are all its pts. The
        file ``part``, if the writer uses one, gets its name when the block ends and all frames are on the disk."""

    def has_shot(self, part: Path, times: Sequence[int]) -> bool:
        """Whether all frames of the shot, whose pts are ``times``, are written."""

    def join(self, parts: Parts, plan: Plan, readings: Sequence[str]) -> None:
        """Write the output from the Parts of all shots, and from the film that is there, of which those shots are taken
        for which the same ``readings`` were read; it appears under its name only when it is complete."""
