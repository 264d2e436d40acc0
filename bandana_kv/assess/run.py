"""Logs, a device and prices in; an assessment out."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from bandana_kv.assess import verdict
from bandana_kv.assess.cost import Memory, Prices, cost_of
from bandana_kv.assess.data import (
    REPORT_FORMAT,
    Assessment,
    Cost,
    Device,
    Dram,
    Inputs,
    Throughput,
    Uncertainty,
    encodable,
)
from bandana_kv.assess.devices import PUBLISHED
from bandana_kv.assess.dram import HEADROOM, Budget, Curves, budgets, choose_budget, reads_at
from bandana_kv.assess.endurance import Drive, Retraining, endurance_of
from bandana_kv.assess.forms import check_floats, with_forms
from bandana_kv.assess.gain import Gained, Learnt, Point
from bandana_kv.assess.performance import Costs, Load
from bandana_kv.assess.service import Server, dram_only_rate, together
from bandana_kv.assess.table import Block, curve_of, report_of, spread_of
from bandana_kv.assess.table_data import TableReport
from bandana_kv.assess.workload import unseen_share
from bandana_kv.device import DeviceProfile
from bandana_kv.errors import InputError
from bandana_kv.logs.access_log import AccessLog
from bandana_kv.plan.choose import Subject
from bandana_kv.plan.points import LEAST_REQUESTS
from bandana_kv.progress import Progress
from bandana_kv.simulate import per_request
from bandana_kv.units import size_text
from bandana_kv.version import __version__

__all__ = ["LEAST_LOG", "TRAIN", "Question", "Table", "assess"]

# Of the requests: the rest judges.
TRAIN = 0.7
# Learning keeps back a part of its own to judge by.
LEAST_LOG = -(-LEAST_REQUESTS * 10 // 7)


@dataclass(frozen=True)
class Table:
    """A table to assess: its access log, how many rows it has, and how large they are."""

    log: AccessLog
    rows: int
    row_bytes: int


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

    def check(self) -> None:
        """Refuse what cannot be assessed, before the long work.

        Raises
        ------
        InputError
            Names what is wrong.
        """
        if not self.tables:
            raise InputError("no tables to assess; name at least one")
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


def assess(question: Question, costs: Costs, progress: Progress | None = None) -> Assessment:
    """Find out whether to serve tables from NVM, and what that gains and costs.

    Parameters
    ----------
    question
        Logs, device, prices, and what is wanted.
    costs
        Of this machine, from :func:`bandana_kv.assess.performance.calibrate`.
    progress
        Told of every stage.

    Returns
    -------
    Assessment

    Raises
    ------
    InputError
        A log is too short, looks up an id that its table has not, or a number is out of range.

    Notes
    -----
    Cost: for each table some six placements and some hundred replays, on all processors;
    under two minutes for ten million lookups on two. Memory: a few times the largest log.
    """
    question.check()
    return _Work(question, costs, progress or Progress()).done()


class _Work:
    """One assessment under way."""

    def __init__(self, question: Question, costs: Costs, progress: Progress) -> None:
        self.asked, self.progress = question, progress
        self.server = Server(costs, question.device, question.threads)
        self.learnt: dict[str, Learnt] = {}
        self.points: dict[str, list[Point]] = {}
        self.logs: dict[str, AccessLog] = {}
        self.in_file_order: dict[str, float] = {}

    def done(self) -> Assessment:
        for name, table in self.asked.tables.items():
            self._learn(name, table)
        curves = {name: self._curve(name) for name in self.learnt}
        budget = self._budget(curves)
        gained = {name: each.gained(budget.shares[name]) for name, each in self.learnt.items()}
        loads = {name: self._load_of(each) for name, each in gained.items()}
        tables = {name: self._table(name, gained[name], budget.shares[name]) for name in gained}
        moved = [name for name, each in tables.items() if each.recommendation == "recommend"]
        moved = moved or list(tables)
        load = together([loads[name] for name in moved], self.asked.seed)
        shapes = {name: (tables[name].rows, tables[name].row_bytes) for name in moved}
        plain = dram_only_rate(shapes, [tables[name].workload.mean_length for name in moved])
        rate, budget_us = self.asked.requests_per_second, self.asked.latency_budget_us
        throughput = self.server.throughput(load, rate, plain)
        latency = self.server.latency(load, rate, budget_us)
        memory = self._memory([tables[name] for name in moved])
        cost = cost_of(memory, self.asked.prices, throughput)
        nvm_bytes = memory.nvm_bytes // memory.versions
        endurance = endurance_of(nvm_bytes, self.asked.retraining, self.asked.drive)
        inputs = self._inputs()
        found = verdict.judge(tables, inputs, cost, throughput, latency, endurance)
        return Assessment(
            format=REPORT_FORMAT,
            created=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
            version=__version__,
            recommendation=found.recommendation,
            suited=found.suited,
            verdict=_sentence(found, cost, throughput, tables),
            gain=_gain([tables[name] for name in moved]),
            reasons=found.reasons,
            warnings=verdict.warnings_of(tables, throughput, cost, inputs, self.server.costs),
            tables=tables,
            dram=self._dram(budget, curves, memory),
            throughput=throughput,
            latency_us=latency,
            cost=cost,
            endurance=endurance,
            uncertainty=Uncertainty(
                {name: spread_of(each, gained[name]) for name, each in self.learnt.items()},
                self._not_known(),
            ),
            device=self._device(),
            inputs=inputs,
        )

    def _learn(self, name: str, table: Table) -> None:
        ordered, seed = self.asked.ordered, self.asked.seed
        first, then = table.log.split(train=TRAIN, ordered=True)
        self.in_file_order[name] = unseen_share(first, then, table.rows)
        log = table.log
        if not ordered:
            log = log.split(train=1.0, seed=seed)[0]
            first, then = log.split(train=TRAIN, ordered=True)
        self.logs[name] = log
        block = Block.of(name, table.row_bytes)
        subject = Subject(name, table.rows, table.row_bytes, block.rows, first, seed, self.progress)
        self.learnt[name] = Learnt(subject, then)
        self.points[name] = self.learnt[name].points()

    def _curve(self, name: str) -> list[tuple[int, float]]:
        """Return DRAM for the cache, and block reads a request; without DRAM first."""
        learnt = self.learnt[name]
        length = learnt.judge.lookups / max(1, learnt.judge.requests)
        points = [(0, learnt.reads_without_cache() * length)]
        for each in self.points[name]:
            reads = sum(each.plan) / len(each.plan)
            points.append((learnt.bytes_of(each.policy, each.capacity_rows), reads * length))
        return points

    def _budget(self, curves: Curves) -> Budget:
        asked = self.asked
        if asked.cache_bytes is not None:
            shares, _ = reads_at(curves, asked.cache_bytes)
            return Budget(asked.cache_bytes, shares, "as given")
        in_time = None
        if asked.latency_budget_us is not None:
            in_time = self._in_time(curves, asked.latency_budget_us)
        return choose_budget(
            curves,
            sum(each.rows * each.row_bytes for each in asked.tables.values()),
            requests_per_second=asked.requests_per_second,
            device_reads_per_second=self.server.reads_per_second,
            in_time=in_time,
        )

    def _in_time(self, curves: Curves, budget_us: float) -> Callable[[int], bool]:
        def in_time(cache_bytes: int) -> bool:
            shares, _ = reads_at(curves, cache_bytes)
            loads = [
                each.load(shares[name], self.asked.threads) for name, each in self.learnt.items()
            ]
            load = together(loads, self.asked.seed)
            return self.server.in_time(load, self.asked.requests_per_second, budget_us)

        return in_time

    def _load_of(self, gained: Gained) -> Load:
        counted = per_request(
            *gained.seen,
            gained.choice.policy,
            gained.capacity_rows,
            callers=self.asked.threads,
        )
        return Load.of(counted)

    def _table(self, name: str, gained: Gained, cache_bytes: int) -> TableReport:
        learnt, sample = self.learnt[name], self.asked.samples.get(name)
        found = report_of(
            learnt,
            gained,
            self.logs[name],
            curve_of(self.learnt[name], self.points[name]),
            unseen_in_file_order_share=self.in_file_order[name],
            ordered=self.asked.ordered,
        )
        return with_forms(found, learnt, cache_bytes, self.asked.forms, sample)

    def _memory(self, tables: list[TableReport]) -> Memory:
        versions = 2 if self.asked.retraining.times_per_day else 1
        return Memory(
            sum(each.table_bytes for each in tables),
            sum(each.dram_bytes_recommended for each in tables),
            versions * sum(each.nvm_bytes for each in tables),
            versions,
        )

    def _dram(self, budget: Budget, curves: Curves, memory: Memory) -> Dram:
        return Dram(
            recommended_bytes=memory.dram_bytes,
            table_bytes=memory.table_bytes,
            table_share=memory.dram_bytes / memory.table_bytes,
            headroom_share=HEADROOM,
            why=f"{size_text(budget.cache_bytes)} for caches: {budget.why}",
            curve=tuple(budgets(curves)),
        )

    def _device(self) -> Device:
        device, block_bytes = self.asked.device, self.server.costs.block_bytes
        depth = device.queue_depth
        return Device(
            name=encodable(self.asked.device_name),
            source=encodable(self.asked.device_source),
            measured=device.engine != PUBLISHED,
            block_bytes=block_bytes,
            queue_depth=depth,
            reads_per_second=self.server.reads_per_second,
            mean_us=device.latency_us(block_bytes, depth),
            p99_us=device.latency_us(block_bytes, depth, "p99"),
        )

    def _inputs(self) -> Inputs:
        asked = self.asked
        return Inputs(
            logs={name: encodable(each.log.source) for name, each in asked.tables.items()},
            ordered=asked.ordered,
            seed=asked.seed,
            dram_price=asked.prices.dram,
            nvm_price=asked.prices.nvm,
            requests_per_second=asked.requests_per_second,
            latency_budget_us=asked.latency_budget_us,
            dram_budget_bytes=asked.dram_budget_bytes,
            cache_bytes=asked.cache_bytes,
        )

    def _not_known(self) -> tuple[str, ...]:
        """Return what no figure here says."""
        lines = []
        if self.asked.device.engine == PUBLISHED:
            lines.append(
                "The device was not measured: its figures are published ones, of an idle and empty "
                "device, and its slowest reads are mostly not published. Measure yours with "
                "tools/profile_device.py."
            )
        if not self.asked.ordered:
            lines.append("How fast what is learnt ages: the log is in no order of time.")
        costs = self.server.costs
        lines += [
            (
                f"Processor costs were measured on this machine ({costs.processors} processors, "
                f"load {costs.load_average:.1f} meanwhile); throughput and latency are for "
                "machines like it."
            ),
            "Traffic after the log: all figures are of its last three tenths.",
            "What an engine and the drive write on top of blocks.",
        ]
        if len(self.asked.tables) > 1:
            lines.append(
                "Which requests of different tables belong together: they were paired at random."
            )
        return tuple(lines)


def _gain(tables: list[TableReport]) -> float:
    baseline = sum(each.reads_per_request.baseline for each in tables)
    return baseline / max(1e-9, sum(each.reads_per_request.plan for each in tables))


def _sentence(
    found: verdict.Verdict,
    cost: Cost,
    throughput: Throughput,
    tables: Mapping[str, TableReport],
) -> str:
    """Return the verdict as one sentence."""
    what = "this table" if len(tables) == 1 else "these tables"
    if found.recommendation == "do not":
        return f"Do not serve {what} from NVM: {found.reasons[0]}."
    moved = [each for each in tables.values() if each.recommendation == "recommend"]
    if len(moved) < len(tables):
        what = f"{len(moved)} of {len(tables)} tables"
    gains = sorted(each.gain for each in moved)
    gain = f"{gains[0]:.2f}" if len(gains) == 1 else f"{gains[0]:.2f} to {gains[-1]:.2f}"
    machines, others = throughput.machines or 0, throughput.dram_only_machines or 0
    price = (
        f", on {machines} machines like this one instead of {others}" if machines > others else ""
    )
    return (
        f"Serve {what} from NVM: {gain} times fewer reads than a plain cache, and memory costs "
        f"{cost.saved_share:.0%} less than with all rows in DRAM{price}."
    )
