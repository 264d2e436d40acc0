"""Which requests are recorded: of each cycle a burst of consecutive ones."""

from __future__ import annotations

import random

__all__ = ["Bursts"]

_STARTS = 1024


class Bursts:
    """Takes a share of numbered requests.

    Of each cycle of requests a burst of consecutive ones is taken, which begins at random, so
    that no rhythm of the traffic is met always or never. A placement is learnt from whole requests,
    and a cache is replayed by consecutive ones: the longer a burst, the nearer is its replay
    to that of all requests.

    Parameters
    ----------
    sample
        The share.
    burst
        Requests of a burst.
    seed
        Of where bursts begin.

    Attributes
    ----------
    everything : bool
        Whether it takes all.
    """

    def __init__(self, sample: float, burst: int, seed: int | None = None) -> None:
        self._burst = burst
        self._cycle = max(burst, round(burst / sample))
        self.everything = self._cycle == burst
        drawn = random.Random(seed)
        self._starts = [drawn.randint(0, self._cycle - burst) for _ in range(_STARTS)]
        self._around = self._of_cycle(0)

    def takes(self, number: int) -> bool:
        """Return whether to take a request; they are numbered from 0, and come about in order.

        Safe to call from many threads: who comes late by a cycle is left out at worst.
        """
        first, end, over = self._around
        if number >= over:
            self._around = first, end, over = self._of_cycle(number // self._cycle)
        return first <= number < end

    def _of_cycle(self, cycle: int) -> tuple[int, int, int]:
        """Return where the burst of a cycle begins and ends, and where the next cycle begins."""
        first = cycle * self._cycle + self._starts[cycle % _STARTS]
        return first, first + self._burst, (cycle + 1) * self._cycle
