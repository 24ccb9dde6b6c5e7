"""Atomic file writing, exclusive locks and hard links."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from fileio.outputs import short_stem
from utils import UserError, warn

_NO_LOCKS = errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP  # of file systems without locks


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary, absolute path for the block to write to; rename that file to ``path`` when the block ends.

    After an error, the temporary file is removed and ``path`` is unchanged. Missing folders are created. Each OSError,
    also one raised in the block, becomes a UserError.
    """
    path = Path(path)
    # Absolute, since FFmpeg takes a relative path such as "a: b.mp4" for a URL
    temporary = path.with_name(f".{short_stem(path.stem)}.partial{path.suffix}").absolute()
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
    killed. On a file system without locks, a warning is printed. Raises OSError if the file cannot be written.
    """
    lock = FileLock(path, blocking=False, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise UserError(message) from error
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        warn(f"{path.parent} cannot lock files ({error.strerror}); start only one run at a time that writes there")
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
