"""Threads over kernels that release the GIL, so that Ctrl-C and progress keep working."""

from __future__ import annotations

import itertools
import queue
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np

from bandana_kv.progress import Progress

__all__ = ["Workers"]

_POLL_S = 0.1

Item = TypeVar("Item")


class Workers:
    """A pool of threads that the main thread watches.

    The main thread only waits, so that Ctrl-C reaches it while kernels run. On any
    exception `stop[0]` is set, which long kernels look at, and the threads are joined.

    Attributes
    ----------
    threads
        Number of threads.
    stop
        uint8 (1,): kernels return early once it is not zero.
    done
        int64 (threads,): units that each worker has finished; the sum is reported.
    """

    def __init__(self, threads: int, progress: Progress) -> None:
        self.threads = threads
        self.stop = np.zeros(1, np.uint8)
        self.done = np.zeros(threads, np.int64)
        self._progress = progress
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="bandana-placement")
        self._reported = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is not None:
            self.stop[0] = 1
        self._pool.shutdown(wait=True, cancel_futures=True)

    @contextmanager
    def stage(self, label: str, total: int, unit: str) -> Iterator[None]:
        """Report what happens inside as one stage of `total` units."""
        self.done[:] = 0
        self._reported = 0
        self._progress.start(label, total, unit)
        yield
        self._report()
        self._progress.finish()

    def each(self, count: int, do: Callable[[int, int], None]) -> None:
        """Call ``do(index, worker)`` for every index below `count`, on all threads."""
        indices = itertools.count()

        def work(worker: int) -> None:
            while not self.stop[0] and (index := next(indices)) < count:
                do(index, worker)

        finished: queue.SimpleQueue[Future[Any]] = queue.SimpleQueue()
        workers = min(self.threads, count)
        for worker in range(workers):
            self._pool.submit(work, worker).add_done_callback(finished.put)
        for _ in range(workers):
            self._next(finished).result()

    def grow(self, first: Item, do: Callable[[Item, int], list[Item]]) -> None:
        """Call ``do(item, worker)`` for `first` and for every item that a call returns."""
        finished: queue.SimpleQueue[Future[list[Item]]] = queue.SimpleQueue()
        idle: queue.SimpleQueue[int] = queue.SimpleQueue()
        for worker in range(self.threads):
            idle.put(worker)

        def work(item: Item) -> list[Item]:
            worker = idle.get()
            try:
                return do(item, worker)
            finally:
                idle.put(worker)

        waiting = [first]
        running = 0
        while waiting or running:
            for item in waiting:
                self._pool.submit(work, item).add_done_callback(finished.put)
            running += len(waiting) - 1
            waiting = self._next(finished).result()

    def _next(self, finished: queue.SimpleQueue[Future[Item]]) -> Future[Item]:
        """Wait for a future to end, reporting progress meanwhile."""
        while True:
            try:
                return finished.get(timeout=_POLL_S)
            except queue.Empty:
                self._report()

    def _report(self) -> None:
        done = int(self.done.sum())
        if done > self._reported:
            self._progress.advance(done - self._reported)
            self._reported = done
