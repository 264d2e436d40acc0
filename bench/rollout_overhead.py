"""What a roll-out costs beside the store that it wraps, stage by stage.

    python bench/rollout_overhead.py --json [--dir DIR] [--adapter blockfile]

A table of 200,000 rows of 128 bytes, requests of 30 ids drawn by a power law, one caller. `cached`:
all rows in DRAM, the least that a request can cost; `misses`: DRAM for 5 % of the rows. The bare
store and the stage take turns, request by request; figures are medians over requests, in
microseconds. Nothing is compared: that takes the process what a lookup of the other side takes,
and some. In `off` and `shadow` the yardstick is the old source by itself, a function that takes
rows out of an array.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
from common import report, surroundings

import bandana_kv
from bandana_kv.rollout import Rollout, Shares, Stage

ROWS, DIM, IDS, REQUESTS = 200_000, 32, 30, 8000
STAGES: dict[str, tuple[Stage, Shares]] = {
    "full": ("full", Shares(full=0.0)),
    "canary": ("canary", Shares(canary=0.0)),
    "off": ("off", Shares()),
    "shadow": ("shadow", Shares(shadow=0.0)),
}


@click.command()
@click.option("--json", "_json", is_flag=True, help="Accepted for likeness; the result is JSON.")
@click.option("--dir", "directory", type=click.Path(path_type=Path, file_okay=False, exists=True))
@click.option("--adapter", default="blockfile", show_default=True)
@click.option("--keep", is_flag=True, help="Keep the result under bench/results/.")
@click.option("--seed", default=0, show_default=True)
def main(_json: bool, directory: Path | None, adapter: str, keep: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    table = rng.random((ROWS, DIM), dtype=np.float32)
    ids = rng.permutation(ROWS)[(ROWS * rng.random((REQUESTS, IDS)) ** 3).astype(np.int64)]
    result: dict[str, object] = {"adapter": adapter, "ids": IDS, "row_bytes": 4 * DIM}
    with tempfile.TemporaryDirectory(dir=directory) as where:
        bandana_kv.load(Path(where) / "store", {"t": table}, adapter=adapter)
        for name, cache_bytes in (("cached", 2 * table.nbytes), ("misses", table.nbytes // 20)):
            with bandana_kv.open(Path(where) / "store", cache_bytes, admission="all") as store:
                result[name] = _measure(store, table, list(ids))
    report({**result, "surroundings": surroundings(seed)}, "rollout-overhead" if keep else None)


def _measure(
    store: bandana_kv.EmbeddingStore, table: np.ndarray, requests: list[np.ndarray]
) -> dict[str, dict[str, float]]:
    def old(_: str, ids: np.ndarray) -> np.ndarray:
        return table[ids]

    for ids in requests:
        store.multi_get("t", ids)
    found = {}
    for name, (stage, shares) in STAGES.items():
        bare = old if stage in ("off", "shadow") else store.multi_get
        with Rollout(old, store, stage=stage, fraction=1.0, shares=shares) as rollout:
            us = np.array(
                [(_us(bare, one), _us(rollout.multi_get, other)) for one, other in _pairs(requests)]
            )
        bare_us, rollout_us = np.median(us, axis=0)
        found[name] = {
            "bare_us": round(float(bare_us), 2),
            "rollout_us": round(float(rollout_us), 2),
            "ratio": round(float(rollout_us / bare_us), 3),
        }
    return found


def _pairs(requests: list[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
    return list(zip(requests[::2], requests[1::2], strict=True))


def _us(ask: Callable[..., object], ids: np.ndarray) -> float:
    begun = time.perf_counter()
    ask("t", ids)
    return (time.perf_counter() - begun) * 1e6


if __name__ == "__main__":
    main()
