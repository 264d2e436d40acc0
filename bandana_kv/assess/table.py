"""What was found for one table, as the report has it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple, Self

import numpy as np

from bandana_kv.assess.gain import PARTS, SEEDS, Gained, Learnt, Point, bookkeeping_of, part_edges
from bandana_kv.assess.table_data import (
    Ageing,
    CurvePoint,
    Foretold,
    Part,
    PlanSummary,
    Reads,
    Spread,
    TableDram,
    TableReport,
)
from bandana_kv.assess.verdict import Found, judge_table
from bandana_kv.assess.workload import describe, seen_rows
from bandana_kv.errors import InputError
from bandana_kv.logs.access_log import AccessLog
from bandana_kv.placement import fanout
from bandana_kv.simulate.replay import Replayed

__all__ = ["Block", "curve_of", "report_of", "spread_of"]

_PAGE_BYTES, _OVERHEAD_BYTES, _MOST_PAGES = 4096, 96, 256


class Block(NamedTuple):
    """How many rows share a block, and what that takes on the device."""

    rows: int
    bytes: int

    @classmethod
    def of(cls, name: str, row_bytes: int) -> Self:
        """Return the smallest block of whole pages that a row fits.

        Raises
        ------
        InputError
            None does.
        """
        pages = -(-(row_bytes + _OVERHEAD_BYTES) // _PAGE_BYTES)
        if pages > _MOST_PAGES:
            raise InputError(f"table {name!r}: a row of {row_bytes} bytes has more than 1 MiB")
        return cls((pages * _PAGE_BYTES - _OVERHEAD_BYTES) // row_bytes, pages * _PAGE_BYTES)


def curve_of(learnt: Learnt, points: Sequence[Point]) -> tuple[CurvePoint, ...]:
    """Return the curves, in block reads a request."""
    length = _length(learnt)
    return tuple(
        CurvePoint(
            cached_share=each.capacity_rows / learnt.subject.rows,
            cached_rows=each.capacity_rows,
            dram_bytes=learnt.dram_bytes(each.policy, each.capacity_rows),
            baseline=each.baseline * length,
            paper_recipe=each.paper_recipe * length,
            plan=sum(each.plan) / len(each.plan) * length,
            plan_low=min(each.plan) * length,
            plan_high=max(each.plan) * length,
            lower_bound=each.lower_bound * length,
        )
        for each in points
    )


def report_of(
    learnt: Learnt,
    gained: Gained,
    log: AccessLog,
    curve: tuple[CurvePoint, ...],
    *,
    unseen_in_file_order_share: float,
    ordered: bool,
) -> TableReport:
    """Return all that was found for a table."""
    subject, requests = learnt.subject, learnt.requests
    block = Block.of(subject.name, subject.row_bytes)
    table_bytes = subject.rows * subject.row_bytes
    placements = {
        "shuffled": learnt.shuffled,
        "popularity": learnt.popular,
        "placed": learnt.placed,
    }
    workload = describe(
        log,
        subject.log,
        learnt.judge,
        placements,
        unseen_in_file_order_share,
        learnt.parts_a_request,
        np.diff(log.offsets) if learnt.parts is None else learnt.parts.lengths,
    )
    plan, baseline = _reads(gained.plan), _reads(gained.baseline)
    parts = _parts(learnt, gained)
    gains = [each.gain for each in parts]
    dram_bytes = learnt.dram_bytes(gained.choice.policy, gained.capacity_rows)
    reads = Reads(
        baseline / requests,
        gained.paper_recipe / requests,
        plan / requests,
        gained.lower_bound / requests,
    )
    drift = _drift(gained)
    found = judge_table(
        Found(
            workload=workload,
            gain=_ratio(baseline, plan),
            gain_low=min(gains),
            gain_high=max(gains),
            drift=drift,
            dram_share=dram_bytes / table_bytes,
            dram_bytes=dram_bytes,
            table_bytes=table_bytes,
            ordered=ordered,
        )
    )
    hits = sum(part.hits for part in gained.plan)
    return TableReport(
        recommendation=found.recommendation,
        reasons=found.reasons,
        suited=found.suited,
        rows=subject.rows,
        row_bytes=subject.row_bytes,
        rows_per_block=block.rows,
        table_bytes=table_bytes,
        nvm_bytes=-(-subject.rows // block.rows) * block.bytes,
        reuse=log.lookups / max(1, workload.distinct_rows),
        fanout_shuffled=fanout(learnt.judge, learnt.shuffled) * learnt.parts_a_request,
        fanout_placed=fanout(learnt.judge, learnt.placed) * learnt.parts_a_request,
        drift=drift,
        dram_bytes_recommended=dram_bytes,
        reads_per_request=reads,
        gain=_ratio(baseline, plan),
        gain_low=min(gains),
        gain_high=max(gains),
        gain_same_rows=_ratio(gained.same_rows, plan),
        gain_over_paper_recipe=_ratio(gained.paper_recipe, plan),
        hit_share=hits / max(1, sum(part.lookups for part in gained.plan)),
        plan=PlanSummary(
            gained.choice.placement,
            gained.choice.resident_rows,
            str(gained.choice.policy),
            gained.choice.reason,
        ),
        dram=_table_dram(learnt, gained, curve, dram_bytes, reads.plan),
        workload=workload,
        parts=parts,
        ageing=_ageing(learnt, gained, log),
        curve=curve,
    )


def spread_of(learnt: Learnt, gained: Gained) -> Spread:
    """Return how sure a table's figures are."""
    parts = _parts(learnt, gained)
    gains = [each.gain for each in parts]
    reads = [each.reads_per_request for each in parts]
    told = gained.outlook
    came = _reads(gained.plan) / max(1, learnt.judge.lookups)
    return Spread(
        learned_requests=round(learnt.subject.log.requests / learnt.parts_a_request),
        judged_requests=round(learnt.requests),
        parts=PARTS,
        reads_low=min(reads),
        reads_high=max(reads),
        gain_low=min(gains),
        gain_high=max(gains),
        sampled_share=learnt.sample_rate,
        samples=len(SEEDS) if learnt.sample_rate < 1.0 else 1,
        foretold=Foretold(
            told.reads_per_lookup, told.low, told.high, came, told.low <= came <= told.high
        ),
    )


def _length(learnt: Learnt) -> float:
    return learnt.judge.lookups / learnt.requests


def _reads(parts: Sequence[Replayed]) -> int:
    return sum(part.block_reads for part in parts)


def _ratio(over: float, under: float) -> float:
    """Return how many times fewer reads there are; where none is left, than one read."""
    return over / max(1.0, under) if over or under else 1.0


def _parts(learnt: Learnt, gained: Gained) -> tuple[Part, ...]:
    judge, edges = learnt.judge, part_edges(learnt.judge.requests)
    seen = seen_rows(learnt.subject.log, learnt.subject.rows)
    parts = []
    for (first, last), plan, baseline in zip(
        pairwise(edges), gained.plan, gained.baseline, strict=True
    ):
        ids = judge.ids[judge.offsets[first] : judge.offsets[last]]
        requests = max(1, last - first) / learnt.parts_a_request
        parts.append(
            Part(
                plan.block_reads / requests,
                baseline.block_reads / requests,
                _ratio(baseline.block_reads, plan.block_reads),
                1.0 - float(np.mean(seen[ids])) if ids.size else 0.0,
            )
        )
    return tuple(parts)


def _drift(gained: Gained) -> float:
    """Return the share of the saved reads that is lost on the last part."""
    stale, fresh = gained.plan[-1].block_reads, gained.fresh.block_reads
    could = gained.baseline[-1].block_reads - fresh
    return max(0.0, min(1.0, (stale - fresh) / could)) if could > 0 else 0.0


def _ageing(learnt: Learnt, gained: Gained, log: AccessLog) -> Ageing:
    edges = part_edges(learnt.judge.requests)
    requests = max(1, edges[-1] - edges[-2]) / learnt.parts_a_request
    return Ageing(
        edges[-2] / log.requests,
        gained.plan[-1].block_reads / requests,
        gained.fresh.block_reads / requests,
    )


def _table_dram(
    learnt: Learnt,
    gained: Gained,
    curve: Sequence[CurvePoint],
    dram_bytes: int,
    reads: float,
) -> TableDram:
    index_bytes, heat_bytes = bookkeeping_of(gained.choice.policy, learnt.subject.rows)
    return TableDram(
        cache_bytes=dram_bytes - index_bytes - heat_bytes,
        cached_rows=gained.capacity_rows,
        index_bytes=index_bytes,
        heat_bytes=heat_bytes,
        table_share=dram_bytes / (learnt.subject.rows * learnt.subject.row_bytes),
        plain_cache_bytes=_plain_cache_bytes(curve, reads),
    )


def _plain_cache_bytes(curve: Sequence[CurvePoint], reads: float) -> int | None:
    """Return what the baseline needs for as few reads, between the points of its curve."""
    baseline = [-each.baseline for each in curve]
    if not baseline[0] <= -reads <= baseline[-1]:
        return None
    return round(float(np.interp(-reads, baseline, [each.dram_bytes for each in curve])))
