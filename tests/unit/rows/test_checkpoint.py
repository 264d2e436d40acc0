"""Rows of torch checkpoints; all but what needs no torch is skipped without it."""

from __future__ import annotations

import json
import pickle
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bandana_kv
from bandana_kv.errors import InputError, MissingExtraError
from bandana_kv.rows.files import open_rows
from bandana_kv.rows.mapped import MappedRows
from bandana_kv.rows.table import BFLOAT16

ROWS = np.random.default_rng(0).random((300, 8), np.float32)
OTHER = np.random.default_rng(1).integers(-100, 100, (50, 3), np.int8)
Rows = Callable[[object], np.ndarray]


@pytest.fixture
def torch() -> Any:
    return pytest.importorskip("torch")


@pytest.fixture
def file(tmp_path: Path, torch: Any) -> Path:
    held = {"user": torch.from_numpy(ROWS.copy()), "bias": torch.zeros(8), "epoch": 3}
    torch.save(held | {"item": torch.from_numpy(OTHER.copy())}, tmp_path / "model.pt")
    return tmp_path / "model.pt"


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin"])
def test_rows_come_in_any_order_and_are_served(
    suffix: str, file: Path, rows_of: Rows, served: Rows
) -> None:
    path = file.rename(file.with_suffix(suffix))
    assert np.array_equal(rows_of(f"{path}:user"), ROWS)
    assert np.array_equal(rows_of(f"{path}:item"), OTHER)
    assert np.array_equal(served(f"{path}:user"), ROWS)


def test_they_are_read_from_the_file(file: Path) -> None:
    with open_rows("user", f"{file}:user") as source:
        assert isinstance(source, MappedRows)
        with file.open("r+b") as opened:
            opened.truncate(100)
        with pytest.raises(InputError, match="cannot be read any more"):
            source.gather(np.arange(300), np.empty((300, 32), np.uint8))


VIEWS: dict[str, Callable[[Any], Any]] = {
    "whole": lambda t: t,
    "a part": lambda t: t[10:20, 2:5],
    "turned": lambda t: t.T,
    "every second": lambda t: t[::2],
    "a parameter": lambda t: t.clone().requires_grad_(),
    "halves": lambda t: t.half(),
    "doubles": lambda t: t.double(),
    "whole numbers": lambda t: (t * 100).int(),
    "expanded": lambda t: t[:1].expand(50, 8),
}


@pytest.mark.parametrize("view", VIEWS)
def test_every_view_of_a_tensor(view: str, tmp_path: Path, torch: Any, rows_of: Rows) -> None:
    tensor = VIEWS[view](torch.from_numpy(ROWS.copy()))
    torch.save({"a": tensor}, tmp_path / "a.pt")
    assert np.array_equal(rows_of(tmp_path / "a.pt"), tensor.detach().numpy())


def test_bfloat16(tmp_path: Path, torch: Any, rows_of: Rows, served: Rows) -> None:
    torch.save(torch.from_numpy(ROWS.copy()).bfloat16(), tmp_path / "a.pt")
    expected = ROWS.astype(BFLOAT16)
    assert rows_of(tmp_path / "a.pt").tobytes() == expected.tobytes()
    assert np.array_equal(served(tmp_path / "a.pt").astype(np.float32), expected.astype(np.float32))


def test_tensors_of_dictionaries_in_dictionaries(tmp_path: Path, torch: Any, rows_of: Rows) -> None:
    held = {"state_dict": {"user.weight": torch.from_numpy(ROWS.copy())}, "lr": [1.0]}
    torch.save(held, tmp_path / "a.pt")
    assert np.array_equal(rows_of(f"{tmp_path / 'a.pt'}:state_dict.user.weight"), ROWS)
    with pytest.raises(InputError, match=r"did you mean 'state_dict\.user\.weight'"):
        open_rows("user", f"{tmp_path / 'a.pt'}:user.weight")


def test_a_tensor_without_a_name(tmp_path: Path, torch: Any, rows_of: Rows) -> None:
    torch.save(torch.from_numpy(ROWS.copy()), tmp_path / "a.pt")
    assert np.array_equal(rows_of(tmp_path / "a.pt"), ROWS)
    with pytest.raises(InputError, match="is one tensor without a name; leave 'user' out"):
        open_rows("user", f"{tmp_path / 'a.pt'}:user")


class Anything:
    """Is found in a pickle by its name."""


@pytest.mark.parametrize(
    ("held", "said"),
    [
        (lambda t: {"a": t.zeros(3, 2), "b": t.zeros(2, 2)}, r"which tensor\? .*a \(3, 2\), b"),
        (lambda t: {"a": t.zeros(3)}, r"no tensor of shape \(rows, dim\), only a \(3,\)"),
        (lambda _: {"epoch": 3}, "holds no tensor"),
        (lambda t: {"a": t.zeros(3, 2), "model": Anything()}, "pickled objects, which could run"),
        (lambda t: {"a": t.eye(3).to_sparse()}, "sparse.* is not read"),
        (lambda t: {"a": t.zeros(3, 0)}, "holds no row"),
    ],
)
def test_what_is_wrong_is_said(
    held: Callable[[Any], object], said: str, tmp_path: Path, torch: Any
) -> None:
    torch.save(held(torch), tmp_path / "a.pt")
    with pytest.raises(InputError, match=said):
        bandana_kv.load(tmp_path / "s", {"user": tmp_path / "a.pt"})
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


def test_the_old_format_is_refused(tmp_path: Path, torch: Any) -> None:
    held = {"a": torch.zeros(3, 2)}
    torch.save(held, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(InputError, match=r"since version 1\.6"):
        open_rows("user", tmp_path / "a.pt")


@pytest.mark.parametrize("keep", [0, 3, 4, 100, 5000, -200, -22, -1])
def test_a_file_cut_short_is_refused(keep: int, file: Path) -> None:
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"model\.pt: (no|not a complete) checkpoint"):
        open_rows("user", f"{file}:user")


def test_a_tensor_that_claims_more_than_its_record_is_refused(tmp_path: Path, torch: Any) -> None:
    torch.save({"a": torch.from_numpy(ROWS.copy())}, tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as old, zipfile.ZipFile(tmp_path / "b.pt", "w") as new:
        for each in old.infolist():
            content = old.read(each)
            if each.filename.endswith("/data/0"):
                content = content[:1000]
            new.writestr(each.filename, content)
    with pytest.raises(InputError, match=r"b\.pt"):
        open_rows("user", f"{tmp_path / 'b.pt'}:a")


def test_an_index_leads_to_the_file(
    tmp_path: Path, torch: Any, rows_of: Rows, served: Rows
) -> None:
    torch.save({"user": torch.from_numpy(ROWS.copy())}, tmp_path / "model-1.bin")
    torch.save({"item": torch.from_numpy(OTHER.copy())}, tmp_path / "model-2.bin")
    index = tmp_path / "pytorch_model.bin.index.json"
    names = {"user": "model-1.bin", "item": "model-2.bin", "gone": "model-2.bin"}
    index.write_text(json.dumps({"weight_map": names}))
    assert np.array_equal(rows_of(f"{index}:item"), OTHER)
    assert np.array_equal(served(f"{index}:user"), ROWS)
    with pytest.raises(InputError, match=r"'gone' is in model-2\.bin, which has no such tensor"):
        open_rows("user", f"{index}:gone")


def test_without_torch_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("a/data.pkl", pickle.dumps({}))
    with pytest.raises(MissingExtraError, match=r"bandana-kv\[torch\]"):
        bandana_kv.load(tmp_path / "s", {"user": tmp_path / "a.pt"})
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]
