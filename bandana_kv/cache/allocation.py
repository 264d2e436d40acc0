"""One DRAM budget among many tables: each byte where it saves most block reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

__all__ = ["allocate", "hull"]

Point = tuple[float, float]


def hull(points: Sequence[Point]) -> list[Point]:
    """Return the corners of the lower convex hull of `points` (bytes, reads), by bytes.

    It begins with the point of least bytes and ends at the least reads: beyond, more DRAM
    saves nothing.
    """
    corners: list[Point] = []
    for point in sorted(set(points)):
        if corners and point[1] >= corners[-1][1]:
            continue
        while len(corners) > 1 and _slope(corners[-2], point) <= _slope(corners[-2], corners[-1]):
            corners.pop()
        corners.append(point)
    return corners


def _slope(first: Point, second: Point) -> float:
    return (second[1] - first[1]) / (second[0] - first[0])


def allocate(curves: Mapping[str, Sequence[Point]], cache_bytes: int) -> dict[str, int]:
    """Share `cache_bytes` among tables so that the sum of their block reads is least.

    Parameters
    ----------
    curves
        By table: pairs of DRAM in bytes and block reads; a table without DRAM is one of them.
    cache_bytes
        The budget.

    Returns
    -------
    dict of int
        Bytes by table; their sum is at most the budget.

    Notes
    -----
    The steps of all hulls, steepest first: the least sum there is, where curves are convex
    and straight between their points. The step that the budget cuts is taken in part.
    Source: marginal utility, as in Bandana and in Talus (Beckmann and Sanchez, HPCA 2015).
    """
    shares = dict.fromkeys(curves, 0)
    steps = []
    for name, points in curves.items():
        corners = hull(points)
        steps += [
            (_slope(first, second), name, second[0] - first[0])
            for first, second in pairwise(corners)
        ]
    left = float(cache_bytes)
    for _, name, width in sorted(steps):
        taken = min(left, width)
        shares[name] += int(taken)
        left -= taken
    return shares
