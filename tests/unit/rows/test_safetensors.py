"""Rows of safetensors files, one and many; every tensor where the header says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bandana_kv.errors import InputError
from bandana_kv.rows.files import open_rows
from bandana_kv.rows.table import BFLOAT16

RNG = np.random.default_rng(0)
ROWS = RNG.random((300, 8), np.float32)
OTHER = RNG.integers(-100, 100, (50, 3), np.int8)
Rows = Callable[[object], np.ndarray]


@pytest.fixture
def file(tmp_path: Path, write_safetensors: Any) -> Path:
    tensors = {"bias": ROWS[0], "item.weight": OTHER, "user.weight": ROWS, "none": ROWS[:0]}
    write_safetensors(tmp_path / "model.safetensors", tensors)
    return tmp_path / "model.safetensors"


def test_rows_of_each_tensor_come_in_any_order(file: Path, rows_of: Rows) -> None:
    assert np.array_equal(rows_of(f"{file}:user.weight"), ROWS)
    assert np.array_equal(rows_of(Path(f"{file}:item.weight")), OTHER)


@pytest.mark.parametrize("dtype", ["f8", "f4", "f2", "i8", "i1", "u1", "bfloat16"])
def test_numbers_of_all_kinds(dtype: str, tmp_path: Path, write_safetensors: Any) -> None:
    kind = BFLOAT16 if dtype == "bfloat16" else np.dtype(dtype)
    rows = (ROWS * 100).astype(kind)
    write_safetensors(tmp_path / "a.safetensors", {"a": rows})
    with open_rows("user", tmp_path / "a.safetensors") as source:
        assert source.dtype == kind
        out = np.empty((300, source.row_bytes), np.uint8)
        source.gather(np.arange(300), out)
        assert out.tobytes() == rows.tobytes()


def test_what_is_loaded_is_served(file: Path, served: Rows) -> None:
    assert np.array_equal(served(f"{file}:user.weight"), ROWS)


def test_bfloat16_is_served_as_the_numbers_that_it_is(
    tmp_path: Path, served: Rows, write_safetensors: Any
) -> None:
    write_safetensors(tmp_path / "a.safetensors", {"a": ROWS.astype(BFLOAT16)})
    assert np.array_equal(
        served(tmp_path / "a.safetensors").astype(np.float32),
        ROWS.astype(BFLOAT16).astype(np.float32),
    )


def test_the_only_table_needs_no_name(
    tmp_path: Path, rows_of: Rows, write_safetensors: Any
) -> None:
    write_safetensors(tmp_path / "one.safetensors", {"bias": ROWS[0], "weight": ROWS})
    assert np.array_equal(rows_of(tmp_path / "one.safetensors"), ROWS)


@pytest.mark.parametrize(
    ("member", "said"),
    [
        ("", r"which tensor\? Say .*item.weight \(50, 3\), user.weight \(300, 8\), none \(0, 8\)$"),
        (":users.weight", "no tensor 'users.weight'; did you mean 'user.weight'"),
        (":bias", r"model.safetensors:bias: shape \(8,\) is not \(rows, dim\)"),
        (":none", "holds no row"),
    ],
)
def test_what_is_meant_is_said(file: Path, member: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        open_rows("user", f"{file}{member}")


def test_a_file_without_a_table_lists_what_it_holds(tmp_path: Path, write_safetensors: Any) -> None:
    path = tmp_path / "a.safetensors"
    write_safetensors(path, {f"bias{at}": ROWS[0] for at in range(10)})
    with pytest.raises(InputError, match=r"no tensor of shape \(rows, dim\), only bias0 .* 2 more"):
        open_rows("user", path)
    write_safetensors(path, {})
    with pytest.raises(InputError, match=r"holds no tensor$"):
        open_rows("user", path)


@pytest.fixture
def index(tmp_path: Path, write_safetensors: Any) -> Path:
    write_safetensors(tmp_path / "model-1.safetensors", {"user": ROWS, "bias": ROWS[0]})
    write_safetensors(tmp_path / "model-2.safetensors", {"item": OTHER})
    said = {
        "metadata": {"total_size": 1},
        "weight_map": {
            "user": "model-1.safetensors",
            "bias": "model-1.safetensors",
            "item": "model-2.safetensors",
        },
    }
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps(said))
    return path


def test_an_index_leads_to_the_file(index: Path, rows_of: Rows, served: Rows) -> None:
    assert np.array_equal(rows_of(f"{index}:item"), OTHER)
    assert np.array_equal(served(f"{index}:user"), ROWS)


def test_an_index_lists_what_can_be_meant(index: Path) -> None:
    with pytest.raises(InputError, match=r"which tensor\? .* user \(300, 8\), item \(50, 3\)$"):
        open_rows("user", index)
    with pytest.raises(InputError, match="did you mean 'user'"):
        open_rows("user", f"{index}:usr")
