"""Rows a second and latency, against what users would run instead, at equal DRAM.

    python bench/serve.py --dir DIR --log L.npz --row-bytes 128 --dram-fraction 0.05 \
        --threads 1,8 --json
    python bench/serve.py --dir DIR --rows 10000000 --json     # the log of bench/generator.py

Learns on the first 70 % of the requests (by position with --ordered, else of a permutation),
serves the rest: their first fifth warms and is not counted. Systems: this library with each of
its adapters (`ours-...`), loaded with what `choose_plan` makes of the training part alone;
np.memmap with MADV_RANDOM; a row per key in RocksDB (block cache, direct reads) and in LMDB
(read-ahead off); Lance `take`. For each rival the settings that bench/competitors names are
tried for a few seconds each at the largest number of threads, and the best is run.

Equal DRAM
    ``dram_bytes = dram_fraction x rows x row_bytes`` is all that a system may use to hold rows
    and to find them: caches with their bookkeeping, indexes in memory, and the page cache. The
    id index of this library (16 bits a row of a small table, 24 of ten million) and what its
    engine keeps of its own index come out of that sum, so that the row cache gets the rest
    (`ours_cache_bytes`). Each run is a process of its own. It first serves a small table, so that
    interpreter, libraries, request buffers and stacks are there, and then enters a memory
    cgroup, which from there on counts what it takes, pages of files included. Caches that a
    system allocates itself (`private_bytes`) are bounded by its options. The page cache is
    bounded by the cgroup: every 20 ms its limit is set to what the process holds of its own,
    plus what of `dram_bytes` its private caches leave, plus `slack_bytes` (a rival whose reads
    are direct gets room beside, as it has no use for pages). `working_bytes` is the most that a
    process held beside those: buffers, stacks, and whatever it hides. Where no cgroup can be
    made, `limited_by` is "nothing": then the page cache is free.

Copies
    A table of a few MiB is too small for that: buffers are larger than its DRAM. So the log is
    served as that of `copies` tables which look alike, as many as make `dram_bytes` 16 MiB or
    more; each serves the held-out requests in an order of its own, the tables take turns.
    Ours are as many tables of one store; rivals hold the rows of all in one.

Cold
    The page cache forgets a system's files before each run.

Counted
    Each thread takes the next request as it gets done with one. `rows_per_second` is all rows
    answered over the time from the first counted request to the last; latencies are those of
    requests. Warming and counting end after --seconds each. At the largest number of threads
    the systems take turns, and the round with the median rate counts.
    `device_bytes_per_lookup` is what storage delivered to the process;
    `block_reads_per_lookup` is the store's own counter, or for a rival those bytes in pages of
    4 KiB. Every row served is compared with its source, by a compiled loop outside of the
    latencies (`wrong_rows`). Rows are a hash of their id.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import competitors
import numpy as np
from common import report, surroundings
from limited import Group
from serving import OURS, SMALL_ROWS, Run, expected_rows, serve

import bandana_kv
from bandana_kv import AccessLog, adapters
from bandana_kv.device.page_cache import drop_page_cache
from bandana_kv.kernels.bitpack import words_for
from bandana_kv.placement import Placement, place
from bandana_kv.plan import Choice, Plan, choose_plan

TRAIN = 0.7
PAGE_BYTES, BLOCK_OVERHEAD_BYTES = 4096, 96
# A block: what the engine keeps to find it, by itself or as pages of its file.
ENGINE_INDEX_BYTES = {"blockfile": 0, "lmdb": 26, "rocksdb": 26}
LEAST_DRAM_BYTES, MOST_COPIES = 16 << 20, 64
SLACK_BYTES = 1 << 20
# Beside its limit for a rival that reads past the page cache: at a tight one direct reads fail.
DIRECT_ROOM_BYTES = 16 << 20
PLANNED_FOR = "blockfile"
TRIAL_SECONDS = 3.0
CHUNK_ROWS = 1 << 16
# Large request buffers stay in the heap, so that they are not taken anew in the cgroup.
ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}


@dataclass(frozen=True)
class Planned:
    """What ours are loaded with."""

    learn: AccessLog
    plan: Plan
    choice: Choice
    placement: Placement
    seconds: float

    def summary(self) -> dict[str, Any]:
        choice = self.choice
        return {
            "reason": choice.reason,
            "policy": str(choice.policy),
            "capacity_rows": choice.capacity_rows,
            "predicted_reads_per_lookup": choice.predicted.reads_per_lookup,
            "plan_seconds": round(self.seconds, 1),
        }


@dataclass
class Bench:
    """The files of a bench and what is run on them."""

    directory: Path
    rows: int
    copies: int
    dim: int
    dram_bytes: int
    limits: bool = True
    kind: str = "nothing"

    @property
    def rows_per_block(self) -> int:
        return (PAGE_BYTES - BLOCK_OVERHEAD_BYTES) // (4 * self.dim)

    def engine_bytes(self, adapter: str) -> int:
        """Return the DRAM that an engine's index of our blocks takes."""
        return ENGINE_INDEX_BYTES[adapter] * self.copies * -(-self.rows // self.rows_per_block)

    def cache_bytes(self, adapter: str) -> int:
        """Return the DRAM of our row caches."""
        index_bytes = 8 * words_for(self.rows) * self.copies
        return max(0, self.dram_bytes - index_bytes - self.engine_bytes(adapter))

    def write_requests(self, test: AccessLog, *, ordered: bool, seed: int) -> None:
        """Write the requests to serve: those of each copy, the copies taking turns."""
        rng = np.random.default_rng(seed)
        numbers = np.empty((test.requests, self.copies), np.int64)
        for copy in range(self.copies):
            every = np.arange(test.requests)
            numbers[:, copy] = every if ordered or self.copies == 1 else rng.permutation(every)
        served = test.select(numbers.reshape(-1))
        np.save(self.directory / "offsets.npy", served.offsets)
        np.save(self.directory / "ids.npy", served.ids.astype(np.int32))
        tables = np.tile(np.arange(self.copies, dtype=np.int32), test.requests)
        np.save(self.directory / "tables.npy", tables)

    def plan(self, learn: AccessLog, seed: int) -> Planned:
        """Plan for ours, from the training part alone."""
        begun = time.perf_counter()
        budget = self.cache_bytes(PLANNED_FOR) // self.copies
        plan = choose_plan({"t": (self.rows, 4 * self.dim)}, {"t": learn}, budget, seed=seed)
        choice = plan.tables["t"].choice
        assert choice is not None
        seconds = time.perf_counter() - begun
        _say(f"planned in {seconds:.0f} s: {choice.reason}")
        placement = place(
            learn,
            self.rows,
            self.rows_per_block,
            choice.placement,
            seed=seed,
            resident=choice.resident_rows / self.rows or None,
        )
        return Planned(learn, plan, choice, placement, seconds)

    def build(self, systems: list[str], planned: Planned) -> None:
        """Write every system's files."""
        table = self.directory / "rows.npy"
        _write_rows(table, self.rows * self.copies, self.dim)
        small = self.directory / "small"
        small.mkdir()
        _write_rows(small / "rows.npy", SMALL_ROWS, self.dim)
        for system in systems:
            begun = time.perf_counter()
            if system.startswith(OURS):
                self._load(system, planned)
            else:
                competitors.module(system).build(table, self.directory / system)
                competitors.module(system).build(small / "rows.npy", small / system)
            _say(f"built {system} in {time.perf_counter() - begun:.0f} s")

    def _load(self, system: str, planned: Planned) -> None:
        adapter = system.removeprefix(OURS)
        names = [f"t{copy}" for copy in range(self.copies)]
        rows = np.load(self.directory / "rows.npy", mmap_mode="r")
        tables: dict[str, Any] = {
            name: rows[copy * self.rows : (copy + 1) * self.rows] for copy, name in enumerate(names)
        }
        if self.copies == 1:
            tables = {"t0": self.directory / "rows.npy"}
        bandana_kv.load(
            self.directory / system,
            tables,
            dict.fromkeys(names, planned.learn),
            adapter=adapter,
            placement=dict.fromkeys(names, planned.placement),
            plan=Plan(
                planned.plan.format,
                planned.plan.cache_bytes,
                planned.plan.seed,
                dict.fromkeys(names, planned.plan.tables["t"]),
            ),
        )
        bandana_kv.load(
            self.directory / "small" / system,
            {"t0": self.directory / "small" / "rows.npy"},
            adapter=adapter,
            placement="identity",
            policy=planned.choice.policy,
        )

    def run(self, system: str, options: dict[str, Any], threads: int, seconds: float) -> Any:
        """Serve in a process of its own."""
        drop_page_cache(self.directory / system)
        group = Group.create(f"bandana-kv-serve-{os.getpid()}") if self.limits else None
        adapter = system.removeprefix(OURS) if system.startswith(OURS) else None
        run = Run(
            system=system,
            options=options,
            directory=str(self.directory),
            threads=threads,
            seconds=seconds,
            rows=self.rows,
            dim=self.dim,
            dram_bytes=self.dram_bytes,
            cache_bytes=self.cache_bytes(adapter) if adapter else 0,
            # LMDB's are pages of its file.
            engine_bytes=self.engine_bytes(adapter) if adapter == "rocksdb" else 0,
            small_bytes=SMALL_ROWS * 4 * self.dim // 20,
            group=str(group.path) if group else None,
        )
        try:
            return self._result(run, group)
        finally:
            if group:
                self.kind = group.kind
                group.remove()

    def _result(self, run: Run, group: Group | None) -> dict[str, Any]:
        """Run a child, and bound its page cache as soon as it says what it holds itself."""
        failed = {"system": run.system, "threads": run.threads, "rows_per_second": 0}
        command = [sys.executable, __file__, "--child", json.dumps(asdict(run))]
        done = threading.Event()
        errors = self.directory / "errors"
        with (
            errors.open("w") as stderr,
            subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env=os.environ | ENVIRONMENT,
            ) as child,
        ):
            assert child.stdout
            said = child.stdout.readline()
            follower = None
            if said and group:
                pages = max(0, self.dram_bytes - int(said)) + SLACK_BYTES
                if run.system in competitors.DIRECT:
                    pages += DIRECT_ROOM_BYTES
                follower = threading.Thread(target=group.follow, args=(pages, done))
                follower.start()
            try:
                said = child.stdout.read()
            finally:
                done.set()
            if follower:
                follower.join()
        if child.returncode:
            last = errors.read_text().splitlines()[-1:]
            return failed | {"failed": f"exit {child.returncode}: {' '.join(last)}"[:300]}
        result: dict[str, Any] = json.loads(said)
        if group:
            result["working_bytes"] = max(0, group.most_own_bytes - result["private_bytes"])
            result["page_cache_bytes"] = group.most_page_bytes
        return result

    def rounds(
        self, options: dict[str, dict[str, Any]], threads: int, seconds: float, rounds: int
    ) -> list[dict[str, Any]]:
        """Let the systems take turns; return of each its median by rows a second."""
        runs: dict[str, list[dict[str, Any]]] = {system: [] for system in options}
        for _ in range(rounds):
            for system, settings in options.items():
                runs[system].append(self.run(system, settings, threads, seconds))
                _say(json.dumps(runs[system][-1]))
        medians = []
        for each in runs.values():
            ranked = sorted(each, key=lambda run: run["rows_per_second"])
            rates = [run["rows_per_second"] for run in ranked]
            wrong = sum(run.get("wrong_rows", 0) for run in each)
            medians.append(ranked[len(each) // 2] | {"wrong_rows": wrong, "rounds": rates})
        return medians

    def best_options(self, system: str, threads: int) -> dict[str, Any]:
        """Return the settings of a rival that serve most rows a second."""
        if system.startswith(OURS):
            return {}
        variants: list[dict[str, Any]] = competitors.module(system).VARIANTS
        if len(variants) == 1:
            return variants[0]
        tried = [self.run(system, each, threads, TRIAL_SECONDS) for each in variants]
        rates = [each["rows_per_second"] for each in tried]
        _say(f"{system}: {dict(zip(map(str, variants), rates, strict=True))}")
        return variants[int(np.argmax(rates))]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _write_rows(path: Path, rows: int, dim: int) -> None:
    """Write a table to a ``.npy``, a few MiB at a time."""
    with open(path, "wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (rows, dim)}
        np.lib.format.write_array_header_1_0(file, header)
        for first in range(0, rows, CHUNK_ROWS):
            ids = np.arange(min(CHUNK_ROWS, rows - first), dtype=np.int32)
            part = np.empty((ids.size, dim), np.float32)
            expected_rows(ids, first, part)
            file.write(part.data)


def _systems() -> list[str]:
    ours = [name for name in ENGINE_INDEX_BYTES if name in adapters.names()]
    return [OURS + name for name in ours] + list(competitors.NAMES)


def _read_log(path: Path | None, rows: int, seed: int) -> AccessLog:
    if path is not None:
        return AccessLog.read(path)
    from generator import generate

    return generate(rows, seed=seed)


def _copies(dram_bytes: int) -> int:
    copies = 1
    while copies < MOST_COPIES and copies * dram_bytes < LEAST_DRAM_BYTES:
        copies *= 2
    return copies


def _ratios(measured: list[dict[str, Any]], threads: int) -> dict[str, Any]:
    """Compare our best with the best rival, by rows a second at `threads`."""
    ran = [each for each in measured if each["threads"] == threads and "failed" not in each]
    ours = [each for each in ran if each["system"].startswith(OURS)]
    rivals = [each for each in ran if each not in ours]
    if not ours or not rivals:
        return {"ratio_to_best_competitor": None}
    mine = max(ours, key=lambda each: each["rows_per_second"])
    rival = max(rivals, key=lambda each: each["rows_per_second"])
    return {
        "ratio_to_best_competitor": round(mine["rows_per_second"] / rival["rows_per_second"], 3),
        "p99_ratio_to_best_competitor": round(mine["p99_us"] / rival["p99_us"], 3),
        "best_of_ours": mine["system"],
        "best_competitor": rival["system"],
    }


@click.command()
@click.option("--dir", "directory", type=click.Path(path_type=Path))
@click.option("--log", "path", type=Path, help="By default the log of bench/generator.py.")
@click.option("--rows", default=10_000_000, show_default=True, help="Of the generator.")
@click.option("--ordered", is_flag=True, help="In order of time: learn on the start.")
@click.option("--row-bytes", default=128, show_default=True)
@click.option("--one-id", is_flag=True, help="Make each id a request of its own.")
@click.option("--dram-fraction", default=0.05, show_default=True)
@click.option("--threads", default="1,8", show_default=True)
@click.option("--rounds", default=3, show_default=True, help="At the most threads.")
@click.option("--seconds", default=8.0, show_default=True, help="Most of a run that counts.")
@click.option("--systems", help="Comma-separated; by default all.")
@click.option("--copies", type=int, help="By default as many as make 16 MiB of DRAM.")
@click.option("--child", hidden=True)
@click.option("--json", "_json", is_flag=True, help="Accepted for likeness; the result is JSON.")
@click.option("--keep", is_flag=True, help="Keep the result under bench/results/.")
@click.option("--seed", default=0, show_default=True)
def main(
    directory: Path | None,
    path: Path | None,
    rows: int,
    ordered: bool,
    row_bytes: int,
    one_id: bool,
    dram_fraction: float,
    threads: str,
    rounds: int,
    seconds: float,
    systems: str | None,
    copies: int | None,
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
    log = _read_log(path, rows, seed)
    if one_id:
        log = AccessLog(np.arange(log.lookups + 1), log.ids)
    rows = log.rows if path else rows
    ordered = ordered or path is None
    learn, test = log.split(train=TRAIN, ordered=ordered, seed=seed)
    names = systems.split(",") if systems else _systems()
    dram_bytes = int(dram_fraction * rows * row_bytes)
    copies = copies or _copies(dram_bytes)
    work = directory / f"serve-{os.getpid()}"
    work.mkdir(parents=True)
    bench = Bench(work, rows, copies, row_bytes // 4, copies * dram_bytes)
    counts = [int(each) for each in threads.split(",")]
    measured = []
    try:
        bench.write_requests(test, ordered=ordered, seed=seed)
        planned = bench.plan(learn, seed)
        bench.build(names, planned)
        options = {name: bench.best_options(name, max(counts)) for name in names}
        for count in counts:
            measured += bench.rounds(options, count, seconds, rounds if count == max(counts) else 1)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    log_name = path.stem if path else f"generator-{rows}"
    log_name += ("-one-id" if one_id else "") + f"-{dram_fraction:g}" * (dram_fraction != 0.05)
    result = {
        "bench": "serve",
        "log": log_name,
        "rows": rows,
        "copies": copies,
        "row_bytes": row_bytes,
        "dram_bytes": bench.dram_bytes,
        "limited_by": bench.kind,
        "slack_bytes": SLACK_BYTES,
        "systems": measured,
        **_ratios(measured, max(counts)),
        "ours_cache_bytes": {name: bench.cache_bytes(name) for name in ENGINE_INDEX_BYTES},
        "ours_plan": planned.summary(),
        "surroundings": surroundings(seed),
    }
    report(result, f"serve-{log_name}" if keep else None)


if __name__ == "__main__":
    main()
