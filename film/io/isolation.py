"""Subprocess isolation, so that the program survives a file that crashes a decoder."""

import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from multiprocessing import reduction, resource_tracker
from multiprocessing.connection import wait
from typing import Any, TypeVar

from utils import UserError, as_user_error, is_out_of_memory

EXIT_TIMEOUT = 10  # seconds after which a terminated process is killed
T = TypeVar("T")


class ProcessDied(UserError):
    """The subprocess ended before it returned a result."""


class _StandardStreams:
    """Standard output and error of this process; a subprocess that unpickles them uses them as its own."""

    def __getstate__(self) -> list[tuple[int, Any]]:
        return [(number, reduction.DupFd(number)) for number in (1, 2)]

    def __setstate__(self, streams: list[tuple[int, Any]]) -> None:
        for number, stream in streams:
            os.dup2(stream.detach(), number)


def run_in_subprocess(function: Callable[..., T], *arguments: object) -> T:
    """Run ``function(*arguments)`` in a subprocess and return its result; all of these are pickled.

    The subprocess ends when this call returns or raises, or when this process is killed. Raises UserErrors and OSErrors
    of the function, RuntimeError with the traceback of any other exception, or ProcessDied if the subprocess ends
    without a result.
    """
    # Forking this process is unsafe, since decoders and torch run threads. The fork server runs none.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "film.render.rendering"])  # the latter imports nearly all modules
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(_StandardStreams(), sender, function, arguments), daemon=True)
    resource_tracker.ensure_running()  # before SIGINT is blocked, since starting the tracker unblocks it
    # Ctrl-C in a terminal is sent to all processes. This one handles it; the subprocess inherits the blocked SIGINT.
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
        raise ProcessDied(f"its process {_describe_exit(process.exitcode)}") from end
    finally:
        process.terminate()
        process.join(EXIT_TIMEOUT)
        process.kill()
    if error is not None:
        raise error
    return result


def _describe_exit(code):
    if code is None or code >= 0:
        return f"ended with exit code {code}"
    advice = " (if the memory is full, lower --batch_size)" if -code == signal.SIGKILL else ""
    return f"was ended by the signal {signal.strsignal(-code)!r}{advice}"


def _serve(_, sender, function, arguments):
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))  # SystemExit, so that context managers clean up
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    try:
        result = function(*arguments), None
    except (UserError, OSError) as error:
        result = None, error
    except Exception as error:
        # The exception itself may not be picklable.
        result = None, as_user_error(error) if is_out_of_memory(error) else RuntimeError(traceback.format_exc())
    sender.send(result)


def _exit_with_parent():
    wait([multiprocessing.parent_process().sentinel])  # type: ignore[union-attr]  # it is a child process
    os._exit(1)
