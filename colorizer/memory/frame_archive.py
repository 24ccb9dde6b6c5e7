"""The frame archive of a large spatial memory: a file next to the checkpoint, from which frames are read on demand.

The file is a .npy array with one record per frame: keys, colors and picture. All checkpoints of a training run share
it. Records are read instead of memory-mapped: if a mapped file is truncated or its disk fails, the process is killed
by SIGBUS, and mapped pages count as memory of the process.
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

CHECKED_RECORDS = 8  # number of evenly spaced records to verify when a file is opened; larger: slower
RECORD_FIELDS = "keys", "ab", "pictures"  # also names of buffers of SpatialMemory
FILE_PATTERN, PARTIAL = r"frames_[0-9a-f]{12}\.npy", ".frames.partial.npy"  # names of a complete and a partial file


def record_dtype(config: SpatialConfig) -> np.dtype:
    """Return the structured dtype of the record of one frame."""
    cells, side = config.grid**2, config.picture_size
    shapes = ("<f2", (cells, config.key_dim + 5)), ("<f2", (cells, 2)), ("u1", (side, side, 3))
    return np.dtype([(name, *shape) for name, shape in zip(RECORD_FIELDS, shapes, strict=True)])


def record_digest(*fields: np.ndarray) -> bytes:
    """Return the SHA-256 digest of the fields of a record."""
    return hashlib.sha256(b"".join(field.tobytes() for field in fields)).digest()


class FrameArchive:
    """Read access to the A frames in an archive file.

    The checkpoint stores the ``index`` of the frames and the ``digests`` of their records, uint8 (A, 32). Raises
    UserError if the file is missing, truncated or damaged, or belongs to a different checkpoint.
    """

    def __init__(self, path: Path, config: SpatialConfig, digests: torch.Tensor, index: FrameIndex) -> None:
        self.path, self.record, self.digests, self.index = path, record_dtype(config), digests, index
        try:
            self.file = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise UserError(f"cannot read the frames of the checkpoint from {path} ({error.strerror}); keep a "
                            "checkpoint and its frames_*.npy in the same folder") from error
        weakref.finalize(self, os.close, self.file)
        self._open()

    def _open(self):
        """Set the offset of the first record. Check the header, the size and some records of the file."""
        try:
            with open(self.path, "rb") as file:
                np.lib.format.read_magic(file)
                shape, _, dtype = np.lib.format.read_array_header_1_0(file)
                self.start = file.tell()
            if (shape, dtype) != ((len(self),), self.record):
                raise ValueError(f"it holds {shape} records of {dtype.itemsize} bytes instead of {len(self)} of "
                                 f"{self.record.itemsize}")
            if os.path.getsize(self.path) != self.start + len(self) * self.record.itemsize:
                raise ValueError("its size is wrong")
        except (ValueError, OSError) as error:
            raise UserError(f"{self.path} does not hold the frames of the checkpoint: {error}; copy it again from the "
                            "folder of the checkpoint") from error
        for slot in evenly_spaced(len(self), CHECKED_RECORDS):
            if record_digest(*(self.read(name, slot) for name in RECORD_FIELDS)) != self.digest(slot):
                raise UserError(f"{self.path} holds the frames of a different checkpoint, or is damaged; copy it again "
                                "from the folder of the checkpoint")

    def __len__(self) -> int:
        return len(self.digests)

    def __deepcopy__(self, _: Any) -> "FrameArchive":
        return self

    def digest(self, slot: int) -> bytes:
        """Return the digest of the record in a slot, as stored in the checkpoint."""
        return self.digests[slot].numpy().tobytes()

    def read(self, name: str, slot: int) -> np.ndarray:
        """Read the field ``name`` of the record in a slot. Raises UserError if the file was truncated meanwhile."""
        dtype, offset = self.record.fields[name][:2]  # type: ignore[index]  # it has fields
        content = bytearray(os.pread(self.file, dtype.itemsize, self.start + slot * self.record.itemsize + offset))
        if len(content) < dtype.itemsize:
            raise UserError(f"{self.path} was truncated while in use; copy it again from the folder of the checkpoint")
        return np.frombuffer(content, dtype.base).reshape(dtype.shape)

    def state(self) -> dict[str, Any]:
        """Return the ``archive`` entry of a checkpoint, which ``open_archive`` reads."""
        return {"file": self.path.name, "digests": self.digests, **self.index.state()}

    def copy_to(self, folder: Path) -> None:
        """Add the file to ``folder`` as a hard link or, if that fails, as a copy. Raises UserError if the file cannot
        be written."""
        target, partial = folder / self.path.name, folder / PARTIAL
        if target.exists():  # the name contains a hash of the content
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
            try:
                os.link(self.path, target)
            except OSError:
                shutil.copyfile(self.path, partial)
                os.replace(partial, target)
        except OSError as error:
            raise UserError(f"cannot write {target}: {error.strerror}") from error
        finally:
            partial.unlink(missing_ok=True)


def write_archive(folder: Path, config: SpatialConfig, count: int,
                  batches: Iterable[dict[str, torch.Tensor]]) -> FrameArchive:
    """Write ``count`` frames to a new archive file in ``folder``, given batches {field or "embeddings": rows}.

    The file is named after a hash of its content and gets this name when all data is on disk. Return it opened. Raises
    UserError if it cannot be written.
    """
    record, partial, digests, embeddings = record_dtype(config), folder / PARTIAL, [], []
    try:
        with open(partial, "wb") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": np.lib.format.dtype_to_descr(record),
                                                        "fortran_order": False, "shape": (count,)})
            for rows in batches:
                records = np.empty(len(rows["keys"]), record)
                for name in RECORD_FIELDS:
                    records[name] = rows[name].cpu().numpy()
                digests += [record_digest(*each) for each in records]
                embeddings.append(rows["embeddings"].cpu())
                file.write(records.tobytes())
            file.flush()
            os.fsync(file.fileno())
        path = folder / f"frames_{hashlib.sha256(b''.join(digests)).hexdigest()[:12]}.npy"
        os.replace(partial, path)
    except OSError as error:
        raise UserError(f"cannot write the frames of the memory to {folder}: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)
    rows = np.frombuffer(bytearray(b"".join(digests)), np.uint8).reshape(-1, 32)
    return FrameArchive(path, config, torch.from_numpy(rows), FrameIndex.build(torch.cat(embeddings)))


def open_archive(checkpoint: str | Path, content: dict[str, Any]) -> FrameArchive | None:
    """Open the archive of a checkpoint, given its path and content. Return None if the checkpoint has no archive.

    Raises UserError if the archive entry of the checkpoint is invalid, and the errors of FrameArchive.
    """
    entry = content.get("archive")
    if entry is None:
        return None
    try:
        name, digests = entry["file"], entry["digests"]
        config = restore(SpatialConfig, content["model_config"]["spatial"])
        index = FrameIndex(entry["axes"], entry["sketches"])
        if digests.dtype != torch.uint8 or digests.shape != (len(index.sketches), 32) or not len(digests):
            raise ValueError("the digests of the archived frames have the wrong shape or type")
        if not re.fullmatch(FILE_PATTERN, name):
            raise ValueError(f"{name!r:.40} is not the file name of an archive")
    except (TypeError, LookupError, ValueError, AttributeError) as error:
        raise UserError(f"{checkpoint} does not hold a complete colorizer ({error})") from error
    return FrameArchive(Path(checkpoint).with_name(name), config, digests, index)
