"""The report as data: what the JSON file holds, and all that the page shows.

Units come last in names, and the page formats a figure by the name: ``_bytes``, ``_share`` (of 1),
``_us``, ``_per_second``. Prices are in whatever the caller pays a GiB in. What is not known is
None; nothing is ever NaN or infinite.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import msgspec

from bandana_kv.device.record import check_writable
from bandana_kv.errors import InputError

__all__ = [
    "REPORT_FORMAT",
    "Ageing",
    "Assessment",
    "Cost",
    "CostPoint",
    "CurvePoint",
    "Device",
    "Dram",
    "DramPoint",
    "Endurance",
    "Foretold",
    "Inputs",
    "Latency",
    "Part",
    "PlanSummary",
    "Reads",
    "Recommendation",
    "SmallestDrive",
    "Spread",
    "TableDram",
    "TableReport",
    "Throughput",
    "Uncertainty",
    "Workload",
    "write_text",
]

REPORT_FORMAT = 1
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


class DramPoint(msgspec.Struct, frozen=True):
    """Block reads a request of all tables together, at one budget shared out among them."""

    cache_bytes: int
    reads_per_request: float


class Dram(msgspec.Struct, frozen=True):
    """How much DRAM is recommended for all tables, and why.

    `headroom_share` is what a device is asked for at most, of what it reads.
    """

    recommended_bytes: int
    table_bytes: int
    table_share: float
    headroom_share: float
    why: str
    curve: tuple[DramPoint, ...]


class Throughput(msgspec.Struct, frozen=True):
    """What one machine like this one, with one such device, serves.

    Attributes
    ----------
    requests_per_second, rows_per_second : float
        At most.
    bound_by : str
        What it ends at.
    threads : int
    dram_only_requests_per_second : float
        Of a plain array that holds all rows in DRAM, as measured here.
    wanted_requests_per_second : float or None
        As asked for.
    block_reads_per_second : float
        At the rate asked for, else at the most.
    device_reads_per_second : float
        What the device reads at its queue depth.
    machines, dram_only_machines : int or None
        Needed for the rate.
    devices : int or None
        Needed for the rate's reads.
    """

    requests_per_second: float
    rows_per_second: float
    bound_by: str
    threads: int
    dram_only_requests_per_second: float
    wanted_requests_per_second: float | None
    block_reads_per_second: float
    device_reads_per_second: float
    machines: int | None
    dram_only_machines: int | None
    devices: int | None


class Latency(msgspec.Struct, frozen=True):
    """How long a request takes, at `requests_per_second` on one machine."""

    mean: float
    p50: float
    p99: float
    requests_per_second: float
    budget: float | None
    budget_met: bool | None


class CostPoint(msgspec.Struct, frozen=True):
    """What is saved if a GiB of NVM costs `price_ratio` times a GiB of DRAM."""

    price_ratio: float
    saved_share: float


class Cost(msgspec.Struct, frozen=True):
    """What memory costs, in the unit of the prices.

    Attributes
    ----------
    dram_only, ours, saved : float
        All rows in DRAM; DRAM and NVM as recommended; the difference.
    saved_share : float
    price_ratio, break_even_price_ratio : float
        A GiB of NVM over a GiB of DRAM: as given, and where nothing is saved any more.
    break_even_dram_share : float
        DRAM as a share of the tables, from which on nothing is saved at the given prices.
    versions : int
        Of each table on NVM: a table that is retrained is loaded beside the old one.
    copies_cost_share : float or None
        What memory costs, over that of all rows in DRAM, if each machine that the rate needs
        holds all of it; None without a rate.
    break_even_machine_price : float or None
        Where more machines are needed than with all rows in DRAM: what one of them may cost,
        without its memory, before the saving is gone.
    """

    dram_price: float
    nvm_price: float
    table_bytes: int
    dram_bytes: int
    nvm_bytes: int
    versions: int
    dram_only: float
    ours: float
    ours_dram: float
    ours_nvm: float
    saved: float
    saved_share: float
    price_ratio: float
    break_even_price_ratio: float
    break_even_dram_share: float
    copies_cost_share: float | None
    break_even_machine_price: float | None
    curve: tuple[CostPoint, ...]


class SmallestDrive(msgspec.Struct, frozen=True):
    """The smallest drive that a rating of so many drive writes a day lets be written so."""

    drive_writes_per_day: float
    drive_bytes: int


class Endurance(msgspec.Struct, frozen=True):
    """How fast the drive wears.

    Attributes
    ----------
    written_bytes_per_day : int
        Of blocks, headers and padding included.
    drive_bytes, drive_writes_per_day, rated_bytes, years
        Capacity; `written_bytes_per_day` / capacity; what may be written in all; how long that
        lasts. None where it was not given.
    most_retrains_per_day : float or None
        That the rating allows over its warranty.
    rating : str
        Where the rating is from.
    """

    retrains_per_day: float
    rewritten_share: float
    written_bytes_per_day: int
    drive_bytes: int | None
    drive_writes_per_day: float | None
    rated_bytes: int | None
    years: float | None
    most_retrains_per_day: float | None
    rating: str
    smallest_drives: tuple[SmallestDrive, ...]


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


class Uncertainty(msgspec.Struct, frozen=True):
    """How sure it is, by table, and what is not known at all."""

    tables: dict[str, Spread]
    not_known: tuple[str, ...]


class Device(msgspec.Struct, frozen=True):
    """Which device was reckoned with.

    Attributes
    ----------
    name, source : str
    measured : bool
        False: its figures are published ones.
    block_bytes, queue_depth : int
    reads_per_second, mean_us, p99_us : float
        Random reads of that size at that depth.
    """

    name: str
    source: str
    measured: bool
    block_bytes: int
    queue_depth: int
    reads_per_second: float
    mean_us: float
    p99_us: float


class Inputs(msgspec.Struct, frozen=True):
    """What was asked."""

    logs: dict[str, str]
    ordered: bool
    seed: int
    dram_price: float
    nvm_price: float
    requests_per_second: float | None
    latency_budget_us: float | None
    dram_budget_bytes: int | None
    cache_bytes: int | None


class Assessment(msgspec.Struct, frozen=True):
    """Whether to serve these tables from NVM, and all that says so; `write` makes the JSON.

    `verdict` is the first reason in a sentence; `gain` that of all tables that would move, looked
    up in equally often.
    """

    format: int
    created: str
    version: str
    recommendation: Recommendation
    suited: bool
    verdict: str
    gain: float
    reasons: tuple[str, ...]
    warnings: tuple[str, ...]
    tables: dict[str, TableReport]
    dram: Dram
    throughput: Throughput
    latency_us: Latency
    cost: Cost
    endurance: Endurance
    uncertainty: Uncertainty
    device: Device
    inputs: Inputs

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the report as JSON that people can read; what was there is replaced in one step.

        Raises
        ------
        InputError
            The path cannot be written.
        """
        text = msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n"
        write_text(Path(path), text.decode())


def write_text(path: Path, text: str) -> None:
    """Write a file in one step.

    Raises
    ------
    InputError
        The path cannot be written.
    """
    check_writable(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from error
    finally:
        partial.unlink(missing_ok=True)
