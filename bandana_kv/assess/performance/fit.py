"""From times that were seen to costs by parts."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bandana_kv.assess.performance.costs import Parts
from bandana_kv.assess.performance.curve import DeviceCurve
from bandana_kv.assess.performance.model import Demand, Machine

__all__ = ["Seen", "fit_parts", "fit_serial", "read_us_of"]

# A request with more reads says more of the device than of the GIL.
_FEW_READS = 20.0
_STEPS = 40


class Seen(NamedTuple):
    """What was seen of requests of several kinds.

    Attributes
    ----------
    wall_us, processor_us : float64 (kinds,)
        Between two answers, of all callers together; and of all their processors.
    did : float64 (kinds, 6)
        What a request did on average, in the order of
        :class:`~bandana_kv.assess.performance.Parts`.
    """

    wall_us: NDArray[np.float64]
    processor_us: NDArray[np.float64]
    did: NDArray[np.float64]

    @property
    def reads(self) -> NDArray[np.float64]:
        """Block reads of a request."""
        return self.did[:, 4]


def fit_parts(
    did: NDArray[np.float64], us: NDArray[np.float64], weights: NDArray[np.float64] | None = None
) -> Parts:
    """Return the parts, none negative, that explain `us` with the least relative error."""
    scale = (np.ones(us.size) if weights is None else weights) / np.maximum(us, 1e-9)
    matrix, wanted = did * scale[:, None], us * scale
    best, least = np.zeros(did.shape[1]), np.inf
    # The best one is the unbounded best of some of the parts; there are few enough to try all.
    for count in range(1, did.shape[1] + 1):
        for chosen in combinations(range(did.shape[1]), count):
            found = np.linalg.lstsq(matrix[:, chosen], wanted, rcond=None)[0]
            error = float(np.sum((matrix[:, chosen] @ found - wanted) ** 2))
            if found.min() >= 0.0 and error < least:
                least, best = error, np.zeros(did.shape[1])
                best[list(chosen)] = found
    return Parts(*best.tolist())


def read_us_of(alone: Seen) -> float:
    """Return how long a read takes: what one caller waits who reads little, beside working."""
    few = np.flatnonzero(alone.reads > 0)
    at = few[np.argmin(alone.reads[few] / alone.did[few, 1])]
    return max(1e-3, float((alone.wall_us[at] - alone.processor_us[at]) / alone.did[at, 1]))


def fit_serial(alone: Parts, crowded: Seen, read_us: float, machine: tuple[int, int, int]) -> Parts:
    """Return what of the work goes on for one request at a time.

    It is what explains, by the model, why requests of many callers took as long as they did.
    Where the device explains it as well it says little, and counts little.

    Parameters
    ----------
    alone
        Processor time of one caller.
    crowded
        What was seen of many.
    read_us
        A read of this device among few.
    machine
        Processors, callers, and reads that a request has in flight at most.
    """
    processors, callers, reads_at_once = machine
    depths = np.array([1.0, 1e9])
    shared = Machine(
        processors, DeviceCurve(depths, 1e6 * depths / read_us, reads_at_once), callers
    )
    serial = np.zeros(crowded.wall_us.size)
    for at, (wall_us, processor_us, did) in enumerate(zip(*crowded, strict=True)):
        alone_us = float(did @ alone.vector())
        each = (alone_us, max(alone_us, processor_us), 0.0, did[1], did[4])
        demand = Demand(*(np.array([one]) for one in each))
        serial[at] = _serial_us(shared, demand, wall_us)
    weights = serial / crowded.wall_us * (crowded.reads <= _FEW_READS)
    return fit_parts(crowded.did, serial, weights)


def _serial_us(machine: Machine, demand: Demand, wall_us: float) -> float:
    """Return the serial time with which requests take `wall_us` each, as they were seen to."""
    low, high = 0.0, wall_us
    for _ in range(_STEPS):
        middle = (low + high) / 2
        tried = replace(demand, serial=np.array([middle]))
        sharing = machine.sharing(tried, 1e6 / wall_us)
        fits = sharing is not None and (
            machine.mean_us(tried, sharing) <= machine.callers * wall_us
        )
        low, high = (middle, high) if fits else (low, middle)
    return low
