"""Blocks in a cluster against a row a key on the same cluster, at equal client DRAM.

    python bench/cluster.py --dir DIR --log L.npz --json
    python bench/cluster.py --dir DIR --rows 1000000 --json      # the log of bench/generator.py

Starts three primaries and three replicas of a real server (Valkey, all in RAM) on loopback, on
the cores that the client has too: ratios and what a failure does are to be trusted, rates are not.
Learns on the first 70 % of the requests (by position with --ordered, else of a permutation) and
serves the rest, each row compared with its source.

Systems
    `blocks`: this library, loaded with what `choose_plan` makes of the training part alone.
    `row a key`: each row a value under its id, read by the very same reader (the adapter, told
    that a value is as long as a row), and the rows that were looked up most in the training part
    in DRAM: a fixed set, so no cache work, found by binary search; as good as a rival gets that
    knows the log. `row a key, lru`: the same behind a cache of what was looked up last, as clients
    have who do not.

Equal DRAM
    ``dram_bytes = dram_fraction x rows x row_bytes`` holds rows and what finds them: of ours the
    id index and the cache with its bookkeeping, of the rivals the cached rows and 4 bytes of id
    each (what Python takes to keep the LRU order is not counted against it).

serving
    --threads threads for --seconds, after half as long that warms; systems take turns, --rounds
    times, and the round with the median rate counts. `values_a_request` are blocks or rows that
    came over the network (the servers' own counters), `wire_bytes_a_row` all bytes to and from the
    servers over rows answered, `client_cpu_us_a_row` and `server_cpu_us_a_row` processor time.
    `missed_rows_to_blocks` is the values of `row a key` over ours. `went_around` says how often
    the requests were asked: above 1, a cache may know them from the time before, so that a log
    should be long enough.
cpu
    The reader alone, one thread, `batch` values a call: processor time of the client and of the
    servers, and wall time, a block and a row.
crossover
    Of requests for so many `blocks`: for how many rows a call for a row a key costs as much, by
    each of these times and by the client's and the servers' together, and `ratio`, that over the
    blocks. Who misses fewer rows than `ratio` times the blocks is better off with a row a key.
faults
    4 threads; a primary is killed with SIGKILL, then another frozen with SIGSTOP: p99 and longest
    call before, just after each, and two seconds after each.
"""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from common import report, surroundings
from numpy.typing import NDArray
from serve import Bench, Planned
from serving import _count_wrong, expected_rows

import bandana_kv
from bandana_kv import AccessLog
from bandana_kv.adapters import block_keys
from bandana_kv.adapters.resp import RespAdapter
from bandana_kv.plan import Plan
from bandana_kv.testing.cluster_node import Node
from bandana_kv.testing.cluster_readers import Readers
from bandana_kv.testing.real_cluster import RealCluster

BLOCKS, ROWS, LRU = "blocks", "row a key", "row a key, lru"
TRAIN = 0.7
TABLE, SPACE, PREFIX_OF_ROWS = "t", 1, "rows"
CHUNK_ROWS = 1 << 16
ID_BYTES = 4
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
AFTER_S = 2.0
_COUNTED = ("total_net_input_bytes", "total_net_output_bytes", "keyspace_hits", "keyspace_misses")
_CPU = ("used_cpu_user", "used_cpu_sys")

Ids = NDArray[Any]
Rows = NDArray[np.float32]


class RowAdapter(RespAdapter):
    """The same reader, for values that are as long as a row."""

    row_bytes = 128

    def payload_of(self, pages: int) -> int:
        return self.row_bytes * pages


@dataclass(frozen=True)
class System:
    """One of the two, open: how it is asked, and what it keeps."""

    name: str
    ask: Callable[[Ids], Rows]
    dram_bytes: int
    cached_rows: int


class RowStore:
    """A row a key, behind a fixed set of cached rows."""

    def __init__(self, adapter: RowAdapter, hot: Ids, rows: Rows) -> None:
        self._adapter = adapter
        self._hot = np.sort(hot).astype(np.int32)
        self._cached = rows[self._hot]

    def ask(self, ids: Ids) -> Rows:
        out = np.empty((ids.size, self._cached.shape[1]), np.float32)
        place = np.minimum(np.searchsorted(self._hot, ids), self._hot.size - 1)
        cached = self._hot[place] == ids
        out[cached] = self._cached[place[cached]]
        missed = ids[~cached]
        if missed.size:
            out[~cached] = self._adapter.multi_get(block_keys(SPACE, missed)).view(np.float32)
        return out


class LruStore:
    """A row a key, behind the rows that were looked up last."""

    def __init__(self, adapter: RowAdapter, capacity_rows: int, dim: int) -> None:
        self._adapter = adapter
        self._lock = threading.Lock()
        self._slots: OrderedDict[int, int] = OrderedDict((-1 - n, n) for n in range(capacity_rows))
        self._rows = np.empty((capacity_rows, dim), np.float32)

    def ask(self, ids: Ids) -> Rows:
        asked = ids.tolist()
        with self._lock:
            slots = np.array([self._slots.get(one, -1) for one in asked])
            for one, slot in zip(asked, slots.tolist(), strict=True):
                if slot >= 0:
                    self._slots.move_to_end(one)
            out = self._rows[slots]
        missed = np.flatnonzero(slots < 0)
        if missed.size:
            read = self._adapter.multi_get(block_keys(SPACE, ids[missed])).view(np.float32)
            out[missed] = read
            with self._lock:
                for place, one in enumerate(ids[missed].tolist()):
                    if one not in self._slots:
                        _, slot = self._slots.popitem(last=False)
                        self._slots[one] = slot
                        self._rows[slot] = read[place]
        return out


class Counters:
    """What the servers counted since the last look."""

    def __init__(self, nodes: list[Node]) -> None:
        self._nodes = nodes
        self._last = self._now()

    def _now(self) -> dict[str, float]:
        found = dict.fromkeys((*_COUNTED, *_CPU), 0.0)
        for node in self._nodes:
            for section in ("stats", "cpu"):
                for line in node.ask("INFO", section).decode().splitlines():
                    name, _, value = line.partition(":")
                    if name in found:
                        found[name] += float(value)
        return found

    def since(self) -> dict[str, float]:
        now = self._now()
        passed = {name: now[name] - self._last[name] for name in now}
        self._last = now
        return {
            "bytes": passed[_COUNTED[0]] + passed[_COUNTED[1]],
            "values": passed["keyspace_hits"],
            "absent": passed["keyspace_misses"],
            "cpu_s": passed[_CPU[0]] + passed[_CPU[1]],
        }


@dataclass(frozen=True)
class Loaded:
    """Both systems in one cluster, and what they are asked for."""

    cluster: RealCluster
    bench: Bench
    rows: Rows
    hot: Ids
    requests: list[Ids]

    def adapter(self, of: str) -> RespAdapter:
        kind = RespAdapter if of == BLOCKS else RowAdapter
        cluster = self.cluster
        return kind.on(
            cluster.address,
            prefix=BLOCKS if of == BLOCKS else PREFIX_OF_ROWS,
            user=cluster.reader,
            password=cluster.password,
            read_only=True,
        )

    @contextmanager
    def opened(self, name: str) -> Iterator[System]:
        """Open one of the two with cold caches."""
        dram = self.bench.dram_bytes
        with self.adapter(name) as adapter:
            if isinstance(adapter, RowAdapter):
                fixed = RowStore(adapter, self.hot, self.rows)
                last = LruStore(adapter, self.hot.size, self.rows.shape[1])
                yield System(name, (fixed if name == ROWS else last).ask, dram, self.hot.size)
                return
            path, cache_bytes = self.bench.directory / "store", self.bench.cache_bytes("blockfile")
            with bandana_kv.open(path, cache_bytes, adapter=adapter) as store:
                yield System(
                    name,
                    lambda ids: store.multi_get(TABLE, ids),
                    dram,
                    store.capacity_rows(TABLE),
                )

    def wrong(self, ids: Ids, rows: Rows) -> int:
        return int(_count_wrong(ids, 0, rows, np.empty_like(rows)))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _load(cluster: RealCluster, bench: Bench, planned: Planned, rows: Rows) -> None:
    """Write both systems into the cluster."""
    login = {"user": cluster.user, "password": cluster.password}
    begun = time.perf_counter()
    with RespAdapter.on(cluster.address, prefix=BLOCKS, **login) as adapter:
        plan = planned.plan
        bandana_kv.load(
            bench.directory / "store",
            {TABLE: rows},
            {TABLE: planned.learn},
            adapter=adapter,
            placement={TABLE: planned.placement},
            plan=Plan(plan.format, plan.cache_bytes, plan.seed, {TABLE: plan.tables["t"]}),
        )
    _say(f"loaded blocks in {time.perf_counter() - begun:.1f} s")
    begun = time.perf_counter()

    def batches() -> Iterator[tuple[NDArray[np.uint64], NDArray[np.uint8]]]:
        for first in range(0, len(rows), CHUNK_ROWS):
            ids = np.arange(first, min(len(rows), first + CHUNK_ROWS))
            yield block_keys(SPACE, ids), rows[ids].view(np.uint8)

    with RowAdapter.on(cluster.address, prefix=PREFIX_OF_ROWS, **login) as adapter:
        adapter.bulk_load(batches(), len(rows))
    _say(f"loaded a row a key in {time.perf_counter() - begun:.1f} s")


def _serve(loaded: Loaded, name: str, threads: int, seconds: float) -> dict[str, Any]:
    """Serve from one system; return what it cost."""
    counters = Counters([node for node in loaded.cluster.nodes if node.answers])
    with (
        loaded.opened(name) as system,
        Readers(
            system.ask, loaded.wrong, loaded.requests, threads=threads, first="warm"
        ) as readers,
    ):
        while not readers.answered():
            time.sleep(0.01)
        time.sleep(seconds / 2)
        counters.since()
        cpu_s = time.process_time()
        readers.begin("served")
        time.sleep(seconds)
        cpu_s = time.process_time() - cpu_s
        passed = counters.since()
        readers.begin("rest")
    served = readers.stretches()[1]
    asked = sum(each.calls for each in readers.stretches())
    return {
        "system": name,
        "dram_bytes": system.dram_bytes,
        "cached_rows": system.cached_rows,
        **served.as_dict(),
        "values_a_request": round(passed["values"] / served.calls, 3),
        "asked_of_a_copy_in_vain": passed["absent"],
        "wire_bytes_a_row": round(passed["bytes"] / served.rows, 1),
        "client_cpu_us_a_row": round(1e6 * cpu_s / served.rows, 2),
        "server_cpu_us_a_row": round(1e6 * passed["cpu_s"] / served.rows, 2),
        "went_around": round(asked / len(loaded.requests), 2),
    }


def _serving(loaded: Loaded, threads: int, seconds: float, rounds: int) -> list[dict[str, Any]]:
    """Let them take turns; return of each its median by rows a second."""
    runs: dict[str, list[dict[str, Any]]] = {BLOCKS: [], ROWS: [], LRU: []}
    for _ in range(rounds):
        for name, each in runs.items():
            each.append(_serve(loaded, name, threads, seconds))
            _say(f"{name}: {each[-1]['rows_per_second']} rows/s, p99 {each[-1]['p99_ms']} ms")
    found = []
    for each in runs.values():
        ranked = sorted(each, key=lambda run: run["rows_per_second"])
        whole = {name: sum(run[name] for run in each) for name in ("wrong_rows", "errors")}
        rates = [run["rows_per_second"] for run in ranked]
        found.append(ranked[len(ranked) // 2] | whole | {"rounds": rates})
    return found


def _cpu(loaded: Loaded, seconds: float, seed: int) -> list[dict[str, Any]]:
    """Time the reader alone, on blocks and on rows."""
    keys_of = {name: _keys_of(loaded, name) for name in (BLOCKS, ROWS)}
    counters = Counters(loaded.cluster.nodes)
    found = []
    for batch in BATCHES:
        line: dict[str, Any] = {"batch": batch}
        for name, all_keys in keys_of.items():
            keys = np.random.default_rng(seed).choice(all_keys, (512, batch))
            with loaded.adapter(name) as adapter:
                out = np.empty((batch, adapter.payload_bytes), np.uint8)
                for each in keys:
                    adapter.multi_get(each, out)
                counters.since()
                done, begun, cpu_s = 0, time.perf_counter(), time.process_time()
                while time.perf_counter() < begun + seconds:
                    adapter.multi_get(keys[done % 512], out)
                    done += 1
                wall_s, cpu_s = time.perf_counter() - begun, time.process_time() - cpu_s
                values, servers_s = done * batch, counters.since()["cpu_s"]
            line[name] = {
                "client_cpu_us": round(1e6 * cpu_s / values, 2),
                "server_cpu_us": round(1e6 * servers_s / values, 2),
                "wall_us": round(1e6 * wall_s / values, 2),
            }
        found.append(line)
    return found


def _crossover(cpu: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return for how many rows a call costs as much as for some blocks, between what was timed."""

    def costs(name: str) -> dict[str, Rows]:
        batches = np.array([line["batch"] for line in cpu])
        kinds = cpu[0][name]
        of_call = {kind: batches * [line[name][kind] for line in cpu] for kind in kinds}
        return of_call | {"cpu_us": of_call["client_cpu_us"] + of_call["server_cpu_us"]}

    batches = [line["batch"] for line in cpu]
    blocks, rows = costs(BLOCKS), costs(ROWS)
    found = []
    for at, count in enumerate(batches):
        # What costs more than the largest batch of rows has no answer here.
        within = {
            kind: float(np.interp(each[at], np.maximum.accumulate(rows[kind]), batches)) / count
            for kind, each in blocks.items()
            if each[at] <= rows[kind].max()
        }
        found.append({"blocks": count, "ratio": {k: round(v, 2) for k, v in within.items()}})
    return found


def _keys_of(loaded: Loaded, name: str) -> NDArray[np.uint64]:
    """Return the keys of all blocks, or of all rows."""
    if name == ROWS:
        return block_keys(SPACE, np.arange(len(loaded.rows)))
    with (
        loaded.adapter(name) as adapter,
        bandana_kv.open(loaded.bench.directory / "store", 0, adapter=adapter) as store,
    ):
        stored = store._tables[TABLE].stored
        return stored.keys(np.arange(-(-len(loaded.rows) // loaded.bench.rows_per_block)))


def _faults(loaded: Loaded, name: str, seconds: float) -> list[dict[str, Any]]:
    """Serve while a primary is killed and another frozen; mend them after."""
    cluster = loaded.cluster
    cluster.wait_whole()
    killed, frozen = cluster.primaries()[:2]
    with (
        loaded.opened(name) as system,
        Readers(system.ask, loaded.wrong, loaded.requests, threads=4, first="warm") as readers,
    ):
        time.sleep(seconds / 2)
        readers.begin("quiet")
        time.sleep(seconds)
        for what, act, node in (
            ("killed", cluster.kill, killed),
            ("frozen", cluster.freeze, frozen),
        ):
            act(node)
            readers.begin(what)
            time.sleep(AFTER_S)
            readers.begin(f"after {what}")
            time.sleep(seconds)
    cluster.thaw(frozen)
    cluster.restart(killed)
    cluster.wait_whole()
    return [{"system": name} | each.as_dict() for each in readers.stretches()[1:]]


def _p99_ratios(faults: list[dict[str, Any]]) -> dict[str, Any]:
    quiet = {each["system"]: each["p99_ms"] for each in faults if each["name"] == "quiet"}
    return {
        f"{each['system']}, {each['name']}": round(each["p99_ms"] / quiet[each["system"]], 2)
        for each in faults
        if each["name"] != "quiet"
    }


@click.command()
@click.option("--dir", "directory", required=True, type=click.Path(path_type=Path))
@click.option("--log", "path", type=Path, help="By default the log of bench/generator.py.")
@click.option("--rows", default=1_000_000, show_default=True, help="Of the generator.")
@click.option("--lookups", type=int, help="Of the generator; three a row.")
@click.option("--ordered", is_flag=True, help="In order of time: learn on the start.")
@click.option("--row-bytes", default=128, show_default=True)
@click.option("--dram-fraction", default=0.05, show_default=True)
@click.option("--threads", default=4, show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--seconds", default=8.0, show_default=True, help="Of each stretch that counts.")
@click.option("--json", "_json", is_flag=True, help="Accepted for likeness; the result is JSON.")
@click.option("--keep", is_flag=True, help="Keep the result under bench/results/.")
@click.option("--seed", default=0, show_default=True)
def main(
    directory: Path,
    path: Path | None,
    rows: int,
    lookups: int | None,
    ordered: bool,
    row_bytes: int,
    dram_fraction: float,
    threads: int,
    rounds: int,
    seconds: float,
    _json: bool,
    keep: bool,
    seed: int,
) -> None:
    work = directory / "cluster"
    work.mkdir(parents=True)
    try:
        if path is None:
            from generator import generate

            log = generate(rows, lookups, seed)
        else:
            log = AccessLog.read(path)
        learn, test = log.split(train=TRAIN, ordered=ordered, seed=seed)
        dim, dram_bytes = row_bytes // 4, int(dram_fraction * log.rows * row_bytes)
        bench = Bench(work, log.rows, 1, dim, dram_bytes, limits=False)
        planned = bench.plan(learn, seed)
        table = np.empty((log.rows, dim), np.float32)
        expected_rows(np.arange(log.rows, dtype=np.int32), 0, table)
        RowAdapter.row_bytes = row_bytes
        uses = np.bincount(learn.ids, minlength=log.rows)
        hot = np.argsort(-uses, kind="stable")[: dram_bytes // (row_bytes + ID_BYTES)]
        requests = [
            ids.astype(np.int64) for ids in np.split(test.ids, test.offsets[1:-1]) if ids.size
        ]
        with RealCluster() as cluster:
            _load(cluster, bench, planned, table)
            loaded = Loaded(cluster, bench, table, hot, requests)
            serving = _serving(loaded, threads, seconds, rounds)
            cpu = _cpu(loaded, min(2.0, seconds), seed)
            faults = [each for name in (BLOCKS, ROWS) for each in _faults(loaded, name, seconds)]
        ours, rival, last = serving
        name = path.stem if path else f"generator-{log.rows}"
        result = {
            "log": name,
            "rows": log.rows,
            "row_bytes": row_bytes,
            "lookups": log.lookups,
            "dram_fraction": dram_fraction,
            "dram_bytes": dram_bytes,
            "threads": threads,
            "plan": planned.summary(),
            "serving": serving,
            "rows_per_second_ratio": round(ours["rows_per_second"] / rival["rows_per_second"], 3),
            "rows_per_second_ratio_to_lru": round(
                ours["rows_per_second"] / last["rows_per_second"], 3
            ),
            "p99_ratio": round(ours["p99_ms"] / rival["p99_ms"], 3),
            "missed_rows_to_blocks": round(rival["values_a_request"] / ours["values_a_request"], 3),
            "cpu": cpu,
            "crossover": _crossover(cpu),
            "faults": faults,
            "p99_to_quiet": _p99_ratios(faults),
            "surroundings": surroundings(seed),
        }
        report(result, f"cluster-{name}" if keep else None)
    finally:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
