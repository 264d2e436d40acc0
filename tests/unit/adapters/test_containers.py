"""Values that are no bare numbers are told by what they are; numbers never are."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import pickle
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bandana_kv.adapters.containers import container_of
from bandana_kv.adapters.rows import KEY_CODECS, open_rows
from bandana_kv.errors import InputError
from bandana_kv.migration import migrate

ROW = np.random.default_rng(0).random(16, np.float32)
Put = Callable[..., None]


def written(write: Callable[..., None], *values: Any) -> bytes:
    file = io.BytesIO()
    write(file, *values)
    return file.getvalue()


def safetensors(row: np.ndarray) -> bytes:
    header = json.dumps({"r": {"dtype": "F32", "shape": [16], "data_offsets": [0, 64]}}).encode()
    return len(header).to_bytes(8, "little") + header + row.tobytes()


CONTAINERS = {
    **{f"array {p}": pickle.dumps(ROW, p) for p in range(6)},
    **{f"list {p}": pickle.dumps(ROW.tolist(), p) for p in range(6)},
    **{f"dict {p}": pickle.dumps({"row": ROW}, p) for p in range(6)},
    **{f"bytes {p}": pickle.dumps(ROW.tobytes(), p) for p in range(6)},
    "long pickle": pickle.dumps(np.zeros(1 << 19, np.float32)),
    "npy": written(np.save, ROW),
    "npy of another version": written(np.lib.format.write_array, ROW, (2, 0)),
    "npz": written(np.savez, ROW),
    "npz, smaller": written(np.savez_compressed, ROW),
    "gzip": gzip.compress(ROW.tobytes()),
    "zlib": zlib.compress(ROW.tobytes()),
    "zlib, best": zlib.compress(ROW.tobytes(), 9),
    "bzip2": bz2.compress(ROW.tobytes()),
    "xz": lzma.compress(ROW.tobytes()),
    "zstd": b"\x28\xb5\x2f\xfd" + bytes(60),
    "json": json.dumps(ROW.tolist()).encode(),
    "json object": json.dumps({"row": ROW.tolist()}).encode(),
    "safetensors": safetensors(ROW),
}


@pytest.mark.parametrize("what", CONTAINERS)
def test_containers_are_told(what: str) -> None:
    assert container_of(CONTAINERS[what])


@pytest.mark.parametrize("engine", ["lmdb", "rocksdb"])
@pytest.mark.parametrize("what", ["array 0", "list 2", "array 5", "npy", "npz", "gzip", "json"])
def test_a_migration_of_them_is_refused_and_leaves_nothing(
    engine: str, what: str, tmp_path: Path, put_by_key: Put
) -> None:
    value = CONTAINERS[what]
    keys = KEY_CODECS["decimal"]("t", np.arange(5))
    put_by_key(engine, tmp_path / "db", dict.fromkeys(keys, value))
    for dtype, dim in (("uint8", None), ("uint8", len(value))):
        with (
            open_rows(engine, tmp_path / "db", key="decimal", dtype=dtype) as source,
            pytest.raises(InputError, match=r"the value of key 30 .*, not the bare numbers"),
        ):
            migrate(source, tmp_path / "store", "t", dim=dim)
    assert not (tmp_path / "store").exists()


@given(st.sampled_from(["u1", "i1", "<f2", "<f4", "<f8", "<i4"]), st.integers(1, 40), st.data())
def test_numbers_are_numbers(dtype: str, dim: int, data: st.DataObject) -> None:
    assert container_of(data.draw(hnp.arrays(dtype, dim)).tobytes()) is None


def test_common_rows_are_numbers() -> None:
    rng = np.random.default_rng(1)
    for dtype in (np.float32, np.float16):
        for row in rng.normal(0, 1, (3000, 8)).astype(dtype):
            assert container_of(row.tobytes()) is None
    for row in rng.integers(0, 256, (20_000, 8)).astype(np.uint8):
        assert container_of(row.tobytes()) is None
    for number in range(256):
        assert container_of(bytes([number]) * 32) is None


@pytest.mark.parametrize(
    "value", [b"\x80\x04" + bytes(30), b"\x80\x02" + bytes(29) + b".", b"\x1f\x8b\x08" + bytes(9)]
)
def test_numbers_that_only_begin_so_are_numbers(value: bytes) -> None:
    assert container_of(value) is None
