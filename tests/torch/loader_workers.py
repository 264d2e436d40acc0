"""Looks up rows in loader workers, epoch after epoch; says what was right and what grew.

python loader_workers.py PATH fork|spawn|forkserver WORKERS EPOCHS
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import threading
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset

import bandana_kv
from bandana_kv.torch import Embedding, EmbeddingBag, Prefetcher

ITEMS, BATCH = 96, 4


class Looked(Dataset[tuple[int, torch.Tensor]]):
    """Rows that a worker has looked up itself."""

    def __init__(self, module: Embedding) -> None:
        self.module = module

    def __len__(self) -> int:
        return ITEMS

    def __getitem__(self, item: int) -> tuple[int, torch.Tensor]:
        return item, self.module(torch.tensor([item, 2 * item]))


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def main(path: str, method: str, workers: int, epochs: int) -> None:
    with bandana_kv.open(path, cache_bytes=1 << 16) as store:
        module, bags = Embedding(store, "float32"), EmbeddingBag(store, "float32", mode="sum")
        expected = store.multi_get("float32", range(2 * ITEMS))
        loader = DataLoader(
            Looked(module),
            BATCH,
            num_workers=workers,
            multiprocessing_context=method,
            # else an epoch is that many interpreters
            persistent_workers=method != "fork",
        )
        wrong, counts = 0, []
        for _ in range(epochs):
            # the parent, too, looks up what the workers were asked for, ahead
            prefetcher = Prefetcher(
                loader, bags, inputs=lambda batch: torch.stack([batch[0], 2 * batch[0]], 1)
            )
            seen = 0
            for items, rows in prefetcher:
                pairs = torch.stack([items, 2 * items], 1)
                right = torch.from_numpy(expected[pairs.numpy()])
                wrong += int((rows != right).sum() + (bags(pairs) != right.sum(1)).sum())
                seen += len(items)
            assert seen == ITEMS
            assert prefetcher.stats()["used"] == ITEMS // BATCH
            counts.append((descriptors(), threading.active_count(), resident_bytes()))
        del loader, prefetcher
    print(
        json.dumps(
            {
                "wrong": wrong,
                "first": counts[min(2, epochs - 1)],
                "last": counts[-1],
                "left": len(multiprocessing.active_children()),
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
