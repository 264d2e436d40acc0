"""The process that bench/serve.py starts for each run: serves requests and times them."""

from __future__ import annotations

import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import competitors
import numba
import numpy as np
from limited import Group
from numpy.typing import NDArray

import bandana_kv
from bandana_kv.device.page_cache import device_bytes_read

__all__ = ["OURS", "SMALL_ROWS", "WARM_SHARE", "Run", "expected_rows", "serve"]

OURS = "ours-"
WARM_SHARE = 0.2
SMALL_ROWS = 8192
_SMALL_REQUESTS, _SMALL_SECONDS = 2000, 5.0
_PAGE_BYTES = 4096


# These hold the GIL: comparing a request takes a microsecond, handing the GIL over more.
@numba.njit(cache=True)
def expected_rows(ids: NDArray[np.int32], first: int, out: NDArray[np.float32]) -> None:
    """Fill `out` with the rows of `first + ids`: whole numbers below 2**24, exact in float32."""
    for i in range(ids.size):
        for k in range(out.shape[1]):
            mixed = (np.uint32(first + ids[i]) * np.uint32(0x9E3779B1)) ^ (
                np.uint32(k + 1) * np.uint32(0x85EBCA77)
            )
            out[i, k] = np.float32(np.uint32(mixed * np.uint32(0xC2B2AE3D)) >> np.uint32(8))


@numba.njit(cache=True)
def _count_wrong(
    ids: NDArray[np.int32], first: int, rows: NDArray[np.float32], right: NDArray[np.float32]
) -> int:
    expected_rows(ids, first, right)
    wrong = 0
    for i in range(ids.size):
        # As long for wrong rows as for right ones, of which _Nobody has none.
        differ = False
        for k in range(rows.shape[1]):
            differ |= rows[i, k] != right[i, k]
        wrong += differ
    return wrong


@dataclass(frozen=True)
class Run:
    """What a serving process is told.

    Attributes
    ----------
    directory
        Holds offsets.npy, ids.npy and tables.npy (the requests and the table of each), the
        files of each system, and in small/ those of small tables.
    rows
        Of a table.
    cache_bytes, engine_bytes
        Ours: of the row caches, and what the engine holds in the process beside them.
    small_bytes
        Of the small table's cache.
    """

    system: str
    options: dict[str, Any]
    directory: str
    threads: int
    seconds: float
    rows: int
    dim: int
    dram_bytes: int
    cache_bytes: int
    engine_bytes: int
    small_bytes: int
    group: str | None


class _OurReader:
    """This library behind the shape of its rivals."""

    def __init__(self, path: Path, cache_bytes: int, engine_bytes: int) -> None:
        self._store = bandana_kv.open(path, cache_bytes)
        self.private_bytes = self._store.cache_bytes + engine_bytes

    def read(self, table: int, ids: NDArray[np.int32], out: NDArray[np.float32]) -> None:
        self._store.multi_get(f"t{table}", ids, out=out)

    def block_reads(self) -> int:
        return sum(table["block_reads"] for table in self._store.stats().values())

    def close(self) -> None:
        self._store.close()


class _RivalReader:
    """A rival, which holds all tables one behind the other."""

    def __init__(self, reader: competitors.Reader) -> None:
        self._reader = reader
        self.private_bytes = reader.private_bytes

    def read(self, table: int, ids: NDArray[np.int32], out: NDArray[np.float32]) -> None:
        del table
        self._reader.read(ids, out)

    def block_reads(self) -> float:
        return device_bytes_read() / _PAGE_BYTES

    def close(self) -> None:
        self._reader.close()


class _Nobody:
    """Answers nothing, at once: what is left is the clients' own time."""

    def read(self, table: int, ids: NDArray[np.int32], out: NDArray[np.float32]) -> None:
        pass


@dataclass
class _Tally:
    """What one thread saw."""

    rows: int = 0
    wrong: int = 0
    first: float = float("inf")
    last: float = 0.0
    latencies: list[float] = field(default_factory=list)


class _Clients:
    """Threads that take the next request when they are done with one."""

    def __init__(self, run: Run) -> None:
        directory = Path(run.directory)
        offsets = np.load(directory / "offsets.npy")
        self._ids = np.load(directory / "ids.npy")
        self._tables = np.load(directory / "tables.npy").tolist()
        self._table_rows = run.rows
        if not run.system.startswith(OURS):
            begins = np.array(self._tables, np.int32) * np.int32(run.rows)
            self._ids += np.repeat(begins, np.diff(offsets))
            self._table_rows = 0
        self._offsets = offsets.tolist()
        self.requests = len(self._tables)
        self._threads = run.threads
        most = int(np.diff(offsets).max())
        self._buffers = [np.zeros((2, most, run.dim), np.float32) for _ in range(run.threads)]
        self._pool = ThreadPoolExecutor(run.threads)

    def serve(
        self, reader: Any, first: int, last: int, seconds: float, *, small: bool = False
    ) -> list[_Tally]:
        """Serve requests `first` to `last` for `seconds` at most; or their like from small."""
        numbers = itertools.count(first)
        gate = threading.Barrier(self._threads)
        offsets = self._offsets

        def work(buffers: NDArray[np.float32]) -> _Tally:
            tally = _Tally()
            gate.wait()
            deadline = time.perf_counter() + seconds
            while (number := next(numbers)) < last:
                ids = self._ids[offsets[number] : offsets[number + 1]]
                table = self._tables[number]
                if small:
                    ids, table = ids % np.int32(SMALL_ROWS), 0
                out = buffers[0, : ids.size]
                begun = time.perf_counter()
                reader.read(table, ids, out)
                done = time.perf_counter()
                tally.latencies.append(done - begun)
                tally.first = min(tally.first, begun)
                tally.last = done
                tally.rows += ids.size
                right = buffers[1, : ids.size]
                tally.wrong += _count_wrong(ids, table * self._table_rows, out, right)
                if done > deadline:
                    break
            return tally

        return list(self._pool.map(work, self._buffers))


def serve(run: Run) -> dict[str, Any]:
    """Serve as `run` says; prints what DRAM the open system takes for itself, then goes on."""
    directory = Path(run.directory)
    clients = _Clients(run)
    small = _open(run, directory / "small" / run.system, run.small_bytes, run.small_bytes)
    clients.serve(small, 0, min(_SMALL_REQUESTS, clients.requests), _SMALL_SECONDS, small=True)
    small.close()
    client_us = _client_us(clients)
    if run.group:
        Group(Path(run.group)).enter()
    reader = _open(run, directory / run.system, run.cache_bytes, run.dram_bytes)
    print(reader.private_bytes, flush=True)
    warm = int(WARM_SHARE * clients.requests)
    clients.serve(reader, 0, warm, run.seconds)
    blocks, device, cpu = reader.block_reads(), device_bytes_read(), time.process_time()
    tallies = clients.serve(reader, warm, clients.requests, run.seconds)
    cpu = time.process_time() - cpu
    device = device_bytes_read() - device
    blocks = reader.block_reads() - blocks
    rows = sum(tally.rows for tally in tallies)
    latencies = np.concatenate([tally.latencies for tally in tallies])
    seconds = max(t.last for t in tallies) - min(t.first for t in tallies)
    return {
        "system": run.system,
        "threads": run.threads,
        "rows_per_second": round(rows / seconds),
        "requests_per_second": round(latencies.size / seconds, 1),
        "p50_us": round(1e6 * float(np.percentile(latencies, 50)), 1),
        "p99_us": round(1e6 * float(np.percentile(latencies, 99)), 1),
        "block_reads": round(blocks),
        "block_reads_per_lookup": round(blocks / rows, 4),
        "device_bytes_per_lookup": round(device / rows, 1),
        "wrong_rows": sum(tally.wrong for tally in tallies),
        "lookups": rows,
        "cpu_us_per_lookup": round(1e6 * cpu / rows, 2),
        "client_us_per_request": round(client_us, 2),
        "options": run.options,
        "private_bytes": reader.private_bytes,
    }


def _client_us(clients: _Clients) -> float:
    """Return the processor time that a client takes for a request, beside its answer."""
    cpu = time.process_time()
    tallies = clients.serve(_Nobody(), 0, min(_SMALL_REQUESTS, clients.requests), _SMALL_SECONDS)
    asked = sum(len(tally.latencies) for tally in tallies)
    return 1e6 * (time.process_time() - cpu) / asked


def _open(run: Run, path: Path, cache_bytes: int, dram_bytes: int) -> Any:
    if run.system.startswith(OURS):
        return _OurReader(path, cache_bytes, run.engine_bytes)
    return _RivalReader(competitors.module(run.system).open(path, dram_bytes, **run.options))
