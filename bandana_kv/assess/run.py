"""Logs, a device and prices in; an assessment out."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from bandana_kv.assess import verdict
from bandana_kv.assess.advice import Way, advise, kept, machine_of
from bandana_kv.assess.cost import Memory, cost_of
from bandana_kv.assess.data import (
    REPORT_FORMAT,
    Assessment,
    Device,
    Dram,
    Inputs,
    Throughput,
    Uncertainty,
    encodable,
)
from bandana_kv.assess.devices import PUBLISHED
from bandana_kv.assess.dram import HEADROOM, Budget, Curves, budgets, choose_budget, reads_at
from bandana_kv.assess.endurance import endurance_of
from bandana_kv.assess.fleet import Served, Whole, in_copies
from bandana_kv.assess.fleet_data import Advice
from bandana_kv.assess.forms import with_forms
from bandana_kv.assess.gain import Gained, Learnt, Point
from bandana_kv.assess.performance import Costs, Load
from bandana_kv.assess.question import LEAST_LOG, TRAIN, Question, Table
from bandana_kv.assess.service import Server, dram_only_rate, together
from bandana_kv.assess.summary import gain_of, not_known, sentence_of
from bandana_kv.assess.table import Block, curve_of, report_of, spread_of
from bandana_kv.assess.table_data import TableReport
from bandana_kv.assess.workload import unseen_share
from bandana_kv.kernels.bitpack import words_for
from bandana_kv.logs.access_log import AccessLog
from bandana_kv.plan.choose import Subject
from bandana_kv.progress import Progress
from bandana_kv.units import size_text
from bandana_kv.version import __version__

__all__ = ["LEAST_LOG", "TRAIN", "Question", "Table", "assess"]

# Of the recommended cache: tried where many machines each have one.
OTHER_CACHES = (2.0, 0.5, 0.25, 0.125, 0.0625, 0.03125)


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
        shares = {name: self._of_log(share) for name, share in budget.shares.items()}
        gained = {name: each.gained(shares[name]) for name, each in self.learnt.items()}
        loads = {name: self._load_of(name, each) for name, each in gained.items()}
        tables = {name: self._table(name, gained[name], shares[name]) for name in gained}
        moved = [name for name, each in tables.items() if each.recommendation == "recommend"]
        moved = moved or list(tables)
        load = together([loads[name] for name in moved], self.asked.seed)
        shapes = {name: (self._rows(name), tables[name].row_bytes) for name in moved}
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
        advice = self._advice(moved, curves, load, throughput, memory)
        found = verdict.weighed(found, advice)
        if found.recommendation == "do not":
            advice = kept(advice)
        return Assessment(
            format=REPORT_FORMAT,
            created=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
            version=__version__,
            recommendation=found.recommendation,
            suited=found.suited,
            verdict=sentence_of(found, advice, cost, tables),
            gain=gain_of([tables[name] for name in moved]),
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
                not_known(self.asked, self.server.costs),
            ),
            device=self._device(),
            inputs=inputs,
            advice=advice,
        )

    def _rows(self, name: str) -> int:
        """Return the rows of the table itself, of which the log's may be a sample."""
        return math.ceil(self.asked.times * self.asked.tables[name].rows)

    def _of_log(self, whole_bytes: int) -> int:
        """Return what is the log's of some DRAM."""
        return int(whole_bytes / self.asked.times)

    def _learn(self, name: str, table: Table) -> None:
        ordered, seed = self.asked.ordered, self.asked.seed
        log = table.log
        if table.drawn is not None:
            unseen = table.drawn.unseen_in_file_order_share
            first, then = table.drawn.split()
        else:
            first, then = log.split(train=TRAIN, ordered=True)
            unseen = unseen_share(first, then, table.rows)
            if not ordered:
                log = log.split(train=1.0, seed=seed)[0]
                first, then = log.split(train=TRAIN, ordered=True)
        self.in_file_order[name] = unseen
        self.logs[name] = log
        block = Block.of(name, table.row_bytes)
        subject = Subject(name, table.rows, table.row_bytes, block.rows, first, seed, self.progress)
        self.learnt[name] = Learnt(subject, then, table.drawn)
        self.points[name] = self.learnt[name].points()

    def _curve(self, name: str) -> list[tuple[int, float]]:
        """Return DRAM for the whole's cache, and block reads a request; without DRAM first."""
        learnt = self.learnt[name]
        length = learnt.judge.lookups / learnt.requests
        points = [(0, learnt.reads_without_cache() * length)]
        for each in self.points[name]:
            reads = sum(each.plan) / len(each.plan)
            cache_bytes = learnt.bytes_of(each.policy, each.capacity_rows)
            points.append((round(self.asked.times * cache_bytes), reads * length))
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
            sum(self._rows(name) * each.row_bytes for name, each in asked.tables.items()),
            requests_per_second=asked.requests_per_second,
            device_reads_per_second=self.server.reads_per_second,
            in_time=in_time,
        )

    def _in_time(self, curves: Curves, budget_us: float) -> Callable[[int], bool]:
        def in_time(cache_bytes: int) -> bool:
            load = self._load_with(reads_at(curves, cache_bytes)[0])
            return self.server.in_time(load, self.asked.requests_per_second, budget_us)

        return in_time

    def _load_with(self, shares: Mapping[str, int]) -> Load:
        """Return what is asked of the tables of `shares`, each with so much DRAM for its cache."""
        loads = [
            self.learnt[name].load(self._of_log(share), self.asked.threads)
            for name, share in shares.items()
        ]
        return together(loads, self.asked.seed)

    def _load_of(self, name: str, gained: Gained) -> Load:
        policy, rows = gained.choice.policy, gained.capacity_rows
        return self.learnt[name].load_of(gained.seen, policy, rows, self.asked.threads)

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
        versions, scale = 2 if self.asked.retraining.times_per_day else 1, self.asked.times
        caches = sum(each.dram.cache_bytes + each.dram.heat_bytes for each in tables)
        return Memory(
            round(scale * sum(each.table_bytes for each in tables)),
            round(scale * caches)
            + sum(8 * words_for(math.ceil(scale * each.rows)) for each in tables),
            versions * round(scale * sum(each.nvm_bytes for each in tables)),
            versions,
        )

    def _advice(
        self, names: list[str], curves: Curves, load: Load, throughput: Throughput, memory: Memory
    ) -> Advice:
        asked, tables = self.asked, [self.asked.tables[name] for name in names]
        lengths = [each.mean_length for each in tables]
        row_bytes = np.average([each.row_bytes for each in tables], weights=lengths)
        index_bytes = sum(8 * words_for(self._rows(name)) for name in names)
        plain = throughput.dram_only_requests_per_second

        def way(cache_bytes: int, load: Load, rate: float) -> Way:
            whole = Whole(
                table_bytes=memory.table_bytes,
                cache_bytes=cache_bytes,
                index_bytes=index_bytes,
                nvm_bytes=memory.nvm_bytes,
                requests_per_second=asked.requests_per_second,
                lookups=float(np.mean(load.lookups)),
                missed_rows=float(np.mean(load.missed)),
                block_reads=float(np.mean(load.block_reads)),
                row_bytes=float(row_bytes),
                block_bytes=self.server.costs.block_bytes,
            )
            reads = self.server.reads_per_second
            return Way(whole, Served(plain, rate, self.server.cluster_rate(load), reads))

        machine = machine_of(asked.sizes, self.server.costs.processors, asked.prices)
        ways = [way(memory.dram_bytes - index_bytes, load, throughput.requests_per_second)]
        one = in_copies(*ways[0], machine, asked.prices)
        if asked.requests_per_second is not None and not (one.fits and one.machines == 1):
            ways += [way(*other) for other in self._other_caches(names, curves, ways[0].whole)]
        return advise(ways, machine, asked.prices, scale=asked.times, crossover=asked.crossover)

    def _other_caches(
        self, names: list[str], curves: Curves, whole: Whole
    ) -> Iterator[tuple[int, Load, float]]:
        """Return other amounts of DRAM for caches, what is then asked, and served, in time."""
        moved = {name: curves[name] for name in names}
        least = sum(points[1][0] for points in moved.values())
        for share in OTHER_CACHES:
            cache_bytes = int(share * whole.cache_bytes)
            if cache_bytes < least or self.asked.cache_bytes is not None:
                continue
            load = self._load_with(reads_at(moved, cache_bytes)[0])
            rate, budget_us = self.asked.requests_per_second, self.asked.latency_budget_us
            if budget_us is None or self.server.in_time(load, rate, budget_us):
                yield cache_bytes, load, self.server.most(load).requests_per_second

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
            scale=asked.scale,
            sampled_share=asked.sampled_share,
            machine_price=asked.prices.machine,
            least_saving=asked.prices.least_saving,
        )
