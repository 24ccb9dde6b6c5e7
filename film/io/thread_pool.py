"""Thread pool for coloring, a map over it with bounded memory, and prefetching of iterators."""

import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from typing import TypeVar

import cv2
import torch

from utils import single_torch_thread

CORES = torch.get_num_threads()  # as set by OMP_NUM_THREADS, at import
PICTURE_THREADS = 2  # number of pictures processed in parallel; more need more memory
T = TypeVar("T")
U = TypeVar("U")


@contextmanager
def coloring_threads(threads: int = PICTURE_THREADS) -> Iterator[ThreadPoolExecutor]:
    """Yield a pool of ``threads`` threads, but no more than CORES.

    Within the block, torch and OpenCV run on the calling thread only: parallel pictures scale better than threads
    within small operations, and the results do not depend on the number of cores.
    """
    cv2_threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        with single_torch_thread(), ThreadPoolExecutor(min(threads, CORES)) as pool:
            yield pool
    finally:
        cv2.setNumThreads(cv2_threads)


def map_in_order(pool: ThreadPoolExecutor, function: Callable[[T], U], items: Iterable[T],
                 max_pending: int = PICTURE_THREADS + 1) -> Iterator[tuple[T, U]]:
    """Yield (item, function(item)) for all items in order; ``function`` runs in ``pool``.

    At most ``max_pending`` items are submitted at a time; more hide longer delays and hold more frames in memory.
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
    """Yield ``items``, which a background thread produces at most ``size`` items ahead; raise its exceptions.

    Closing this generator stops the thread and closes ``items``.
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
