"""Group of processes that divide films among themselves, coordinated through a key-value store.

``torchrun`` starts the processes, on one or several machines, and restarts those that die. The store runs in torchrun's
agent, so it survives a restart. Each film has one owner, the process that is responsible for it. Once every film has an
owner, a free process helps an owner with the shots of its film (see work_queue.py).

A process is identified by its rank and its restart count. When a process restarts, its claims become free again, and
the film that it worked on is retried after all others.
"""

import base64
import itertools
import json
import os
import pickle
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import cv2
import torch
import torch.distributed as dist

from film.io.isolation import EXIT_TIMEOUT, ProcessDied, run_in_subprocess
from utils import UserError, as_user_error, is_internal, rank_and_size, warn

POLL_SECONDS = 0.1  # interval at which the store is read while waiting for other processes
MAX_FAILED_ATTEMPTS = 2  # a file fails after its processes have died in this number of attempts
T = TypeVar("T")
_joined_groups = itertools.count()  # numbers the groups of a run; all processes join them in the same order


@contextmanager
def _explain_store_errors():
    """Context manager: turn errors of the store into UserError."""
    try:
        yield
    except dist.DistError as error:
        raise UserError(f"the other processes of torchrun have ended or cannot be reached ({error}); run the same "
                        "command again to continue") from error


class WorkerGroup:
    """The ``size`` processes of a run, seen from rank ``rank``; rank 0 is the leader. By default, a single process.

    The store maps each key to a state, a dict of plain values. The state of a file has ``workers`` (ids of processes
    that work on the file or have died), ``failed_attempts`` (number of earlier attempts in which a process died),
    ``queue`` (name of the owner's WorkQueue) and, when the file is finished, ``outcome`` (error message or "").
    """

    def __init__(self, store: dist.Store | None = None, rank: int = 0, size: int = 1) -> None:
        self.store, self.rank, self.size, self.is_single_process = store or dist.HashStore(), rank, size, store is None
        start = self.store.add(f"starts of {rank}", 1)
        self.worker_id, self.previous_id = f"{rank}.{start}", f"{rank}.{start - 1}"
        self._stamps = itertools.count()

    @classmethod
    def join(cls) -> "WorkerGroup":
        """Return the group for which torchrun started this process, or a group of a single process."""
        if "TORCHELASTIC_RUN_ID" not in os.environ:
            return cls()
        rank, size = rank_and_size()
        if rank:  # disable progress bars: those of several processes would overwrite each other
            sys.stderr.isatty = lambda: False  # type: ignore[method-assign]
        cv2.setNumThreads(torch.get_num_threads())
        with _explain_store_errors():
            store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False,
                                  wait_for_workers=False)
            return cls(dist.PrefixStore(f"group {next(_joined_groups)}", store), rank, size)

    @property
    def is_leader(self) -> bool:
        return self.rank == 0

    def stamp(self) -> str:
        """Return a string that no other call in any process returns."""
        return f"{self.worker_id} {next(self._stamps)}"

    def update(self, key: str, function: Callable[[dict[str, Any]], T], store: dist.Store | None = None) -> T:
        """Apply ``function(state)``, which may change the state of ``key``, atomically; return its result.

        The function is called again when another process has changed the state meanwhile.
        """
        store = store or self.store
        with _explain_store_errors():
            while True:
                before = store.compare_set(key, "", "{}").decode()
                state = json.loads(before)
                result = function(state)
                if json.dumps(state) == before:
                    return result
                after = json.dumps({**state, "stamp": self.stamp()})  # no other process writes the same text
                if store.compare_set(key, before, after).decode() == after:
                    return result

    def read(self, key: str) -> dict[str, Any]:
        """Return the state of ``key``, {} if it was never written."""
        return self.update(key, dict)

    def is_alive(self, worker: str) -> bool:
        """Return whether the process with this ``worker_id`` has not been restarted."""
        rank, start = map(int, worker.split("."))
        with _explain_store_errors():
            return rank < self.size and self.store.add(f"starts of {rank}", 0) == start

    def compute_on_leader(self, key: str, function: Callable[[], T]) -> T:
        """Call ``function()`` in the leader only, and return its pickled result in all processes.

        A restarted leader gets the stored result of the earlier call. If the function raises UserError, the leader
        raises it, and the other processes raise SystemExit.
        """
        if self.is_single_process:
            return function()
        while not (state := self.read(key)):
            if self.is_leader:
                self._compute(key, function)
            else:
                time.sleep(POLL_SECONDS)
        if "error" in state:
            self._barrier(key)
            raise UserError(state["error"]) if self.is_leader else SystemExit(1)
        return pickle.loads(base64.b64decode(state["result"]))

    def _compute(self, key, function):
        try:
            outcome = {"result": base64.b64encode(pickle.dumps(function())).decode()}
        except UserError as error:
            outcome = {"error": str(error)}
        self.update(key, lambda state: state.update(outcome))

    def run_all(self, keys: Sequence[str], own: Callable[[str], None],
                help: Callable[[str, str], None] | None = None) -> dict[str, UserError]:
        """Process the files named by ``keys`` with all processes of the group.

        Each key is processed by ``own(key)`` in one process, in order. Processes without a key of their own call
        ``help(key, queue_name)`` while the owner of a key offers shots in a WorkQueue of that name.

        Returns {key: error} of the failed keys in every process, after all keys are finished; with several keys, each
        failure is also printed at once, with the traceback of an internal error. A key whose processes died in
        MAX_FAILED_ATTEMPTS attempts fails, too. Internal errors of ``own`` with a single key and all errors of ``help``
        are raised.
        """
        pending, errors = self.pending(keys), {}
        while pending:
            if key := self._claim(pending, len(keys) > 1):
                with self._leaving(key):
                    try:
                        own(key)
                    except Exception as error:
                        errors[key] = as_user_error(error)
                        if len(keys) == 1 and not isinstance(error, UserError):
                            raise
                        if is_internal(error):
                            traceback.print_exc()
                    self._finish(key, errors.get(key, ""), len(keys) > 1)
            elif joined := help and self._join_queue(pending):
                with self._leaving(joined[0]):
                    help(*joined)
            else:
                time.sleep(POLL_SECONDS)
            pending = self.pending(pending)
        self._barrier("the end")
        outcomes = {key: self.read(key)["outcome"] for key in keys}
        return {key: errors.get(key, UserError(message)) for key, message in outcomes.items() if message}

    def _barrier(self, key):
        """Wait at most EXIT_TIMEOUT seconds for all processes: torchrun may stop its store when the first one ends."""
        def arrive(state):
            arrived = [worker for worker in state.get("arrived", []) if self.is_alive(worker)]
            state["arrived"] = arrived if self.worker_id in arrived else [*arrived, self.worker_id]
            return len(state["arrived"])

        deadline = time.monotonic() + EXIT_TIMEOUT
        while self.update(f"at {key}", arrive) < self.size and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)

    def pending(self, keys: Sequence[str]) -> list[str]:
        """Return the keys that have neither succeeded nor failed, those with the fewest failed attempts first."""
        def failed_attempts(key):
            state = states[key]
            return state.get("failed_attempts", 0) + (not all(map(self.is_alive, state.get("workers", []))))

        states = {key: state for key in keys if "outcome" not in (state := self.read(key))}
        return sorted(states, key=failed_attempts)

    def has_helpers(self, key: str) -> bool:
        """Return whether other processes work on the file of this owner. If not, close its queue, so none can join."""
        def inspect(state):
            workers = state.get("workers", [])
            has_others = any(worker != self.worker_id and self.is_alive(worker) for worker in workers)
            if not has_others:
                state.pop("queue", None)
            return has_others

        return self.update(key, inspect)

    def _claim(self, keys, several):
        """Become the owner of a file; return its key, or None if all files have owners."""
        for key in keys:
            failed = self.update(key, self._become_owner)
            if failed is not None and failed >= MAX_FAILED_ATTEMPTS:
                self._finish(key, f"the process that worked on {key} ended {failed} times; leave it out, or start "
                                  "fewer processes or lower --batch_size if the memory is full", several)
            elif failed is not None:
                return key
        return None

    def _become_owner(self, state):
        """Become the owner of a file if nobody works on it; return its number of failed attempts, or None."""
        workers = state.get("workers", [])
        if "outcome" in state or any(map(self.is_alive, workers)):
            return None
        state.pop("queue", None)
        # Several deaths in one attempt, as when a machine fails, count once.
        state.update(workers=[self.worker_id], failed_attempts=state.get("failed_attempts", 0) + bool(workers))
        return state["failed_attempts"]

    def _finish(self, key, error, several):
        """Record the outcome of a file, and print the error if there are several files."""
        if error and several:
            warn(f"{error}; continuing with the other files")
        self.update(key, lambda state: state.update(outcome=str(error), workers=[]))

    @contextmanager
    def _leaving(self, key):
        """Remove this process from the workers of a file when the block ends."""
        try:
            yield
        finally:
            with suppress(UserError):  # the store may have ended with torchrun
                self.update(key, self._leave)

    def _leave(self, state):
        if self.worker_id in state["workers"]:
            state["workers"].remove(self.worker_id)

    def _join_queue(self, keys):
        """Become a worker of the file with the most shots on offer; return (key, queue name), or None."""
        queues = {key: queue for key in keys if (queue := self.read(key).get("queue"))}
        offers = {key: len(self.read(queue).get("free", ())) for key, queue in queues.items()}
        key = max(offers, key=offers.__getitem__, default=None)
        if key is None or not offers[key] or not self.update(key, partial(self._become_helper, queue=queues[key])):
            return None
        return key, queues[key]

    def _become_helper(self, state, queue):
        """Become a worker of a file if its owner still has this queue; return whether it has."""
        if state.get("queue") != queue:
            return False
        state["workers"].append(self.worker_id)
        return True


def run_isolated(keys: Sequence[str], work: Callable[..., T], *arguments: object) -> T:
    """Call ``work(group, *arguments)``, which processes ``keys``, in a subprocess that is restarted if it dies.

    A file that crashes a decoder thus does not stop the others. Returns the result of ``work``. The function, arguments
    and result are pickled. Raises UserError if the subprocess dies before it works on a file.
    """
    with TemporaryDirectory() as folder:
        path = str(Path(folder) / "store")
        while True:
            try:
                return run_in_subprocess(_work_in_subprocess, path, work, arguments)
            except ProcessDied as death:
                group = WorkerGroup(dist.FileStore(path, -1))
                file = next((key for key in keys if group.previous_id in group.read(key).get("workers", [])), None)
                if file is None:
                    raise UserError(f"the work cannot be started: {death}; check the free memory") from death
                warn(f"while working on {file}, {death}")


def _work_in_subprocess(path, work, arguments):
    return work(WorkerGroup(dist.FileStore(path, -1)), *arguments)
