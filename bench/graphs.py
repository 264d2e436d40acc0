"""GraphSAGE with node features out of a store: the same losses, and block reads an epoch.

    python bench/graphs.py --dir DIR --log slashdot_neighbours.npz --json [--keep]

Needs the extra `pyg`. A request of the log is the list of a node's neighbours, in the
order of the nodes; edges go both ways, and nodes are numbered anew at random, so that a number says
nothing. Features are normal float32, the class is a projection of them. `--seeds` of the nodes are
trained on, through PyG's `NeighborLoader`; the step that PyG leaves to pyg-lib or torch-sparse is
done by bench/sampling.py.

All systems train alike, with one seed, and the losses of all their steps are compared with those of
`memory`: `losses_equal` is to the last bit.

memory
    Features are a tensor of PyG's `Data`.
ours
    `bandana_kv.pyg`, placed by `AccessLog.from_neighbors`: neighbourhoods of other epochs than
    those that are trained. The plan is made of their batches. DRAM for `--cache` of the bytes of
    all features, bookkeeping included.
row_per_key
    A row per key in RocksDB with a block cache of as many bytes and direct reads, each batch split
    over 16 threads.
memmap
    np.memmap with MADV_RANDOM, split likewise.

`block_reads_per_epoch` is of the last epoch, others warm. Ours is the store's own counter. For
`row_per_key` it is what misses an LRU of as many rows as fit the same bytes, one read for each; for
`memmap` what misses an LRU of as many pages of 4 KiB. Both pay for no bookkeeping. They are counted
on the requests of the same epochs, as the features are a few MiB, too few to be limited from
outside. `seconds_per_epoch` are of the systems one after the other, each once, and with the page
cache as large as it likes, which `memmap` has all of its rows in: an order of magnitude.

`placements` are block reads of the same epoch with the same DRAM by how the store was placed:
`shuffled`, by `batches` as requests, and by `neighbourhoods`, which is ours.
"""

from __future__ import annotations

import shutil
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click
import competitors
import numpy as np
from common import report, surroundings
from numpy.typing import NDArray

import bandana_kv
from bandana_kv import AccessLog
from bandana_kv.placement import place
from bandana_kv.simulate import replay

with warnings.catch_warnings(action="ignore"):  # PyG's own, of what torch calls deprecated
    import torch
    import torch_geometric
    from sampling import NumpySampler, graph_of
    from torch_geometric.data import Data
    from torch_geometric.loader import NeighborLoader
    from torch_geometric.nn import SAGEConv

    from bandana_kv.pyg import FeatureStore

CLASSES, HIDDEN = 16, 64
WIDTH = 16
PAGE_BYTES, NPY_BYTES = 4096, 128
TABLE = "node"


class Sage(torch.nn.Module):  # type: ignore[misc, unused-ignore]
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.first, self.second = SAGEConv(dim, HIDDEN), SAGEConv(HIDDEN, CLASSES)

    def forward(self, x: Any, edge_index: Any) -> Any:
        return self.second(self.first(x, edge_index).relu(), edge_index)


class Rival(FeatureStore):  # type: ignore[misc, unused-ignore]
    """Rows by a competitor's reader, and labels in memory."""

    def __init__(self, reader: competitors.Reader, dim: int) -> None:
        torch_geometric.data.FeatureStore.__init__(self)
        self._reader, self._dim = reader, dim
        self._tables, self._tensors = {(None, "x"): TABLE}, {}

    def _multi_get_tensor(self, attrs: Iterable[Any]) -> list[Any]:
        return [self._tensor_of(attr) for attr in attrs]

    def _tensor_of(self, attr: Any) -> Any:
        if attr.attr_name != "x":
            return self._tensors[(attr.group_name, attr.attr_name)][attr.index]
        ids = attr.index.numpy().astype(np.int32)
        rows = np.empty((ids.size, self._dim), np.float32)
        self._reader.read(ids, rows)
        return torch.from_numpy(rows)


class Graph:
    """What is trained on, and how it is sampled."""

    def __init__(self, log: AccessLog, dim: int, share: float, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.nodes, self.dim = max(log.rows, log.requests), dim
        edges = graph_of(log.offsets, log.ids, self.nodes)
        self.edges = torch.from_numpy(rng.permutation(self.nodes))[edges]
        self.rows = rng.normal(size=(self.nodes, dim)).astype(np.float32)
        self.labels = torch.from_numpy(
            (self.rows @ rng.normal(size=(dim, CLASSES)).astype(np.float32)).argmax(1)
        )
        count = max(1, int(share * self.nodes))
        self.seeds = torch.from_numpy(rng.permutation(self.nodes)[:count])

    def structure(self) -> Any:
        graph = Data(num_nodes=self.nodes)
        graph.put_edge_index(self.edges, layout="coo", size=(self.nodes, self.nodes))
        return graph

    def with_labels(self, features: Any) -> tuple[Any, Any]:
        features[None, "y", None] = self.labels
        return features, self.structure()

    def loader(self, data: Any, fanout: list[int], batch: int, seed: int) -> Any:
        sampler = NumpySampler(data, fanout, seed)
        with warnings.catch_warnings(action="ignore"):
            return NeighborLoader(
                data,
                fanout,
                input_nodes=self.seeds,
                neighbor_sampler=sampler,
                batch_size=batch,
                shuffle=True,
                generator=torch.Generator().manual_seed(seed),
            )


def train(
    loader: Any, dim: int, epochs: int, last: Callable[[], None], note: Callable[[Any], None]
) -> tuple[list[float], float]:
    """Return the loss of every step, and the seconds of the last epoch, before which is `last`."""
    torch.manual_seed(0)
    model = Sage(dim)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    losses, begun = [], 0.0
    for epoch in range(epochs):
        if epoch == epochs - 1:
            last()
        begun = time.perf_counter()
        for batch in loader:
            note(batch.n_id)
            optimizer.zero_grad()
            answer = model(batch.x, batch.edge_index)[: batch.batch_size]
            loss = torch.nn.functional.cross_entropy(answer, batch.y[: batch.batch_size])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses, time.perf_counter() - begun


def pages_of(log: AccessLog, row_bytes: int) -> AccessLog:
    """Return which pages of a ``.npy`` file the requests touch."""

    def touched(ids: NDArray[Any]) -> NDArray[Any]:
        first = NPY_BYTES + ids.astype(np.int64) * row_bytes
        spans = -(-(row_bytes - 1) // PAGE_BYTES) + 1
        ends = (first + row_bytes - 1) // PAGE_BYTES
        return np.unique(np.minimum(first[:, None] // PAGE_BYTES + np.arange(spans), ends[:, None]))

    return AccessLog.from_requests(touched(log.request(r)) for r in range(log.requests))


def misses(log: AccessLog, things: int, capacity: int, warm: int) -> int:
    """Return what misses an LRU of single rows, or pages."""
    alone = place(None, things, 1, "identity")
    return replay(log, alone, capacity, coalesce=False, warm_requests=warm).block_reads


def reads_of(store: Path, cache_bytes: int, requests: AccessLog, warm: int) -> int:
    """Return the block reads of the requests after the first, which warm."""
    with bandana_kv.open(store, cache_bytes=cache_bytes) as opened:
        before = 0
        for number in range(requests.requests):
            if number == warm:
                before = opened.stats()[TABLE]["block_reads"]
            opened.multi_get(TABLE, requests.request(number))
        return opened.stats()[TABLE]["block_reads"] - before


@click.command()
@click.option("--dir", "directory", type=Path, required=True, help="On the device to serve from.")
@click.option("--log", "path", type=Path, required=True, help="A node's neighbours a request.")
@click.option("--dim", default=128, show_default=True)
@click.option("--cache", "cache_fraction", default=0.05, show_default=True, help="DRAM / features.")
@click.option("--seeds", default=0.1, show_default=True, help="Share of the nodes to train on.")
@click.option("--batch", default=64, show_default=True)
@click.option("--fanout", default="10,5", show_default=True)
@click.option("--epochs", default=3, show_default=True, help="The last one is counted.")
@click.option("--adapter", default="blockfile", show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON alone, which it does anyway.")
@click.option("--keep", is_flag=True, help="Keep the result under bench/results/.")
def main(
    directory: Path,
    path: Path,
    dim: int,
    cache_fraction: float,
    seeds: float,
    batch: int,
    fanout: str,
    epochs: int,
    adapter: str,
    seed: int,
    as_json: bool,  # noqa: ARG001  # JSON is all it prints
    keep: bool,
) -> None:
    graph = Graph(AccessLog.read(path), dim, seeds, seed)
    hops = [int(each) for each in fanout.split(",")]
    dram_bytes = int(cache_fraction * graph.rows.nbytes)
    work = directory / "graphs"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        result = measure(graph, hops, batch, epochs, dram_bytes, adapter, work, seed)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    result = {
        "bench": "graphs",
        "log": path.stem,
        "nodes": graph.nodes,
        "edges": int(graph.edges.shape[1]),
        "row_bytes": 4 * dim,
        "dram_bytes": dram_bytes,
        "seeds": graph.seeds.numel(),
        "batch": batch,
        "fanout": hops,
        "epochs": epochs,
        **result,
        "torch": torch.__version__,
        "pyg": torch_geometric.__version__,
        "surroundings": surroundings(seed),
    }
    report(result, f"graphs-{path.stem}" if keep else None)


def load(
    graph: Graph, hops: list[int], batch: int, adapter: str, work: Path, seed: int
) -> dict[str, float]:
    """Load a store for each placement, learnt from epochs that are not trained; return seconds."""
    begun = time.perf_counter()
    loader = graph.loader(graph.structure(), hops, batch, seed + 1000)
    neighbourhoods = AccessLog.from_neighbors(loader, epochs=2)
    sampled = time.perf_counter() - begun
    batches = AccessLog.from_neighbors(loader, epochs=2, whole=True)
    begun, seconds = time.perf_counter(), 0.0
    for name, log, method in (
        ("shuffled", batches, "shuffled"),
        ("batches", batches, "shp"),
        ("neighbourhoods", neighbourhoods, "shp"),
    ):
        begun = time.perf_counter()
        per_block = bandana_kv.blocks.rows_per_block(PAGE_BYTES, 4 * graph.dim)
        placement = place(log, graph.nodes, per_block, method, seed=seed)
        seconds = time.perf_counter() - begun
        bandana_kv.load(
            work / name,
            {TABLE: graph.rows},
            {TABLE: batches},
            placement={TABLE: placement},
            adapter=adapter,
            seed=seed,
        )
    return {"sample_seconds": round(sampled, 1), "place_seconds": round(seconds, 1)}


def measure(
    graph: Graph,
    hops: list[int],
    batch: int,
    epochs: int,
    dram_bytes: int,
    adapter: str,
    work: Path,
    seed: int,
) -> dict[str, Any]:
    learnt = load(graph, hops, batch, adapter, work, seed)
    asked: list[NDArray[Any]] = []
    in_memory = Data(x=torch.from_numpy(graph.rows), y=graph.labels, edge_index=graph.edges)

    def run(data: Any, last: Callable[[], None], note: Callable[[Any], None]) -> Any:
        return train(graph.loader(data, hops, batch, seed), graph.dim, epochs, last, note)

    def nothing(*_: Any) -> None:
        pass

    losses, seconds = {}, {}
    losses["memory"], seconds["memory"] = run(
        in_memory, nothing, lambda ids: asked.append(ids.numpy().copy())
    )
    requests = AccessLog.from_requests(asked)
    warm = requests.requests * (epochs - 1) // epochs

    marks: list[dict[str, int]] = []
    with bandana_kv.open(work / "neighbourhoods", cache_bytes=dram_bytes) as store:
        losses["ours"], seconds["ours"] = run(
            graph.with_labels(FeatureStore(store, {"x": TABLE})),
            lambda: marks.append(store.stats()[TABLE]),
            nothing,
        )
        policy = str(store.policy(TABLE))
        after, before = store.stats()[TABLE], marks[0]
    counted = {name: after[name] - before[name] for name in ("lookups", "hits", "block_reads")}

    np.save(work / "rows.npy", graph.rows)
    for name, module in (("row_per_key", "rocksdict_rows"), ("memmap", "memmap")):
        competitors.module(module).build(work / "rows.npy", work / name)
        reader = competitors.module(module).open(work / name, dram_bytes, width=WIDTH)
        data = graph.with_labels(Rival(reader, graph.dim))
        losses[name], seconds[name] = run(data, nothing, nothing)
        reader.close()

    row_bytes = 4 * graph.dim
    pages = pages_of(requests, row_bytes)
    reads = {
        "ours": counted["block_reads"],
        "row_per_key": misses(requests, graph.nodes, dram_bytes // row_bytes, warm),
        "memmap": misses(pages, pages.rows, dram_bytes // PAGE_BYTES, warm),
    }
    return {
        "steps": len(losses["memory"]),
        "nodes_per_batch": round(requests.lookups / requests.requests, 1),
        "losses_equal": {name: each == losses["memory"] for name, each in losses.items()},
        "first_loss": losses["memory"][0],
        "last_loss": losses["memory"][-1],
        "lookups_per_epoch": counted["lookups"],
        "hit_rate": round(counted["hits"] / counted["lookups"], 4),
        "policy": policy,
        "block_reads_per_epoch": reads,
        "gain_over_row_per_key": round(reads["row_per_key"] / reads["ours"], 3),
        "gain_over_memmap": round(reads["memmap"] / reads["ours"], 3),
        "placements": {
            name: reads_of(work / name, dram_bytes, requests, warm)
            for name in ("shuffled", "batches", "neighbourhoods")
        },
        "seconds_per_epoch": {name: round(each, 2) for name, each in seconds.items()},
        **learnt,
    }


if __name__ == "__main__":
    main()
