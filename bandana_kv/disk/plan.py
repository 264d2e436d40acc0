"""The plan: for each table its placement, its share of DRAM, and how its cache is run."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import msgspec

from bandana_kv.cache.policy import WHOLE, Policy
from bandana_kv.cache.state import cache_bytes_of
from bandana_kv.errors import FormatError, InputError
from bandana_kv.system.durable import replacing
from bandana_kv.system.permission import check_permission

__all__ = [
    "PLAN_FORMAT",
    "Choice",
    "Plan",
    "PlannedPoint",
    "Predicted",
    "TablePlan",
    "check_numbers",
]

PLAN_FORMAT = 1


class PlannedPoint(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The policy that simulation found best at one amount of DRAM.

    Attributes
    ----------
    capacity_rows
        Rows in DRAM.
    policy
        The choice.
    reads_per_lookup
        Block reads per lookup that the simulation counted with it; None where the caller
        made the choice.
    """

    capacity_rows: int
    policy: Policy
    reads_per_lookup: float | None


class Predicted(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Block reads per lookup in the part of the training log that was kept back.

    Attributes
    ----------
    reads_per_lookup
        Of the choice.
    low, high
        Least and most over consecutive parts of what was kept back.
    baseline
        Of rows in arbitrary order under LRU, one read for each missed row.
    lower_bound
        Below which no policy can be, for the chosen placement and as many rows in DRAM.
    """

    reads_per_lookup: float
    low: float
    high: float
    baseline: float
    lower_bound: float


class Choice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What was chosen for a table's share of the DRAM, and why.

    Attributes
    ----------
    cache_bytes
        DRAM for cached rows and their bookkeeping.
    capacity_rows
        The rows that this is.
    placement
        Name of the placement method.
    resident_rows
        Rows, the most looked up, that the placement leaves out because DRAM will hold them.
    policy
        How the cache is run.
    predicted
        What this is expected to cost.
    runner_up
        The next best candidate, in words, and its block reads per lookup.
    confidence
        Share of the parts of the log kept back in which the choice beat the runner-up.
    reason
        Why, in a sentence.
    """

    cache_bytes: int
    capacity_rows: int
    placement: str
    resident_rows: int
    policy: Policy
    predicted: Predicted
    runner_up: tuple[str, float]
    confidence: float
    reason: str


class TablePlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `load` builds and `open` obeys for one table.

    Without points and choice: LRU that admits no neighbour.

    Attributes
    ----------
    points
        The best policy and its reads for several amounts of DRAM, rising.
    lookups
        Of the training log: the table's weight against others.
    choice
        What a plan chose; None where no DRAM budget was named.
    """

    points: tuple[PlannedPoint, ...] = ()
    lookups: int = 0
    choice: Choice | None = None

    def policy_for(self, cache_bytes: int, row_bytes: int, rows: int) -> Policy:
        """Return the policy planned for the amount of DRAM nearest to `cache_bytes`.

        Nearest by ratio. For what the choice was made for it is the choice's. Where all rows fit
        it is :data:`~bandana_kv.cache.policy.WHOLE`, unless a caller chose.
        """
        chosen = any(each.reads_per_lookup is None for each in self.points) or (
            self.choice is not None and self.choice.cache_bytes == cache_bytes
        )
        if not chosen and cache_bytes_of(WHOLE, rows, row_bytes, rows) <= cache_bytes:
            return WHOLE
        known = [
            (cache_bytes_of(each.policy, each.capacity_rows, row_bytes, rows), each.policy)
            for each in self.points
        ]
        if self.choice is not None:
            known.insert(0, (self.choice.cache_bytes, self.choice.policy))
        target = math.log(max(cache_bytes, 1))
        nearest = min(
            known, key=lambda each: abs(math.log(max(each[0], 1)) - target), default=(0, Policy())
        )
        return nearest[1]

    def curve(self, row_bytes: int, rows: int) -> list[tuple[int, float]]:
        """Return DRAM in bytes and block reads of the whole log, a pair a point."""
        return [
            (
                cache_bytes_of(each.policy, each.capacity_rows, row_bytes, rows),
                each.reads_per_lookup * self.lookups,
            )
            for each in self.points
            if each.reads_per_lookup is not None
        ]


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A plan for several tables and one DRAM budget; made by :func:`choose_plan`.

    Attributes
    ----------
    format
        Of the file.
    cache_bytes
        The budget.
    seed
        Of placement and samples.
    tables
        By name.
    """

    format: int
    cache_bytes: int
    seed: int
    tables: dict[str, TablePlan]

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the plan as JSON that people can read.

        Raises
        ------
        InputError
            The path cannot be written.
        """
        text = msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n"
        try:
            with replacing(Path(path)) as beside:
                beside.write_bytes(text)
        except OSError as error:
            check_permission(error, path)
            raise InputError(f"{path}: cannot be written ({error.strerror})") from error

    @staticmethod
    def read(path: str | os.PathLike[str]) -> Plan:
        """Read a plan.

        Raises
        ------
        InputError
            The path is mistyped.
        FormatError
            The file is damaged, or of a newer format.
        """
        try:
            text = Path(path).read_bytes()
        except OSError as error:
            check_permission(error, path)
            raise InputError(f"{path}: no plan can be read there ({error.strerror})") from error
        try:
            found = msgspec.json.decode(text, type=_Format).format
            if found > PLAN_FORMAT:
                raise FormatError(
                    f"{path}: plan format {found} is newer than this release reads "
                    f"({PLAN_FORMAT}); upgrade bandana_kv"
                )
            plan = msgspec.json.decode(text, type=Plan)
            if found < 1 or plan.cache_bytes < 0 or plan.seed < 0:
                raise ValueError("numbers are out of range")
            for table in plan.tables.values():
                check_numbers(table)
        except (msgspec.MsgspecError, UnicodeDecodeError, ValueError) as error:
            raise FormatError(
                f"{path}: not a plan ({error}); make it with tools/plan_cache.py"
            ) from error
        return plan

    def summary(self) -> list[dict[str, Any]]:
        """Return a line for each table: what was chosen and what it is expected to cost."""
        return [
            {"table": name, **msgspec.to_builtins(each.choice)}
            for name, each in self.tables.items()
            if each.choice is not None
        ]


class _Format(msgspec.Struct):
    format: int


def check_numbers(table: TablePlan) -> None:
    """Refuse what the types cannot: numbers that later size arrays or divide.

    Raises
    ------
    ValueError
        Some are out of range.
    """
    policies = [(each.capacity_rows, each.policy) for each in table.points]
    good = table.lookups >= 0
    choice = table.choice
    if choice is not None:
        policies.append((choice.capacity_rows, choice.policy))
        good &= choice.cache_bytes >= 0 and 0 <= choice.resident_rows < 1 << 32
    good &= all(
        0 <= rows < 1 << 32
        and 0.0 < policy.half_life < 1e9
        and 0.0 <= policy.seed_weight <= 1e6
        and (policy.admission.threshold is None) == (policy.admission.rule != "threshold")
        and (policy.admission.threshold or 0) >= 0
        for rows, policy in policies
    )
    if not good:
        raise ValueError("numbers are out of range")
