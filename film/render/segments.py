"""Storage of a film that is being colored: its plan, and the segment, record and embeddings of each finished shot.

An interrupted rendering run resumes from these files. When the film and its accompanying files are complete, only the
segments are removed. From the rest, a later run with different references finds the shots that change (see
incremental.py).
"""

import itertools
import lzma
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from fileio.checkpoints import load_checkpoint, save_checkpoint
from fileio.outputs import hidden_path
from film.analysis.plan import FilmPredictor, Plan
from film.io.image_sequence import ImageSequence
from film.io.video import Film
from film.render.manifest import Manifest
from film.report.records import Records, ShotRecord
from utils import UserError

PLAN, JOINED, COMPLETION, MANIFEST = "plan.pt", "joined.pt", "completion.pt", "manifest.json"  # files in the folder


class SegmentStore:
    """The hidden folder next to an output. A plan and shots that were stored with another manifest are ignored."""

    def __init__(self, output: Path, manifest: Manifest) -> None:
        self.output, self.folder, self.manifest = output, segment_folder(output), manifest

    def load_plan(self) -> Plan | None:
        """Return the complete plan that was saved with the same manifest, or None."""
        plan, is_complete = self.load_plan_state() or (None, False)
        return plan if is_complete else None

    def load_plan_state(self) -> tuple[Plan, bool] | None:
        """Return the plan that was saved with the same manifest and whether it is complete, or None."""
        content = _load(self.folder / PLAN)
        if content is None or content["key"] != self.manifest.key:
            return None
        return Plan.from_state(content["plan"]), content["is_complete"]

    def save_plan(self, plan: Plan, is_complete: bool = True) -> None:
        """Save a plan. The folder is emptied first, unless it holds an incomplete plan with the same manifest."""
        _, was_complete = self.load_plan_state() or (None, True)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.save_manifest(plan)  # first, since it permits to overwrite files
        if was_complete:
            for path in self.folder.iterdir():
                if path.name != MANIFEST:
                    path.unlink()
        save_checkpoint(self.folder / PLAN,
                        {"key": self.manifest.key, "plan": plan.state(), "is_complete": is_complete})

    def save_manifest(self, plan: Plan) -> None:
        """Store the manifest, for people and for later runs."""
        self.manifest.save(self.folder / MANIFEST, plan)

    def earlier_operation(self) -> dict[str, Any]:
        """Return ``Manifest.operation`` of an earlier run with the same manifest, if it can be continued, else {}."""
        earlier = Manifest.load(self.folder / MANIFEST)
        if (self.folder / COMPLETION).exists() and self.load_plan() is None:
            return {}
        return {} if earlier is None or earlier.key != self.manifest.key else earlier.operation

    def changes(self) -> str:
        """Describe what differs from the stored manifest, "" if nothing does or nothing is stored."""
        if earlier := Manifest.load(self.folder / MANIFEST):
            return self.manifest.changes(earlier)
        return "the program is another version" if (self.folder / PLAN).exists() else ""

    def count_segments(self) -> int:
        """Return the number of shots with encoded frames."""
        return sum(1 for _ in self.folder.glob("*.segment"))

    def segment_path(self, index: int) -> Path:
        """Return the path of the encoded frames of a shot."""
        return self.folder / f"{index:06d}.segment"

    def confidence_path(self, index: int) -> Path:
        """Return the path of the part of the confidence video that shows a shot."""
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
        """Remove the record of a shot, which marks it as not finished, and its part of the confidence video."""
        for path in (self._record_path(index), self.confidence_path(index)):
            path.unlink(missing_ok=True)

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

    def mark_complete(self, predictor: FilmPredictor, unneeded: Iterable[str]) -> None:
        """Record that the film and its accompanying files are written; remove files with the patterns ``unneeded``."""
        for path in itertools.chain.from_iterable(map(self.folder.glob, unneeded)):
            path.unlink()
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
    # A dictionary of 1 MiB compresses as well as the default one of 8 MiB, in half the time.
    filters = [{"id": lzma.FILTER_LZMA2, "preset": lzma.PRESET_DEFAULT, "dict_size": 2**20}]
    packed = lzma.compress(np.stack([embeddings & 255, embeddings >> 8]).astype(np.uint8).tobytes(), filters=filters)
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
    if content is None or not SegmentStore(output, Manifest({}, {})).joined_digests():
        return None
    return Completion(content["predictor"], content["references"])


def is_complete(film: Film, output: Path) -> bool:
    """Return whether ``film`` is colored into ``output`` and its accompanying files are written."""
    if isinstance(film, ImageSequence):
        written = all(path.exists() for path in film.colored_film(output, film.paths).paths.values())
        return written and (not segment_folder(output).exists() or (segment_folder(output) / COMPLETION).exists())
    joined = SegmentStore(output, Manifest({}, {})).joined_digests()
    return output.exists() and not (joined and read_completion(output) is None)


def _identity(path):
    """Return plain values that change whenever the file is replaced or written again."""
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]
