"""Storage of a film that is being colored: its plan, and the segment, record and embeddings of each finished shot.

An interrupted rendering run resumes from these files. When the film and its accompanying files are complete, only the
segments are removed. From the rest, a later run with different references finds the shots that change (see
incremental.py).
"""

import lzma
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from fileio.checkpoints import load_checkpoint, save_checkpoint
from fileio.outputs import hidden_path
from film.analysis.plan import FilmPredictor, Plan
from film.io.image_sequence import ImageSequence
from film.io.video import Film
from film.report.records import Records, ShotRecord
from utils import UserError

PLAN, JOINED, COMPLETION = "plan.pt", "joined.pt", "completion.pt"  # files in the folder


class SegmentStore:
    """The hidden folder next to an output. If the stored plan has a different ``key``, it and its shots are ignored."""

    def __init__(self, output: Path, key: str) -> None:
        self.output, self.folder, self.key = output, segment_folder(output), key

    def load_plan(self) -> Plan | None:
        """Return the complete plan that was saved with the same key, or None."""
        plan, is_complete = self.load_plan_state() or (None, False)
        return plan if is_complete else None

    def load_plan_state(self) -> tuple[Plan, bool] | None:
        """Return the plan that was saved with the same key and whether it is complete, or None."""
        content = _load(self.folder / PLAN)
        if content is None or content["key"] != self.key:
            return None
        return Plan.from_state(content["plan"]), content["is_complete"]

    def save_plan(self, plan: Plan, is_complete: bool = True) -> None:
        """Save a plan. The folder is emptied first, unless it holds an incomplete plan with the same key."""
        _, was_complete = self.load_plan_state() or (None, True)
        if self.folder.exists() and was_complete:
            shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        save_checkpoint(self.folder / PLAN, {"key": self.key, "plan": plan.state(), "is_complete": is_complete})

    def segment_path(self, index: int) -> Path:
        """Return the path of the encoded frames of a shot."""
        return self.folder / f"{index:06d}.segment"

    def confidence_path(self, index: int) -> Path:
        """Return the path of the confidence maps of a shot."""
        return self.folder / f"{index:06d}.confidence"

    def _record_path(self, index):
        return self.folder / f"{index:06d}.pt"

    def save_shot(self, plan: Plan, record: ShotRecord, embeddings: np.ndarray, digest: str) -> dict[str, Any]:
        """Store a finished shot; return its packed record.

        ``embeddings``, int16 (n, D), and ``digest`` are the argument and the result of ``shot_digest``. The embedding
        of the record is not stored, since it is the embedding stored with the shot's palette in the plan.
        """
        state = Records.pack(record)
        save_checkpoint(self._record_path(record.index), {
            "record": {**state, "embedding": None}, "embeddings": pack_embeddings(embeddings), "digest": digest,
            "signature": plan.shot_signature(record.index)})
        return state

    def load_shot(self, plan: Plan, index: int) -> dict[str, Any] | None:
        """Return a dict of the packed "record", "embeddings" and "digest" of a shot, or None if it is not finished."""
        content = _load(self._record_path(index))
        if content is None or content["signature"] != plan.shot_signature(index):
            return None
        return {**content, "embeddings": unpack_embeddings(content["embeddings"])}

    def discard_shot(self, index: int) -> None:
        """Remove the record of a shot, which marks it as not finished."""
        self._record_path(index).unlink(missing_ok=True)

    def joined_digests(self) -> list[str]:
        """Return the digest of each shot in the output file; [] if it is missing or was written by another program."""
        content = _load(self.folder / JOINED)
        if content is None or not self.output.exists():
            return []
        return next((film["digests"] for film in content["films"] if film["file"] == _identity(self.output)), [])

    def record_join(self, path: Path, digests: Sequence[str]) -> None:
        """Store the digests of the film ``path``, which is about to be renamed to the output.

        The digests of the current output are kept in case the renaming fails.
        """
        films = [{"file": _identity(path), "digests": list(digests)}]
        if current := self.joined_digests():
            films.append({"file": _identity(self.output), "digests": current})
        save_checkpoint(self.folder / JOINED, {"films": films})

    def remove_segments(self) -> None:
        """Remove the encoded frames of all shots; the records stay."""
        for path in self.folder.glob("*.segment"):
            path.unlink()

    def mark_complete(self, predictor: FilmPredictor) -> None:
        """Record that the film and its accompanying files are written, and remove the segments."""
        self.remove_segments()
        completion = Completion(predictor.identity, predictor.identity != predictor.base_identity)
        save_checkpoint(self.folder / COMPLETION, completion._asdict())

    def mark_incomplete(self) -> None:
        """Record that the film or its accompanying files must be written again."""
        (self.folder / COMPLETION).unlink(missing_ok=True)


def _load(path):
    """Return the content of a checkpoint, or None if it is missing or damaged."""
    try:
        return load_checkpoint(path)
    except UserError:
        return None


def pack_embeddings(embeddings: np.ndarray) -> dict[str, Any]:
    """Compress embeddings, int16 (n, D), without loss."""
    packed = lzma.compress(np.stack([embeddings & 255, embeddings >> 8]).astype(np.uint8).tobytes())
    return {"shape": list(embeddings.shape), "packed": torch.from_numpy(np.frombuffer(packed, np.uint8).copy())}


def unpack_embeddings(state: dict[str, Any]) -> np.ndarray:
    """Invert ``pack_embeddings``."""
    low, high = np.frombuffer(lzma.decompress(state["packed"].numpy().tobytes()), np.uint8).reshape(2, *state["shape"])
    return low + (high.view(np.int8).astype(np.int16) << 8)


def segment_folder(output: Path) -> Path:
    """Return the folder of the SegmentStore of ``output``."""
    return hidden_path(output, "segments")


class Completion(NamedTuple):
    """Describes the predictor that colored a complete film."""

    predictor: str  # its identity
    references: bool  # whether it had references


def read_completion(output: Path) -> Completion | None:
    """Return which predictor colored the film ``output``, or None if that is unknown or files are missing."""
    content = _load(segment_folder(output) / COMPLETION)
    if content is None or not SegmentStore(output, "").joined_digests():
        return None
    return Completion(content["predictor"], content["references"])


def is_complete(film: Film, output: Path) -> bool:
    """Return whether ``film`` is colored into ``output`` and its accompanying files are written."""
    if isinstance(film, ImageSequence):
        written = all(path.exists() for path in film.colored_film(output, film.paths).paths.values())
        return written and not segment_folder(output).exists()
    return output.exists() and not (SegmentStore(output, "").joined_digests() and read_completion(output) is None)


def _identity(path):
    """Return plain values that change whenever the file is replaced or written again."""
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]
