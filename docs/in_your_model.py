"""A model of the DLRM kind whose tables move out of memory, and that reads ahead.

python docs/in_your_model.py DIR
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

from bandana_kv import AccessLog
from bandana_kv.torch import Prefetcher, externalize

USERS, ITEMS, DIM, BATCH = 5_000, 20_000, 32, 64


class Ranker(nn.Module):
    """Scores a user, with some numbers, against the items that the user has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.user = nn.Embedding(USERS, DIM)
        self.seen = nn.EmbeddingBag(ITEMS, DIM, mode="mean")
        self.over = nn.Sequential(nn.Linear(2 * DIM + 4, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(
        self, user: torch.Tensor, seen: torch.Tensor, numbers: torch.Tensor
    ) -> torch.Tensor:
        scores: torch.Tensor = self.over(torch.cat([self.user(user), self.seen(seen), numbers], 1))
        return scores.squeeze(1)


def batches(count: int) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    rng = np.random.default_rng(0)
    made = []
    for _ in range(count):
        user = rng.zipf(1.2, BATCH) % USERS
        seen = rng.zipf(1.3, (BATCH, 20)) % ITEMS
        numbers = rng.standard_normal((BATCH, 4), np.float32)
        made.append((torch.from_numpy(user), torch.from_numpy(seen), torch.from_numpy(numbers)))
    return made


def main(directory: Path) -> None:
    torch.manual_seed(0)
    model, past, served = Ranker().eval(), batches(100), batches(20)
    with torch.inference_mode():
        expected = [model(*batch) for batch in served]

    # which ids were looked up: rows that are asked for together share a block
    logs = {
        "user": AccessLog.from_requests(user.numpy() for user, _, _ in past),
        "seen": AccessLog.from_requests(row for _, seen, _ in past for row in seen.numpy()),
    }
    store = externalize(
        model, directory / "store", log=logs, min_bytes=1 << 16, cache_bytes=1 << 18
    )
    with store, torch.inference_mode():
        ahead = Prefetcher(
            served, model, depth=2, inputs=lambda batch: {"user": batch[0], "seen": batch[1]}
        )
        answers = [model(*batch) for batch in ahead]
        print(store)
        print({name: round(value, 4) for name, value in ahead.stats().items()})
    assert all(torch.equal(a, b) for a, b in zip(answers, expected, strict=True))
    print("the same scores as with all tables in memory")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
