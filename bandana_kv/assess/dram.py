"""How much DRAM: the least that the request rate and the latency budget allow, or the knee."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bandana_kv.assess.data import DramPoint
from bandana_kv.cache.allocation import hull
from bandana_kv.plan import allocate
from bandana_kv.units import size_text

__all__ = ["HEADROOM", "Budget", "Curves", "budgets", "choose_budget", "reads_at"]

# A device that is asked for all it can read answers late.
HEADROOM = 0.7
_BUDGETS = 40

# By table: DRAM for its cache in bytes, and block reads a request; the first is without DRAM.
Curves = Mapping[str, Sequence[tuple[int, float]]]


@dataclass(frozen=True)
class Budget:
    """DRAM for all caches, each table's share of it, and why it is this much."""

    cache_bytes: int
    shares: dict[str, int]
    why: str


def reads_at(curves: Curves, cache_bytes: int) -> tuple[dict[str, int], float]:
    """Share `cache_bytes` out; return the shares, and block reads a request of all tables."""
    shares = allocate(curves, cache_bytes)
    total = 0.0
    for name, points in curves.items():
        sizes, reads = zip(*hull(points), strict=True)
        total += float(np.interp(shares[name], sizes, reads))
    return shares, total


def budgets(curves: Curves) -> list[DramPoint]:
    """Return block reads a request of all tables for rising budgets, evenly in the logarithm."""
    least = sum(points[1][0] for points in curves.values())
    most = sum(points[-1][0] for points in curves.values())
    sizes = np.unique(np.geomspace(max(1, least), max(1, most), _BUDGETS).astype(np.int64))
    return [DramPoint(int(size), reads_at(curves, int(size))[1]) for size in sizes]


def choose_budget(
    curves: Curves,
    table_bytes: int,
    *,
    requests_per_second: float | None,
    device_reads_per_second: float,
    in_time: Callable[[int], bool] | None,
) -> Budget:
    """Choose the DRAM for all caches.

    Parameters
    ----------
    curves
        Of all tables.
    table_bytes
        Of all their rows.
    requests_per_second
        Each looks up in every table; None where no rate is asked for.
    device_reads_per_second
        What one device reads.
    in_time
        Whether the latency budget is kept with so many bytes; None without one.

    Returns
    -------
    Budget
        Memory costs less the less DRAM there is, so that the least which serves is the cheapest:
        with a rate, the least for which one device is asked for no more than `HEADROOM` of what
        it reads; with a latency budget, at least what keeps it. Without a rate, or where no
        amount lets one device keep up, the knee: the amount for which the share of the tables
        in DRAM and the share of block reads that are left have the least sum.
    """
    points = budgets(curves)
    bare = reads_at(curves, 0)[1]
    knee = min(
        range(len(points)),
        key=lambda at: (
            points[at].cache_bytes / table_bytes + points[at].reads_per_request / max(bare, 1e-12)
        ),
    )
    least, why = (
        knee,
        (
            "from here on, one more per cent of the tables' bytes in DRAM saves less than one per "
            "cent of the block reads that there would be without DRAM"
        ),
    )
    if requests_per_second is not None:
        least, why = _for_rate(
            points, knee, why, requests_per_second, HEADROOM * device_reads_per_second
        )
    if in_time is not None:
        least, why = _for_latency(points, least, why, in_time)
    cache_bytes = points[least].cache_bytes
    return Budget(cache_bytes, reads_at(curves, cache_bytes)[0], why)


def _for_rate(
    points: list[DramPoint], knee: int, why: str, rate: float, reads_per_second: float
) -> tuple[int, str]:
    for at, point in enumerate(points):
        if rate * point.reads_per_request <= reads_per_second:
            return at, (
                f"the least, and so the cheapest, with which one device keeps up: {rate:,.0f} "
                f"requests a second cause {rate * point.reads_per_request:,.0f} block reads a "
                f"second, and {HEADROOM:.0%} of what the device reads is {reads_per_second:,.0f}"
            )
    return knee, (
        f"no amount of DRAM up to half of the rows lets one device keep up with {rate:,.0f} "
        f"requests a second, so that it was chosen as without a rate: {why}"
    )


def _for_latency(
    points: list[DramPoint], least: int, why: str, in_time: Callable[[int], bool]
) -> tuple[int, str]:
    """Return the least from `least` up that is in time, by bisection: more DRAM is never later."""
    if in_time(points[least].cache_bytes):
        return least, why
    low, high = least, len(points) - 1
    if not in_time(points[high].cache_bytes):
        return least, f"{why} (no amount up to half of the rows keeps the latency budget)"
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if in_time(points[middle].cache_bytes) else (middle, high)
    return high, (
        f"the least that keeps the latency budget; {size_text(points[least].cache_bytes)} would "
        f"do without it: {why}"
    )
