"""A thread pool for coloring, and an ordered, bounded map over it."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import cv2
import torch

COLORING_THREADS = 2  # threads that each color a batch or an image; more need more memory and leave torch fewer threads
T = TypeVar("T")
U = TypeVar("U")


@contextmanager
def coloring_threads(threads: int = COLORING_THREADS) -> Iterator[ThreadPoolExecutor]:
    """Yield a pool of ``threads`` threads, at most as many as torch has.

    Within the block they share torch's threads, and OpenCV uses one thread each: batches in parallel scale better than
    threads within one small operation.
    """
    torch_threads, cv2_threads = torch.get_num_threads(), cv2.getNumThreads()
    threads = min(threads, torch_threads)
    torch.set_num_threads(torch_threads // threads)
    cv2.setNumThreads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            yield pool
    finally:
        torch.set_num_threads(torch_threads)
        cv2.setNumThreads(cv2_threads)


def map_in_order(pool: ThreadPoolExecutor, function: Callable[[T], U], items: Iterable[T],
                 max_pending: int = COLORING_THREADS + 1) -> Iterator[tuple[T, U]]:
    """Yield (item, function(item)) of all items in order; the function runs in ``pool``.

    At most ``max_pending`` items are in work or waiting; more hide longer delays and hold more frames in memory.
    """
    pending: deque[tuple[T, Future[U]]] = deque()
    for item in items:
        pending.append((item, pool.submit(function, item)))
        if len(pending) == max_pending:
            item, future = pending.popleft()
            yield item, future.result()
    for item, future in pending:
        yield item, future.result()
