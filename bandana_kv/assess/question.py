"""What an assessment is asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from bandana_kv.assess.advice import Sizes
from bandana_kv.assess.cost import Prices
from bandana_kv.assess.endurance import Drive, Retraining
from bandana_kv.assess.forms import check_floats
from bandana_kv.device import DeviceProfile
from bandana_kv.errors import InputError
from bandana_kv.logs.access_log import AccessLog
from bandana_kv.placement.distributed import Sample
from bandana_kv.plan.points import LEAST_REQUESTS

__all__ = ["LEAST_LOG", "TRAIN", "Question", "Table"]

# Of the requests: the rest judges.
TRAIN = 0.7
# Learning keeps back a part of its own to judge by.
LEAST_LOG = -(-LEAST_REQUESTS * 10 // 7)
MOST_SCALE = 1e9


@dataclass(frozen=True)
class Table:
    """A table to assess: its access log, how many rows it has, and how large they are.

    `drawn` says that the log is of parts of requests, which are those of a sample of the rows.
    """

    log: AccessLog
    rows: int
    row_bytes: int
    drawn: Sample | None = None

    @property
    def mean_length(self) -> float:
        """Lookups of a request."""
        if self.drawn is not None:
            return float(self.drawn.lengths.mean())
        return self.log.lookups / max(1, self.log.requests)


@dataclass(frozen=True)
class Question:
    """What is asked.

    Attributes
    ----------
    tables : dict of Table
    ordered : bool
        Whether the requests of each log are in order of time.
    prices : Prices
    device : DeviceProfile
    device_name, device_source : str
        As the report calls it, and where its figures are from.
    requests_per_second : float or None
        Each of them looks up in every table.
    latency_budget_us : float or None
        For 99 of 100 requests.
    dram_budget_bytes : int or None
        DRAM that is there for these tables anyway.
    cache_bytes : int or None
        DRAM for all caches; None: recommend it.
    retraining : Retraining
    drive : Drive
    threads : int
        Requests that are served at a time.
    seed : int
    forms : tuple of str
        The codecs to compare with float32.
    samples : dict of path
        Rows of tables, of which to say what those lose.
    scale : float
        How many times as large the tables and their traffic are as the logs show: rows and
        requests are more, requests are as long and each row is as busy. Rates, budgets and bytes
        that are given are of the whole.
    sampled_share : float
        How many of the rows of each table the logs here are of, which were drawn from logs in
        files; all that is said of `scale` holds for the reciprocal of this, too.
    sizes : Sizes
        Of a machine.
    crossover : float or None
        Missed rows a block, above which blocks cost less on a network than a row a key.
    """

    tables: Mapping[str, Table]
    ordered: bool
    prices: Prices
    device: DeviceProfile
    device_name: str
    device_source: str
    requests_per_second: float | None = None
    latency_budget_us: float | None = None
    dram_budget_bytes: int | None = None
    cache_bytes: int | None = None
    retraining: Retraining = field(default_factory=lambda: Retraining(1.0, 1.0))
    drive: Drive = field(default_factory=lambda: Drive(None, None, "none was given"))
    threads: int = 8
    seed: int = 0
    forms: tuple[str, ...] = ()
    samples: Mapping[str, str] = field(default_factory=dict)
    scale: float = 1.0
    sampled_share: float = 1.0
    sizes: Sizes = field(default_factory=Sizes)
    crossover: float | None = None

    @property
    def times(self) -> float:
        """How many times as large the tables are as the logs here."""
        return self.scale / self.sampled_share

    def check(self) -> None:
        """Refuse what cannot be assessed, before the long work.

        Raises
        ------
        InputError
            Names what is wrong.
        """
        if not self.tables:
            raise InputError("no tables to assess; name at least one")
        if not 0.0 < self.sampled_share <= 1.0:
            raise InputError(f"sampled_share {self.sampled_share} is not above 0 and up to 1")
        if not 1.0 <= self.scale <= MOST_SCALE:
            raise InputError(
                f"scale {self.scale:g}: a log is of 1 to {MOST_SCALE:,.0f} times as large a table"
            )
        if min(self.sizes) <= 0:
            raise InputError("a machine has some DRAM, some NVM and some network: sizes above 0")
        for name, table in self.tables.items():
            if self.forms:
                check_floats(name, table.row_bytes)
            if table.rows < 1 or table.row_bytes < 1:
                raise InputError(f"table {name!r}: {table.rows} rows of {table.row_bytes} bytes")
            table.log.validate(rows=table.rows)
            if table.log.requests < LEAST_LOG:
                raise InputError(
                    f"table {name!r}: a log of {table.log.requests} requests is too short to "
                    f"judge by; {LEAST_LOG} are the least"
                )
