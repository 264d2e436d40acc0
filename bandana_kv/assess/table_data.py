"""What the report says of one table, as data; :mod:`bandana_kv.assess.data` says the rest."""

from __future__ import annotations

from typing import Literal

import msgspec

from bandana_kv.disk.manifest import Loss

__all__ = [
    "Ageing",
    "CurvePoint",
    "Foretold",
    "Part",
    "PlanSummary",
    "Reads",
    "Recommendation",
    "Spread",
    "StoredForm",
    "TableDram",
    "TableReport",
    "Workload",
]

Recommendation = Literal["recommend", "do not"]


class Workload(msgspec.Struct, frozen=True):
    """What a table's log is like.

    Attributes
    ----------
    requests, lookups : int
    distinct_rows : int
        Rows that are looked up at all; `distinct_share` of the table.
    once_share : float
        Of them, those that are looked up once.
    top_1_share, top_10_share : float
        Of the lookups, those to the busiest 1 % and 10 % of the table's rows.
    rows_for_90_share : float
        Share of the table's rows that get 90 % of the lookups.
    mean_length, median_length, p99_length, longest : float
        Lookups a request.
    short_share : float
        Of the requests, those of one or two ids.
    repeats_share : float
        Of the lookups, those of an id that the same request has looked up already.
    fanout_popularity, fanout_least : float
        Blocks a judged request touches with rows in order of popularity; and if all of its
        rows lay side by side.
    co_access : float
        `fanout_shuffled` / `fanout_placed`: how many times fewer blocks a request touches
        because rows that are read together share blocks. 1: nothing is read together.
    unseen_share : float
        Of the judged lookups, those to rows that no request learnt from has looked up.
    unseen_in_file_order_share : float
        The same, had the file been split where it stands.
    """

    requests: int
    lookups: int
    distinct_rows: int
    distinct_share: float
    once_share: float
    top_1_share: float
    top_10_share: float
    rows_for_90_share: float
    mean_length: float
    median_length: float
    p99_length: float
    longest: int
    short_share: float
    repeats_share: float
    fanout_popularity: float
    fanout_least: float
    co_access: float
    unseen_share: float
    unseen_in_file_order_share: float


class Reads(msgspec.Struct, frozen=True):
    """Block reads a request, at the recommended DRAM, on the requests that judge.

    Attributes
    ----------
    baseline : float
        Rows in arbitrary order under LRU, in as much DRAM, bookkeeping included: it needs no
        index of ids, and so has room for more rows. Each missed row costs a read.
    paper_recipe : float
        SHP that knows no cache, LRU, and the threshold that is best in hindsight.
    plan : float
        What was chosen from the requests learnt from alone.
    lower_bound : float
        Below which no policy can be with the plan's blocks and as many rows in DRAM.
    """

    baseline: float
    paper_recipe: float
    plan: float
    lower_bound: float


class CurvePoint(msgspec.Struct, frozen=True):
    """Block reads a request at one amount of DRAM, by miniature simulation.

    `cached_share` is of the table's rows; `dram_bytes` has all bookkeeping; `plan_low` and
    `plan_high` are the least and most over the samples.
    """

    cached_share: float
    cached_rows: int
    dram_bytes: int
    baseline: float
    paper_recipe: float
    plan: float
    plan_low: float
    plan_high: float
    lower_bound: float


class Part(msgspec.Struct, frozen=True):
    """One of the consecutive parts of the requests that judge.

    Attributes
    ----------
    reads_per_request, baseline_reads_per_request : float
        Of the plan, and of the baseline.
    gain : float
        The second over the first.
    unseen_share : float
    """

    reads_per_request: float
    baseline_reads_per_request: float
    gain: float
    unseen_share: float


class Ageing(msgspec.Struct, frozen=True):
    """What the plan loses as it ages, on the last of the parts that judge.

    Attributes
    ----------
    aged_share : float
        How far, in requests of the whole log, the last part's start is from the end of what
        was learnt from.
    stale_reads_per_request, fresh_reads_per_request : float
        With what was learnt at first, and with placement and heat learnt anew from as many
        requests right before the part.
    """

    aged_share: float
    stale_reads_per_request: float
    fresh_reads_per_request: float


class PlanSummary(msgspec.Struct, frozen=True):
    """What was chosen for a table: placement, resident rows left out of it, policy."""

    placement: str
    resident_rows: int
    policy: str
    reason: str


class TableDram(msgspec.Struct, frozen=True):
    """What the recommended DRAM consists of.

    Attributes
    ----------
    cache_bytes : int
        Rows, and the cache's bookkeeping.
    cached_rows : int
    index_bytes, heat_bytes : int
        Where each id lies; how often each row is looked up, where the policy asks.
    table_share : float
        All of it, of the table's bytes.
    plain_cache_bytes : int or None
        What the baseline would need for as few reads; None: it is not on its curve, which ends
        with half of the rows.
    """

    cache_bytes: int
    cached_rows: int
    index_bytes: int
    heat_bytes: int
    table_share: float
    plain_cache_bytes: int | None


class StoredForm(msgspec.Struct, frozen=True):
    """What storing rows by a codec would do, in as much DRAM as the plan for float32 has.

    Attributes
    ----------
    codec : str
    row_bytes, rows_per_block, cached_rows : int
    reads_per_request : float
    gain : float
        Over the plan for float32.
    loss : Loss or None
        Of a sample of rows; None: none was given.
    """

    codec: str
    row_bytes: int
    rows_per_block: int
    cached_rows: int
    reads_per_request: float
    gain: float
    loss: Loss | None


class TableReport(msgspec.Struct, frozen=True):
    """What was found for one table.

    Attributes
    ----------
    recommendation, reasons
        For this table alone.
    suited : bool
        Whether its log is of the kind that gains.
    reuse : float
        Lookups for each row that is looked up.
    fanout_shuffled, fanout_placed : float
        Blocks that a judged request touches, rows lying in arbitrary order and placed.
    drift : float
        Share of the saved reads that is lost by the time of the last part; 0: none. Of a log
        that is not in order of time it says nothing.
    gain, gain_low, gain_high : float
        Baseline over plan: of all judged requests, and the least and most of their parts.
    gain_same_rows : float
        Over a baseline that has as many rows in DRAM, and not as many bytes.
    forms : tuple of StoredForm
        Those that were asked for.
    """

    recommendation: Recommendation
    reasons: tuple[str, ...]
    suited: bool
    rows: int
    row_bytes: int
    rows_per_block: int
    table_bytes: int
    nvm_bytes: int
    reuse: float
    fanout_shuffled: float
    fanout_placed: float
    drift: float
    dram_bytes_recommended: int
    reads_per_request: Reads
    gain: float
    gain_low: float
    gain_high: float
    gain_same_rows: float
    gain_over_paper_recipe: float
    hit_share: float
    plan: PlanSummary
    dram: TableDram
    workload: Workload
    parts: tuple[Part, ...]
    ageing: Ageing
    curve: tuple[CurvePoint, ...]
    forms: tuple[StoredForm, ...] = ()


class Foretold(msgspec.Struct, frozen=True):
    """What the requests learnt from foretold of the plan, and what then came.

    Attributes
    ----------
    reads_per_lookup, came : float
        Block reads a lookup, not a request: later requests may be longer.
    low, high : float
        Between which :func:`bandana_kv.plan.outlook.outlook` expected it, at 19 in 20.
    covered : bool
        What came lies between them.
    """

    reads_per_lookup: float
    low: float
    high: float
    came: float
    covered: bool


class Spread(msgspec.Struct, frozen=True):
    """How sure a table's figures are."""

    learned_requests: int
    judged_requests: int
    parts: int
    reads_low: float
    reads_high: float
    gain_low: float
    gain_high: float
    sampled_share: float
    samples: int
    foretold: Foretold
