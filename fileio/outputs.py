"""Names of output files, and checks before they are written."""

import hashlib
import tempfile
from collections.abc import Iterable
from pathlib import Path

from utils import UserError

MAX_STEM_BYTES = 200  # longer stems are shortened before text is added; most file systems allow names of 255 bytes
PROBE_BYTES = 2**20  # size of the file that ``check_writable`` writes


def short_stem(stem: str) -> str:
    """Return ``stem``, or if it has more than MAX_STEM_BYTES bytes in UTF-8, its beginning and a hash of it."""
    data = stem.encode(errors="surrogateescape")
    if len(data) <= MAX_STEM_BYTES:
        return stem
    digest = hashlib.sha256(data).hexdigest()[:12]
    return f"{data[:MAX_STEM_BYTES - 13].decode(errors='ignore')}~{digest}"


def accompanying_path(output: Path, name: str) -> Path:
    """Return the path of the file ``name`` that accompanies a colored film or picture: ``<output stem>_<name>``."""
    return output.with_name(f"{short_stem(output.stem)}_{name}")


def hidden_path(output: Path, suffix: str) -> Path:
    """Return the absolute path of the hidden file or folder ``.<output name>.<suffix>`` next to an output."""
    return output.with_name(f".{short_stem(output.name)}.{suffix}").absolute()


def refuse_existing(paths: Iterable[Path], overwrite: bool, flag: str = "--output") -> None:
    """Raise UserError if one of the files exists and ``overwrite`` is False."""
    existing = next((path for path in paths if not overwrite and path.exists()), None)
    if existing is not None:
        raise UserError(f"{existing} exists already; pass --overwrite True or a different {flag}")


def check_writable(paths: Iterable[Path], flag: str = "--output") -> None:
    """Raise UserError if one of the files cannot be written because of its name, its folder or a full disk.

    A temporary file is written into each folder or, if that does not exist yet, into its closest existing parent.
    """
    folders = {}
    for path in paths:
        try:
            path.exists()  # fails if the name is too long
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}; pass a different {flag}") from error
        folders[next(parent for parent in path.absolute().parents if parent.exists())] = path
    for folder, path in folders.items():
        try:
            with tempfile.TemporaryFile(dir=folder) as file:
                file.write(bytes(PROBE_BYTES))
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror or error}; pass a {flag} in a writable folder on a "
                            "disk with free space") from error
