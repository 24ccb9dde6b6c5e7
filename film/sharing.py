"""How is the work on many films shared? Over processes of one machine."""

import contextlib
import io
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import wait
from typing import Any, TypeVar

import cv2
import torch
from tqdm import tqdm

from utils import UserError

PATIENCE = 10  # seconds to wait for a process that was told to end, before it is killed
T = TypeVar("T")


def share_out(prepare: Callable[[], Callable[[Any], Any]], items: Sequence[tuple], workers: int,
              apart: bool = False) -> Generator[tuple[int, Any], None, None]:
    """Work on ``items``, tuples whose first element names the file, in at most ``workers`` processes; yields
    (index, answer) for each item as it is done.

    ``prepare()`` is called once in each process and returns the function from an item to its answer; ``prepare``, items
    and answers are pickled. Where the work raises a UserError, that is the answer; where its process dies, the answer
    is a UserError that says so, and other items go on, also with one worker: a file may crash a decoder. An OSError of
    the work is raised here. A single item is worked on in this process, unless it shall be ``apart``.
    The processes share the threads of torch and OpenCV. What they print appears when an item is done. They end when the
    generator ends, by whatever cause, and when this process is killed.
    """
    workers = min(workers, len(items))
    if len(items) == 1 and not apart:
        try:
            answer = prepare()(items[0])
        except UserError as error:
            answer = error
        yield 0, answer
        return
    duty = prepare, max(1, torch.get_num_threads() // max(1, workers)), workers <= 1
    waiting, running, processes = deque(enumerate(items)), {}, {}

    def hand_out(connection=None):
        """Give the next item to a process, a new one without a ``connection``."""
        if waiting:
            connection = connection or _start(duty, processes)
            running[connection], item = waiting.popleft()
            with contextlib.suppress(BrokenPipeError):  # it has died; ``wait`` below will tell
                connection.send(item)

    try:
        with tqdm(total=len(items), unit=" files", leave=False, disable=True if workers <= 1 else None) as bar:
            for _ in range(workers):
                hand_out()
            while running:
                for connection in wait(list(running)):
                    index = running.pop(connection)
                    try:
                        answer, printed = connection.recv()  # type: ignore[call-arg, union-attr]  # no socket
                    except (EOFError, ConnectionResetError):
                        process = processes.pop(connection)
                        process.join()
                        answer, printed, connection = UserError(
                            f"the process that worked on {items[index][0]} ended with exit code {process.exitcode}; "
                            "leave it out, or run again with fewer --workers if memory was short"), "", None
                    if isinstance(answer, OSError):
                        raise answer
                    hand_out(connection)
                    tqdm.write(printed, end="")
                    bar.update()
                    yield index, answer
    finally:
        for process in processes.values():
            process.terminate()
        for process in processes.values():
            process.join(PATIENCE)
            process.kill()


def _start(duty, processes):
    """Start a process for ``duty``, what _serve gets, and note it in ``processes`` by the connection to it, which is
    returned."""
    # Decoders and torch have threads, which a fork of this process would lose: it is forked from one that has none.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "film.episode"])  # which import almost all that there is
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, *duty), daemon=True)
    resource_tracker.ensure_running()  # before SIGINT is blocked, since its start unblocks it
    # Ctrl-C in a terminal reaches all processes; this one ends the others, which inherit what is blocked here.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    theirs.close()
    processes[ours] = process
    return ours


def _serve(connection, prepare, threads, alone):
    """What a process of ``share_out`` does until no more items come."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))  # SystemExit: the work is cleaned up
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)
    if not alone:  # no bars: those of several processes would overwrite each other
        sys.stderr.isatty = lambda: False  # type: ignore[method-assign]
    work = None
    while True:
        try:
            item = connection.recv()
        except EOFError:
            return
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            try:
                work = work or prepare()
                answer = work(item)
            except (UserError, OSError) as error:
                answer = error
        connection.send((answer, printed.getvalue()))


def _end_with_parent():
    wait([multiprocessing.parent_process().sentinel])  # type: ignore[union-attr]  # it is a child
    os._exit(1)
