"""How many machines of which kind: arithmetic on numbers that others have found.

Three layouts are compared: all rows in DRAM; a whole copy of cache and blocks on each machine that
answers; and blocks in a cluster, with cache and index in each machine that answers. What is taken
from measurements beside the log's own is a constant here; docs/cluster.md says where it is from.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from bandana_kv.assess.cost import Prices
from bandana_kv.assess.dram import HEADROOM
from bandana_kv.assess.fleet_data import Layout, Machine, Network

__all__ = [
    "CLIENT_US",
    "CROSSOVER_DEVICE",
    "CROSSOVER_PROCESSORS",
    "Served",
    "Whole",
    "in_cluster",
    "in_copies",
    "in_dram",
    "network_of",
]

_GIB = 1 << 30
# Missed rows a block, above which blocks cost less than a row a key: where processors are the
# neck, as measured on a cluster of Kvrocks; where the devices are, a read is a read.
CROSSOVER_PROCESSORS = 1.6
CROSSOVER_DEVICE = 1.0
# Processor time of a node for a block that it answers, batches of 32.
NODE_US = 26.0
# And of who asks, a block, beyond what a block from a device of its own costs.
CLIENT_US = 20.0
# A majority of them decides who takes over.
LEAST_NODES = 3
# Two copies of each block, so that any node may be lost.
COPIES = 2
# Of a drive: the rest is for compaction, and for what is deleted later than it could be.
MOST_FILLED = 0.8
# An engine's own index, of the blocks that a node holds: some 40 bytes for 4 KiB.
NODE_DRAM_SHARE = 0.01
# The key that is asked for and the length that is answered; and what TCP/IP puts on top.
WIRE_BYTES = 40
WIRE_SHARE = 1.03


@dataclass(frozen=True)
class Whole:
    """All that is to be served.

    Attributes
    ----------
    table_bytes : int
        All rows.
    cache_bytes, index_bytes : int
        DRAM of a machine that answers: rows with their bookkeeping and heat; the index of ids.
    nvm_bytes : int
        Blocks, once, of all versions that are kept.
    requests_per_second : float or None
        None: not said; one machine is then taken to be enough.
    lookups, missed_rows, block_reads : float
        A request; the latter two with the cache above.
    row_bytes : float
    block_bytes : int
    """

    table_bytes: int
    cache_bytes: int
    index_bytes: int
    nvm_bytes: int
    requests_per_second: float | None
    lookups: float
    missed_rows: float
    block_reads: float
    row_bytes: float
    block_bytes: int

    @property
    def block_reads_per_second(self) -> float:
        """At the rate asked for; 0 without one."""
        return (self.requests_per_second or 0.0) * self.block_reads


@dataclass(frozen=True)
class Served:
    """What one machine serves at most, in requests a second, and what its device reads.

    Attributes
    ----------
    in_dram, from_device, from_cluster : float
        All rows in DRAM; blocks on a device of its own; blocks on other machines.
    device_reads_per_second : float
    """

    in_dram: float
    from_device: float
    from_cluster: float
    device_reads_per_second: float


def in_dram(whole: Whole, served: Served, machine: Machine, prices: Prices) -> Layout:
    """Return the rival, at its cheapest: each row once, however many machines the rate takes."""
    needed = {
        "requests": _count(whole.requests_per_second or 0.0, served.in_dram),
        "DRAM": _count(whole.table_bytes, machine.dram_bytes),
    }
    machines, bound_by = _most(needed)
    memory = _memory(whole.table_bytes, 0, prices)
    return Layout(
        machines, 0, 1, 0, whole.table_bytes, 0, machines * machine.price + memory, True, bound_by
    )


def in_copies(whole: Whole, served: Served, machine: Machine, prices: Prices) -> Layout:
    """Return machines that each have all of it: a cache, the index, all blocks."""
    machines = _count(whole.requests_per_second or 0.0, served.from_device)
    dram, nvm = machines * (whole.cache_bytes + whole.index_bytes), machines * whole.nvm_bytes
    fits = (
        whole.cache_bytes + whole.index_bytes <= machine.dram_bytes
        and whole.nvm_bytes <= MOST_FILLED * machine.nvm_bytes
    )
    cost = machines * machine.price + _memory(dram, nvm, prices)
    return Layout(machines, 0, machines, whole.cache_bytes, dram, nvm, cost, fits, "requests")


def in_cluster(whole: Whole, served: Served, machine: Machine, prices: Prices) -> Layout:
    """Return machines that answer, with cache and index, and nodes that hold two copies of blocks.

    There is a node more than carries it all, so that one may be lost. Where a machine's DRAM does
    not hold the cache, the cache is shared out, and requests are to be routed by what they ask.
    """
    rate = whole.requests_per_second or 0.0
    room = machine.dram_bytes - whole.index_bytes
    link = HEADROOM * machine.network_bits_per_second
    bits = rate * whole.block_reads * _wire_bits(whole.block_bytes)
    machines, bound_by = _most(
        {
            "requests": _count(rate, served.from_cluster),
            "network": _count(bits, link),
            "DRAM": _count(whole.cache_bytes, max(1, room)),
        }
    )
    nvm = COPIES * whole.nvm_bytes
    reads = whole.block_reads_per_second
    carrying, node_bound = _most(
        {
            "NVM": _count(nvm, MOST_FILLED * machine.nvm_bytes),
            "device": _count(reads, HEADROOM * served.device_reads_per_second),
            "processors": _count(reads, HEADROOM * _node_blocks(machine)),
            "network": _count(bits, link),
        }
    )
    nodes = max(LEAST_NODES, carrying + 1)
    cache_bytes = min(whole.cache_bytes, max(0, room))
    dram = machines * (cache_bytes + whole.index_bytes)
    dram += round(NODE_DRAM_SHARE * nvm)
    cost = (machines + nodes) * machine.price + _memory(dram, nvm, prices)
    least = "the least of a majority" if nodes == LEAST_NODES else node_bound
    bound = f"machines: {bound_by}, nodes: {least}"
    return Layout(machines, nodes, COPIES, cache_bytes, dram, nvm, cost, room > 0, bound)


def network_of(whole: Whole, served: Served, machine: Machine, crossover: float | None) -> Network:
    """Return what travels, and whether blocks should.

    Parameters
    ----------
    whole, served, machine
        As above.
    crossover
        Missed rows a block, above which blocks cost less, as a bench on the cluster itself says;
        None: the one that was measured for a cluster bound as this one would be.
    """
    ratio = whole.missed_rows / whole.block_reads if whole.block_reads else None
    if crossover is not None:
        least, source = crossover, "as given"
    elif served.device_reads_per_second < _node_blocks(machine):
        least, source = CROSSOVER_DEVICE, "a node's device ends before its processors: by reads"
    else:
        least, source = (
            CROSSOVER_PROCESSORS,
            ("a node's processors end before its device: as measured on a cluster of Kvrocks"),
        )
    blocks = whole.block_reads * _wire_bits(whole.block_bytes)
    rows = whole.missed_rows * _wire_bits(whole.row_bytes)
    rate, lookups = whole.requests_per_second, max(whole.lookups, 1e-9)
    reads = None if rate is None else rate * whole.block_reads
    return Network(
        missed_rows_per_request=whole.missed_rows,
        blocks_per_request=whole.block_reads,
        missed_rows_per_block=ratio,
        crossover=least,
        crossover_source=source,
        keys="blocks" if ratio is None or ratio > least else "a row a key",
        bytes_per_lookup=blocks / 8 / lookups,
        row_a_key_bytes_per_lookup=rows / 8 / lookups,
        bits_per_second=None if rate is None else rate * blocks,
        row_a_key_bits_per_second=None if rate is None else rate * rows,
        node_processors=None if reads is None else 1e-6 * reads * NODE_US,
        client_processors=None if reads is None else 1e-6 * reads * CLIENT_US,
    )


def _count(needed: float, of_one: float) -> int:
    """Return how many are needed, at least one."""
    return max(1, math.ceil(needed / max(of_one, 1e-9)))


def _most(needed: dict[str, int]) -> tuple[int, str]:
    """Return the largest, and what it is due to; the first of equal ones."""
    name = max(needed, key=lambda each: needed[each])
    return needed[name], name


def _memory(dram_bytes: float, nvm_bytes: float, prices: Prices) -> float:
    return dram_bytes / _GIB * prices.dram + nvm_bytes / _GIB * prices.nvm


def _wire_bits(payload_bytes: float) -> float:
    return 8 * WIRE_SHARE * (payload_bytes + WIRE_BYTES)


def _node_blocks(machine: Machine) -> float:
    """Return the blocks a second that a node's processors answer for."""
    return 1e6 * machine.processors / NODE_US
