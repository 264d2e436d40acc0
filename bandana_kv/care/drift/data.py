"""What advice is made of, and what it is made from."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from bandana_kv.cache.policy import Policy
from bandana_kv.disk.plan import TablePlan
from bandana_kv.placement import Placement

__all__ = ["Advice", "Option", "Served"]


_PLAIN, _UNPLANNED = Policy(), TablePlan()


@dataclass(frozen=True)
class Served:
    """How a table is served.

    Attributes
    ----------
    placement : Placement
    capacity_rows : int
        Rows that DRAM holds.
    policy : Policy
        How the cache is run.
    plan : TablePlan
        What was expected of it.
    heat : uint8 (rows,) or None
        By position; None: that of the recorded requests themselves.
    block_bytes : int
        What a block takes on the device.
    """

    placement: Placement
    capacity_rows: int
    policy: Policy = _PLAIN
    plan: TablePlan = _UNPLANNED
    heat: NDArray[np.uint8] | None = None
    block_bytes: int = 4096


class Option(msgspec.Struct, frozen=True):
    """Something that could be done, and what it would have cost and saved.

    Attributes
    ----------
    action
        ``"nothing"``, ``"new plan"``, ``"place 25 % anew"`` (or another share) or ``"place all
        anew"``.
    policy
        The new one; None: the cache is run as it is.
    blocks, written_bytes
        To rewrite.
    budget_days
        Days of the write budget that this takes; None where there is no budget.
    reads_per_lookup, low, high
        On the later part of the recorded requests; least and most over its parts.
    saved
        Share of the block reads that it saves.
    stands_out
        Whether it saves more than the parts differ in what they save.
    """

    action: str
    policy: Policy | None
    blocks: int
    written_bytes: int
    budget_days: float | None
    reads_per_lookup: float
    low: float
    high: float
    saved: float
    stands_out: bool

    def __str__(self) -> str:
        return self.action + (" with a new plan" if self.policy is not None and self.blocks else "")


class Advice(msgspec.Struct, frozen=True):
    """What to do about a table, with the numbers that say so.

    Attributes
    ----------
    table
        Its name; may be empty.
    action, policy, blocks
        Of the option that is advised; with a `policy`, a new plan goes with the new placement.
    reason
        Why, in a sentence.
    lookups
        Of the recorded requests that were learnt from and judged by.
    reads_per_lookup
        As served: by the store's own counters, or else by simulation.
    live
        Whether it is by the counters.
    predicted, predicted_low, predicted_high
        What the plan expected; None without a plan.
    drifted
        Whether what is served lies outside what the plan expected; None without a plan.
    options
        All that were tried, the cheapest to write first.
    """

    table: str
    action: str
    policy: Policy | None
    blocks: int
    reason: str
    lookups: int
    reads_per_lookup: float
    live: bool
    predicted: float | None
    predicted_low: float | None
    predicted_high: float | None
    drifted: bool | None
    options: tuple[Option, ...]

    @property
    def kind(self) -> str:
        """`action` without its number: the same few words for rules and alerts."""
        return "place part anew" if "%" in self.action else self.action

    @property
    def chosen(self) -> Option:
        """The option that is advised."""
        return next(
            each
            for each in self.options
            if (each.action, each.policy) == (self.action, self.policy)
        )
