"""Atomic file writing, exclusive locks and hard links."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from utils import UserError


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path for the block to write to; rename that file to ``path`` when the block ends.

    After an error, the temporary file is removed and ``path`` is unchanged. Missing folders are created. Each OSError,
    also one raised in the block, becomes a UserError.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if temporary.exists():
            temporary.unlink()


@contextmanager
def exclusive_lock(path: Path, message: str) -> Iterator[None]:
    """Hold the lock file ``path`` during the block; raise UserError(``message``) if another process holds it.

    On POSIX systems, the lock file is removed at the end. The operating system releases the lock if the process is
    killed. Raises OSError if the file cannot be written.
    """
    lock = FileLock(path, blocking=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise UserError(message) from error
    try:
        yield
    finally:
        if os.name == "posix":  # before the release, so that no other process locks a file that is about to be removed
            path.unlink(missing_ok=True)
        lock.release()


def link_or_copy(source: Path, target: Path) -> None:
    """Create ``target`` as a hard link to ``source``, or as a copy if no link can be created."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
