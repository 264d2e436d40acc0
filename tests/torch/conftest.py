"""A store with a table of each kind of rows, and those rows as tensors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch

import bandana_kv
from bandana_kv import EmbeddingStore, Rows

ROWS = 300
KINDS = ("float32", "narrow", "wide", "float64", "float16", "bfloat16", "int8", "int4")


@pytest.fixture(scope="session")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((ROWS, 16), dtype=np.float32)
    path = tmp_path_factory.mktemp("torch") / "store"
    bandana_kv.load(
        path,
        {
            "float32": rows,
            "narrow": rng.standard_normal((ROWS, 1), dtype=np.float32),
            "wide": rng.standard_normal((ROWS, 67), dtype=np.float32),
            "float64": rng.standard_normal((ROWS, 5)),
            "float16": rows.astype(np.float16),
            "bfloat16": rows.astype(ml_dtypes.bfloat16),
            "int8": rows,
            "int4": rows,
            "integers": rng.integers(-99, 99, (ROWS, 4), np.int16),
            "keyed": Rows(rows, keys=np.arange(ROWS) * 7 + 5),
        },
        store_as={"int8": "int8-rowwise", "int4": "int4-rowwise"},
        adapter="blockfile",
        placement="identity",
    )
    return path


@pytest.fixture(scope="session")
def store(path: Path) -> Iterator[EmbeddingStore]:
    with bandana_kv.open(path, cache_bytes=1 << 18) as store:
        yield store


@pytest.fixture(scope="session")
def weights(store: EmbeddingStore) -> dict[str, torch.Tensor]:
    """All rows of the tables that are asked by ids, as the store answers them."""
    asked = [name for name in store.tables if name != "keyed"]
    return {name: torch.from_numpy(store.multi_get(name, np.arange(ROWS))) for name in asked}
