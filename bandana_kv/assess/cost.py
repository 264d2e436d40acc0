"""What memory costs against holding all rows in DRAM, and where that breaks even."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bandana_kv.assess.data import Cost, CostPoint, Throughput

__all__ = ["Memory", "Prices", "cost_of"]

_GIB = 1 << 30
_CURVE_POINTS = 21


@dataclass(frozen=True)
class Prices:
    """Of a GiB, in any one unit: currency, or currency a month.

    `machine` is one without its memory, and `least_saving` what is worth the trouble, both in the
    same unit; None: taken, and said so.
    """

    dram: float
    nvm: float
    machine: float | None = None
    least_saving: float | None = None


@dataclass(frozen=True)
class Memory:
    """Bytes: all rows; DRAM as recommended; blocks on NVM, of all `versions` that are kept."""

    table_bytes: int
    dram_bytes: int
    nvm_bytes: int
    versions: int


def cost_of(memory: Memory, prices: Prices, throughput: Throughput) -> Cost:
    """Compare what memory costs.

    Parameters
    ----------
    memory
        Of the tables that would move.
    prices
        A GiB of each.
    throughput
        How many machines the rate needs.

    Notes
    -----
    Tables and their reads are shared out among machines and devices by rows, as any table is that
    outgrows one machine: more machines do not mean more memory. What it would cost if each
    machine held all of it is `copies_cost_share`.
    """
    ours_dram = memory.dram_bytes / _GIB * prices.dram
    ours_nvm = memory.nvm_bytes / _GIB * prices.nvm
    dram_only = memory.table_bytes / _GIB * prices.dram
    ours = ours_dram + ours_nvm
    saved = dram_only - ours
    ratio = prices.nvm / prices.dram
    nvm_times = memory.nvm_bytes / memory.table_bytes
    dram_share = memory.dram_bytes / memory.table_bytes
    break_even = max(0.0, (1.0 - dram_share) / nvm_times)
    copies = per_machine = None
    machines, others = throughput.machines, throughput.dram_only_machines
    if machines is not None and others is not None:
        copies = machines * ours / (others * dram_only)
        if machines > others and saved > 0:
            per_machine = saved / (machines - others)
    ends = max(1.25 * break_even, 1.25 * ratio, 0.1)
    return Cost(
        dram_price=prices.dram,
        nvm_price=prices.nvm,
        table_bytes=memory.table_bytes,
        dram_bytes=memory.dram_bytes,
        nvm_bytes=memory.nvm_bytes,
        versions=memory.versions,
        dram_only=dram_only,
        ours=ours,
        ours_dram=ours_dram,
        ours_nvm=ours_nvm,
        saved=saved,
        saved_share=saved / dram_only,
        price_ratio=ratio,
        break_even_price_ratio=break_even,
        break_even_dram_share=max(0.0, 1.0 - ratio * nvm_times),
        copies_cost_share=copies,
        break_even_machine_price=per_machine,
        curve=tuple(
            CostPoint(float(each), 1.0 - dram_share - float(each) * nvm_times)
            for each in np.linspace(0.0, ends, _CURVE_POINTS)
        ),
    )
