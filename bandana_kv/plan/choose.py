"""Choose a plan: placement, policy and DRAM of every table, under one budget."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bandana_kv.access_log import AccessLog
from bandana_kv.cache.state import cache_bytes_of, capacity_for
from bandana_kv.errors import InputError
from bandana_kv.layout import Layout
from bandana_kv.placement import Placement, place
from bandana_kv.placement.measure import layout_of
from bandana_kv.plan.allocate import allocate
from bandana_kv.plan.data import PLAN_FORMAT, Choice, Plan, Predicted, TablePlan
from bandana_kv.plan.points import best_points, capacities_of, judged, scaled, split
from bandana_kv.policy import Policy
from bandana_kv.progress import Progress
from bandana_kv.simulate.bound import lower_bound
from bandana_kv.simulate.miniature import in_threads
from bandana_kv.simulate.race import candidates, race
from bandana_kv.simulate.replay import Replayed, Stream, run, run_parts, stream_of
from bandana_kv.sources import open_rows

__all__ = ["Subject", "choose", "choose_plan"]

_PAGE_BYTES, _OVERHEAD_BYTES = 4096, 96
_RESIDENT_SHARES = (0.5, 0.9)
_OTHER_METHODS = ("popularity", "identity")
_PARTS = 5
_POLICIES_EACH = 2
# Another placement must save this much of what the plain one reads: it was chosen from several.
_WORTH = 0.995


@dataclass(frozen=True)
class Subject:
    """A table to plan for.

    Attributes
    ----------
    name : str
    rows, row_bytes, rows_per_block : int
    log : AccessLog
        Its training log, in order of time if there is one.
    seed : int
    progress : Progress
    """

    name: str
    rows: int
    row_bytes: int
    rows_per_block: int
    log: AccessLog
    seed: int
    progress: Progress

    def placed(self, log: AccessLog, method: str, resident_rows: int) -> Placement:
        """Place the table from `log`, with the most looked up rows left out."""
        return place(
            log,
            rows=self.rows,
            rows_per_block=self.rows_per_block,
            method=method,
            seed=self.seed,
            resident=resident_rows / self.rows if resident_rows else None,
            progress=self.progress,
        )


@dataclass(frozen=True)
class _Candidate:
    """A placement and a policy, and what they cost on each part of the log kept back."""

    method: str
    resident_rows: int
    policy: Policy
    capacity_rows: int
    parts: list[Replayed]

    @property
    def reads_per_lookup(self) -> float:
        lookups = sum(part.lookups for part in self.parts)
        return sum(part.block_reads for part in self.parts) / max(1, lookups)

    def __str__(self) -> str:
        resident = f" without {self.resident_rows} resident rows" if self.resident_rows else ""
        return f"{self.method}{resident}, {self.policy}"


def choose_plan(
    tables: Mapping[str, str | os.PathLike[str] | NDArray[Any] | tuple[int, int]],
    logs: Mapping[str, AccessLog],
    cache_bytes: int,
    *,
    rows_per_block: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Plan:
    """Decide each table's placement, policy and DRAM from training logs alone.

    Parameters
    ----------
    tables
        By name: rows as :func:`bandana_kv.load` takes them, or ``(rows, row_bytes)``.
    logs
        A training log for each table, in order of time if there is one. The later fifth of
        its requests judges what was learnt from the rest, so that traffic which drifts is
        seen to.
    cache_bytes
        DRAM for all tables, bookkeeping included.
    rows_per_block
        Rows that share a block; by default what fits a page with its header.
    seed
        Of placements and samples.
    progress
        Told of every stage.

    Returns
    -------
    Plan

    Raises
    ------
    InputError
        A table without a log, a log with too few requests to judge by or an id out of range,
        or a budget below 0.

    Notes
    -----
    First the best policy of each table for several amounts of DRAM, in miniature; then the
    budget is shared by marginal block reads a byte; then, at each table's share, placements
    that leave out rows which DRAM will hold, and plainer ones, compete with the first. The
    loser of all that may be every idea of this library: "LRU, no neighbours" is a candidate.
    Cost: a handful of placements and some dozen replays of each log, on all cores; memory
    about the size of the logs.
    """
    progress = progress or Progress()
    if not isinstance(cache_bytes, (int, np.integer)) or cache_bytes < 0:
        raise InputError(f"cache_bytes {cache_bytes!r} is not a whole number from 0 up")
    subjects = list(_subjects(tables, logs, rows_per_block, seed, progress))
    drafts = {each.name: _Draft.of(each) for each in subjects}
    curves = {
        name: [(0, draft.reads_without_cache), *draft.plan.curve(each.row_bytes, each.rows)]
        for each in subjects
        for name, draft in [(each.name, drafts[each.name])]
    }
    shares = allocate(curves, int(cache_bytes))
    planned = {}
    for each in subjects:
        draft, share = drafts[each.name], shares[each.name]
        choice = choose(
            each, lambda p, e=each, b=share: capacity_for(p, b, e.row_bytes, e.rows), draft.base
        )
        planned[each.name] = TablePlan(draft.plan.points, each.log.lookups, choice)
    return Plan(PLAN_FORMAT, int(cache_bytes), seed, planned)


def _subjects(
    tables: Mapping[str, str | os.PathLike[str] | NDArray[Any] | tuple[int, int]],
    logs: Mapping[str, AccessLog],
    rows_per_block: int | None,
    seed: int,
    progress: Progress,
) -> Iterable[Subject]:
    if not tables:
        raise InputError("no tables to plan for; name at least one")
    for name in logs:
        if name not in tables:
            raise InputError(f"a log is given for table {name!r}, which is not among the tables")
    for name, table in tables.items():
        if name not in logs:
            raise InputError(f"table {name!r} has no log; a plan is made from one")
        if isinstance(table, tuple):
            rows, row_bytes = table
            if rows < 1 or row_bytes < 1:
                raise InputError(f"table {name!r}: {rows} rows of {row_bytes} bytes")
        else:
            with open_rows(name, table) as source:
                rows, row_bytes = source.rows, source.row_bytes
        pages = -(-(row_bytes + _OVERHEAD_BYTES) // _PAGE_BYTES)
        fitting = (pages * _PAGE_BYTES - _OVERHEAD_BYTES) // row_bytes
        logs[name].validate(rows=rows)
        yield Subject(name, rows, row_bytes, rows_per_block or fitting, logs[name], seed, progress)


@dataclass(frozen=True)
class _Base:
    """The plain placement from the earlier requests, and the later ones to judge by."""

    learn: AccessLog
    judge: AccessLog
    placement: Placement
    stream: Stream
    layout: Layout

    @staticmethod
    def of(subject: Subject) -> _Base:
        parts = split(subject.log)
        if parts is None:
            raise InputError(
                f"table {subject.name!r}: a log of {subject.log.requests} requests is too short "
                "to judge a plan by; 100 are the least"
            )
        placement = subject.placed(parts[0], "shp", 0)
        return _Base(*parts, placement, *judged(*parts, placement))


@dataclass(frozen=True)
class _Draft:
    """A table before it is known how much DRAM it gets."""

    base: _Base
    plan: TablePlan
    reads_without_cache: float

    @staticmethod
    def of(subject: Subject) -> _Draft:
        base = _Base.of(subject)
        points = best_points(
            base.stream,
            base.layout,
            capacities_of(subject.rows),
            subject.seed,
            subject.progress,
            subject.name,
        )
        bare = run(base.stream, base.layout, Policy(), 0)
        plan = TablePlan(points, subject.log.lookups)
        return _Draft(base, plan, bare.reads_per_lookup * subject.log.lookups)


def choose(
    subject: Subject, capacity_of: Callable[[Policy], int], base: _Base | None = None
) -> Choice:
    """Choose a table's placement and policy for its share of the DRAM.

    Parameters
    ----------
    subject
        The table.
    capacity_of
        Rows that DRAM holds under each policy.
    base
        What is known already; None: nothing is.

    Raises
    ------
    InputError
        The log is too short to judge by.
    """
    base = base or _Base.of(subject)
    policies = candidates()
    capacities = {policy: capacity_of(policy) for policy in policies}
    ranked = race(base.stream, base.layout, policies, capacities, subject.seed)
    best = [each.policy for each in ranked[:_POLICIES_EACH]]
    tried = _count(base.stream, base.layout, "shp", 0, best, capacities)
    for method, resident_rows in _others(max(capacities[policy] for policy in best)):
        placement = subject.placed(base.learn, method, resident_rows)
        stream, layout = judged(base.learn, base.judge, placement)
        tried += _count(stream, layout, method, resident_rows, best, capacities)
    ordered = sorted(tried, key=lambda each: each.reads_per_lookup)
    # Ties go to what was tried first, which is the plainest.
    winner = next(e for e in tried if e.reads_per_lookup * _WORTH <= ordered[0].reads_per_lookup)
    rival = next(each for each in ordered if each is not winner)
    return _choice(subject, base, winner, rival)


def _others(capacity_rows: int) -> list[tuple[str, int]]:
    resident = [("shp", round(share * capacity_rows)) for share in _RESIDENT_SHARES]
    return [each for each in resident if each[1]] + [(method, 0) for method in _OTHER_METHODS]


def _count(
    stream: Stream,
    layout: Layout,
    method: str,
    resident_rows: int,
    policies: list[Policy],
    capacities: dict[Policy, int],
) -> list[_Candidate]:
    counted = in_threads(
        lambda policy: run_parts(stream, layout, policy, capacities[policy], _PARTS), policies
    )
    return [
        _Candidate(method, resident_rows, policy, capacities[policy], parts)
        for policy, parts in zip(policies, counted, strict=True)
    ]


def _choice(subject: Subject, base: _Base, winner: _Candidate, rival: _Candidate) -> Choice:
    costs = [part.reads_per_lookup for part in winner.parts]
    wins = sum(
        mine.block_reads <= its.block_reads
        for mine, its in zip(winner.parts, rival.parts, strict=True)
    )
    baseline, bound = _yardsticks(subject, base, winner)
    predicted = Predicted(
        winner.reads_per_lookup, min(costs), max(costs), baseline, min(bound, baseline)
    )
    policy = scaled(winner.policy)
    used = cache_bytes_of(policy, winner.capacity_rows, subject.row_bytes, subject.rows)
    return Choice(
        cache_bytes=used,
        capacity_rows=winner.capacity_rows,
        placement=winner.method,
        resident_rows=winner.resident_rows,
        policy=policy,
        predicted=predicted,
        runner_up=(str(rival), rival.reads_per_lookup),
        confidence=wins / _PARTS,
        reason=_reason(winner, rival, predicted),
    )


def _yardsticks(subject: Subject, base: _Base, winner: _Candidate) -> tuple[float, float]:
    """Return reads per lookup of the baseline, and of the lower bound for the chosen layout."""
    shuffled = subject.placed(base.learn, "shuffled", 0)
    warm = base.stream.warm_requests
    stream = stream_of(_replayed_log(base), shuffled, warm)
    rowless = layout_of(shuffled, np.zeros(subject.rows, np.uint8))
    baseline = run(stream, rowless, Policy(), winner.capacity_rows, coalesce=False)
    placement = base.placement
    if (winner.method, winner.resident_rows) != ("shp", 0):
        placement = subject.placed(base.learn, winner.method, winner.resident_rows)
    log = _replayed_log(base)
    reads = lower_bound(log, placement, winner.capacity_rows, warm_requests=warm)
    return baseline.reads_per_lookup, reads / max(1, baseline.lookups)


def _replayed_log(base: _Base) -> AccessLog:
    """Return the requests of the base's stream as ids."""
    ids = base.placement.id_of_position()[base.stream.positions]
    return AccessLog(base.stream.offsets, ids)


def _reason(winner: _Candidate, rival: _Candidate, predicted: Predicted) -> str:
    gain = predicted.baseline / predicted.reads_per_lookup if predicted.reads_per_lookup else 0.0
    over = predicted.reads_per_lookup / predicted.lower_bound if predicted.lower_bound else 0.0
    better = 100 * (1 - predicted.reads_per_lookup / max(1e-12, rival.reads_per_lookup))
    return (
        f"{winner}: {gain:.2f}x fewer block reads than the baseline on later requests than "
        f"it learnt from, {better:.1f}% fewer than {rival}, and {over:.1f}x above what no "
        "policy can beat for this layout"
    )
