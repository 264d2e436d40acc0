"""What the plan would gain: learnt from earlier requests, judged on later ones.

Nothing that judges was seen by what is judged, but for two rivals that are flattered: the paper's
recipe takes the threshold that is best in hindsight, and the lower bound knows the future.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import NamedTuple

import numpy as np

from bandana_kv.assess.performance import Load
from bandana_kv.cache.heat import heat_by_position
from bandana_kv.cache.policy import Admission, Policy
from bandana_kv.cache.state import cache_bytes_of, capacity_for
from bandana_kv.disk.placement import layout_of
from bandana_kv.kernels.bitpack import words_for
from bandana_kv.kernels.layout import Layout
from bandana_kv.logs.access_log import AccessLog
from bandana_kv.placement import Placement, place
from bandana_kv.placement.distributed import Sample
from bandana_kv.plan import Choice, PlannedPoint, TablePlan
from bandana_kv.plan.choose import Base, Subject, choose
from bandana_kv.plan.outlook import Outlook, outlook
from bandana_kv.plan.points import best_points, capacities_of, joined, judged
from bandana_kv.simulate import per_request
from bandana_kv.simulate.bound import lower_bound
from bandana_kv.simulate.miniature import Miniature, in_threads, miniature, rate_for, whole
from bandana_kv.simulate.replay import Replayed, Stream, run, run_parts, stream_of

__all__ = ["PARTS", "Gained", "Learnt", "Point", "Seen", "bookkeeping_of", "part_edges"]

PARTS = 5
SEEDS = (0, 1, 2)
# Curves are drawn from samples of at most so many lookups; bounds take longer, and thresholds
# are many.
_MOST_LOOKUPS, _MOST_BOUND_LOOKUPS, _MOST_TRIED_LOOKUPS = 2_000_000, 600_000, 300_000
THRESHOLDS = (0, 1, 2, 3, 5, 8, 13, 20, 30, 50, 80, 120, 200, 300, 500, 800, 1200, 2000, 5000)


class Seen(NamedTuple):
    """Requests as replays see them under a placement; those that warm come first."""

    stream: Stream
    layout: Layout


class Point(NamedTuple):
    """Block reads a lookup with DRAM for `capacity_rows`; of the plan, one for each sample."""

    capacity_rows: int
    policy: Policy
    baseline: float
    paper_recipe: float
    plan: list[float]
    lower_bound: float


@dataclass(frozen=True)
class Gained:
    """What the plan for one amount of DRAM costs the requests that judge.

    Attributes
    ----------
    choice : Choice
        From the requests learnt from alone.
    capacity_rows : int
    seen : Seen
        The requests that judge, under the choice's placement.
    plan, baseline : list of Replayed
        By part.
    same_rows, paper_recipe, lower_bound : float
        Block reads in all: of the baseline with as many rows, of the recipe, at least.
    fresh : Replayed
        The last part, with placement and heat learnt anew right before it.
    outlook : Outlook
        What the requests learnt from said of later ones.
    """

    choice: Choice
    capacity_rows: int
    seen: Seen
    plan: list[Replayed]
    baseline: list[Replayed]
    same_rows: int
    paper_recipe: int
    lower_bound: float
    fresh: Replayed
    outlook: Outlook


def bookkeeping_of(policy: Policy, rows: int) -> tuple[int, int]:
    """Return what a table costs in DRAM beside its cache: the index of ids, and heat; in bytes."""
    asks = policy.watches_heat or policy.admission.rule == "threshold"
    return 8 * words_for(rows), rows if asks else 0


def part_edges(requests: int) -> list[int]:
    """Return where consecutive parts of `requests` begin, and the end, as replays cut them."""
    edges: list[int] = np.linspace(0, requests, PARTS + 1).astype(int).tolist()
    return edges


class Learnt:
    """A table: what was learnt from the earlier requests, and the later ones.

    Parameters
    ----------
    subject
        The table, with the requests to learn from.
    judge
        The requests to judge by; those that end `subject.log` warm the caches.
    parts
        Where these are parts of requests: how they make requests.

    Attributes
    ----------
    requests : float
        How many requests judge, which may be in parts.
    parts_a_request : float
        How many parts a request that judges is in; 1 where they are whole.

    Raises
    ------
    InputError
        The log is too short.
    """

    def __init__(self, subject: Subject, judge: AccessLog, parts: Sample | None = None) -> None:
        self.subject, self.judge, self.parts = subject, judge, parts
        self.requests = float(max(1, judge.requests))
        if parts is not None:
            self.requests = max(1.0, judge.lookups / float(parts.lengths.mean()))
        self.parts_a_request = max(1, judge.requests) / self.requests
        self.base = Base.of(subject)
        # With all of them in DRAM there is nothing left to assess.
        whole = capacities_of(subject.rows)
        self.capacities = whole[:-1] or whole
        first = self.base.plain[0]
        self._points: tuple[PlannedPoint, ...] = best_points(
            first.stream,
            first.layout,
            self.capacities,
            subject.seed,
            subject.progress,
            subject.name,
        )
        subject.progress.start(f"place {subject.name}", 3, "placements")
        self.placed = self._placed(first.method)
        self.shuffled = self._placed("shuffled")
        self.popular = self._placed("popularity")
        subject.progress.finish()

    def _placed(self, method: str) -> Placement:
        placement = self.subject.placed(self.subject.log, method, 0)
        self.subject.progress.advance(1)
        return placement

    def _seen(self, placement: Placement) -> Seen:
        return Seen(*judged(self.subject.log, self.judge, placement))

    @cached_property
    def under_plan(self) -> Seen:
        """The requests that judge, with rows placed in the best plain way."""
        return self._seen(self.placed)

    @cached_property
    def under_baseline(self) -> Seen:
        """The same, with rows in arbitrary order."""
        return self._seen(self.shuffled)

    @cached_property
    def under_paper(self) -> Seen:
        """The same, with rows placed as the paper does."""
        each = self.subject
        return self._seen(
            place(each.log, each.rows, each.rows_per_block, "shp-plain", seed=each.seed)
        )

    def bytes_of(self, policy: Policy, capacity_rows: int) -> int:
        """Return the DRAM of a cache of `capacity_rows` rows; 0 for none."""
        if not capacity_rows:
            return 0
        return cache_bytes_of(policy, capacity_rows, self.subject.row_bytes, self.subject.rows)

    def dram_bytes(self, policy: Policy, capacity_rows: int) -> int:
        """Return the DRAM of a cache with all that goes with it."""
        return self.bytes_of(policy, capacity_rows) + sum(bookkeeping_of(policy, self.subject.rows))

    def plain_rows(self, policy: Policy, capacity_rows: int) -> int:
        """Return the rows of the baseline in as much DRAM; it finds rows by their ids."""
        each = self.subject
        size = self.dram_bytes(policy, capacity_rows)
        return capacity_for(Policy(), size, each.row_bytes, each.rows)

    @cached_property
    def sample_rate(self) -> float:
        """Share of the blocks that the samples have which curves are drawn from."""
        lookups = self.under_plan.stream.positions.size
        # A sample of most of the blocks costs more than none.
        rate = min(rate_for(self.capacities), _MOST_LOOKUPS / max(1, lookups))
        return rate if rate < 0.5 else 1.0

    def reads_without_cache(self) -> float:
        """Return block reads a lookup where DRAM holds nothing."""
        return run(*self.under_plan, Policy(), 0).reads_per_lookup

    def load(self, cache_bytes: int, callers: int) -> Load:
        """Return what each judged request asks, with the plan for the nearest amount of DRAM."""
        each = self.subject
        policy = TablePlan(self._points).policy_for(cache_bytes, each.row_bytes, each.rows)
        rows = capacity_for(policy, cache_bytes, each.row_bytes, each.rows)
        return self.load_of(self.under_plan, policy, rows, callers)

    def load_of(self, seen: Seen, policy: Policy, capacity_rows: int, callers: int) -> Load:
        """Return what each judged request asks, as it is seen under a placement."""
        if self.parts is None:
            return Load.of(per_request(*seen, policy, capacity_rows, callers=callers))
        # so many parts are of requests that are served at a time
        callers = max(1, round(callers * self.parts.left_share))
        counted = per_request(*seen, policy, capacity_rows, callers=callers)
        into = self.parts.request_of_part
        lookups, *others = (np.bincount(into, each).astype(np.int64) for each in counted)
        return Load(lookups[lookups > 0], *(each[lookups > 0] for each in others))

    def points(self) -> list[Point]:
        """Return the curves."""
        seeds = SEEDS if self.sample_rate < 1.0 else SEEDS[:1]
        progress = self.subject.progress
        progress.start(f"curves of {self.subject.name}", len(seeds) + 3, "curves")
        plans = []
        policies = [each.policy for each in self._points]
        for seed in seeds:
            small = _sampled(self.under_plan, self.sample_rate, seed)
            plans.append(_reads(small, policies, self.capacities))
            progress.advance(1)
        lru = [Policy()] * len(policies)
        small = _sampled(self.under_baseline, self.sample_rate, SEEDS[0])
        plain_rows = [
            self.plain_rows(policy, rows)
            for policy, rows in zip(policies, self.capacities, strict=True)
        ]
        baseline = _reads(small, lru, plain_rows, coalesce=False)
        progress.advance(1)
        small = _sampled(self.under_paper, self.sample_rate, SEEDS[0])
        paper = _reads(small, [self._recipe(each) for each in self.capacities], self.capacities)
        progress.advance(1)
        bounds = self._bounds()
        progress.finish()
        return [
            Point(capacity_rows, *rest)
            for capacity_rows, *rest in zip(
                self.capacities,
                policies,
                baseline,
                paper,
                [list(reads) for reads in zip(*plans, strict=True)],
                [min(bound, *reads) for bound, *reads in zip(bounds, *plans, strict=True)],
                strict=True,
            )
        ]

    def _recipe(self, capacity_rows: int) -> Policy:
        """Return the paper's policy, with the threshold that is best in hindsight."""
        lookups = self.under_paper.stream.positions.size
        rate = max(rate_for([capacity_rows], 30), _MOST_TRIED_LOOKUPS / max(1, lookups))
        small = _sampled(self.under_paper, rate, SEEDS[0])
        policies = [Policy("lru", Admission("threshold", each)) for each in THRESHOLDS]
        reads = _reads(small, policies, [capacity_rows] * len(policies))
        return policies[int(np.argmin(reads))]

    def _bounds(self) -> list[float]:
        lookups = self.under_plan.stream.positions.size
        rate = min(self.sample_rate, _MOST_BOUND_LOOKUPS / max(1, lookups))
        small = _sampled(self.under_plan, rate, SEEDS[0])
        stream, rows = small.stream, small.layout.heat.size
        log = AccessLog(stream.offsets, stream.positions)
        placement = Placement(
            np.arange(rows, dtype=np.uint32), small.layout.rows_per_block, "sample"
        )
        lookups = int(stream.offsets[-1] - stream.offsets[stream.warm_requests])
        counted = []
        for capacity_rows in self.capacities:
            reads = lower_bound(
                log, placement, small.capacity(capacity_rows), warm_requests=stream.warm_requests
            )
            whole_lookups = max(1.0, lookups / small.lookups_rate)
            counted.append(float(reads / small.rate / whole_lookups))
        return counted

    def gained(self, cache_bytes: int) -> Gained:
        """Choose the plan for one amount of DRAM, and count what it costs, without sampling."""
        each = self.subject
        each.progress.start(f"judge {each.name}", 6, "steps")
        fitting = partial(
            capacity_for, cache_bytes=cache_bytes, row_bytes=each.row_bytes, rows=each.rows
        )
        choice = choose(each, fitting, self.base)
        each.progress.advance(1)
        rows = choice.capacity_rows
        placement = each.placed(each.log, choice.placement, choice.resident_rows)
        seen = self._seen(placement)
        plan = run_parts(*seen, choice.policy, rows, PARTS)
        plain_rows = self.plain_rows(choice.policy, rows)
        plain = (*self.under_baseline, Policy())
        baseline = run_parts(*plain, plain_rows, PARTS, coalesce=False)
        same_rows = run(*plain, rows, coalesce=False).block_reads
        each.progress.advance(1)
        paper = run(*self.under_paper, self._recipe(rows) if rows else Policy(), rows)
        each.progress.advance(1)
        log = AccessLog(seen.stream.offsets, placement.id_of_position()[seen.stream.positions])
        bound = lower_bound(log, placement, rows, warm_requests=seen.stream.warm_requests)
        each.progress.advance(1)
        fresh = self._fresh(choice, log, seen.stream.warm_requests)
        each.progress.advance(1)
        ahead = outlook(each, choice)
        each.progress.finish()
        least = min(bound, sum(part.block_reads for part in plan))
        return Gained(
            choice, rows, seen, plan, baseline, same_rows, paper.block_reads, least, fresh, ahead
        )

    def _fresh(self, choice: Choice, log: AccessLog, warm: int) -> Replayed:
        """Serve the last part with what is learnt from as many requests right before it."""
        each = self.subject
        everything = joined(each.log, self.judge, each.log.requests)
        last = part_edges(self.judge.requests)[-2]
        window = everything.select(np.arange(last, last + each.log.requests))
        placement = each.placed(window, choice.placement, choice.resident_rows)
        layout = layout_of(placement, heat_by_position(window.ids, placement.position_of_id))
        stream = stream_of(log, placement, warm)
        return run_parts(stream, layout, choice.policy, choice.capacity_rows, PARTS)[-1]


def _sampled(seen: Seen, rate: float, seed: int) -> Miniature:
    return miniature(*seen, rate, seed) if rate < 0.5 else whole(*seen)


def _reads(
    small: Miniature,
    policies: Sequence[Policy],
    capacities: Sequence[int],
    *,
    coalesce: bool = True,
) -> list[float]:
    """Return block reads a lookup of each policy with each capacity, as the sample says."""

    def count(job: tuple[Policy, int]) -> float:
        policy, capacity_rows = job
        rows = small.capacity(capacity_rows)
        return small.reads_per_lookup(
            run(small.stream, small.layout, policy, rows, coalesce=coalesce)
        )

    return in_threads(count, list(zip(policies, capacities, strict=True)))
