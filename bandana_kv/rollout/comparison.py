"""Answers of both sides compared, by threads that no caller waits for."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bandana_kv.rollout.data import Difference

__all__ = ["Answer", "Background", "Differences"]

_log = logging.getLogger("bandana_kv")

# What a waiting answer costs beside its arrays.
_ANSWER_BYTES = 1024
# So many differences are kept, with so many numbers of each row.
_KEPT = 16
_NUMBERS = 32


@dataclass(frozen=True)
class Answer:
    """What a caller got, to be asked for again of the other side.

    Attributes
    ----------
    number
        Of the stage.
    side
        Which gave it.
    rows
        By table: ids (n,), and rows (n, dim).
    """

    number: int
    side: int
    rows: Mapping[str, tuple[NDArray[Any], NDArray[Any]]]


class Background:
    """Threads that work off a queue of bounded size.

    Parameters
    ----------
    work
        What they do with an answer.
    threads
        How many.
    waiting_bytes
        Bytes of the answers that wait, or are worked on; what does not fit is left out.
    """

    def __init__(self, work: Callable[[Answer], None], threads: int, waiting_bytes: int) -> None:
        self._work = work
        self._most_threads = threads
        self._most_bytes = waiting_bytes
        self.skipped = 0
        self._closing = False
        self._begin()

    def _begin(self) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[tuple[Answer, int]] = deque()
        self._held_bytes = 0
        self._threads: list[threading.Thread] = []
        self._idle = 0

    def after_fork_in_child(self) -> None:
        """Begin anew: the threads of the parent are not here, and do its work there."""
        self._begin()

    def offer(self, number: int, side: int, rows: Mapping[str, tuple[Any, Any]]) -> None:
        """Have a copy of an answer compared, if there is room; its caller may change it."""
        held = _ANSWER_BYTES + sum(ids.nbytes + each.nbytes for ids, each in rows.values())
        with self._changed:
            room = self._held_bytes + held <= self._most_bytes and not self._closing
            if not room or not self._has_thread():
                self.skipped += 1
                return
            self._held_bytes += held
        copy = {name: (ids.copy(), each.copy()) for name, (ids, each) in rows.items()}
        with self._changed:
            self._waiting.append((Answer(number, side, copy), held))
            self._changed.notify_all()

    def _has_thread(self) -> bool:
        """Return whether there is a thread; begin one more, if all are busy and it may be."""
        if len(self._waiting) >= self._idle and len(self._threads) < self._most_threads:
            thread = threading.Thread(target=self._run, name="bandana-kv-compare", daemon=True)
            try:
                thread.start()
            except RuntimeError:
                # No more threads, or the interpreter is ending: no reason to fail a caller.
                return bool(self._threads)
            self._threads.append(thread)
        return True

    def _run(self) -> None:
        changed = self._changed
        while True:
            with changed:
                self._idle += 1
                changed.wait_for(lambda: self._waiting or self._closing)
                self._idle -= 1
                if not self._waiting:
                    return
                answer, held = self._waiting.popleft()
            try:
                self._work(answer)
            except Exception:
                # Whatever it was: the next answer can be compared all the same.
                _log.exception(
                    "roll-out: an answer could not be compared",
                    extra={"event": "rollout_comparison_failed"},
                )
            with changed:
                self._held_bytes -= held
                changed.notify_all()

    def skip(self) -> None:
        """Count an answer that is not compared after all."""
        with self._changed:
            self.skipped += 1

    def wait(self, seconds: float | None) -> bool:
        """Wait until nothing is left to compare; return whether that came in time."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._held_bytes, seconds)

    def stop(self) -> None:
        """Wait for what is being compared, leave out what waits, and end."""
        with self._changed:
            self._closing = True
            self.skipped += len(self._waiting)
            for _, held in self._waiting:
                self._held_bytes -= held
            self._waiting.clear()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()


class Differences:
    """The first few rows that differ; safe to use from many threads."""

    def __init__(self) -> None:
        self._of: dict[tuple[str, int], Difference] = {}

    def count(self, table: str, ids: NDArray[Any], old: NDArray[Any], new: NDArray[Any]) -> int:
        """Return how many rows differ, bit by bit."""
        if old.shape != new.shape or old.dtype != new.dtype:
            differing = np.arange(ids.size)
        else:
            differing = np.flatnonzero((_bytes_of(old) != _bytes_of(new)).any(axis=1))
        for at in differing[: _KEPT - len(self._of)].tolist():
            # Threads that do so at once keep one row each too many: a bound all the same.
            key = (table, int(ids[at]))
            self._of.setdefault(key, _difference(*key, old[at], new[at]))
        return int(differing.size)

    def kept(self) -> tuple[Difference, ...]:
        """Return those that are kept."""
        return tuple(self._of.copy().values())


def _bytes_of(rows: NDArray[Any]) -> NDArray[np.uint8]:
    row_bytes = rows.shape[1] * rows.itemsize
    return np.ascontiguousarray(rows).view(np.uint8).reshape(len(rows), row_bytes)


def _difference(table: str, id: int, old: NDArray[Any], new: NDArray[Any]) -> Difference:
    at = 0
    if old.shape == new.shape and old.dtype == new.dtype:
        unequal = _bytes_of(old.reshape(-1, 1)) != _bytes_of(new.reshape(-1, 1))
        at = int(unequal.any(axis=1).argmax())
    return Difference(
        table=table,
        id=id,
        at=at,
        old=tuple(old[at : at + _NUMBERS].tolist()),
        new=tuple(new[at : at + _NUMBERS].tolist()),
        old_bytes=old[at : at + 1].tobytes().hex(),
        new_bytes=new[at : at + 1].tobytes().hex(),
    )
