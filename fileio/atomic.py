"""TODO: module docstring."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from utils import UserError


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; it takes ``path``'s name only when the block ends without an error.

    Raises UserError for any OSError, also one that is raised in the block.
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
    """Run the block in one process at a time: the others raise UserError with ``message``.

    ``path`` is the lock file, which is removed at the end. The system releases the lock when the process dies, however
    it does. Raises OSError when the file cannot be written.
    """
    lock = FileLock(path, blocking=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise UserError(message) from error
    try:
        yield
    finally:
        if os.name == "posix":  # while locked: who has opened it then sees that it has no name any more
            path.unlink(missing_ok=True)
        lock.release()
