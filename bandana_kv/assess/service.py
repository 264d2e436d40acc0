"""Throughput and latency: what was simulated, at the device's curve and this machine's costs."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import msgspec
import numpy as np

from bandana_kv.assess.data import Latency, Throughput
from bandana_kv.assess.devices import DeviceClass
from bandana_kv.assess.dram import HEADROOM
from bandana_kv.assess.fleet import CLIENT_US
from bandana_kv.assess.performance import Costs, Load, Performance, at_rate, predict
from bandana_kv.device import DeviceProfile

__all__ = ["Server", "dram_only_rate", "together"]

_MEASURED_S = 0.2
_ARRAY_BYTES = 256 << 20
# Latency is told where a machine has room to breathe, if no rate was asked for.
_USUAL_SHARE = 0.5
# What stands for the device of who asks a cluster: as late as Kvrocks with some hops between, and
# without an end of its own. How many nodes it takes is reckoned elsewhere.
_CLUSTER = DeviceClass("cluster", "blocks on other machines", "docs/cluster.md", 1e6, 500.0)


def together(loads: Sequence[Load], seed: int) -> Load:
    """Return the load of requests that each look up in every table.

    Which requests of different tables belong together is not known: they are paired at random.
    """
    if len(loads) == 1:
        return loads[0]
    requests = max(load.lookups.size for load in loads)
    rng = np.random.default_rng(seed)
    sums = np.zeros((3, requests), np.int64)
    for load in loads:
        order = rng.permutation(requests) % load.lookups.size
        sums += np.stack([load.lookups, load.missed, load.block_reads])[:, order]
    return Load(*sums)


def dram_only_rate(shapes: Mapping[str, tuple[int, int]], lengths: Sequence[float]) -> float:
    """Measure the requests a second of plain arrays in DRAM, on all of this machine's processors.

    Parameters
    ----------
    shapes
        Rows and bytes of a row, by table.
    lengths
        Mean lookups a request, in the same order.

    Notes
    -----
    Rows are drawn evenly from at most 256 MiB of each table, one ``np.take`` a table and
    request. Cost: a fifth of a second.
    """
    rng = np.random.default_rng(0)
    jobs = []
    for (rows, row_bytes), length in zip(shapes.values(), lengths, strict=True):
        held = max(1, min(rows, _ARRAY_BYTES // row_bytes))
        array = np.zeros((held, row_bytes), np.uint8)
        jobs.append((array, rng.integers(0, held, (64, max(1, round(length))))))

    def ask(_: int) -> float:
        done, begun = 0, time.perf_counter()
        while time.perf_counter() - begun < _MEASURED_S:
            for array, requests in jobs:
                array.take(requests[done % 64], axis=0)
            done += 1
        return done / (time.perf_counter() - begun)

    processors = _processors()
    with ThreadPoolExecutor(processors) as pool:
        return sum(pool.map(ask, range(processors)))


def _processors() -> int:
    return len(os.sched_getaffinity(0))


class Server:
    """One machine like this one, with one device.

    Parameters
    ----------
    costs
        Of this machine.
    device
        What the device can do.
    threads
        Requests served at a time.
    """

    def __init__(self, costs: Costs, device: DeviceProfile, threads: int) -> None:
        self.costs, self.device, self.threads = costs, device, threads

    @property
    def reads_per_second(self) -> float:
        """What the device reads at its queue depth."""
        return self.device.reads_per_second(self.costs.block_bytes, self.device.queue_depth)

    def most(self, load: Load) -> Performance:
        """Return what one machine serves at most."""
        return predict(self.costs, self.device, load, threads=self.threads)

    def cluster_rate(self, load: Load) -> float:
        """Return the requests a second of one machine that asks a cluster for its blocks.

        A block then costs `CLIENT_US` more, one at a time, and comes after `_CLUSTER`'s latency.
        """
        costs = self.costs
        alone, crowded, serial = (
            msgspec.structs.replace(each, block_read=each.block_read + CLIENT_US)
            for each in (costs.alone, costs.crowded, costs.serial)
        )
        asking = msgspec.structs.replace(costs, alone=alone, crowded=crowded, serial=serial)
        most = predict(asking, _CLUSTER.profile(), load, threads=self.threads)
        return most.requests_per_second

    def machines(self, load: Load, requests_per_second: float) -> tuple[int, Performance]:
        """Return how many such machines serve a rate, and what one does at its part of it."""
        most = self.most(load).requests_per_second
        machines = max(1, math.ceil(requests_per_second / most))
        while True:
            one = at_rate(
                self.costs,
                self.device,
                load,
                requests_per_second / machines,
                threads=self.threads,
            )
            if one is not None:
                return machines, one
            machines += 1 + machines // 10

    def in_time(self, load: Load, requests_per_second: float | None, budget_us: float) -> bool:
        """Return whether p99 keeps the budget, at one machine's part of the rate."""
        return self.latency(load, requests_per_second, budget_us).p99 <= budget_us

    def latency(
        self, load: Load, requests_per_second: float | None, budget_us: float | None
    ) -> Latency:
        """Return how long requests take."""
        if requests_per_second is None:
            most = self.most(load)
            requests_per_second = _USUAL_SHARE * most.requests_per_second
        _, one = self.machines(load, requests_per_second)
        met = None if budget_us is None else one.p99_us <= budget_us
        return Latency(one.mean_us, one.p50_us, one.p99_us, one.requests_per_second, budget_us, met)

    def throughput(
        self, load: Load, requests_per_second: float | None, dram_only: float
    ) -> Throughput:
        """Return what is served at most, and what a rate needs."""
        most = self.most(load)
        machines = others = devices = None
        reads = float(np.mean(load.block_reads))
        rate = requests_per_second or most.requests_per_second
        if requests_per_second is not None:
            machines, _ = self.machines(load, requests_per_second)
            others = math.ceil(requests_per_second / dram_only)
            devices = max(1, math.ceil(rate * reads / (HEADROOM * self.reads_per_second)))
        return Throughput(
            requests_per_second=most.requests_per_second,
            rows_per_second=most.rows_per_second,
            bound_by=most.bound_by,
            threads=self.threads,
            dram_only_requests_per_second=dram_only,
            wanted_requests_per_second=requests_per_second,
            block_reads_per_second=rate * reads,
            device_reads_per_second=self.reads_per_second,
            machines=machines,
            dram_only_machines=others,
            devices=devices,
        )
