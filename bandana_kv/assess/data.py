"""The report as data: what the JSON file holds, and all that the page shows.

Units come last in names, and the page formats a figure by the name: ``_bytes``, ``_share`` (of 1),
``_us``, ``_per_second``. Prices are in whatever the caller pays a GiB in. What is not known is
None; nothing is ever NaN or infinite.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from bandana_kv.assess.fleet_data import Advice
from bandana_kv.assess.table_data import Recommendation, Spread, TableReport
from bandana_kv.device.record import check_writable
from bandana_kv.errors import InputError
from bandana_kv.system.durable import replacing
from bandana_kv.system.permission import check_permission

__all__ = [
    "REPORT_FORMAT",
    "Assessment",
    "Cost",
    "CostPoint",
    "Device",
    "Dram",
    "DramPoint",
    "Endurance",
    "Inputs",
    "Latency",
    "SmallestDrive",
    "Throughput",
    "Uncertainty",
    "encodable",
    "write_text",
]

REPORT_FORMAT = 1


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
        At the rate asked for, else at the most; a block that several requests miss at the same
        time is read once.
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
    """What was asked; of DRAM, rates and prices, for `scale` times what the logs show.

    `sampled_share` is that of the rows which were drawn from logs in files; the tables of the
    report are of these.
    """

    logs: dict[str, str]
    ordered: bool
    seed: int
    dram_price: float
    nvm_price: float
    requests_per_second: float | None
    latency_budget_us: float | None
    dram_budget_bytes: int | None
    cache_bytes: int | None
    scale: float = 1.0
    sampled_share: float = 1.0
    machine_price: float | None = None
    least_saving: float | None = None

    @property
    def times(self) -> float:
        """How many times as large the tables are as those of the report."""
        return self.scale / self.sampled_share


class Assessment(msgspec.Struct, frozen=True):
    """Whether to serve these tables from NVM, and all that says so; `write` makes the JSON.

    `verdict` is the first reason in a sentence; `gain` that of all tables that would move, looked
    up in equally often. `tables` are as the logs show them; `dram`, `cost`, `endurance` and
    `advice` of the whole, `inputs.times` times as large.
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
    advice: Advice

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the report as JSON that people can read; what was there is replaced in one step.

        Raises
        ------
        InputError
            The path cannot be written.
        """
        text = msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n"
        write_text(Path(path), text.decode())


def encodable(path: str) -> str:
    """Return a path as JSON and pages can hold it: those of the system may be any bytes."""
    return path.encode("utf-8", "backslashreplace").decode("utf-8")


def write_text(path: Path, text: str) -> None:
    """Write a file in one step.

    Raises
    ------
    InputError
        The path cannot be written.
    """
    check_writable(path)
    try:
        with replacing(path) as partial:
            partial.write_text(text, encoding="utf-8")
    except OSError as error:
        check_permission(error, path)
        raise InputError(f"{path}: cannot be written ({error.strerror})") from error
