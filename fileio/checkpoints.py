"""TODO: module docstring."""

import os
import zipfile
from pathlib import Path
from typing import Any

import torch

from fileio.atomic import atomic_write
from utils import UserError

CHECKPOINT_FORMAT = 11


def save_checkpoint(path: str | Path, content: dict[str, Any]) -> None:
    """Write a dict of tensors and plain values; the file appears under its name only when it is whole on the disk."""
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        torch.save({"format": CHECKPOINT_FORMAT, **content}, file)
        file.flush()
        os.fsync(file.fileno())


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read what ``save_checkpoint`` wrote, on the CPU, executing nothing and in memory of about the file's size.

    Raises UserError for any other file, and for tensors with numbers that are not
    finite.
    """
    if not Path(path).is_file():
        raise UserError(f"there is no checkpoint {path}; train one with train.py or name another by --checkpoint")
    try:
        with zipfile.ZipFile(path) as file:
            if sum(member.file_size for member in file.infolist()) > os.path.getsize(path):
                raise ValueError("it is compressed")  # torch.save never compresses; a few kB could unpack into GBs
        content = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(content, dict) or "format" not in content:
            raise ValueError("it has no format")
        finite = all(_is_sound(tensor) for tensor in _tensors(content))
    except Exception as error:  # a file of any content: zip, pickle and tensor readers each raise their own kinds
        reason = str(error).partition("\n")[0]
        raise UserError(f"{path} is not a checkpoint of train.py, or not a whole one; use another: {reason}") from error
    if content["format"] != CHECKPOINT_FORMAT:
        raise UserError(f"{path} has checkpoint format {content['format']}, and this version reads "
                        f"{CHECKPOINT_FORMAT}; train again or use the version that wrote it")
    if not finite:
        raise UserError(f"{path} holds numbers that are not finite; use an earlier checkpoint")
    return content


def _tensors(content):
    """All tensors in nested dicts, lists and tuples, each once."""
    waiting, known = [content], set()
    while waiting:
        value = waiting.pop()
        if id(value) in known:  # a hostile file could nest one list a thousand times in itself
            continue
        known.add(id(value))
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (dict, list, tuple)):
            waiting.extend(value.values() if isinstance(value, dict) else value)


def _is_sound(tensor):
    """True when all numbers of a tensor are finite. Raises ValueError when it claims more than the file stores."""
    if tensor.layout != torch.strided or tensor.nbytes > tensor.untyped_storage().nbytes():
        raise ValueError("a tensor is larger than what is stored of it")
    return bool(tensor.isfinite().all())
