"""TODO: module docstring."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import cv2
import torch


COLORING_THREADS = 2  # threads that color, a batch or a picture each

T = TypeVar("T")
U = TypeVar("U")


@contextmanager
def coloring_threads(predictors: int = COLORING_THREADS) -> Iterator[ThreadPoolExecutor]:
    """A pool of so many threads, or of as many as torch has. Within the block they share torch's threads, and OpenCV
    has none of its own: batches side by side wait for each other less than threads within one small operation."""
    threads = torch.get_num_threads(), cv2.getNumThreads()
    predictors = min(predictors, threads[0])
    torch.set_num_threads(threads[0] // predictors)
    cv2.setNumThreads(1)
    try:
        with ThreadPoolExecutor(predictors) as pool:
            yield pool
    finally:
        torch.set_num_threads(threads[0])
        cv2.setNumThreads(threads[1])


def map_in_order(pool: ThreadPoolExecutor, function: Callable[[T], U], items: Iterable[T],
             most: int = COLORING_THREADS + 1) -> Iterator[tuple[T, U]]:
    """Yield (item, function(item)) of all items, in order; the function runs in the ``coloring_threads``. So many items
    are held at ``most``: by default, one more than there are threads waits for the one that is done first."""
    waiting: deque[tuple[T, Future[U]]] = deque()
    for item in items:
        waiting.append((item, pool.submit(function, item)))
        if len(waiting) == most:
            item, answer = waiting.popleft()
            yield item, answer.result()
    for item, answer in waiting:
        yield item, answer.result()


