"""Advice: what recorded requests would have cost under this and that, learnt from earlier ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import msgspec
import numpy as np
from numpy.typing import NDArray

from bandana_kv.cache.heat import heat_by_position
from bandana_kv.cache.policy import Policy
from bandana_kv.care.drift.data import Advice, Option, Served
from bandana_kv.disk.placement import layout_of
from bandana_kv.disk.plan import PlannedPoint, TablePlan
from bandana_kv.errors import InputError
from bandana_kv.logs.access_log import AccessLog
from bandana_kv.placement import Placement
from bandana_kv.placement.incremental import Replacing, blocks_changed
from bandana_kv.plan.points import LEAST_REQUESTS, judged, scaled, split
from bandana_kv.progress import Progress
from bandana_kv.simulate.miniature import in_threads
from bandana_kv.simulate.race import candidates, race
from bandana_kv.simulate.replay import Replayed, run_parts

__all__ = ["BUDGETS", "advise", "placement_for"]

# Shares of the blocks that are read at all; the last one is all of them.
BUDGETS = (0.05, 0.1, 0.25, 0.5, 1.0)
NOTHING, NEW_PLAN, ALL_ANEW = "nothing", "new plan", "place all anew"
_PARTS = 5
# Several budgets are tried, so that each placement has to be quick.
_QUALITY = "balanced"
# So much of the latest traffic says enough, and takes a minute.
_MOST_LOOKUPS = 5_000_000
# What saves less than this is not worth anybody's attention, and has to be more than twice its
# standard error over the parts.
_LEAST_SAVED = 0.02
_ERRORS = 2.0
# The cheapest is advised that saves as much of what the best one saves.
_ENOUGH = 0.8


@dataclass(frozen=True)
class _Tried:
    """A way to serve, and what the later requests cost under it."""

    action: str
    policy: Policy | None
    placement: Placement
    parts: list[Replayed]

    @property
    def reads_per_lookup(self) -> float:
        lookups = sum(part.lookups for part in self.parts)
        return sum(part.block_reads for part in self.parts) / max(1, lookups)


def advise(
    log: AccessLog,
    served: Served,
    *,
    table: str = "",
    live_reads_per_lookup: float | None = None,
    write_budget_bytes: int | None = None,
    budgets: Sequence[float] = BUDGETS,
    seed: int = 0,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Advice:
    """Say whether a new plan, or a new placement, would serve what is asked now with fewer reads.

    Parameters
    ----------
    log
        Recorded requests, in order of time. The latest five million lookups count: the later
        fifth of them judges what was learnt from the rest.
    served
        How the table is served.
    table
        Its name, for the answer.
    live_reads_per_lookup
        What the store itself counted while the requests were recorded, to be held against what
        its plan expected. By default what a replay says.
    write_budget_bytes
        What may be written a day, to say how many days of it a re-placement takes.
    budgets
        Shares of the blocks that a new placement would change, each above 0, the last one 1.
    seed, threads, progress
        As for :func:`bandana_kv.placement.place`.

    Returns
    -------
    Advice
        The cheapest to write of what saves at least four fifths of what the best one saves; and
        `nothing` where nothing saves two per cent, and twice the standard error of what parts of
        the later requests say.

    Raises
    ------
    InputError
        Too few requests to judge by, an id beyond the table, or a share out of range.

    Notes
    -----
    Rows take their heat along when they move; a new policy begins with it, too. Cost: a
    placement of what the cache misses for each budget, and some dozen replays of five million
    lookups at most: about a minute on two cores.
    """
    _check(budgets, served)
    log = _latest(log)
    parts = split(log)
    if parts is None:
        raise InputError(
            f"table {table!r}: {log.requests} recorded requests are too few to judge by; "
            f"{LEAST_REQUESTS} are the least"
        )
    learn, judge = parts
    log.validate(rows=served.placement.rows)
    served = _with_heat(served, learn)
    trial = _Trial(learn, judge, served)
    tried = trial.count([(NOTHING, None, served.placement)])
    policy = _best_policy(learn, served, seed)
    if policy is not None:
        tried += trial.count([(NEW_PLAN, policy, served.placement)])
    replacing = _replacing(learn, served, seed, threads, progress)
    anew = _placements(replacing, budgets)
    tried += trial.count([(action, None, placement) for action, placement in anew])
    if policy is not None and _stands_out(tried[0], tried[1]):
        tried += trial.count([(action, policy, placement) for action, placement in anew])
    options = tuple(_option(tried[0], each, served, write_budget_bytes) for each in tried)
    options = tuple(sorted(options, key=lambda each: (each.blocks, each.policy is not None)))
    return _advice(table, served, options, log.lookups, live_reads_per_lookup)


def placement_for(
    advice: Advice,
    log: AccessLog,
    served: Served,
    *,
    seed: int = 0,
    threads: int | None = None,
    progress: Progress | None = None,
) -> tuple[Placement, TablePlan]:
    """Return the placement and the plan that are advised, learnt from all of the log.

    Parameters
    ----------
    advice
        What :func:`advise` said of `log` and `served`.
    log, served, seed, threads, progress
        As for it.

    Returns
    -------
    tuple of Placement and TablePlan
        What ``store.place_anew(table, placement, plan=plan)`` takes. The placement differs from
        the served one in at most ``advice.blocks`` blocks; the plan expects what the advice
        does, so that later advice is held against it.
    """
    served = _with_heat(served, log)
    placement = served.placement
    if advice.blocks:
        replacing = _replacing(_latest(log), served, seed, threads, progress)
        placement = replacing.within(advice.blocks)
    return placement, _plan_for(advice, served)


def _check(budgets: Sequence[float], served: Served) -> None:
    if not budgets or any(not 0.0 < each <= 1.0 for each in budgets):
        raise InputError(f"budgets are shares above 0 and up to 1, not {list(budgets)}")
    if served.capacity_rows < 0:
        raise InputError(f"capacity_rows {served.capacity_rows} is negative")


def _latest(log: AccessLog) -> AccessLog:
    """Return the last requests, with at most so many lookups."""
    first = int(np.searchsorted(log.offsets, log.lookups - _MOST_LOOKUPS))
    begin = log.offsets[first]
    return AccessLog(log.offsets[first:] - begin, log.ids[begin:], source=log.source)


def _with_heat(served: Served, log: AccessLog) -> Served:
    if served.heat is not None:
        return served
    return replace(served, heat=heat_by_position(log.ids, served.placement.position_of_id))


def _replacing(
    log: AccessLog,
    served: Served,
    seed: int,
    threads: int | None,
    progress: Progress | None,
) -> Replacing:
    return Replacing.of(
        log,
        served.placement,
        capacity_rows=served.capacity_rows,
        policy=served.policy,
        heat=served.heat,
        quality=_QUALITY,
        seed=seed,
        threads=threads,
        progress=progress,
    )


def _placements(replacing: Replacing, budgets: Sequence[float]) -> list[tuple[str, Placement]]:
    """Place within each budget; those that change nothing more than a smaller one are left out."""
    serving = replacing.serving
    everything = replacing.within(serving.blocks)
    most = blocks_changed(serving, everything)
    found: list[tuple[str, Placement]] = []
    for share in budgets:
        blocks = int(share * most)
        if share < 1.0 and blocks >= 2:
            found.append((f"place {100 * share:g} % anew", replacing.within(blocks)))
    return [*found, (ALL_ANEW, everything)] if most else []


def _best_policy(learn: AccessLog, served: Served, seed: int) -> Policy | None:
    """Return the policy that the learning part's own later requests prefer; None: no other."""
    parts = split(learn)
    if parts is None or served.capacity_rows == 0:
        return None
    stream, layout = judged(*parts, served.placement)
    policies = tuple(dict.fromkeys((served.policy, *candidates())))
    ranked = race(stream, layout, policies, dict.fromkeys(policies, served.capacity_rows), seed)
    best = scaled(ranked[0].policy)
    return None if best == served.policy else best


class _Trial:
    """The later requests, to be served in one way or another."""

    def __init__(self, learn: AccessLog, judge: AccessLog, served: Served) -> None:
        self.learn, self.judge, self.served = learn, judge, served
        assert served.heat is not None
        self.heat_of_id: NDArray[np.uint8] = served.heat[served.placement.position_of_id]

    def count(self, ways: Sequence[tuple[str, Policy | None, Placement]]) -> list[_Tried]:
        """Count what each way costs: (action, policy or None for the one it has, placement)."""
        return in_threads(self._count, ways)

    def _count(self, way: tuple[str, Policy | None, Placement]) -> _Tried:
        action, policy, placement = way
        stream, _ = judged(self.learn, self.judge, placement)
        layout = layout_of(placement, self.heat_of_id[placement.id_of_position()])
        rows = self.served.capacity_rows
        counted = run_parts(stream, layout, policy or self.served.policy, rows, _PARTS)
        return _Tried(action, policy, placement, counted)


def _saved(before: _Tried, after: _Tried) -> NDArray[np.float64]:
    """Return the share of its reads that each part saves."""
    return np.array(
        [
            1.0 - mine.block_reads / max(1, its.block_reads)
            for its, mine in zip(before.parts, after.parts, strict=True)
        ]
    )


def _stands_out(before: _Tried, after: _Tried) -> bool:
    saved = _saved(before, after)
    error = saved.std(ddof=1) / np.sqrt(saved.size)
    return bool(saved.mean() >= _LEAST_SAVED and saved.mean() > _ERRORS * error)


def _option(
    nothing: _Tried, tried: _Tried, served: Served, write_budget_bytes: int | None
) -> Option:
    blocks = blocks_changed(served.placement, tried.placement)
    written = blocks * served.block_bytes
    costs = [part.reads_per_lookup for part in tried.parts]
    before = nothing.reads_per_lookup
    return Option(
        action=tried.action,
        policy=tried.policy,
        blocks=blocks,
        written_bytes=written,
        budget_days=None if not write_budget_bytes else written / write_budget_bytes,
        reads_per_lookup=tried.reads_per_lookup,
        low=min(costs),
        high=max(costs),
        saved=1.0 - tried.reads_per_lookup / before if before else 0.0,
        stands_out=_stands_out(nothing, tried),
    )


def _cheapest_enough(options: Sequence[Option]) -> Option:
    """Return the cheapest that keeps most of the best one's gain; options come by cost."""
    worthy = [each for each in options if each.stands_out]
    best = max((each.saved for each in worthy), default=0.0)
    return next((each for each in worthy if each.saved >= _ENOUGH * best), options[0])


def _advice(
    table: str,
    served: Served,
    options: tuple[Option, ...],
    lookups: int,
    live_reads_per_lookup: float | None,
) -> Advice:
    nothing, chosen = options[0], _cheapest_enough(options)
    live = live_reads_per_lookup is not None
    reads = nothing.reads_per_lookup if live_reads_per_lookup is None else live_reads_per_lookup
    expected = served.plan.choice.predicted if served.plan.choice is not None else None
    drifted = None if expected is None else not expected.low <= reads <= expected.high
    return Advice(
        table=table,
        action=chosen.action,
        policy=chosen.policy,
        blocks=chosen.blocks,
        reason=_reason(options, chosen),
        lookups=lookups,
        reads_per_lookup=reads,
        live=live,
        predicted=None if expected is None else expected.reads_per_lookup,
        predicted_low=None if expected is None else expected.low,
        predicted_high=None if expected is None else expected.high,
        drifted=drifted,
        options=options,
    )


def _reason(options: Sequence[Option], chosen: Option) -> str:
    best = max(options, key=lambda each: each.saved)
    if chosen is options[0]:
        return (
            f"on later requests than it learnt from, the best of all, '{best}', saves "
            f"{100 * best.saved:.1f} % of the block reads, which is not enough to stand out"
        )
    text = (
        f"on later requests than it learnt from, it saves {100 * chosen.saved:.1f} % of the block "
        f"reads and writes {chosen.blocks} blocks"
    )
    if best is not chosen:
        text += f"; the best, '{best}', saves {100 * best.saved:.1f} % with {best.blocks}"
    return text


def _plan_for(advice: Advice, served: Served) -> TablePlan:
    chosen = advice.chosen
    policy = advice.policy or served.policy
    choice = served.plan.choice
    point = PlannedPoint(served.capacity_rows, policy, chosen.reads_per_lookup)
    points = [each for each in served.plan.points if each.capacity_rows != point.capacity_rows]
    points = sorted([*points, point], key=lambda each: each.capacity_rows)
    if choice is not None:
        predicted = msgspec.structs.replace(
            choice.predicted,
            reads_per_lookup=chosen.reads_per_lookup,
            low=chosen.low,
            high=chosen.high,
        )
        choice = msgspec.structs.replace(
            choice, policy=policy, predicted=predicted, reason=advice.reason
        )
    return TablePlan(tuple(points), served.plan.lookups, choice)
