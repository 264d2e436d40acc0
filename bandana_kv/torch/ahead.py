"""Requests that are read before they are made: an op that makes one finds the answer here."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field

import numpy as np
import torch

from bandana_kv.errors import BandanaError
from bandana_kv.torch.requests import BagsAsked, RowsAsked

__all__ = ["Asked", "Counters", "Early", "answer", "begin", "drop"]

Asked = RowsAsked | BagsAsked


@dataclass
class Counters:
    """What a prefetcher counts; seconds of the reading thread, and of whoever waited for it."""

    batches: int = 0
    requests: int = 0
    used: int = 0
    read_seconds: float = 0.0
    stall_seconds: float = 0.0
    step_seconds: float = 0.0
    loader_seconds: float = 0.0


@dataclass(eq=False)
class Early:
    """A request that is being read, with memory of its own, so that changed ids are noticed."""

    asked: Asked
    counters: Counters
    done: Future[list[torch.Tensor]] = field(init=False)

    def read(self) -> list[torch.Tensor]:
        """Read it, on the thread that reads ahead."""
        begun = time.perf_counter()
        try:
            return self.asked.read()
        finally:
            self.counters.read_seconds += time.perf_counter() - begun


# By the number of their store. No locks: each step is one of a dict's or a list's own.
_early: dict[int, list[Early]] = {}
# Of a child those who would finish them do not exist.
os.register_at_fork(after_in_child=_early.clear)


def begin(
    asked: Asked,
    counters: Counters,
    submit: Callable[[Callable[[], list[torch.Tensor]]], Future[list[torch.Tensor]]],
) -> Early:
    """Have a request read by another thread, for the op that will make it."""
    early = Early(asked.kept(), counters)
    early.done = submit(early.read)
    counters.requests += 1
    _early.setdefault(asked.number, []).append(early)
    return early


def drop(early: Early) -> None:
    """Forget a request that nobody will make any more."""
    early.done.cancel()
    _remove(early)


def _remove(early: Early) -> bool:
    try:
        _early.get(early.asked.number, []).remove(early)
    except ValueError:  # another thread took it
        return False
    return True


def answer(asked: Asked) -> list[torch.Tensor]:
    """Return what a request gives: from what was read ahead, or from the store."""
    for early in list(_early.get(asked.number, ())):
        if _same(early.asked, asked) and _remove(early):
            found = _wait(early)
            if found is not None:
                return found
    return asked.read()


def _wait(early: Early) -> list[torch.Tensor] | None:
    """Return what was read; None where that failed: reading again says why."""
    begun = time.perf_counter()
    try:
        found = early.done.result()
    except (BandanaError, CancelledError):
        return None
    finally:
        early.counters.stall_seconds += time.perf_counter() - begun
    early.counters.used += 1
    return found


def _same(one: Asked, other: Asked) -> bool:
    return one == other and all(
        a is None if b is None else (a is not None and a.dtype == b.dtype and np.array_equal(a, b))
        for a, b in zip(one.arrays, other.arrays, strict=True)
    )
