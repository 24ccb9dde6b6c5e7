"""Where are the frames of a whole show? In a file beside the checkpoint, of which only what is looked up is read.

A file in numpy's own format, without pickle: a record a frame, of its keys, colors and picture. All checkpoints of a
run share it. Records are read, not mapped: a mapped file that is cut, or whose disk fails, ends the process without a
word, and every page of it that was ever touched counts as the process's own memory. The system keeps them all the same.
"""

import hashlib
import os
import re
import shutil
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from colorizer.memory.frame_index import FrameIndex
from config import SpatialConfig, restore
from utils import UserError, evenly_spaced

PROVED = 8  # records, spread evenly, by which a file is known as that of a checkpoint when it is opened
FIELDS = "keys", "ab", "pictures"  # of a record, as the buffers of a SpatialMemory
NAMED, PARTIAL = r"frames_[0-9a-f]{12}\.npy", ".frames.partial.npy"  # a file, also while it is written


def record_of(config: SpatialConfig) -> np.dtype:
    """What is kept of a frame."""
    places = config.grid**2
    shapes = ("<f2", (places, config.key_dim + 5)), ("<f2", (places, 2)), ("u1", (config.picture_size, config.picture_size, 3))
    return np.dtype([(name, *shape) for name, shape in zip(FIELDS, shapes, strict=True)])


def digest_of(*parts: np.ndarray) -> bytes:
    """A hash of all that is read of a frame: its keys, colors and picture."""
    return hashlib.sha256(b"".join(part.tobytes() for part in parts)).digest()


class FrameArchive:
    """The frames in a file, in order; they never change. The checkpoint keeps their ``index`` and ``digests`` (A, 32),
    uint8, those of the records.

    Raises UserError for a file that is missing, cut, of another shape, or not that of the checkpoint.
    """

    def __init__(self, path: Path, config: SpatialConfig, digests: torch.Tensor, index: FrameIndex) -> None:
        self.path, self.record, self.digests, self.index = path, record_of(config), digests, index
        try:
            self.file = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise UserError(f"the frames of the checkpoint are in {path}, which cannot be read "
                            f"({error.strerror}); a checkpoint and its frames_*.npy move together") from error
        weakref.finalize(self, os.close, self.file)
        self.start = self._check()

    def _check(self):
        """The place of the first record."""
        try:
            with open(self.path, "rb") as file:
                np.lib.format.read_magic(file)
                shape, _, dtype = np.lib.format.read_array_header_1_0(file)
                start = file.tell()
            if (shape, dtype) != ((len(self),), self.record):
                raise ValueError(f"it holds {shape} records of {dtype.itemsize} bytes for {len(self)} of "
                                 f"{self.record.itemsize}")
            if os.path.getsize(self.path) != start + len(self) * self.record.itemsize:
                raise ValueError("it is cut short or has grown")
        except (ValueError, OSError) as error:
            raise UserError(f"{self.path} does not hold the frames of the checkpoint: {error}; copy it again from "
                            "beside the checkpoint") from error
        self.start = start
        for slot in evenly_spaced(len(self), PROVED):
            if digest_of(*(self.read(name, slot) for name in FIELDS)) != self.digest(slot):
                raise UserError(f"{self.path} holds the frames of another checkpoint, or is damaged; copy the one from "
                                "beside the checkpoint")
        return start

    def __len__(self) -> int:
        return len(self.digests)

    def __deepcopy__(self, _: Any) -> "FrameArchive":
        return self  # nothing of it changes

    def digest(self, slot: int) -> bytes:
        return self.digests[slot].numpy().tobytes()

    def read(self, name: str, slot: int) -> np.ndarray:
        """The field ``name`` of a record. Raises UserError when the file was cut since it was opened."""
        kind, offset = self.record.fields[name][:2]  # type: ignore[index]  # it has fields
        part = bytearray(os.pread(self.file, kind.itemsize, self.start + slot * self.record.itemsize + offset))
        if len(part) < kind.itemsize:
            raise UserError(f"{self.path} was cut short while it was in use; copy it again from beside the checkpoint")
        return np.frombuffer(part, kind.base).reshape(kind.shape)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of it, for ``open_archive``."""
        return {"file": self.path.name, "digests": self.digests, **self.index.state()}

    def bring(self, folder: Path) -> None:
        """Have the file in a folder, too, under its name: as a second name of it, or where that cannot be, as a copy.
        Raises UserError when it cannot be written."""
        target, partial = folder / self.path.name, folder / PARTIAL
        if target.exists():  # the name tells what is in it
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
            try:
                os.link(self.path, target)
            except OSError:  # on another disk, or one that knows no second names
                shutil.copyfile(self.path, partial)
                os.replace(partial, target)
        except OSError as error:
            raise UserError(f"cannot write {target}: {error.strerror}") from error
        finally:
            partial.unlink(missing_ok=True)


def write_archive(folder: Path, config: SpatialConfig, count: int,
                  batches: Iterable[dict[str, torch.Tensor]]) -> FrameArchive:
    """Write ``count`` frames, of which batches {name of a field, or features: rows} come one after another, into a file
    in a folder. It is named by what is in it, and has its name only when it is whole on the disk."""
    record, partial, digests, features = record_of(config), folder / PARTIAL, [], []
    try:
        with open(partial, "wb") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": np.lib.format.dtype_to_descr(record),
                                                        "fortran_order": False, "shape": (count,)})
            for rows in batches:
                records = np.empty(len(rows["keys"]), record)
                for name in FIELDS:
                    records[name] = rows[name].cpu().numpy()
                digests += [digest_of(each) for each in records]
                features.append(rows["features"].cpu())
                file.write(records.tobytes())
            file.flush()
            os.fsync(file.fileno())
        path = folder / f"frames_{hashlib.sha256(b''.join(digests)).hexdigest()[:12]}.npy"
        os.replace(partial, path)
    except OSError as error:
        raise UserError(f"cannot write the frames of the memory into {folder}: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)
    rows = np.frombuffer(bytearray(b"".join(digests)), np.uint8).reshape(-1, 32)
    return FrameArchive(path, config, torch.from_numpy(rows), FrameIndex.of(torch.cat(features)))


def open_archive(checkpoint: str | Path, content: dict[str, Any]) -> FrameArchive | None:
    """The Archive of a checkpoint by its path and what it holds, None for one that keeps all frames itself. Raises
    UserError as Archive does, and when the checkpoint does not tell of its file."""
    kept = content.get("archive")
    if kept is None:
        return None
    try:
        name, digests = kept["file"], kept["digests"]
        config = restore(SpatialConfig, content["model_config"]["spatial"])
        index = FrameIndex(kept["axes"], kept["sketches"])
        if digests.dtype != torch.uint8 or digests.shape != (len(index.sketches), 32) or not len(digests):
            raise ValueError("the digests of its frames are of another shape")
        if not re.fullmatch(NAMED, name):
            raise ValueError(f"the file of its frames is {name!r:.40}")
    except (TypeError, LookupError, ValueError, AttributeError) as error:
        raise UserError(f"{checkpoint} does not hold a whole colorizer ({error})") from error
    return FrameArchive(Path(checkpoint).with_name(name), config, digests, index)
