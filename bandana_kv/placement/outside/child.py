"""The program that runs in a child process: one partitioner, one file in, one file out.

It is run by its path and imports nothing of this package, so that it starts quickly. The
partitioners hold the GIL for the whole run: neither Ctrl-C nor a time limit could reach
them in the process that asks.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from array import array
from typing import Any, TypedDict

_PR_SET_PDEATHSIG = 1


class Order(TypedDict):
    """What the child is told, as JSON in its one argument."""

    library: str
    parent: int
    nets: str  # path of an hMETIS file
    blocks_file: str  # path to write int32 (vertices,) to, the block of each vertex
    configuration: str  # mtkahypar: name of a preset; kahypar: path of a configuration
    blocks: int
    imbalance: float
    seed: int
    threads: int


def _die_with(parent: int) -> None:
    """Ask the kernel to end this process when the one that started it ends."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("the process that asked is gone")


def _mtkahypar(order: Order) -> list[int]:
    import mtkahypar

    mtkahypar.set_seed(order["seed"])
    library = mtkahypar.initialize(order["threads"], False)
    preset = getattr(mtkahypar.PresetType, order["configuration"])
    context = library.context_from_preset(preset)
    context.set_partitioning_parameters(
        order["blocks"], order["imbalance"], mtkahypar.Objective.KM1
    )
    context.logging = False
    hypergraph = library.hypergraph_from_file(order["nets"], context)
    blocks: list[int] = hypergraph.partition(context).get_partition()
    return blocks


def _kahypar(order: Order) -> list[int]:
    import kahypar

    context = kahypar.Context()
    context.loadINIconfiguration(order["configuration"])
    context.setK(order["blocks"])
    context.setEpsilon(order["imbalance"])
    context.setSeed(order["seed"])
    context.suppressOutput(True)
    hypergraph: Any = kahypar.createHypergraphFromFile(order["nets"], order["blocks"])
    kahypar.partition(hypergraph, context)
    return [hypergraph.blockID(vertex) for vertex in range(hypergraph.numNodes())]


def main() -> None:
    """Do what the one argument says."""
    order: Order = json.loads(sys.argv[1])
    _die_with(order["parent"])
    partition = {"mtkahypar": _mtkahypar, "kahypar": _kahypar}[order["library"]]
    blocks = array("i", partition(order))
    with open(order["blocks_file"], "wb") as file:
        blocks.tofile(file)


if __name__ == "__main__":
    main()
