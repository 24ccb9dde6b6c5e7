"""Threads: a pool for coloring, an ordered and bounded map over it, and prefetching of an iterator."""

import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
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


def prefetch(items: Generator[T, None, None], size: int) -> Generator[T, None, None]:
    """Iterate over ``items`` in a background thread, at most ``size`` items ahead; its exceptions are raised here.

    Closing this generator, or an error in its consumer, stops the thread and closes ``items`` before it returns.
    """
    pending, stop, end = queue.Queue(size), threading.Event(), object()

    def put(item):
        while not stop.is_set():
            with suppress(queue.Full):
                pending.put(item, timeout=0.1)
                return

    def run():
        try:
            with closing(items):
                for item in items:
                    put((item, None))
                    if stop.is_set():
                        return
            put((end, None))
        except BaseException as error:  # raised in the consumer
            put((end, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        while True:
            item, error = pending.get()
            if error is not None:
                raise error
            if item is end:
                return
            yield item
    finally:
        stop.set()
        thread.join()
