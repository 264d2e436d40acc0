"""A DLRM-shaped model whose tables are in a store, in memory, or mapped from files.

    python bench/torch_dlrm.py --dir DIR --json             # 26 tables of 400,000 x 64: 2.5 GiB
    python bench/torch_dlrm.py --dir DIR --tables 3 --rows 5000 --batches 20 --batch 16 --json

One dense tower, a bag a table (sum), the dot products of all pairs, a tower over them: DLRM's own
shape. Each sample asks each table for one request of bench/generator.py, `--logs` of which are made
and dealt to the tables in turn; `--most-ids` cuts requests, and `--width` widens both towers.
Tables are learnt on the first 70 % of
their log, by position, and requests served from the rest.

Systems
    ram          nn.EmbeddingBag over tensors; no limit on memory
    memmap       nn.EmbeddingBag over np.memmap with MADV_RANDOM
    ours         EmbeddingBagCollection, the store's blocks read when a batch asks
    ours-ahead   the same, with a Prefetcher of `--depth`

Equal DRAM
    ``dram_bytes = dram_fraction x bytes of all rows``. Ours has it as caches, less the id index.
    Each run is a process of its own that answers a batch of a small store, so that libraries are
    there, and then enters a memory cgroup, before it touches a row; every
    20 ms the limit is what it holds of its own, plus what of `dram_bytes` its caches leave, plus
    `slack_bytes`: all that the page cache gets. Without cgroups `limited_by` is "nothing".

Counted
    The first fifth of the batches warms. `samples_per_second` is all samples over all time, loader
    and model included. Systems take turns; of `--rounds` the median counts. Scores are compared
    with those of `ram` outside of the time (`equal`: bit for bit). `stall_share` is the
    prefetcher's. `needs_reads_per_second` is what the device would have to give for the rate of
    `ram`: block reads a sample times that rate. With `--device-reads`, what the device gives at the
    store's queue depth (tools/profile_device.py), `device_allows` is the most samples a second that
    it can feed.
"""

from __future__ import annotations

import json
import mmap
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from common import report, surroundings
from limited import Group
from torch import nn

import bandana_kv
from bandana_kv.device.page_cache import device_bytes_read, drop_page_cache
from bandana_kv.kernels.bitpack import words_for
from bandana_kv.torch import EmbeddingBagCollection, Prefetcher

SYSTEMS = ("ram", "memmap", "ours", "ours-ahead")
TRAIN, WARM_SHARE = 0.7, 0.2
DENSE = 13
BOTTOM, TOP = (512, 256), (1024, 512, 256)
SLACK_BYTES = 4 << 20
CHUNK_ROWS = 1 << 15
SMALL_ROWS = 64


@dataclass(frozen=True)
class Run:
    """What a child is told."""

    system: str
    directory: str
    tables: int
    rows: int
    dim: int
    batch: int
    cache_bytes: int
    depth: int
    threads: int
    seed: int
    width: int
    group: str | None


class Jagged:
    """A batch: the bags of all tables, as a KeyedJaggedTensor has them."""

    def __init__(self, names: list[str], values: torch.Tensor, offsets: torch.Tensor) -> None:
        self._names, self._values, self._offsets = names, values, offsets

    def keys(self) -> list[str]:
        return self._names

    def values(self) -> torch.Tensor:
        return self._values

    def offsets(self) -> torch.Tensor:
        return self._offsets

    def weights_or_none(self) -> None:
        return None


def tower(sizes: list[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for wide, narrow in pairwise(sizes):
        layers += [nn.Linear(wide, narrow), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Ranker(nn.Module):
    """DLRM without its tables: of (batch, 13) numbers and a (batch, dim) bag of each table."""

    def __init__(self, tables: int, dim: int, width: int = 1) -> None:
        super().__init__()
        self.bottom = tower([DENSE, *(width * each for each in BOTTOM), dim])
        pairs = list(combinations(range(tables + 1), 2))
        self.first, self.second = torch.tensor(pairs).T
        self.top = tower([dim + len(pairs), *(width * each for each in TOP), 1])

    def forward(self, dense: torch.Tensor, bags: torch.Tensor) -> torch.Tensor:
        below = self.bottom(dense)
        every = torch.cat([below[:, None], bags], 1)
        dots = torch.bmm(every, every.transpose(1, 2))[:, self.first, self.second]
        scores: torch.Tensor = self.top(torch.cat([below, dots], 1))
        return scores[:, 0]


def names_of(tables: int) -> list[str]:
    return [f"t{k}" for k in range(tables)]


def write_tables(work: Path, tables: int, rows: int, dim: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    (work / "tables").mkdir()
    for name in names_of(tables):
        out = np.lib.format.open_memmap(
            work / "tables" / f"{name}.npy", mode="w+", dtype=np.float32, shape=(rows, dim)
        )
        for first in range(0, rows, CHUNK_ROWS):
            part = out[first : first + CHUNK_ROWS]
            part[...] = rng.standard_normal(part.shape, np.float32) / 32
        out.flush()


def logs_of(count: int, rows: int, most_ids: int, seed: int) -> list[tuple[Any, Any]]:
    """Return what is learnt from and what is served, of each log."""
    from generator import generate

    made = []
    for number in range(count):
        log = generate(rows, seed=seed + number)
        if most_ids:
            log = bandana_kv.AccessLog.from_requests(
                log.ids[low : min(high, low + most_ids)]
                for low, high in zip(log.offsets[:-1], log.offsets[1:], strict=True)
            )
        made.append(log.split(train=TRAIN, ordered=True, seed=seed))
    return made


def write_batches(
    work: Path, logs: list[tuple[Any, Any]], tables: int, batch: int, batches: int, seed: int
) -> None:
    """Write batches: of each table the requests of its log in order, from a place of its own."""
    rng = np.random.default_rng(seed)
    starts = [int(rng.integers(logs[k % len(logs)][1].requests)) for k in range(tables)]
    for number in range(batches):
        parts, lengths = [], []
        for k in range(tables):
            test = logs[k % len(logs)][1]
            wanted = (starts[k] + number * batch + np.arange(batch)) % test.requests
            some = test.select(wanted)
            parts.append(some.ids)
            lengths.append(np.diff(some.offsets))
        offsets = np.concatenate([[0], np.cumsum(np.concatenate(lengths))])
        np.savez(
            work / f"batch-{number}.npz",
            values=np.concatenate(parts).astype(np.int64),
            offsets=offsets.astype(np.int64),
            dense=rng.standard_normal((batch, DENSE), np.float32),
        )


def read_batches(run: Run) -> list[tuple[Jagged, torch.Tensor]]:
    work, names = Path(run.directory), names_of(run.tables)
    files = sorted(work.glob("batch-*.npz"), key=lambda path: int(path.stem.split("-")[1]))
    found = []
    for path in files:
        with np.load(path) as held:
            values, offsets = torch.from_numpy(held["values"]), torch.from_numpy(held["offsets"])
            found.append((Jagged(names, values, offsets), torch.from_numpy(held["dense"])))
    return found


Bags = Callable[[Jagged], torch.Tensor]


def bags_of_tensors(run: Run, mapped: bool) -> Bags:
    """Return what PyTorch's own modules give, over tensors in memory or mapped from files."""
    modules = []
    for name in names_of(run.tables):
        path = Path(run.directory) / "tables" / f"{name}.npy"
        # "c": never written to, and torch does not warn
        rows = np.load(path, mmap_mode="c") if mapped else np.load(path)
        if mapped:
            rows.base.madvise(mmap.MADV_RANDOM)
        modules.append(
            nn.EmbeddingBag(
                *rows.shape, mode="sum", include_last_offset=True, _weight=torch.from_numpy(rows)
            )
        )

    def bags(batch: Jagged) -> torch.Tensor:
        values, offsets = batch.values(), batch.offsets()
        ends = offsets[:: run.batch].tolist()
        found = []
        for k, module in enumerate(modules):
            edges = offsets[k * run.batch : (k + 1) * run.batch + 1] - ends[k]
            found.append(module(values[ends[k] : ends[k + 1]], edges))
        return torch.stack(found, 1)

    return bags


def warm_up(run: Run, model: Ranker, batches: list[tuple[Jagged, torch.Tensor]]) -> None:
    """Answer a batch of a small store, through all that will be called later."""
    jagged, dense = batches[0]
    small = Jagged(jagged.keys(), jagged.values() % SMALL_ROWS, jagged.offsets())
    with bandana_kv.open(Path(run.directory) / "small", cache_bytes=1 << 16) as store:
        collection = EmbeddingBagCollection(store, {name: name for name in jagged.keys()})  # noqa: SIM118
        with torch.inference_mode():
            for each in Prefetcher([small] * 3, collection):
                bags = collection(each).values().view(-1, run.tables, run.dim)  # type: ignore[union-attr]
                model(dense, bags)


def serve(run: Run) -> dict[str, Any]:
    """Run the model on all batches, in this process."""
    torch.set_num_threads(run.threads)
    torch.manual_seed(run.seed)
    model, batches = Ranker(run.tables, run.dim, run.width).eval(), read_batches(run)
    loader: Iterable[Any] = batches
    store, ahead, private = None, None, 0
    warm_up(run, model, batches)
    if run.group and run.system != "ram":
        Group(Path(run.group)).enter()
    if run.system.startswith("ours"):
        store = bandana_kv.open(Path(run.directory) / "store", cache_bytes=run.cache_bytes)
        private = store.cache_bytes
        collection = EmbeddingBagCollection(store, {n: n for n in names_of(run.tables)})
        if run.system == "ours-ahead":
            ahead = Prefetcher(batches, collection, run.depth, inputs=lambda batch: batch[0])
            loader = ahead

        def bags(batch: Jagged) -> torch.Tensor:
            return collection(batch).values().view(-1, run.tables, run.dim)  # type: ignore[union-attr]

    else:
        bags = bags_of_tensors(run, run.system == "memmap")
    print(private, flush=True)
    warm, scores = int(WARM_SHARE * len(batches)), []
    begun, before, bytes_before = time.perf_counter(), _counts(store, ahead), device_bytes_read()
    with torch.inference_mode():
        for number, (jagged, dense) in enumerate(loader):
            if number == warm:
                begun, before = time.perf_counter(), _counts(store, ahead)
                bytes_before = device_bytes_read()
            scores.append(model(dense, bags(jagged)))
    seconds = time.perf_counter() - begun
    counted = {key: value - before[key] for key, value in _counts(store, ahead).items()}
    samples = (len(batches) - warm) * run.batch
    result = {
        "system": run.system,
        "private_bytes": private,
        "samples_per_second": round(samples / seconds, 1),
        "device_bytes_per_sample": round((device_bytes_read() - bytes_before) / samples, 1),
        **_shares(counted, samples),
        **_compared(run, torch.stack(scores).numpy()),
    }
    if store is not None:
        store.close()
    return result


def _counts(store: Any, ahead: Prefetcher | None) -> dict[str, float]:
    found: dict[str, float] = {}
    if store is not None:
        for stats in store.stats().values():
            for key in ("lookups", "hits", "block_reads"):
                found[key] = found.get(key, 0) + stats[key]
    if ahead is not None:
        stats = ahead.stats()
        found |= {key: value for key, value in stats.items() if key.endswith("_seconds")}
    return found


def _shares(counted: dict[str, float], samples: int) -> dict[str, float]:
    shares: dict[str, float] = {}
    if "lookups" in counted:
        shares["lookups_per_sample"] = round(counted["lookups"] / samples, 1)
        shares["hit_rate"] = round(counted["hits"] / max(1, counted["lookups"]), 4)
        shares["block_reads_per_sample"] = round(counted["block_reads"] / samples, 2)
    if "step_seconds" in counted:
        step, read = counted["step_seconds"], counted["read_seconds"]
        shares["stall_share"] = round(counted["stall_seconds"] / step, 4)
        shares["read_share"] = round(read / step, 4)
        shares["overlap"] = round(max(0.0, 1 - counted["stall_seconds"] / max(read, 1e-9)), 4)
    return shares


def _compared(run: Run, scores: np.ndarray[Any, Any]) -> dict[str, Any]:
    path = Path(run.directory) / "scores.npy"
    if run.system == "ram":
        np.save(path, scores)
        return {}
    if not path.exists():
        return {}
    return {"equal": bool(np.array_equal(np.load(path), scores))}


def measure(run: Run, limits: bool, dram_bytes: int) -> tuple[dict[str, Any], str]:
    """Run a system in a process of its own, and bound the page cache that it has the use of."""
    work = Path(run.directory)
    drop_page_cache(work / "store")
    drop_page_cache(work / "tables")
    limited = limits and run.system != "ram"
    group = Group.create(f"bandana-kv-dlrm-{os.getpid()}") if limited else None
    told = Run(**{**asdict(run), "group": str(group.path) if group else None})
    done, follower = threading.Event(), None
    command = [sys.executable, __file__, "--child", json.dumps(asdict(told))]
    try:
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout
            private = child.stdout.readline()
            if private and group:
                pages = max(0, dram_bytes - int(private)) + SLACK_BYTES
                follower = threading.Thread(target=group.follow, args=(pages, done))
                follower.start()
            said = child.stdout.read()
            done.set()
        if child.returncode:
            return {"system": run.system, "failed": child.returncode, "samples_per_second": 0}, ""
        return json.loads(said), group.kind if group else "nothing"
    finally:
        done.set()
        if follower:
            follower.join()
        if group:
            group.remove()


def _ratios(found: dict[str, dict[str, Any]], device_reads: float | None) -> dict[str, Any]:
    rate = {name: each["samples_per_second"] for name, each in found.items()}
    ratios: dict[str, Any] = {}
    for ours in ("ours", "ours-ahead"):
        for rival in ("ram", "memmap"):
            if rate.get(ours) and rate.get(rival):
                ratios[f"{ours}_to_{rival}"] = round(rate[ours] / rate[rival], 3)
    reads = found.get("ours", {}).get("block_reads_per_sample")
    if reads and rate.get("ram"):
        ratios["needs_reads_per_second"] = round(reads * rate["ram"])
    if reads and device_reads:
        ratios["device_reads_per_second"] = device_reads
        ratios["device_allows"] = round(device_reads / reads, 1)
    return ratios


@click.command()
@click.option("--dir", "directory", type=click.Path(path_type=Path))
@click.option("--tables", default=26, show_default=True)
@click.option("--rows", default=400_000, show_default=True, help="Of each table.")
@click.option("--dim", default=64, show_default=True)
@click.option("--batch", default=128, show_default=True, help="Samples.")
@click.option("--batches", default=100, show_default=True)
@click.option("--most-ids", default=0, show_default=True, help="Of a bag; 0: as generated.")
@click.option("--width", default=1, show_default=True, help="How many times wider both towers.")
@click.option("--logs", default=4, show_default=True, help="How many to make.")
@click.option("--dram-fraction", default=0.05, show_default=True)
@click.option("--depth", default=2, show_default=True, help="Of the prefetcher.")
@click.option("--threads", type=int, help="Of torch.  [default: the cores]")
@click.option("--rounds", default=3, show_default=True)
@click.option("--systems", default=",".join(SYSTEMS), show_default=True)
@click.option("--adapter", default="blockfile", show_default=True)
@click.option("--device-reads", type=float, help="Reads a second that the device gives.")
@click.option("--no-limits", is_flag=True, help="Leave the page cache alone.")
@click.option("--child", hidden=True)
@click.option("--json", "_json", is_flag=True, help="Accepted for likeness; the result is JSON.")
@click.option("--keep", is_flag=True, help="Keep the result under bench/results/.")
@click.option("--seed", default=0, show_default=True)
def main(
    directory: Path | None,
    tables: int,
    rows: int,
    dim: int,
    batch: int,
    batches: int,
    most_ids: int,
    width: int,
    logs: int,
    dram_fraction: float,
    depth: int,
    threads: int | None,
    rounds: int,
    systems: str,
    adapter: str,
    device_reads: float | None,
    no_limits: bool,
    child: str | None,
    _json: bool,
    keep: bool,
    seed: int,
) -> None:
    if child:
        print(json.dumps(serve(Run(**json.loads(child)))))
        return
    if directory is None:
        raise click.UsageError("--dir is needed")
    work = directory / f"dlrm-{os.getpid()}"
    work.mkdir(parents=True)
    threads = threads or len(os.sched_getaffinity(0))
    dram_bytes = int(dram_fraction * tables * rows * dim * 4)
    cache_bytes = max(0, dram_bytes - 8 * words_for(rows) * tables)
    sizes = tables, rows, dim, batch, cache_bytes
    run = Run("", str(work), *sizes, depth, threads, seed, width, None)
    names, kind = systems.split(","), "nothing"
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    try:
        made = logs_of(logs, rows, most_ids, seed)
        write_tables(work, tables, rows, dim, seed)
        write_batches(work, made, tables, batch, batches, seed)
        small = np.zeros((SMALL_ROWS, dim), np.float32)
        bandana_kv.load(
            work / "small",
            dict.fromkeys(names_of(tables), small),
            adapter=adapter,
            placement="identity",
        )
        begun = time.perf_counter()
        bandana_kv.load(
            work / "store",
            {name: work / "tables" / f"{name}.npy" for name in names_of(tables)},
            {name: made[k % len(made)][0] for k, name in enumerate(names_of(tables))},
            adapter=adapter,
            seed=seed,
        )
        load_seconds = time.perf_counter() - begun
        print(f"loaded in {load_seconds:.0f} s", file=sys.stderr)
        for _ in range(rounds):
            for name in names:
                told = Run(**{**asdict(run), "system": name})
                result, limited = measure(told, not no_limits, dram_bytes)
                kind = limited if name != "ram" and limited else kind
                runs[name].append(result)
                print(json.dumps(result), file=sys.stderr)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    medians = {}
    for name, each in runs.items():
        ranked = sorted(each, key=lambda one: one["samples_per_second"])
        rates = [one["samples_per_second"] for one in ranked]
        medians[name] = ranked[len(ranked) // 2] | {"rounds": rates}
    result = {
        "bench": "torch_dlrm",
        "tables": tables,
        "rows": rows,
        "dim": dim,
        "row_bytes": 4 * dim,
        "all_bytes": tables * rows * dim * 4,
        "dram_bytes": dram_bytes,
        "limited_by": kind,
        "slack_bytes": SLACK_BYTES,
        "batch": batch,
        "batches": batches,
        "most_ids": most_ids,
        "width": width,
        "dram_fraction": dram_fraction,
        "depth": depth,
        "adapter": adapter,
        "load_seconds": round(load_seconds, 1),
        "torch": torch.__version__,
        "torch_threads": threads,
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY", "active"),
        "systems": list(medians.values()),
        **_ratios(medians, device_reads),
        "surroundings": surroundings(seed),
    }
    unusual = [
        f"-{name}-{value}"
        for name, value, usual in (
            ("dram", dram_fraction, 0.05),
            ("ids", most_ids, 0),
            ("width", width, 1),
            ("omp", os.environ.get("OMP_WAIT_POLICY", "active"), "active"),
        )
        if value != usual
    ]
    report(result, f"torch-dlrm-{tables}x{rows}{''.join(unusual)}" if keep else None)


if __name__ == "__main__":
    main()
