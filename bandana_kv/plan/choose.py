"""Choose a plan: placement, policy and DRAM of every table, under one budget."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from bandana_kv.cache.allocation import allocate
from bandana_kv.cache.policy import Admission, Policy
from bandana_kv.cache.state import cache_bytes_of, capacity_for
from bandana_kv.disk.plan import PLAN_FORMAT, Choice, Plan, Predicted, TablePlan
from bandana_kv.errors import InputError
from bandana_kv.kernels.layout import Layout
from bandana_kv.logs.access_log import AccessLog
from bandana_kv.placement import Placement, place
from bandana_kv.plan.points import (
    LEAST_REQUESTS,
    best_points,
    capacities_of,
    judged,
    scaled,
    split,
)
from bandana_kv.progress import Progress
from bandana_kv.rows.files import open_rows
from bandana_kv.simulate.bound import lower_bound
from bandana_kv.simulate.miniature import in_threads
from bandana_kv.simulate.race import candidates, race
from bandana_kv.simulate.replay import Replayed, Stream, replay, run, run_parts

__all__ = ["Base", "Subject", "choose", "choose_plan"]

_PAGE_BYTES, _OVERHEAD_BYTES = 4096, 96
# Rows that DRAM will hold anyway, and the placement leaves out: a share of what it has room for.
_RESIDENT_SHARE = 0.9
_METHODS = ("shp", "popularity", "identity")
# Placements are first compared under these, with DRAM for so many of the rows.
_TRIED = (Policy(), Policy("tinylfu", Admission("online")))
_TRIED_SHARE = 0.05
_PARTS = 5
_POLICIES_EACH = 2
# A candidate must save this much of what a plainer one reads: it was chosen from several.
_WORTH = 0.998


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
class _Arranged:
    """A placement from the earlier requests, and the later ones as replays see them under it."""

    method: str
    resident_rows: int
    placement: Placement
    stream: Stream
    layout: Layout

    @staticmethod
    def of(
        subject: Subject, learn: AccessLog, judge: AccessLog, method: str, resident_rows: int = 0
    ) -> _Arranged:
        placement = subject.placed(learn, method, resident_rows)
        return _Arranged(method, resident_rows, placement, *judged(learn, judge, placement))

    def count(self, policies: Sequence[Policy], capacity_rows: Mapping[Policy, int]) -> _Counted:
        """Count what each policy costs."""
        counted = in_threads(
            lambda each: run_parts(self.stream, self.layout, each, capacity_rows[each], _PARTS),
            policies,
        )
        return [
            _Candidate(self, policy, capacity_rows[policy], parts)
            for policy, parts in zip(policies, counted, strict=True)
        ]


@dataclass(frozen=True)
class _Candidate:
    """A placement and a policy, and what they cost on each part of the log kept back."""

    where: _Arranged
    policy: Policy
    capacity_rows: int
    parts: list[Replayed]

    @property
    def reads_per_lookup(self) -> float:
        lookups = sum(part.lookups for part in self.parts)
        return sum(part.block_reads for part in self.parts) / max(1, lookups)

    def __str__(self) -> str:
        rows = self.where.resident_rows
        resident = f" without {rows} resident rows" if rows else ""
        return f"{self.where.method}{resident}, {self.policy}"


_Counted = list[_Candidate]


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
        draft = drafts[each.name]
        choice = choose(each, partial(_capacity, each, shares[each.name]), draft.base)
        planned[each.name] = TablePlan(draft.plan.points, each.log.lookups, choice)
    return Plan(PLAN_FORMAT, int(cache_bytes), seed, planned)


def _capacity(subject: Subject, cache_bytes: int, policy: Policy) -> int:
    return capacity_for(policy, cache_bytes, subject.row_bytes, subject.rows)


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
class Base:
    """A table's log, and the placements that need no DRAM named.

    Attributes
    ----------
    learn, judge : AccessLog
        The earlier requests, and the later ones.
    plain : tuple of arranged placements
        The one that serves the later requests best comes first.
    """

    learn: AccessLog
    judge: AccessLog
    plain: tuple[_Arranged, ...]

    @staticmethod
    def of(subject: Subject) -> Base:
        """Place the table in every plain way, and try each under a usual amount of DRAM.

        Raises
        ------
        InputError
            The log is too short to judge by.
        """
        parts = split(subject.log)
        if parts is None:
            raise InputError(
                f"table {subject.name!r}: a log of {subject.log.requests} requests is too short "
                f"to judge a plan by; {LEAST_REQUESTS} are the least"
            )
        plain = [_Arranged.of(subject, *parts, method) for method in _METHODS]
        capacity_rows = dict.fromkeys(_TRIED, max(1, round(_TRIED_SHARE * subject.rows)))
        tried = [each for where in plain for each in where.count(_TRIED, capacity_rows)]
        first = _plainest_of_the_best(tried).where
        return Base(*parts, (first, *(each for each in plain if each is not first)))


@dataclass(frozen=True)
class _Draft:
    """A table before it is known how much DRAM it gets."""

    base: Base
    plan: TablePlan
    reads_without_cache: float

    @staticmethod
    def of(subject: Subject) -> _Draft:
        base = Base.of(subject)
        where = base.plain[0]
        points = best_points(
            where.stream,
            where.layout,
            capacities_of(subject.rows),
            subject.seed,
            subject.progress,
            subject.name,
        )
        bare = run(where.stream, where.layout, Policy(), 0)
        plan = TablePlan(points, subject.log.lookups)
        return _Draft(base, plan, bare.reads_per_lookup * subject.log.lookups)


def choose(
    subject: Subject, capacity_of: Callable[[Policy], int], base: Base | None = None
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
    base = base or Base.of(subject)
    policies = candidates()
    capacities = {policy: capacity_of(policy) for policy in policies}
    first, *others = base.plain
    ranked = race(first.stream, first.layout, policies, capacities, subject.seed)
    finalists = {each.policy for each in ranked}
    # Judged warm they are alike, but a store opens cold.
    finalists |= {msgspec.structs.replace(each, seed_weight=1.0) for each in finalists}
    tried = first.count([each for each in policies if each in finalists], capacities)
    best = [each.policy for each in sorted(tried, key=_reads)[:_POLICIES_EACH]]
    resident_rows = round(_RESIDENT_SHARE * max(capacities[policy] for policy in best))
    if resident_rows:
        others.append(_Arranged.of(subject, base.learn, base.judge, "shp", resident_rows))
    tried += [each for where in others for each in where.count(best, capacities)]
    winner = _plainest_of_the_best(tried)
    rival = min((each for each in tried if each is not winner), key=_reads)
    return _choice(subject, base, winner, rival)


def _reads(candidate: _Candidate) -> float:
    return candidate.reads_per_lookup


def _plainest_of_the_best(tried: Sequence[_Candidate]) -> _Candidate:
    """Return the first of those that are nearly as good as the best; the plainest comes first."""
    least = min(_reads(each) for each in tried)
    return next(each for each in tried if _reads(each) * _WORTH <= least)


def _choice(subject: Subject, base: Base, winner: _Candidate, rival: _Candidate) -> Choice:
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
    used = 0
    if winner.capacity_rows:
        used = cache_bytes_of(policy, winner.capacity_rows, subject.row_bytes, subject.rows)
    return Choice(
        cache_bytes=used,
        capacity_rows=winner.capacity_rows,
        placement=winner.where.method,
        resident_rows=winner.where.resident_rows,
        policy=policy,
        predicted=predicted,
        runner_up=(str(rival), rival.reads_per_lookup),
        confidence=wins / _PARTS,
        reason=_reason(winner, rival, predicted),
    )


def _yardsticks(subject: Subject, base: Base, winner: _Candidate) -> tuple[float, float]:
    """Return reads per lookup of the baseline, and of the lower bound for the chosen layout."""
    stream, placement = winner.where.stream, winner.where.placement
    log = AccessLog(stream.offsets, placement.id_of_position()[stream.positions])
    shuffled = subject.placed(base.learn, "shuffled", 0)
    rows, warm = winner.capacity_rows, stream.warm_requests
    baseline = replay(log, shuffled, rows, coalesce=False, warm_requests=warm)
    reads = lower_bound(log, placement, rows, warm_requests=warm)
    return baseline.reads_per_lookup, reads / max(1, baseline.lookups)


def _reason(winner: _Candidate, rival: _Candidate, predicted: Predicted) -> str:
    if not predicted.reads_per_lookup:
        return f"{winner}: no block is read for later requests than it learnt from"
    gain = predicted.baseline / predicted.reads_per_lookup
    over = predicted.reads_per_lookup / predicted.lower_bound if predicted.lower_bound else 0.0
    better = 100 * (1 - predicted.reads_per_lookup / max(1e-12, rival.reads_per_lookup))
    return (
        f"{winner}: {gain:.2f}x fewer block reads than the baseline on later requests than "
        f"it learnt from, {better:.1f}% fewer than {rival}, and {over:.1f}x above what no "
        "policy can beat for this layout"
    )
