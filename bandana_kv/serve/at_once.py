"""Parts of one request done by several threads, where it is large enough to be worth them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import numpy as np

from bandana_kv.errors import ThreadError
from bandana_kv.system.interrupts import without_interrupts
from bandana_kv.system.threads import start

__all__ = ["at_once", "shared_out"]

# Rows of DRAM that keep a thread busy for half a millisecond: to start it costs a tenth of that.
_WORTH_ROWS = 16384


def shared_out(sizes: Sequence[int], threads: int) -> list[list[int]]:
    """Return the numbers of parts of `sizes` rows for each of some threads, at most `threads`.

    Each has about as many rows as another; one thread, if others are not worth it.
    """
    most = max(1, min(threads, len(sizes), sum(sizes) // _WORTH_ROWS))
    shares: list[list[int]] = [[] for _ in range(most)]
    rows = [0] * most
    for part in sorted(range(len(sizes)), key=lambda part: -sizes[part]):
        share = int(np.argmin(rows))
        shares[share].append(part)
        rows[share] += sizes[part]
    return [sorted(share) for share in shares]


def at_once(calls: Sequence[Callable[[], None]]) -> None:
    """Make calls, each on a thread of its own, the first on this one; return when all are over.

    The first error is raised then. What no thread can be started for is done here.
    """
    if len(calls) == 1:
        calls[0]()
        return
    errors: dict[int, BaseException] = {}

    def make(number: int) -> None:
        try:
            calls[number]()
        except BaseException as error:
            errors[number] = error

    with without_interrupts():  # the others must be over before what they read can be closed
        others: list[threading.Thread] = []
        left = [0]
        for number in range(1, len(calls)):
            try:
                others.append(start(lambda number=number: make(number), "bandana-kv-pool"))  # type: ignore[misc]
            except ThreadError:
                left.append(number)
        for number in left:
            make(number)
        for thread in others:
            thread.join()
    if errors:
        raise errors[min(errors)]
