"""Checkpoint files: dicts of tensors and plain values that load without executing code."""

import os
import zipfile
from pathlib import Path
from typing import Any

import torch

from fileio.atomic import atomic_write
from utils import UserError

CHECKPOINT_FORMAT = 12  # version of the content; load_checkpoint refuses all other versions


def save_checkpoint(path: str | Path, content: dict[str, Any]) -> None:
    """Write ``content``, a dict of tensors and plain values, atomically and flush it to the disk."""
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        try:
            torch.save({"format": CHECKPOINT_FORMAT, **content}, file)
        except RuntimeError as error:  # torch replaces the error of a full disk
            raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None
        file.flush()
        os.fsync(file.fileno())


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Load a file that ``save_checkpoint`` wrote, with all tensors on the CPU.

    No code in the file is executed, and memory use is limited to about the size of the file. Raises UserError if the
    file is missing, is not a complete checkpoint of this format version, or contains values that are not finite.
    """
    if not Path(path).is_file():
        raise UserError(f"there is no checkpoint {path}; train one or pass a different file to --checkpoint")
    try:
        with zipfile.ZipFile(path) as file:
            if sum(member.file_size for member in file.infolist()) > os.path.getsize(path):
                raise ValueError("it is compressed")  # torch.save does not compress; a few kB could unpack to GBs
        content = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(content, dict) or "format" not in content:
            raise ValueError("it has no format")
        finite = all(_is_finite(tensor) for tensor in _tensors(content))
    except Exception as error:  # zip, pickle and tensor readers raise exceptions of many types
        reason = str(error).partition("\n")[0]
        raise UserError(f"{path} is not a checkpoint of train.py or incomplete ({reason}); use a valid one") from error
    if content["format"] != CHECKPOINT_FORMAT:
        raise UserError(f"{path} has checkpoint format {content['format']}, but this program reads "
                        f"{CHECKPOINT_FORMAT}; train again or use the program version that wrote it")
    if not finite:
        raise UserError(f"{path} contains values that are not finite; use an earlier checkpoint")
    return content


def _tensors(content):
    """Yield each tensor in nested dicts, lists and tuples once, even if it occurs repeatedly."""
    pending, visited = [content], set()
    while pending:
        value = pending.pop()
        if id(value) in visited:  # a malicious file could contain one list many times
            continue
        visited.add(id(value))
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (dict, list, tuple)):
            pending.extend(value.values() if isinstance(value, dict) else value)


def _is_finite(tensor):
    """Return whether all values are finite. Raises ValueError if the tensor is sparse or larger than its storage."""
    if tensor.layout != torch.strided or tensor.nbytes > tensor.untyped_storage().nbytes():
        raise ValueError("a tensor is larger than its stored data")
    return bool(tensor.isfinite().all())
