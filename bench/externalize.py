"""What a model holds in memory before its tables are moved into a store, and after.

    python bench/externalize.py --dir DIR --json             # 4 tables of 1,000,000 x 64: 1 GiB
    python bench/externalize.py --dir DIR --tables 2 --rows 20000 --json

A process of its own makes a model of `nn.EmbeddingBag`s and a layer over them, notes what it
answers and what it holds (anonymous memory, of /proc/self/smaps_rollup: what the page cache holds
of files is not its own), calls `externalize`, lets go of what is left over, and notes both again.

`before_bytes` is from before the model was made to before the tables are moved, `after_bytes` from
the same begin to after two hundred requests were answered from the store. `cache_bytes` is what
the store was given; `equal` says whether all outputs are, bit for bit.
"""

from __future__ import annotations

import ctypes
import gc
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from common import report, surroundings
from torch import nn

from bandana_kv.torch import externalize

BATCH, IDS, REQUESTS = 128, 20, 200


class Model(nn.Module):
    def __init__(self, tables: int, rows: int, dim: int) -> None:
        super().__init__()
        self.bags = nn.ModuleList(nn.EmbeddingBag(rows, dim, mode="sum") for _ in range(tables))
        self.over = nn.Linear(tables * dim, 1)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.over(torch.cat([bag(ids) for bag in self.bags], 1))
        return scores


def own_bytes() -> int:
    """Return the anonymous memory of this process."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("Anonymous:"))


def moved(work: Path, tables: int, rows: int, dim: int, cache_bytes: int, seed: int) -> Any:
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    requests = [
        torch.from_numpy(rng.zipf(1.3, (BATCH, IDS)).astype(np.int64) % rows)
        for _ in range(REQUESTS)
    ]
    warm = Model(1, 100, dim)
    warm(requests[0] % 100)
    with externalize(warm, work / "warm", min_bytes=0, adapter="blockfile"):
        warm(requests[0] % 100)
    del warm
    begin = own_bytes()
    model = Model(tables, rows, dim).eval()
    with torch.inference_mode():
        expected = [model(ids) for ids in requests]
    before = own_bytes() - begin
    begun = time.perf_counter()
    store = externalize(
        model, work / "store", min_bytes=1 << 20, adapter="blockfile", cache_bytes=cache_bytes
    )
    seconds = time.perf_counter() - begun
    with torch.inference_mode():
        equal = all(
            torch.equal(model(ids), one) for ids, one in zip(requests, expected, strict=True)
        )
    after = own_bytes() - begin
    store.close()
    return {
        "before_bytes": before,
        "after_bytes": after,
        "after_to_before": round(after / before, 4),
        "externalize_seconds": round(seconds, 1),
        "equal": equal,
    }


@click.command()
@click.option("--dir", "directory", type=click.Path(path_type=Path), required=True)
@click.option("--tables", default=4, show_default=True)
@click.option("--rows", default=1_000_000, show_default=True, help="Of each table.")
@click.option("--dim", default=64, show_default=True)
@click.option("--cache", "cache_fraction", default=0.05, show_default=True, help="DRAM / rows.")
@click.option("--child", is_flag=True, hidden=True)
@click.option("--json", "_json", is_flag=True, help="Accepted for likeness; the result is JSON.")
@click.option("--keep", is_flag=True, help="Keep the result under bench/results/.")
@click.option("--seed", default=0, show_default=True)
def main(
    directory: Path,
    tables: int,
    rows: int,
    dim: int,
    cache_fraction: float,
    child: bool,
    _json: bool,
    keep: bool,
    seed: int,
) -> None:
    table_bytes = tables * rows * dim * 4
    cache_bytes = int(cache_fraction * table_bytes)
    work = directory / "externalize"
    if child:
        print(json.dumps(moved(work, tables, rows, dim, cache_bytes, seed)))
        return
    work.mkdir(parents=True)
    try:
        command = [sys.executable, __file__, *sys.argv[1:], "--child"]
        said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    finally:
        shutil.rmtree(work)
    result = {
        "bench": "externalize",
        "tables": tables,
        "rows": rows,
        "dim": dim,
        "table_bytes": table_bytes,
        "cache_bytes": cache_bytes,
        **json.loads(said.splitlines()[-1]),
        "torch": torch.__version__,
        "surroundings": surroundings(seed),
    }
    report(result, f"externalize-{tables}x{rows}" if keep else None)


if __name__ == "__main__":
    main()
