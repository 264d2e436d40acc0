"""Re-placements under constant traffic: bytes written for each block, and latency meanwhile.

    python bench/place_anew.py --dir DIR [--adapter lmdb] [--rows 8388608] [--share 0.25] --json

Threads ask for ids drawn from a Zipf distribution, at a fixed rate together. Again and again the
rows of a random share of the blocks are exchanged among these blocks, at random, so that each of
them takes rows from all the others: the most a re-placement can cost for so many blocks.

Writes
    `handed_per_block`: what was given to the engine and written beside it, over the payload of the
    blocks that changed. `device_per_block`: what the block device got meanwhile, from whomever,
    over the same. `counted_per_block`: what the kernel counted as written by this process: with
    large folios in the page cache it counts a folio for each page of it, several times too much.
    What an engine compacts later is in neither. `disk_bytes` is the store's size after each.

Latency
    From the moment that a request was due. `quiet` are the seconds before, `placing` the whole of
    `place_anew`. `p99_ratios` are, one by one, the p99 in its window over that in the quiet seconds
    before it.

Checked
    Each row says its id: `wrong_rows` have another one, `failed_calls` raised; at the end
    `sound` says whether `verify` found nothing.
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
from common import report, surroundings
from switch import ADAPTERS, POLICY, Traffic, draw_requests, fill, percentiles, write_rows

import bandana_kv
from bandana_kv.disk import ledger, manifest
from bandana_kv.placement import Placement

ROW_BYTES = 128


def exchanged(served: Placement, share: float, rng: np.random.Generator) -> Placement:
    """Return a placement in which the rows of a share of the blocks have changed places."""
    blocks = rng.permutation(served.blocks)[: max(1, int(share * served.blocks))]
    chosen = np.zeros(served.blocks, np.bool_)
    chosen[blocks] = True
    ids = np.flatnonzero(chosen[served.position_of_id // served.rows_per_block])
    positions = served.position_of_id.copy()
    positions[ids] = positions[rng.permutation(ids)]
    return Placement(positions, served.rows_per_block, "exchanged")


def device_bytes(path: Path) -> int:
    """Return what was written to the block device since the machine began."""
    number = path.stat().st_dev
    fields = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}/stat").read_text().split()
    return 512 * int(fields[6])


def measure(
    path: Path,
    requests: np.ndarray,
    cache_bytes: int,
    threads: int,
    rate: float,
    seconds: float,
    share: float,
    times: int,
    seed: int,
) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    found: list[dict[str, Any]] = []
    windows: list[tuple[float, float, float]] = []
    with bandana_kv.open(path, cache_bytes=cache_bytes) as store:
        payload_bytes = store._tables["t"].stored.adapter.payload_bytes
        traffic = Traffic(store, requests, threads, rate)
        fill(store, requests)
        running = traffic.start()
        for _ in range(times):
            placement = exchanged(store.placement("t"), share, rng)
            traffic.going.set()
            begun = time.perf_counter()
            time.sleep(seconds)
            before_bytes = device_bytes(path)
            placing = time.perf_counter()
            done = store.place_anew("t", placement)
            ended = time.perf_counter()
            os.sync()
            device = device_bytes(path) - before_bytes
            traffic.going.clear()
            entry = ledger.entries(path)[-1]
            changed_bytes = done.blocks_rewritten * payload_bytes
            windows.append((begun, placing, ended))
            found.append(
                {
                    "blocks_rewritten": done.blocks_rewritten,
                    "seconds": round(ended - placing, 2),
                    "handed_per_block": round(done.bytes_written / changed_bytes, 4),
                    "device_per_block": round(device / changed_bytes, 4),
                    "counted_per_block": None
                    if entry.device_bytes is None
                    else round(entry.device_bytes / changed_bytes, 4),
                    "disk_bytes": manifest.disk_bytes(path),
                }
            )
        traffic.going.set()
        traffic.over.set()
        for thread in running:
            thread.join()
    for each, (begun, placing, ended) in zip(found, windows, strict=True):
        each["quiet"] = percentiles(traffic.within([(begun, placing)]))
        each["placing"] = percentiles(traffic.within([(placing, ended)]))
    ratios = [each["placing"]["p99_us"] / each["quiet"]["p99_us"] for each in found]
    return {
        "re_placements": found,
        "p99_ratios": [round(ratio, 2) for ratio in ratios],
        "wrong_rows": traffic.wrong,
        "failed_calls": traffic.failed,
        "sound": bandana_kv.verify(path).sound,
    }


@click.command()
@click.option("--dir", "directory", required=True, type=click.Path(path_type=Path))
@click.option("--adapter", default="lmdb", show_default=True, type=click.Choice(ADAPTERS))
@click.option("--rows", default=1 << 23, show_default=True, help="Of 128 bytes.")
@click.option("--share", default=0.25, show_default=True, help="Of the blocks that change.")
@click.option("--times", default=3, show_default=True)
@click.option("--cache-bytes", default=64 << 20, show_default=True)
@click.option("--threads", default=4, show_default=True)
@click.option("--rate", default=500.0, show_default=True, help="Requests a second, in all.")
@click.option("--seconds", default=5.0, show_default=True, help="Of quiet before each.")
@click.option("--seed", default=0, show_default=True)
@click.option("--keep", is_flag=True, help="Keep the result under bench/results/.")
@click.option("--json", "_", is_flag=True, help="As always.")
def main(
    directory: Path,
    adapter: str,
    rows: int,
    share: float,
    times: int,
    cache_bytes: int,
    threads: int,
    rate: float,
    seconds: float,
    seed: int,
    keep: bool,
    _: bool,
) -> None:
    """Place rows anew under traffic, and print what it costs as one line of JSON."""
    path, table = directory / f"place-anew-{adapter}", directory / "place-anew.npy"
    shutil.rmtree(path, ignore_errors=True)
    directory.mkdir(parents=True, exist_ok=True)
    write_rows(table, rows, 1)
    bandana_kv.load(path, {"t": table}, adapter=adapter, placement="shuffled", policy=POLICY)
    table.unlink()
    requests = draw_requests(rows, seed)
    loaded_bytes = manifest.disk_bytes(path)
    found = measure(path, requests, cache_bytes, threads, rate, seconds, share, times, seed)
    shutil.rmtree(path)
    settings = {
        "adapter": adapter,
        "rows": rows,
        "row_bytes": ROW_BYTES,
        "share": share,
        "cache_bytes": cache_bytes,
        "threads": threads,
        "rate": rate,
        "loaded_bytes": loaded_bytes,
    }
    keep_as = f"place-anew-{adapter}" if keep else None
    report(settings | found | surroundings(seed), keep_as)


if __name__ == "__main__":
    main()
