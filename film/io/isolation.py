"""How does a file that crashes a decoder cost only itself? Work on it is done in a process apart."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from multiprocessing import reduction, resource_tracker
from multiprocessing.connection import wait
from typing import Any, TypeVar

from utils import UserError

EXIT_TIMEOUT = 10  # seconds to wait for processes that should soon end
T = TypeVar("T")


class ProcessDied(UserError):
    """The process ended before its work did."""


class _Streams:
    """Standard output and error, which become those of the process that this is pickled for."""

    def __getstate__(self) -> list[tuple[int, Any]]:
        return [(number, reduction.DupFd(number)) for number in (1, 2)]

    def __setstate__(self, streams: list[tuple[int, Any]]) -> None:
        for number, stream in streams:
            os.dup2(stream.detach(), number)


def run_in_subprocess(work: Callable[..., T], *arguments: object) -> T:
    """``work(*arguments)`` in a process of its own; work, arguments and answer are pickled.

    A UserError or an OSError of the work is raised here; Died when its process ends without an answer. The process ends
    with this call, by whatever cause, and when this process is killed.
    """
    # Decoders and torch have threads, which a fork of this process would lose: it is forked from one that has none.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "film.render.rendering"])  # which import almost all that there is
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(_Streams(), theirs, work, arguments), daemon=True)
    resource_tracker.ensure_running()  # before SIGINT is blocked, since its start unblocks it
    # Ctrl-C in a terminal reaches all processes; this one ends the other, which inherits what is blocked here.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    theirs.close()
    try:
        answer, error = ours.recv()
    except EOFError as end:
        process.join()
        raise ProcessDied(f"its process ended with exit code {process.exitcode}") from end
    finally:
        process.terminate()
        process.join(EXIT_TIMEOUT)
        process.kill()
    if error is not None:
        raise error
    return answer


def _serve(_, connection, work, arguments):
    """What the process does."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))  # SystemExit: the work is cleaned up
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        answer = work(*arguments), None
    except (UserError, OSError) as error:
        answer = None, error
    connection.send(answer)


def _end_with_parent():
    wait([multiprocessing.parent_process().sentinel])  # type: ignore[union-attr]  # it is a child
    os._exit(1)
