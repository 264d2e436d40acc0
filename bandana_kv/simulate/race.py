"""Which policy needs the fewest reads: many in small samples, the best few in larger ones."""

from __future__ import annotations

from dataclasses import dataclass

from bandana_kv.cache.policy import Admission, Policy
from bandana_kv.kernels.layout import Layout
from bandana_kv.simulate.miniature import Miniature, in_threads, miniature, rate_for, whole
from bandana_kv.simulate.replay import Replayed, Stream, run

__all__ = ["Ranked", "candidates", "race"]

_SCREEN_ROWS, _FINAL_ROWS = 30, 300
_FINALISTS = 6
# A policy must be this much better to be preferred to a plainer one.
_WORTH = 0.998
_MOST_LOOKUPS = 2_000_000
# Live heat is halved in a sweep over the table: so many rows a lookup at most are affordable.
_MOST_AGED = 64


@dataclass(frozen=True)
class Ranked:
    """A policy and what its simulation counted.

    Attributes
    ----------
    policy : Policy
    reads_per_lookup : float
        Block reads.
    rate : float
        Share of the table's rows that were simulated.
    """

    policy: Policy
    reads_per_lookup: float
    rate: float


def candidates() -> tuple[Policy, ...]:
    """Return every policy that is tried, the plainest first."""
    lru = [Policy("lru", Admission(rule)) for rule in ("none", "all", "lower", "shadow")]
    lru.append(Policy("lru", Admission("shadow-lower")))
    lru += [Policy("lru", Admission("threshold", t)) for t in (2, 5, 10, 20, 50, 100, 200, 400)]
    queues = [
        Policy(eviction, Admission(rule))
        for eviction in ("clock", "sieve", "s3-fifo")
        for rule in ("none", "all", "online")
    ]
    heat = [
        Policy("tinylfu", Admission(rule), half_life, weight)
        for half_life in (5.0, 10.0, 20.0, 50.0, 100.0, 200.0)
        for weight in (1.0, 0.0)
        for rule in ("none", "online")
    ]
    return (*lru, *queues, Policy("lru", Admission("online")), *heat)


def race(
    stream: Stream,
    layout: Layout,
    policies: tuple[Policy, ...],
    capacity_rows: dict[Policy, int],
    seed: int,
) -> list[Ranked]:
    """Rank `policies` by block reads per lookup, the best first.

    All run on a sample that leaves their caches some thirty rows; the best six, and the
    plainest, again on one that leaves them three hundred.

    Parameters
    ----------
    stream, layout
        The requests, and how the rows lie.
    policies
        The plainest first: it wins ties, and gains below a fifth of a per cent. Where caches
        are so small that live heat would cost more than reads, none that needs it takes part.
    capacity_rows
        Rows that DRAM holds under each policy.
    seed
        Of the samples.

    Returns
    -------
    list of Ranked
        The finalists. Cost: less than a tenth of replaying the stream once for each policy
        where the cache holds some thousand rows; small caches are replayed whole.
    """
    policies = _affordable(policies, capacity_rows, layout.heat.size)
    smallest = [min(capacity_rows[policy] for policy in policies)]
    screen = _sampled(stream, layout, rate_for(smallest, _SCREEN_ROWS), seed)
    ranked = _ranked(screen, policies, capacity_rows)
    if screen.rate == 1.0:
        return _plainest_of_the_best(policies, ranked)
    best = {each.policy for each in ranked[:_FINALISTS]} | {policies[0]}
    finalists = tuple(policy for policy in policies if policy in best)
    final = _sampled(stream, layout, rate_for(smallest, _FINAL_ROWS), seed + 1)
    return _plainest_of_the_best(policies, _ranked(final, finalists, capacity_rows))


def _affordable(
    policies: tuple[Policy, ...], capacity_rows: dict[Policy, int], rows: int
) -> tuple[Policy, ...]:
    """Return the policies that are worth running; the first alone where nothing is held."""
    if not any(capacity_rows.values()):
        return policies[:1]
    return tuple(
        policy
        for policy in policies
        if not policy.watches_heat or policy.half_life * capacity_rows[policy] * _MOST_AGED >= rows
    )


def _sampled(stream: Stream, layout: Layout, rate: float, seed: int) -> Miniature:
    rate = min(rate, _MOST_LOOKUPS / max(1, stream.positions.size))
    return miniature(stream, layout, rate, seed) if rate < 0.5 else whole(stream, layout)


def _ranked(
    small: Miniature, policies: tuple[Policy, ...], capacity_rows: dict[Policy, int]
) -> list[Ranked]:
    def count(policy: Policy) -> Replayed:
        return run(small.stream, small.layout, policy, small.capacity(capacity_rows[policy]))

    counted = in_threads(count, policies)
    ranked = [
        Ranked(policy, small.reads_per_lookup(each), small.rate)
        for policy, each in zip(policies, counted, strict=True)
    ]
    return sorted(ranked, key=lambda each: each.reads_per_lookup)


def _plainest_of_the_best(policies: tuple[Policy, ...], ranked: list[Ranked]) -> list[Ranked]:
    """Put the plainest of those that are as good as the best first."""
    as_good = [r for r in ranked if r.reads_per_lookup * _WORTH <= ranked[0].reads_per_lookup]
    first = min(as_good, key=lambda each: policies.index(each.policy))
    return [first, *(each for each in ranked if each is not first)]
