"""Subprocess isolation: a file that crashes a decoder does not end the program."""

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

EXIT_TIMEOUT = 10  # seconds that a process gets to end by itself
T = TypeVar("T")


class ProcessDied(UserError):
    """The process ended before it returned a result."""


class _StandardStreams:
    """Standard output and error of this process; unpickling them replaces those of the other process."""

    def __getstate__(self) -> list[tuple[int, Any]]:
        return [(number, reduction.DupFd(number)) for number in (1, 2)]

    def __setstate__(self, streams: list[tuple[int, Any]]) -> None:
        for number, stream in streams:
            os.dup2(stream.detach(), number)


def run_in_subprocess(function: Callable[..., T], *arguments: object) -> T:
    """Return ``function(*arguments)``, run in a process of its own; function, arguments and result are pickled.

    The process ends when this call returns or raises, and when this process is killed. Raises the UserError or OSError
    of the function, or ProcessDied if the process ends without a result.
    """
    # Decoders and torch have threads, so this process cannot be forked safely: a fork server without threads is.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "film.render.rendering"])  # which imports nearly all modules
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(_StandardStreams(), sender, function, arguments), daemon=True)
    resource_tracker.ensure_running()  # before SIGINT is blocked, since its start unblocks it
    # Ctrl-C in a terminal is sent to all processes. This one handles it; the other inherits the blocked signal.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    sender.close()
    try:
        result, error = receiver.recv()
    except EOFError as end:
        process.join()
        raise ProcessDied(f"its process ended with exit code {process.exitcode}") from end
    finally:
        process.terminate()
        process.join(EXIT_TIMEOUT)
        process.kill()
    if error is not None:
        raise error
    return result


def _serve(_, sender, function, arguments):
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))  # SystemExit, so that context managers clean up
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    try:
        result = function(*arguments), None
    except (UserError, OSError) as error:
        result = None, error
    sender.send(result)


def _exit_with_parent():
    wait([multiprocessing.parent_process().sentinel])  # type: ignore[union-attr]  # it is a child process
    os._exit(1)
