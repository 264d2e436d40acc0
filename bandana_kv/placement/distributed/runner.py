"""Who maps a function over the shares of a log: this process, one share at a time, or Ray.

A *kernel* takes shares, which it works on one after the other, and what was broadcast, and returns
sums over them, arrays of integers; those of all workers are added up. A *task* takes an item and
what was broadcast, and returns anything. Both are functions of their arguments and of files, named
by their module, so that whoever runs them, how often, and in which order makes no difference.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bandana_kv.placement.distributed.peak import peak_of_process
from bandana_kv.placement.distributed.shares import Share

__all__ = ["InProcess", "Kernel", "Moved", "Runner", "Sums", "Task", "bytes_in"]

Sums = tuple[NDArray[Any], ...]
Kernel = Callable[..., Sums]
Task = Callable[..., Any]


@dataclass
class Moved:
    """Bytes between the driver and its workers, and through the work directory.

    Attributes
    ----------
    down_bytes
        Broadcast, once for each worker.
    up_bytes
        Sums and results.
    files_bytes
        Written into the work directory to be read by another worker.
    """

    down_bytes: int = 0
    up_bytes: int = 0
    files_bytes: int = 0


class Runner(Protocol):
    """What the placement of a log in files asks of whoever does the work."""

    @property
    def workers(self) -> int:
        """How many shares or tasks are worked on at a time."""

    @property
    def threads(self) -> int:
        """How many threads a task may use; must not change its result."""

    @property
    def moved(self) -> Moved:
        """What was moved so far."""

    def broadcast(self, value: NDArray[Any]) -> Any:
        """Give workers an array; returns what stands for it in the calls below."""

    def map_log(self, kernel: Kernel, shares: Sequence[Share], *values: Any) -> Sums:
        """Return the sums of what ``kernel(shares, *values)`` returns for some shares at a time.

        Raises
        ------
        BandanaError
            What the kernel raises.
        """

    def each(self, task: Task, items: Sequence[Any], *values: Any) -> Iterator[tuple[int, Any]]:
        """Yield the number of each item and ``task(item, *values)`` as they are done.

        Items are begun in their order. Raises as :meth:`map_log`.
        """

    def peak_bytes(self) -> list[int]:
        """Return the most memory of its own that each worker's process had, resident."""


def bytes_in(value: Any) -> int:
    """Return the bytes of arrays in a value, itself one or a tuple."""
    if isinstance(value, np.ndarray):
        return value.nbytes
    if isinstance(value, (tuple, list)):
        return sum(map(bytes_in, value))
    return 0


class InProcess:
    """Works in this process, on one share or task at a time.

    Parameters
    ----------
    threads
        Of a task; by default one for each processor that this process may use.
    """

    workers = 1

    def __init__(self, threads: int | None = None) -> None:
        self.threads = threads or len(os.sched_getaffinity(0))
        self.moved = Moved()

    def broadcast(self, value: NDArray[Any]) -> NDArray[Any]:
        """Return the value: it is here."""
        self.moved.down_bytes += value.nbytes
        return value

    def map_log(self, kernel: Kernel, shares: Sequence[Share], *values: Any) -> Sums:
        """Return the sums."""
        total = kernel(shares, *values)
        self.moved.up_bytes += bytes_in(total)
        return total

    def each(self, task: Task, items: Sequence[Any], *values: Any) -> Iterator[tuple[int, Any]]:
        """Yield what the task makes of each item."""
        for number, item in enumerate(items):
            result = task(item, *values)
            self.moved.up_bytes += bytes_in(result)
            yield number, result

    def peak_bytes(self) -> list[int]:
        """Return the most memory that this process had, resident."""
        return [peak_of_process()]
