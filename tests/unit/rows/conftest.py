"""What tests of row sources share: rows out of a source, and out of a store loaded from it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bandana_kv
from bandana_kv.rows.files import open_rows
from bandana_kv.rows.table import BFLOAT16

NAMES = {"<f8": "F64", "<f4": "F32", "<f2": "F16", "<i8": "I64", "|i1": "I8", "|u1": "U8"}


@pytest.fixture
def rows_of() -> Callable[[object], np.ndarray]:
    """Return all rows of what is given, which were asked for in any order and in parts."""

    def gathered(table: Any) -> np.ndarray:
        with open_rows("user", table) as source:
            ids = np.random.default_rng(0).permutation(source.rows)
            raw = np.empty((source.rows, source.row_bytes), np.uint8)
            for part in np.array_split(np.arange(source.rows), 3):
                out = np.empty((part.size, source.row_bytes), np.uint8)
                source.gather(ids[part], out)
                raw[ids[part]] = out
            none = np.empty((0, source.row_bytes), np.uint8)
            source.gather(np.empty(0, np.int64), none)
            return raw.view(source.dtype)

    return gathered


@pytest.fixture
def served(tmp_path: Path) -> Callable[[object], np.ndarray]:
    """Load a table into a store, and return all rows that it serves."""

    def load(table: Any) -> np.ndarray:
        bandana_kv.load(tmp_path / "store", {"user": table}, placement="shuffled")
        with bandana_kv.open(tmp_path / "store") as store:
            found: np.ndarray = store.multi_get("user", np.arange(store.shape("user")[0]))
            return found

    return load


@pytest.fixture
def write_safetensors() -> Callable[[Path, Mapping[str, np.ndarray]], None]:
    """Write tensors, little-endian, one behind the other."""

    def write(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
        said: dict[str, object] = {"__metadata__": {"format": "pt"}}
        data = b""
        for name, array in tensors.items():
            kind = "BF16" if array.dtype == BFLOAT16 else NAMES[array.dtype.str]
            places = [len(data), len(data) + array.nbytes]
            said[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": places}
            data += array.tobytes()
        header = json.dumps(said).encode()
        path.write_bytes(len(header).to_bytes(8, "little") + header + data)

    return write
