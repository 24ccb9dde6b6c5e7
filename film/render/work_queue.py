"""How do several processes share films and their shots? By notes in a store, which outlives them.

``torchrun`` starts the processes, on one machine or many, and starts them again when one dies; the store is that of its
agent. Each file has one host, the process that is responsible for it. Who finds no file left without a host helps with
the shots of one: they are handed out one by one, so that a slow process holds up nothing.

A note never names a process alone, but which start of it: of a process that was started again, all that it had begun is
free, and the file that it worked on is tried again, after all others.
"""

import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import cv2
import torch
import torch.distributed as dist

from film.io.isolation import EXIT_TIMEOUT, ProcessDied, run_in_subprocess
from utils import UserError, rank_and_size, warn

PAUSE = 0.1  # seconds between two looks at the notes of others
DEATHS = 2  # a file at which processes died in so many tries is left out
T = TypeVar("T")
_crews = itertools.count()  # how often this process joined one, as all processes of the run do


def change(store: dist.Store, key: str, stamp: str, how: Callable[[dict[str, Any]], T]) -> T:
    """Change the notes under ``key``, a dict of plain values, as one: ``how(notes)`` changes them, and is called again
    when another process came between. ``stamp`` differs in every call of all processes."""
    while True:
        before = store.compare_set(key, "", "{}").decode()
        notes = json.loads(before)
        answer = how(notes)
        if json.dumps(notes) == before:
            return answer
        after = json.dumps({**notes, "stamp": stamp})
        if store.compare_set(key, before, after).decode() == after:
            return answer


@contextmanager
def _lost():
    """In the block, a store that is gone is a UserError."""
    try:
        yield
    except dist.DistError as error:
        raise UserError(f"the other processes of torchrun have ended, or cannot be reached ({error}); run again "
                        "where it ended") from error


class WorkerGroup:
    """The processes of a run: ``rank`` of ``size``, of which rank 0 leads. Without arguments one that is alone."""

    def __init__(self, store: dist.Store | None = None, rank: int = 0, size: int = 1) -> None:
        self.store, self.rank, self.size, self.is_single_process = store or dist.HashStore(), rank, size, store is None
        self.me = f"{rank}.{self.store.add(f'starts of {rank}', 1)}"
        self.stamps = itertools.count()

    @classmethod
    def join(cls) -> "WorkerGroup":
        """The crew that torchrun started this process for, or one that is alone."""
        if "TORCHELASTIC_RUN_ID" not in os.environ:
            return cls()
        rank, size = rank_and_size()
        if rank:  # no bars: those of several processes would overwrite each other
            sys.stderr.isatty = lambda: False  # type: ignore[method-assign]
        cv2.setNumThreads(torch.get_num_threads())
        with _lost():
            store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False,
                                  wait_for_workers=False)
            return cls(dist.PrefixStore(f"crew {next(_crews)}", store), rank, size)

    @property
    def is_leader(self) -> bool:
        return self.rank == 0

    def change(self, key: str, how: Callable[[dict[str, Any]], T], store: dist.Store | None = None) -> T:
        """``change`` notes that all processes see."""
        with _lost():
            return change(store or self.store, key, f"{self.me} {next(self.stamps)}", how)

    def lives(self, worker: str) -> bool:
        """Whether a process, the ``me`` of its Crew, was not started again since."""
        rank, start = map(int, worker.split("."))
        with _lost():
            return rank < self.size and self.store.add(f"starts of {rank}", 0) == start

    def compute_on_leader(self, key: str, make: Callable[[], Any]) -> Any:
        """What ``make()`` returns, a plain value, in the leader; the others wait for it, and so does a leader that is
        started again. Where it raises a UserError there, the others raise SystemExit."""
        while not (notes := self.change(key, dict)):
            if self.is_leader:
                self._decide(key, make)
            else:
                time.sleep(PAUSE)
        if "error" in notes:
            self._meet(key)
            raise UserError(notes["error"]) if self.is_leader else SystemExit(1)
        return notes["answer"]

    def _decide(self, key, make):
        try:
            decided = {"answer": make()}
        except UserError as error:
            decided = {"error": str(error)}
        self.change(key, lambda notes: notes.update(decided))

    def run_all(self, keys: Sequence[str], host: Callable[[str], None],
              help: Callable[[str, str], None] | None = None) -> dict[str, UserError]:
        """Work on all ``keys``, which name files: ``host(key)`` in one process each, in order, and ``help(key, board)``
        in those that are idle, while the host has a Board of that name.

        Returns, when all is done by whomever, {key: error} of what failed; of several it is told at once, too. A file
        at which processes died in DEATHS tries is among it. What ``host`` raises is raised unless it is a UserError,
        and what ``help`` raises.
        """
        left, here = self.left(keys), {}
        while left:
            if key := self._take(left, len(keys) > 1):
                with self._leaving(key):
                    try:
                        host(key)
                    except UserError as error:
                        here[key] = error
                    self._end(key, here.get(key, ""), len(keys) > 1)
            elif queue := help and self._choose(left):
                with self._leaving(queue[0]):
                    help(*queue)
            else:
                time.sleep(PAUSE)
            left = self.left(left)
        self._meet("the end")
        errors = {key: error for key in keys if (error := self.change(key, dict)["end"])}
        return {key: here.get(key, UserError(error)) for key, error in errors.items()}

    def _meet(self, key):
        """Wait until all processes have come here: with the first that ends, torchrun's store may go."""
        def come(notes):
            notes["here"] = [worker for worker in notes.get("here", []) if self.lives(worker) and worker != self.me]
            notes["here"].append(self.me)
            return len(notes["here"])

        deadline = time.monotonic() + EXIT_TIMEOUT
        while self.change(f"at {key}", come) < self.size and time.monotonic() < deadline:
            time.sleep(PAUSE)

    def left(self, keys: Sequence[str]) -> list[str]:
        """The keys of what is neither done nor failed; what cost a process before comes last."""
        def look(notes):
            self._bury(notes)
            return "end" in notes, notes.get("died", 0) + notes.get("deaths", 0)

        states = {key: self.change(key, look) for key in keys}
        return sorted((key for key in keys if not states[key][0]), key=lambda key: states[key][1])

    def left_at_work(self, keys: Sequence[str]) -> list[str]:
        """The keys of what processes worked on that died, and of which nobody took notice yet."""
        return [key for key in keys if not all(map(self.lives, self.change(key, dict).get("workers", [])))]

    def helpers(self, key: str) -> list[str]:
        """Who works on a file beside its host, this process. Where nobody does, nobody can begin to before it has
        another Board."""
        def look(notes):
            self._bury(notes)
            others = [worker for worker in notes.get("workers", []) if worker != self.me]
            if not others:
                notes.pop("queue", None)
            return others

        return self.change(key, look)

    def _take(self, keys, several):
        """The key of what this process shall host now; None where nothing is left to be hosted."""
        for key in keys:
            deaths = self.change(key, self._begin)
            if deaths is not None and deaths >= DEATHS:
                self._end(key, f"the process that worked on {key} ended {deaths} times; leave it out, or start fewer "
                               "processes if memory was short", several)
            elif deaths is not None:
                return key
        return None

    def _begin(self, notes):
        """Note that this process hosts a file, if nobody works on it; in how many tries processes died at it then."""
        self._bury(notes)
        if "end" in notes or notes["workers"]:
            return None
        notes.pop("queue", None)
        notes["workers"] = [self.me]
        notes["deaths"] = notes.get("deaths", 0) + notes.pop("died", 0)
        return notes["deaths"]

    def _end(self, key, error, several):
        """Note that a file is done, or failed; of several, tell."""
        if error and several:
            warn(f"{error}; the others go on")
        self.change(key, lambda notes: notes.update(end=str(error), workers=[]))

    def _bury(self, notes):
        """Take out who died, and note that somebody did: once, however many."""
        workers = notes.get("workers", [])
        notes["workers"] = [worker for worker in workers if self.lives(worker)]
        if len(notes["workers"]) < len(workers):
            notes["died"] = 1

    @contextmanager
    def _leaving(self, key):
        """At the end of the block this process works on a file no more."""
        try:
            yield
        finally:
            with suppress(UserError):  # the store is gone with torchrun
                self.change(key, self._leave)

    def _leave(self, notes):
        if self.me in notes["workers"]:
            notes["workers"].remove(self.me)

    def _join_in(self, notes, queue):
        """Note that this process works on a file, if that still has the board; whether it does."""
        self._bury(notes)
        if notes.get("queue") == queue:
            notes["workers"].append(self.me)
        return notes.get("queue") == queue

    def _choose(self, keys):
        """(key, name of its Board) of the file that has most shots to hand out, and on which this process works now;
        None if there is none."""
        boards = {key: queue for key in keys if (queue := self.change(key, dict).get("queue"))}
        free = {key: self.change(queue, lambda notes: len(notes.get("free", ()))) for key, queue in boards.items()}
        key = max(free, key=free.__getitem__, default=None)
        if key is None or not free[key] or not self.change(key, partial(self._join_in, queue=boards[key])):
            return None
        return key, boards[key]


class WorkQueue:
    """The shots of a film, which are handed out one by one to all who color it: its host, and who helps.

    As a seek costs as much as many frames, each reads on as long as the next shot is free; then it begins in the middle
    of the longest run of shots that are. A shot that is as long as each one's share of all that is free is next, as it
    would be the last to be done. So one process colors from first to last, but for those that shall be ``first``.
    """

    def __init__(self, group: WorkerGroup | None = None, key: str = "", name: str = "", first: Sequence[int] = ()) -> None:
        """``key``: of the film in ``Crew.share``. ``name``: of the host's board, for who helps."""
        self.group, self.key, self.name, self.first = group or WorkerGroup(), key, name, first
        self.known = sys.maxsize  # this process takes shots of lower numbers only
        self.shared = self.group.size > 1
        self.store = self.group.store if self.shared else dist.HashStore()  # nobody else need see it

    def post(self, lengths: Mapping[int, int]) -> None:
        """Hand out these shots, {number: frames}, from now on, but for those that were handed out since the board was
        begun. It is the host's."""
        if not self.name:
            self.name = f"shots of {self.key} by {self.group.me} {next(self.group.stamps)}"
            self._change(lambda notes: notes.update(busy=[], done=[]))

        def add(notes):
            begun = {*notes["busy"], *notes["done"]}
            notes["free"] = {str(number): frames for number, frames in lengths.items() if number not in begun}

        self._change(add)
        self.group.change(self.key, lambda notes: notes.update(queue=self.name))

    def idle(self) -> bool:
        """Whether no shot is free for who may help. It is the host's."""
        return not (self.name and self._change(dict)["free"])

    def withdraw(self) -> None:
        """Hand out no more shots. It is the host's."""
        self._change(lambda notes: notes.update(free={}))

    def __iter__(self) -> Iterator[int]:
        """The numbers of shots that this process shall color, until none is free."""
        number = None
        while (number := self._change(partial(self._take, last=number))) is not None:
            yield number

    def done(self, number: int) -> None:
        """Note that a shot is colored."""
        self._change(lambda notes: (notes["busy"].remove(number), notes["done"].append(number)))

    def finished(self, numbers: Collection[int]) -> list[int]:
        """Which of these are colored, by whomever. Raises UserError when one could not be."""
        notes = self._change(dict)
        if "error" in notes:
            raise UserError(notes["error"])
        return [number for number in notes["done"] if number in numbers]

    def wait(self) -> Iterator[None]:
        """Yields again and again until nobody helps any more; then this board ends, and the next ``post`` begins
        another one. What is not done then is still to be done."""
        while True:
            helped = self.group.helpers(self.key)
            yield
            if not helped:
                self.name = ""
                return
            time.sleep(PAUSE)

    @contextmanager
    def failing(self) -> Iterator[None]:
        """A UserError in the block ends the work of all on the film."""
        try:
            yield
        except UserError as error:
            if self.name:
                message = str(error)
                self._change(lambda notes: notes.update(free={}, error=message))
            raise

    def _change(self, how):
        return self.group.change(self.name, how, self.store)

    def _take(self, notes, last):
        free = {int(number): frames for number, frames in notes["free"].items() if int(number) < self.known}
        number = self._next(free, last, begun=notes["busy"] or notes["done"])
        if number is not None:
            del notes["free"][str(number)]
            notes["busy"].append(number)
        return number

    def _next(self, free, last, begun):
        """Which of the shots ``free``, {number: frames} in rising order, is next behind ``last``; None if none is."""
        following = next((number for number in free if last is not None and number > last), None)
        longest = max(free, key=free.__getitem__, default=None)
        if wanted := [number for number in self.first if number in free]:
            return wanted[0]
        if longest is None or free[longest] * self.group.size >= sum(free.values()):
            return longest
        if self.group.size == 1:
            return min(free) if following is None else following
        if following is not None and following == last + 1:
            return following
        runs = [[number for _, number in run] for _, run in
                itertools.groupby(enumerate(free), lambda pair: pair[1] - pair[0])]
        run = max(runs, key=lambda run: sum(map(free.__getitem__, run)))
        if not begun:
            return run[0]
        ends = list(itertools.accumulate(map(free.__getitem__, reversed(run))))
        return next(number for number, frames in zip(reversed(run), ends, strict=True) if 2 * frames >= ends[-1])


def run_isolated(keys: Sequence[str], work: Callable[..., T], *arguments: object) -> T:
    """``work(crew, *arguments)``, which shares ``keys``, by a crew of one process apart, which is started again when it
    dies: of many files, one that crashes a decoder costs only itself. All is pickled."""
    with TemporaryDirectory() as folder:
        notes = str(Path(folder) / "notes")
        while True:
            try:
                return run_in_subprocess(_work_alone, notes, work, arguments)
            except ProcessDied as death:
                files = WorkerGroup(dist.FileStore(notes, -1)).left_at_work(keys)
                if not files:
                    raise UserError(f"the work cannot be begun: {death}; see that there is memory enough") from death
                warn(f"at work on {files[0]}, {death}")


def _work_alone(notes, work, arguments):
    return work(WorkerGroup(dist.FileStore(notes, -1)), *arguments)
