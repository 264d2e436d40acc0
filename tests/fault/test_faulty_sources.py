"""Each kind of file that rows come from, with each fault: one clear error, and nothing left."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import bandana_kv
from bandana_kv.errors import InputError

ROWS = np.random.default_rng(0).random((300, 8), np.float32)
TEXT = np.array([["a", "b"]] * 300)


class Anything:
    """Is found in a pickle by its name."""


def objects() -> np.ndarray:
    held = np.empty((300, 2), object)
    held[...] = {"a": 1}
    return held


def write_npy(path: Path, rows: np.ndarray) -> str:
    np.save(path, rows, allow_pickle=True)
    return str(path)


def write_npz(path: Path, rows: np.ndarray) -> str:
    np.savez_compressed(path, t=rows, bias=ROWS[0])
    return f"{path}:t"


def write_raw(path: Path, rows: np.ndarray) -> str:
    path.write_bytes(rows.tobytes())
    return f"{path}:{rows.dtype.str}:{rows.shape[0]}x{rows.shape[1]}"


def write_safetensors(path: Path, rows: np.ndarray) -> str:
    kind = {"f": "F32", "U": "F8_E4M3"}[rows.dtype.kind]
    said = {"t": {"dtype": kind, "shape": rows.shape, "data_offsets": (0, rows.nbytes)}}
    header = json.dumps(said).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + rows.tobytes())
    return f"{path}:t"


def write_checkpoint(path: Path, rows: np.ndarray) -> str:
    torch = pytest.importorskip("torch")
    if rows.dtype.kind == "O":
        torch.save({"t": torch.zeros(3, 2), "model": Anything()}, path)
    elif rows.dtype.kind == "U":
        torch.save({"t": torch.zeros(3, 2).to(torch.float8_e4m3fn)}, path)
    else:
        torch.save({"t": torch.from_numpy(rows.copy())}, path)
    return f"{path}:t"


def write_columns(path: Path, rows: np.ndarray) -> str:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.ipc
    import pyarrow.parquet

    table = pa.table({"t": rows.tolist(), "bias": np.arange(len(rows))})
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(table, path)
    else:
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table)
    return f"{path}:t"


def write_zarr(path: Path, rows: np.ndarray) -> str:
    zarr = pytest.importorskip("zarr")
    if rows.dtype.kind == "O":
        zarr.create_array(path / "t", data=ROWS, zarr_format=2)
        described = path / "t" / ".zarray"
        said = json.loads(described.read_text()) | {"filters": [{"id": "pickle", "protocol": 5}]}
        described.write_text(json.dumps(said))
        zarr.open_group(path, mode="a", zarr_format=2)
        return f"{path}:t"
    group = zarr.open_group(path, mode="w")
    given = rows if rows.dtype.kind == "f" else np.zeros((300, 2), "M8[s]")
    group.create_array("t", data=given, chunks=(70, 2))
    return f"{path}:t"


def cut(path: Path) -> None:
    """Take the last bytes of a file off it, or of a chunk in a directory."""
    if path.is_dir():
        path = max((each for each in path.rglob("c/*/*") if each.is_file()), key=str)
    path.write_bytes(path.read_bytes()[:-9])


# Kind -> what writes it; what is said of a file cut short, of another dtype, of a name that is not
# there, of objects. None: the kind has no such fault.
KINDS: dict[str, tuple[Callable[[Path, np.ndarray], str], dict[str, str]]] = {
    "a.npy": (
        write_npy,
        {
            "cut": "truncated: .* promises",
            "dtype": "not numeric",
            "name": "is one array; leave ':none' out",
            "objects": "not numeric",
        },
    ),
    "a.npz": (
        write_npz,
        {
            "cut": "not a complete .npz file",
            "dtype": "not numeric",
            "name": "has no array 'none'; did you mean 't'",
            "objects": "not numeric",
        },
    ),
    "a.bin": (
        write_raw,
        {"cut": "9591 bytes long, and 300x8 of <f4 are 9600", "dtype": "not numeric"},
    ),
    "a.safetensors": (
        write_safetensors,
        {
            "cut": "truncated: .* promises",
            "dtype": "dtype F8_E4M3 is not read",
            "name": "has no tensor 'none'; did you mean 't'",
        },
    ),
    "a.pt": (
        write_checkpoint,
        {
            "cut": "not a complete checkpoint",
            "dtype": "float8_e4m3fn.* is not read",
            "name": "has no tensor 'none'; did you mean 't'",
            "objects": "holds pickled objects, which could run code",
        },
    ),
    "a.parquet": (
        write_columns,
        {
            "cut": "not a complete Parquet or Arrow file",
            "dtype": "not numeric",
            "name": "has no column 'none'",
        },
    ),
    "a.arrow": (
        write_columns,
        {
            "cut": "not a complete Parquet or Arrow file",
            "dtype": "not numeric",
            "name": "has no column 'none'",
        },
    ),
    "a.zarr": (
        write_zarr,
        {
            "cut": "rows .* cannot be read",
            "dtype": "not numeric",
            "name": "has no array 'none'; did you mean 't'",
            "objects": "pickle",
        },
    ),
}


def faulty(name: str, fault: str, path: Path) -> str:
    """Write a file with a fault; return how a user would name its rows."""
    write, _ = KINDS[name]
    table = write(path, {"dtype": TEXT, "objects": objects()}.get(fault, ROWS))
    if fault == "cut":
        cut(path)
    if fault == "name":
        return f"{path}:none"
    return table


@pytest.mark.parametrize(
    ("name", "fault", "said"),
    [(name, fault, said) for name, (_, faults) in KINDS.items() for fault, said in faults.items()],
)
def test_each_fault_is_one_error_and_nothing_is_left(
    name: str, fault: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    path = tmp_path / name
    table = faulty(name, fault, path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=said) as raised:
        bandana_kv.load(tmp_path / "store", {"user": table})
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", KINDS)
def test_without_a_fault_each_is_loaded(name: str, tmp_path: Path) -> None:
    table = faulty(name, "", tmp_path / name)
    bandana_kv.load(tmp_path / "store", {"user": table}, placement="shuffled")
    with bandana_kv.open(tmp_path / "store") as store:
        assert np.array_equal(store.multi_get("user", np.arange(300)), ROWS)


@pytest.mark.parametrize("name", KINDS)
def test_a_fault_leaves_the_version_that_is_served(name: str, tmp_path: Path) -> None:
    bandana_kv.load(tmp_path / "store", {"user": ROWS}, placement="identity")
    table = faulty(name, "cut", tmp_path / name)
    before = sorted((tmp_path / "store").rglob("*"))
    with pytest.raises(InputError):
        bandana_kv.load(tmp_path / "store", {"user": table})
    assert [path for path in before if not path.exists()] == []
    with bandana_kv.open(tmp_path / "store") as store:
        assert store.version == 1
        assert np.array_equal(store.multi_get("user", np.arange(300)), ROWS)
    shutil.rmtree(tmp_path / "store")
