"""Queue that distributes the shots of a film among the processes that color it."""

import itertools
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import torch.distributed as dist

from film.render.worker_group import POLL_SECONDS, WorkerGroup
from utils import UserError, as_user_error


class WorkQueue:
    """Hands out the shots of a film one by one to its owner and its helpers, so that no process waits for a slow one.

    Since a seek costs as much as decoding many frames, a process gets the shot after its last one if that is free, or
    else the shot in the middle of the longest run of free shots. A shot with more frames than one process's share of
    all free frames is handed out before the others, since it would finish last. A single process gets the shots in
    order. Shots in ``first`` precede all others.

    The state of the queue in the store has ``free`` ({index: frames}), ``busy`` and ``done`` (indices of shots), and
    ``error`` (a message) when a shot cannot be colored.
    """

    def __init__(self, group: WorkerGroup | None = None, key: str = "", name: str = "",
                 first: Sequence[int] = ()) -> None:
        """Create the queue of the film ``key``. A helper also passes the ``name`` of the owner's queue.

        ``first`` holds the indices of shots to hand out before all others.
        """
        self.group, self.key, self.name, self.first = group or WorkerGroup(), key, name, first
        self.end = sys.maxsize  # this process takes only shots with a smaller index
        self.is_shared = self.group.size > 1
        self.store = self.group.store if self.is_shared else dist.HashStore()  # in memory: no other process reads it

    def publish(self, lengths: Mapping[int, int]) -> None:
        """Offer shots, {index: frames}, except those that this queue has handed out before. Called by the owner."""
        if not self.name:
            self.name = f"shots of {self.key} by {self.group.stamp()}"
            self._update(lambda state: state.update(busy=[], done=[]))

        def offer(state):
            taken = {*state["busy"], *state["done"]}
            state["free"] = {str(index): frames for index, frames in lengths.items() if index not in taken}

        self._update(offer)
        self.group.update(self.key, lambda state: state.update(queue=self.name))

    def is_empty(self) -> bool:
        """Return whether no shot is offered to helpers. Called by the owner."""
        return not (self.name and self._update(dict)["free"])

    def withdraw(self) -> None:
        """Stop offering shots. Called by the owner."""
        self._update(lambda state: state.update(free={}))

    def __iter__(self) -> Iterator[int]:
        """Iterate over the indices of shots that this process has to color, until none is free."""
        index = None
        while (index := self._update(partial(self._take, last=index))) is not None:
            yield index

    def mark_done(self, index: int) -> None:
        """Record that a shot is colored."""
        self._update(lambda state: (state["busy"].remove(index), state["done"].append(index)))

    def finished(self, indices: Collection[int]) -> list[int]:
        """Return the shots among ``indices`` that are colored. Raises UserError if a process failed to color one."""
        state = self._update(dict)
        if "error" in state:
            raise UserError(state["error"])
        return [index for index in state["done"] if index in indices]

    def wait_for_helpers(self) -> Iterator[None]:
        """Yield at intervals until no helper works on the film.

        Then the queue is closed. To open a new one, publish the shots that are not done again.
        """
        while True:
            has_helpers = self.group.has_helpers(self.key)
            yield
            if not has_helpers:
                self.name = ""
                return
            time.sleep(POLL_SECONDS)

    @contextmanager
    def sharing_errors(self) -> Iterator[None]:
        """If the block raises an error, stop all processes that work on the film."""
        try:
            yield
        except Exception as error:
            if self.name:
                message = str(as_user_error(error))
                self._update(lambda state: state.update(free={}, error=message))
            raise

    def _update(self, function):
        return self.group.update(self.name, function, self.store)

    def _take(self, state, last):
        free = {int(index): frames for index, frames in state["free"].items() if int(index) < self.end}
        index = self._choose(free, last, is_started=bool(state["busy"] or state["done"]))
        if index is not None:
            del state["free"][str(index)]
            state["busy"].append(index)
        return index

    def _choose(self, free, last, is_started):
        """Return the next shot for the process whose previous one is ``last``; ``free`` is {index: frames}, sorted."""
        if not free:
            return None
        if preferred := [index for index in self.first if index in free]:
            return preferred[0]
        longest = max(free, key=free.__getitem__)
        if free[longest] * self.group.size >= sum(free.values()):
            return longest
        following = next((index for index in free if last is not None and index > last), None)
        if self.group.size == 1:
            return min(free) if following is None else following
        if following is not None and following == last + 1:
            return following
        runs = [[index for _, index in run] for _, run in
                itertools.groupby(enumerate(free), lambda pair: pair[1] - pair[0])]
        run = max(runs, key=lambda run: sum(map(free.__getitem__, run)))
        if not is_started:
            return run[0]
        frames_to_end = list(itertools.accumulate(map(free.__getitem__, reversed(run))))
        return next(index for index, frames in zip(reversed(run), frames_to_end, strict=True)
                    if 2 * frames >= frames_to_end[-1])
