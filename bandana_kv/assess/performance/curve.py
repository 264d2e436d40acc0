"""The device's curve as requests see it: so many reads each, beside those of others."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bandana_kv.device import DeviceProfile

__all__ = ["DeviceCurve"]


@dataclass(frozen=True)
class DeviceCurve:
    """Random reads a second by reads in flight, between which logarithms are straight.

    Attributes
    ----------
    depths, rates : float64 (k,)
        Rising depths, and rates that do not fall.
    reads_at_once : int
        Reads that one request has in flight at most.
    """

    depths: NDArray[np.float64]
    rates: NDArray[np.float64]
    reads_at_once: int

    @classmethod
    def of(cls, device: DeviceProfile, block_bytes: int, reads_at_once: int) -> DeviceCurve:
        """Return a profile's curve for blocks of a size."""
        depths = sorted({cell.depth for cell in device.cells})
        measured = [device.reads_per_second(block_bytes, depth) for depth in depths]
        # More in flight is never served slower, only later: an engine may hold back. And a
        # read among fewer is never later: what says so was disturbed.
        rates = np.maximum.accumulate(measured)
        latencies = np.minimum.accumulate((depths / rates)[::-1])[::-1]
        return cls(np.array(depths, float), depths / latencies, reads_at_once)

    @property
    def most(self) -> float:
        """Reads a second at best."""
        return float(self.rates[-1])

    def rate(self, depth: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the reads a second at a depth."""
        logs = np.interp(np.log(depth), np.log(self.depths), np.log(self.rates))
        # Below the least depth measured: as one read after the other.
        return np.asarray(np.exp(logs) * np.minimum(1.0, depth / self.depths[0]))

    def read_us(self, reads: NDArray[np.float64], others: float) -> NDArray[np.float64]:
        """Return how long requests of so many `reads` take, beside `others` of their like."""
        at_once = np.clip(reads, 1e-9, self.reads_at_once)
        depth = at_once * (1.0 + others)
        return np.asarray(1e6 * np.maximum(reads, 0.0) / at_once * depth / self.rate(depth))
