"""What a request costs the processors, by its parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from bandana_kv.errors import InputError
from bandana_kv.simulate.requests import PerRequest

__all__ = ["Costs", "Load", "Parts"]


class Parts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Microseconds by what a request does; none is negative.

    Attributes
    ----------
    request
        Whatever it looks up.
    missed_request
        On top, where at least one row is not in DRAM.
    lookup
        For each row looked up.
    missed_row
        For each row that is not in DRAM.
    block_read
        For each block that is read.
    joined
        For each block that another caller was reading, and is waited for.
    """

    request: float = 0.0
    missed_request: float = 0.0
    lookup: float = 0.0
    missed_row: float = 0.0
    block_read: float = 0.0
    joined: float = 0.0

    def of(self, load: Load) -> NDArray[np.float64]:
        """Return the microseconds of each request: float64 (requests,)."""
        return load.features() @ self.vector()

    def vector(self) -> NDArray[np.float64]:
        """Return the parts in order: float64 (6,)."""
        return np.array(msgspec.structs.astuple(self))


class Costs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What serving costs on one machine, as :func:`~bandana_kv.assess.performance.calibrate` finds.

    Attributes
    ----------
    adapter
        The engine it was measured with.
    row_bytes, block_bytes
        Of the rows and blocks it was measured with.
    processors
        That the process may use.
    threads
        Callers it was measured with, beside one alone.
    reads_at_once
        Reads that the engine keeps in flight for one request at most.
    alone
        Processor time where one thread calls.
    crowded
        Processor time where `threads` do: handing the GIL over is most of what is added.
    serial
        What of that goes on for one request at a time: the GIL, and handing it over.
    load_average
        Of the system while this was measured; well above `processors` it is worth little.
    """

    adapter: str
    row_bytes: int
    block_bytes: int
    processors: int
    threads: int
    reads_at_once: int
    alone: Parts
    crowded: Parts
    serial: Parts
    load_average: float = 0.0


@dataclass(frozen=True)
class Load:
    """What is asked: the lookups of each request, and what DRAM leaves of them to the device.

    Attributes
    ----------
    lookups, missed, block_reads : integer (requests,)
        As :func:`bandana_kv.simulate.per_request` counts them.
    joined : integer (requests,), or None
        Likewise; None: no caller waits for what another one reads.
    """

    lookups: NDArray[np.integer]
    missed: NDArray[np.integer]
    block_reads: NDArray[np.integer]
    joined: NDArray[np.integer] | None = None

    def __post_init__(self) -> None:
        sizes = {self.lookups.size, self.missed.size, self.block_reads.size}
        if sizes == {0} or len(sizes) != 1:
            raise InputError(
                f"a load needs three numbers for each of its requests, not {sorted(sizes)}"
            )

    @classmethod
    def of(cls, counted: PerRequest) -> Self:
        """Return what a replay counted, as a load."""
        return cls(*counted)

    def features(self) -> NDArray[np.float64]:
        """Return what each request does, in the order of :class:`Parts`: float64 (requests, 6)."""
        joined = 0 * self.lookups if self.joined is None else self.joined
        counts = [self.lookups, self.missed, self.block_reads, joined]
        features = [0 * self.lookups + 1, self.missed > 0, *counts]
        return np.stack(features, axis=1, dtype=np.float64, casting="unsafe")
