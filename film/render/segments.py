"""What does a colored film leave behind? A record of each shot, for the log and the report; until the film and all that
goes with it are written, its finished shots, from which an interrupted run goes on; and then what was read for them, by
which a run with other references finds those that change.
"""

import lzma
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from fileio.checkpoints import load_checkpoint, save_checkpoint
from film.analysis.plan import FilmPredictor, Plan
from film.io.image_sequence import ImageSequence
from film.io.video import Film
from film.report.records import Records, ShotRecord
from utils import UserError


class SegmentStore:
    """The hidden folder beside an output that holds its plan and its finished shots with their records until the film
    and all that goes with it are written; and then, without the pictures, what tells which shots other references
    change. A plan of another ``key`` is ignored, and so is all that belongs to it."""

    def __init__(self, output: Path, key: str) -> None:
        self.output, self.folder, self.key = output, segment_folder(output), key

    def plan(self) -> Plan | None:
        """The Plan of an earlier run of the same key, or None."""
        plan, whole = self.plan_so_far() or (None, False)
        return plan if whole else None

    def plan_so_far(self) -> tuple[Plan, bool] | None:
        """``plan``, or as much of it as was found by now, and whether it is whole."""
        content = _read(self.folder / PLAN)  # there may be none, or not a whole one
        if content is None or content["key"] != self.key:
            return None
        return Plan.from_state(content["plan"]), content["whole"]

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
            "record": {**state, "embedding": None}, "looks": pack_embeddings(looks), "reading": reading,
            "outline": plan.shot_signature(record.index)})
        return state

    def finished(self, plan: Plan, index: int) -> dict[str, Any] | None:
        """What ``save`` noted of a shot that was finished by a plan: record (packed), looks, reading; else None."""
        content = _read(self.part(index).with_suffix(".pt"))
        if content is None or content["outline"] != plan.shot_signature(index):
            return None
        return {**content, "looks": unpack_embeddings(content["looks"])}

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

    def finish(self, predictor: FilmPredictor) -> None:
        """Note that all is written, as ``predictor`` colors."""
        self.drop_pictures()
        finished = Finished(predictor.identity, predictor.identity != predictor.origin)
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


def pack_embeddings(looks: np.ndarray) -> dict[str, Any]:
    """Looks, int16 (n, D), in few bytes."""
    packed = lzma.compress(np.stack([looks & 255, looks >> 8]).astype(np.uint8).tobytes())
    return {"shape": list(looks.shape), "packed": torch.from_numpy(np.frombuffer(packed, np.uint8).copy())}


def unpack_embeddings(state: dict[str, Any]) -> np.ndarray:
    """The inverse of ``pack_embeddings``."""
    planes = np.frombuffer(lzma.decompress(state["packed"].numpy().tobytes()), np.uint8).reshape(2, *state["shape"])
    return planes[0] + (planes[1].view(np.int8).astype(np.int16) << 8)


def segment_folder(output: Path) -> Path:
    return output.with_name(f".{output.name}.parts")


class Finished(NamedTuple):
    """By what a film was colored."""

    predictor: str  # its identity
    references: bool  # whether it had any


def read_completion(output: Path) -> Finished | None:
    """By what the film ``output`` was colored, if all that goes with it was written; None where that is not known, or
    another film is there."""
    content = _read(segment_folder(output) / FINISHED)
    if content is None or not SegmentStore(output, "").held():
        return None
    return Finished(content["predictor"], content["references"])


def is_joined(output: Path) -> bool:
    """Whether the film ``output`` is whole, but what goes with it was not written yet, or is to be written again."""
    return bool(SegmentStore(output, "").held()) and read_completion(output) is None


def is_complete(film: Film, output: Path) -> bool:
    """Return whether ``film`` is colored into ``output`` and everything that accompanies it was written."""
    if isinstance(film, ImageSequence):
        written = all(path.exists() for path in film.colored_film(output, film.paths).paths.values())
        return written and not segment_folder(output).exists()
    return output.exists() and not is_joined(output)


def _identity(path):
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]


