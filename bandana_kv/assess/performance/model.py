"""Throughput and latency of a load: callers who share the GIL, the processors and a device.

Each caller asks one request after the other. A request takes processor time, of which some
goes on for one request at a time (the GIL), and reads blocks, all of a request at once as
far as the engine can. The three are shared in turn, so that with a rate of requests X:

- the GIL, taken `serial` of the time for X, lets others wait 1 / (1 - X serial) as long;
- processors likewise, for the part that exceeds one of them;
- the device gives what was measured at the depth that results: reads of a request times
  requests that are reading.

The rate is the one at which callers over time of a request is that rate (mean value analysis
after Schweitzer: a caller meets the others, never itself).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from bandana_kv.assess.performance.costs import Costs, Load
from bandana_kv.assess.performance.curve import DeviceCurve
from bandana_kv.device import DeviceProfile
from bandana_kv.errors import InputError

__all__ = ["Performance", "at_rate", "closed_rate", "predict"]

Bound = Literal["interpreter", "processors", "device", "callers"]

_STEPS = 40  # of halving an interval
_MOST_READING = 1e9
_BOUND = 0.75  # of what a resource can do: it then is what bounds
_DRAWS = 20_000


class Performance(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is to be expected of a load.

    Attributes
    ----------
    requests_per_second, rows_per_second
        Answered.
    mean_us, p50_us, p99_us
        Latency of a request.
    bound_by
        What gives out first: ``interpreter``, the GIL; ``processors``; ``device``; or
        ``callers``, where none of these is near its limit and more callers would be served.
    """

    requests_per_second: float
    rows_per_second: float
    mean_us: float
    p50_us: float
    p99_us: float
    bound_by: Bound


@dataclass(frozen=True)
class Demand:
    """What a request asks of each resource, on average or one by one; microseconds and reads.

    Attributes
    ----------
    alone, crowded, serial
        As in :class:`~bandana_kv.assess.performance.Costs`.
    reading
        1 where it reads any block, else 0; of the average request, the share that does.
    reads
        Block reads.
    """

    alone: NDArray[np.float64]
    crowded: NDArray[np.float64]
    serial: NDArray[np.float64]
    reading: NDArray[np.float64]
    reads: NDArray[np.float64]

    @classmethod
    def of(cls, costs: Costs, load: Load) -> Demand:
        """Return the demand of each request of a load."""
        alone = costs.alone.of(load)
        return cls(
            alone,
            np.maximum(alone, costs.crowded.of(load)),
            costs.serial.of(load),
            (load.block_reads > 0).astype(np.float64),
            load.block_reads.astype(np.float64),
        )

    def mean(self) -> Demand:
        """Return the demand of the average request."""
        each = (self.alone, self.crowded, self.serial, self.reading, self.reads)
        return Demand(*(np.mean(one, keepdims=True) for one in each))

    def read_us(self, device: DeviceCurve, others: float) -> NDArray[np.float64]:
        """Return how long the reads of each request take, beside others that read."""
        reads = self.reads / np.maximum(self.reading, 1e-12)
        return self.reading * device.read_us(reads, others)


@dataclass(frozen=True)
class _Sharing:
    """What a request meets of others at some rate.

    Attributes
    ----------
    crowd
        Share of the time in which another one has the GIL.
    serial_wait, processor_wait
        Waiting for a microsecond of either.
    reading
        Other requests that read from the device, on average.
    """

    crowd: float
    serial_wait: float
    processor_wait: float
    reading: float

    def work_us(self, demand: Demand) -> NDArray[np.float64]:
        """Return the time of each request without waiting, and without its reads."""
        added = np.maximum(demand.crowded, demand.serial) - demand.alone
        return demand.alone + self.crowd * np.maximum(added, 0.0)

    def wait_us(self, demand: Demand) -> NDArray[np.float64]:
        """Return how long each request waits for the GIL and the processors, on average."""
        return self.serial_wait * demand.serial + self.processor_wait * self.work_us(demand)


@dataclass(frozen=True)
class Machine:
    """What callers share.

    Attributes
    ----------
    processors : int
    device : DeviceCurve
    callers : int
    """

    processors: int
    device: DeviceCurve
    callers: int

    def sharing(self, demand: Demand, rate: float) -> _Sharing | None:
        """Return what the mean request meets at `rate` a second; None beyond what is possible."""
        others = (self.callers - 1) / self.callers
        per_us = 1e-6 * rate * others
        serial = per_us * float(demand.serial[0])
        crowd = min(1.0, serial)
        work = float(_Sharing(crowd, 0.0, 0.0, 0.0).work_us(demand)[0])
        busy = per_us * work / self.processors
        reading = self._others_reading(demand, per_us)
        if serial >= 1.0 or busy >= 1.0 or reading is None:
            return None
        wait = busy / (1.0 - busy) / self.processors
        return _Sharing(crowd, serial / (1.0 - serial), wait, reading)

    def _others_reading(self, demand: Demand, per_us: float) -> float | None:
        """Return how many others read at a time, of so many requests a microsecond.

        None: their reads are more than the device gives.
        """
        if 1e6 * per_us * float(demand.reads[0]) >= self.device.most:
            return None

        def needed(others: float) -> float:
            return per_us * float(demand.read_us(self.device, others)[0])

        # How many there are decides how long they take, and so how many there are.
        low, high = 0.0, 1.0
        while needed(high) > high:
            high *= 2
            if high > _MOST_READING:
                return None
        for _ in range(_STEPS):
            middle = (low + high) / 2
            low, high = (low, middle) if needed(middle) <= middle else (middle, high)
        return high

    def most(self, demand: Demand) -> dict[Bound, float]:
        """Return the requests a second that each resource could serve by itself."""
        with np.errstate(divide="ignore"):
            return {
                "interpreter": float(1e6 / demand.serial[0]),
                "processors": float(1e6 * self.processors / demand.alone[0]),
                "device": float(self.device.most / demand.reads[0]),
            }

    def mean_us(self, demand: Demand, sharing: _Sharing) -> float:
        """Return the time of the mean request."""
        reading = demand.read_us(self.device, sharing.reading)
        return float((sharing.work_us(demand) + sharing.wait_us(demand) + reading)[0])


def closed_rate(machine: Machine, demand: Demand) -> float:
    """Return the requests a second of callers who ask one after the other.

    Parameters
    ----------
    machine
        What they share.
    demand
        Of the mean request.
    """
    low, high = 0.0, min(machine.most(demand).values())
    if math.isinf(high):
        high = 1e9
    for _ in range(_STEPS):
        rate = (low + high) / 2
        sharing = machine.sharing(demand, rate)
        fits = sharing is not None and (
            1e-6 * rate * machine.mean_us(demand, sharing) <= machine.callers
        )
        low, high = (rate, high) if fits else (low, rate)
    return low


def predict(costs: Costs, device: DeviceProfile, load: Load, *, threads: int) -> Performance:
    """Predict how fast `threads` callers are served who ask one request after the other.

    Parameters
    ----------
    costs
        Of this machine, from :func:`~bandana_kv.assess.performance.calibrate`.
    device
        What the device can do.
    load
        What is asked.
    threads
        Callers.

    Returns
    -------
    Performance

    Raises
    ------
    InputError
        No caller, or a load without requests.

    Notes
    -----
    *Left out*: other processes, the page cache (every read reaches the device), updates and
    switches of versions, what is read once for two requests that miss a block at the same
    time, and whatever else the costs were not measured with: another policy's admission,
    rows of another size. Waiting times are taken as exponentially distributed, which bursts are
    not: p99 is rougher than the mean. Cost: some milliseconds a million requests.
    """
    demand, machine = _parts(costs, device, load, threads)
    mean = demand.mean()
    rate = closed_rate(machine, mean)
    sharing = machine.sharing(mean, rate)
    assert sharing is not None
    return _performance(machine, load, demand, sharing, rate, 0.0, 0.0)


def at_rate(
    costs: Costs, device: DeviceProfile, load: Load, requests_per_second: float, *, threads: int
) -> Performance | None:
    """Predict latencies where requests arrive at a rate of their own, at random.

    Parameters
    ----------
    costs, device, load
        As :func:`predict` takes them.
    requests_per_second
        That arrive.
    threads
        Requests served at the same time at most; others wait for their turn.

    Returns
    -------
    Performance or None
        None: so many cannot be served.

    Raises
    ------
    InputError
        As :func:`predict`; or no rate.

    Notes
    -----
    The time of a request is :func:`predict`'s at that rate. Waiting for a free caller comes on
    top, as in a queue with that many servers and times of that spread (Erlang C, corrected after
    Allen and Cunneen). Arrivals in bursts wait longer.
    """
    if not 0.0 < requests_per_second < math.inf:
        raise InputError(f"requests_per_second {requests_per_second} is not above 0")
    demand, machine = _parts(costs, device, load, threads)
    mean = demand.mean()
    sharing = machine.sharing(mean, requests_per_second)
    if sharing is None or requests_per_second > min(machine.most(mean).values()):
        return None
    offered = 1e-6 * requests_per_second * machine.mean_us(mean, sharing)
    if offered >= threads:
        return None
    each = sharing.work_us(demand) + demand.read_us(machine.device, sharing.reading)
    spread = float(np.var(each)) / max(1e-12, float(np.mean(each))) ** 2
    queued = _erlang_c(threads, offered)
    wait = (1.0 + spread) / 2 * 1e6 * offered / requests_per_second / (threads - offered)
    return _performance(machine, load, demand, sharing, requests_per_second, queued, wait)


def _parts(costs: Costs, device: DeviceProfile, load: Load, threads: int) -> tuple[Demand, Machine]:
    if threads < 1:
        raise InputError(f"threads {threads}: at least one must ask")
    curve = DeviceCurve.of(device, costs.block_bytes, costs.reads_at_once)
    return Demand.of(costs, load), Machine(costs.processors, curve, threads)


def _erlang_c(servers: int, offered: float) -> float:
    """Return the share of arrivals that find all servers busy."""
    blocked = 1.0
    for number in range(1, servers + 1):
        blocked = offered * blocked / (number + offered * blocked)
    return blocked / (1.0 - offered / servers * (1.0 - blocked))


def _performance(
    machine: Machine,
    load: Load,
    demand: Demand,
    sharing: _Sharing,
    rate: float,
    queued: float,
    queue_us: float,
) -> Performance:
    """Draw requests and how long each waits; `queued` of them wait `queue_us` for a caller."""
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, load.lookups.size, _DRAWS)
    served = sharing.work_us(demand) + demand.read_us(machine.device, sharing.reading)
    us = served[drawn] + sharing.wait_us(demand)[drawn] * rng.exponential(size=_DRAWS)
    us += (rng.random(_DRAWS) < queued) * queue_us * rng.exponential(size=_DRAWS)
    mean = demand.mean()
    most = machine.most(mean)
    first: Bound = min(most, key=lambda each: most[each])
    p50, p99 = np.percentile(us, (50, 99)).tolist()
    return Performance(
        rate,
        rate * float(np.mean(load.lookups)),
        machine.mean_us(mean, sharing) + queued * queue_us,
        p50,
        p99,
        first if rate >= _BOUND * most[first] else "callers",
    )
