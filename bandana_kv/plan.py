"""The plan of a table: which neighbours enter DRAM, for each amount of DRAM."""

from __future__ import annotations

import math
from typing import Literal

import msgspec

from bandana_kv import heat
from bandana_kv.errors import InputError

__all__ = ["Admission", "PlannedPoint", "TablePlan", "parse_admission"]

Rule = Literal["none", "all", "threshold"]


class Admission(msgspec.Struct, frozen=True):
    """Which rows that came along with a read enter the cache.

    Attributes
    ----------
    rule
        ``none``; ``all``; or ``threshold``: those looked up more than `threshold` times
        in the training log.
    threshold
        Set if and only if the rule is ``threshold``.
    """

    rule: Rule = "none"
    threshold: int | None = None

    @property
    def least_heat(self) -> int:
        """The rule as the kernels take it."""
        if self.rule == "threshold" and self.threshold is not None:
            return heat.least_heat(self.threshold)
        return heat.ALL if self.rule == "all" else heat.NONE

    def __str__(self) -> str:
        return self.rule if self.threshold is None else f"{self.rule} {self.threshold}"


class PlannedPoint(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The admission that simulation found best at one amount of DRAM.

    Attributes
    ----------
    cache_fraction
        Rows in DRAM / rows of the table.
    admission
        The choice.
    reads_per_lookup
        Block reads per lookup that the simulation counted with it; None where the caller
        made the choice.
    """

    cache_fraction: float
    admission: Admission
    reads_per_lookup: float | None


class TablePlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `open` obeys for one table; without points no neighbour is admitted."""

    points: tuple[PlannedPoint, ...] = ()

    def admission_at(self, cache_fraction: float) -> Admission:
        """Return the admission planned for the amount of DRAM nearest to `cache_fraction`."""
        if not self.points:
            return Admission()
        target = math.log(max(cache_fraction, 1e-9))
        nearest = min(self.points, key=lambda point: abs(math.log(point.cache_fraction) - target))
        return nearest.admission


def parse_admission(rule: str, threshold: int | None) -> Admission:
    """Return the admission a caller asked for.

    Raises
    ------
    InputError
        The rule is unknown, or the threshold does not go with it.
    """
    if rule not in ("none", "all", "threshold"):
        raise InputError(f"admission {rule!r} is unknown; choose none, all or threshold")
    if (rule == "threshold") != (threshold is not None):
        raise InputError(
            "a threshold goes with admission='threshold' and only with it; "
            f"got admission={rule!r}, threshold={threshold!r}"
        )
    if threshold is not None and (not isinstance(threshold, int) or threshold < 0):
        raise InputError(f"threshold {threshold!r} is not a whole number from 0 up")
    return Admission(rule, threshold)  # type: ignore[arg-type]  # checked above
