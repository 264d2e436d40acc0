"""Threads that look rows up while a cluster is broken, compare every row, and time every call.

What they saw is told by stretches of time, so that what a kill costs stands beside what was
before it::

    with Readers(ask, judge, requests) as readers:
        time.sleep(5)
        cluster.kill(node)
        readers.begin("killed")
        time.sleep(5)
    steady, killed = readers.stretches()
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

__all__ = ["Readers", "Stretch", "rows_of", "wrong_of"]

Ids = NDArray[np.int64]
Ask = Callable[[Ids], Any]
"""Ids (n,) to what the judge is given: rows (n, dim), say."""
Judge = Callable[[Ids, Any], int]
"""How many of what came for ids (n,) are wrong."""

_SHOWN = 5


@dataclass(frozen=True)
class Stretch:
    """What all readers saw in one stretch of time; calls count where they ended."""

    name: str
    seconds: float
    calls: int
    rows: int
    wrong_rows: int
    errors: int
    p50_ms: float
    p99_ms: float
    longest_ms: float
    why: tuple[str, ...]

    @property
    def rows_per_second(self) -> float:
        """Rows that came, over the time."""
        return self.rows / self.seconds

    def as_dict(self) -> dict[str, Any]:
        """Return all of it for JSON, rounded."""
        rounded = {
            name: round(value, 3) if isinstance(value, float) else value
            for name, value in asdict(self).items()
        }
        return rounded | {"rows_per_second": round(self.rows_per_second)}


@dataclass(frozen=True)
class _Call:
    end: float
    seconds: float
    rows: int
    wrong: int
    error: str


class Readers:
    """Threads that ask, one request after the other, from entering to leaving.

    Parameters
    ----------
    ask
        Looks ids up.
    judge
        Compares what came, outside of the time that is taken.
    requests
        Ids of each request; threads begin at different places and go around.
    threads
        How many.
    first
        What the first stretch is called.
    """

    def __init__(
        self,
        ask: Ask,
        judge: Judge,
        requests: Sequence[Ids],
        *,
        threads: int = 4,
        first: str = "steady",
    ) -> None:
        self._ask, self._judge, self._requests = ask, judge, requests
        self._calls: list[list[_Call]] = [[] for _ in range(threads)]
        self._first = first
        self._begun: list[tuple[str, float]] = []
        self._ended = threading.Event()
        self._threads = [
            threading.Thread(target=self._read, args=(number,), daemon=True)
            for number in range(threads)
        ]

    def __enter__(self) -> Self:
        self.begin(self._first)
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()
        self.begin("")

    def begin(self, name: str) -> None:
        """Begin another stretch."""
        self._begun.append((name, time.perf_counter()))

    def answered(self) -> bool:
        """Return whether each thread has had an answer."""
        return all(self._calls)

    def stretches(self) -> list[Stretch]:
        """Return what was seen, by stretches; only after leaving."""
        calls = sorted((call for each in self._calls for call in each), key=lambda call: call.end)
        ends = [call.end for call in calls]
        edges = [0, *np.searchsorted(ends, [begun for _, begun in self._begun[1:]]).tolist()]
        found = []
        for number, (name, begun) in enumerate(self._begun[:-1]):
            last = len(self._begun) - 2 == number
            those = calls[edges[number] : None if last else edges[number + 1]]
            found.append(_summed(name, self._begun[number + 1][1] - begun, those))
        return found

    def _read(self, number: int) -> None:
        calls, requests = self._calls[number], self._requests
        at = number * len(requests) // len(self._calls)
        while not self._ended.is_set():
            ids = requests[at % len(requests)]
            at += 1
            answer, error = None, ""
            begun = time.perf_counter()
            try:
                answer = self._ask(ids)
            except Exception as failed:  # whatever it is, it is what the caller would get
                error = f"{type(failed).__name__}: {failed}"
            end = time.perf_counter()
            wrong = 0 if error else self._judge(ids, answer)
            count = 0 if error else len(ids)
            calls.append(_Call(end, end - begun, count, wrong, error))


def _summed(name: str, seconds: float, calls: list[_Call]) -> Stretch:
    taken = 1000 * np.array([call.seconds for call in calls] or [0.0])
    errors = [call.error for call in calls if call.error]
    return Stretch(
        name=name,
        seconds=seconds,
        calls=len(calls),
        rows=sum(call.rows for call in calls),
        wrong_rows=sum(call.wrong for call in calls),
        errors=len(errors),
        p50_ms=float(np.percentile(taken, 50)),
        p99_ms=float(np.percentile(taken, 99)),
        longest_ms=float(taken.max()),
        why=tuple(dict.fromkeys(errors))[:_SHOWN],
    )


def rows_of(version: int, ids: Ids, dim: int) -> NDArray[np.int32]:
    """Return rows (n, dim) that say their version and id, and a number that mixes both behind."""
    rows = np.empty((ids.size, dim), np.int32)
    mixed = (ids * 0x9E3779B1 + version * 0x85EBCA77) & 0x7FFFFFFF
    rows[:] = (mixed[:, None] ^ (np.arange(dim) * 0x01000193)) & 0x7FFFFFFF
    rows[:, 0], rows[:, 1] = version, ids
    return rows


def wrong_of(ids: Ids, rows: NDArray[Any], oldest: int, newest: int) -> int:
    """Return how many rows of one answer are none of :func:`rows_of`, or of another version.

    All must be of one version, which is neither older than `oldest` nor newer than `newest`.
    """
    if not len(ids):
        return 0
    version = int(rows[0, 0])
    right = (rows == rows_of(version, ids, rows.shape[1])).all(axis=1)
    return int(len(ids) if not oldest <= version <= newest else (~right).sum())
