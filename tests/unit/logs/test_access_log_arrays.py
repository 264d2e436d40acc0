"""Access logs in .npz and .parquet, whole and damaged."""

from __future__ import annotations

import contextlib
import io
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bandana_kv.errors import DiskFullError, InputError, MissingExtraError
from bandana_kv.logs.access_log import AccessLog
from bandana_kv.logs.formats import npz
from bandana_kv.progress import Progress

REQUESTS = [[3, 1, 4], [], [1, 5], [9, 2, 6, 5, 3]]


class Recorded(Progress):
    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def start(self, label: str, total: int, unit: str) -> None:
        self.calls.append((label, total, unit))

    def advance(self, count: int) -> None:
        self.calls.append((count,))

    def finish(self) -> None:
        self.calls.append(())


@pytest.fixture
def log() -> AccessLog:
    return AccessLog.from_requests(REQUESTS)


def equal(one: AccessLog, other: AccessLog) -> bool:
    return np.array_equal(one.offsets, other.offsets) and np.array_equal(one.ids, other.ids)


def save(path: Path, **arrays: Any) -> Path:
    np.savez_compressed(path, **arrays)
    return path


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
@pytest.mark.parametrize("dtype", ["int32", "uint32", "int64"])
def test_round_trip(tmp_path: Path, log: AccessLog, suffix: str, dtype: str) -> None:
    path = tmp_path / f"log{suffix}"
    AccessLog(log.offsets, log.ids.astype(dtype)).write(path)
    again = AccessLog.read(path)
    assert equal(again, log)
    assert again.rows == 10
    assert again.source == str(path)
    assert list(tmp_path.iterdir()) == [path]


def test_written_npz_is_mapped_aligned_and_read_by_numpy(tmp_path: Path, log: AccessLog) -> None:
    path = tmp_path / "log.npz"
    log.write(path)
    again = AccessLog.read(path)
    for array in (again.offsets, again.ids):
        owner: Any = array
        while isinstance(owner, np.ndarray) and not isinstance(owner, np.memmap):
            owner = owner.base
        assert isinstance(owner, np.memmap)
        assert array.ctypes.data % 64 == 0
    with np.load(path, allow_pickle=False) as file:
        assert np.array_equal(file["ids"], log.ids)
        assert np.array_equal(file["offsets"], log.offsets)


def test_same_log_same_bytes(tmp_path: Path, log: AccessLog) -> None:
    log.write(tmp_path / "a.npz")
    log.write(tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


@pytest.mark.parametrize("save_npz", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("copy_below", [0, 1 << 30])
def test_npz_by_numpy(
    tmp_path: Path,
    log: AccessLog,
    save_npz: Any,
    copy_below: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """savez leaves arrays unaligned: mapped as they are if large, else copied."""
    monkeypatch.setattr(npz, "_COPY_BELOW_BYTES", copy_below)
    save_npz(tmp_path / "log.npz", offsets=log.offsets, ids=log.ids, more=np.array(["x"]))
    again = AccessLog.read(tmp_path / "log.npz")
    assert equal(again, log)
    assert equal(again.select([3, 0]), log.select([3, 0]))


def test_an_existing_file_survives_a_failed_write(
    tmp_path: Path, log: AccessLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "log.npz"
    log.write(path)
    before = path.read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array", full)
    with pytest.raises(DiskFullError, match="no room on the device"):
        log.write(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_write_into_a_missing_directory(tmp_path: Path, log: AccessLog, suffix: str) -> None:
    with pytest.raises(InputError, match="cannot be written"):
        log.write(tmp_path / "missing" / f"log{suffix}")


def test_write_knows_two_formats(tmp_path: Path, log: AccessLog) -> None:
    with pytest.raises(InputError, match=r"there are \.npz, \.parquet$"):
        log.write(tmp_path / "log.csv")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"offsets": [0, 1]}, "has no array 'ids'; the arrays in it: offsets"),
        ({"a": [0], "b": [1]}, "has no array 'offsets'; the arrays in it: a, b"),
        ({"offsets": [0, 1], "ids": [0.5]}, "ids must be integers, not float64"),
        ({"offsets": [0, 1], "ids": [[0]]}, "ids must have one dimension, it has 2"),
        ({"offsets": [0, 1], "ids": np.array(["a"])}, "ids must be integers, not <U1"),
        ({"offsets": [0, 1], "ids": [-1]}, "request 0 looks up id -1"),
        ({"offsets": [0, 1], "ids": [2**31]}, "request 0 looks up id 2147483648"),
        ({"offsets": [0, 2], "ids": [1]}, "the last offset is 2, but there are 1 ids"),
        ({"offsets": [0], "ids": np.array([], int)}, "holds no requests"),
        ({"offsets": [0, 0], "ids": np.array([], int)}, "holds no requests"),
    ],
)
def test_npz_refused(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    path = save(tmp_path / "log.npz", **arrays)
    with pytest.raises(InputError, match=message) as caught:
        AccessLog.read(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("save_npz", [np.savez, np.savez_compressed])
def test_npz_with_python_objects_is_not_unpickled(tmp_path: Path, save_npz: Any) -> None:
    save_npz(tmp_path / "log.npz", offsets=[0, 1], ids=np.array([{}], dtype=object))
    with pytest.raises(InputError, match="ids holds Python objects"):
        AccessLog.read(tmp_path / "log.npz")


@pytest.mark.parametrize("save_npz", [np.savez, np.savez_compressed])
def test_truncated_npz(tmp_path: Path, rng: np.random.Generator, save_npz: Any) -> None:
    path = tmp_path / "log.npz"
    save_npz(path, offsets=np.array([0, 1000]), ids=rng.integers(0, 1 << 30, 1000))
    whole = path.read_bytes()
    for size in range(1, len(whole), len(whole) // 40):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match=r"log\.npz"):
            AccessLog.read(path)


def test_flipped_bits_in_npz_are_found_or_harmless(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    """Never another error than InputError, wherever the damage is."""
    path = tmp_path / "log.npz"
    for save_npz in (np.savez, np.savez_compressed):
        save_npz(path, offsets=np.array([0, 60, 100]), ids=rng.integers(0, 1 << 30, 100))
        whole = path.read_bytes()
        for at in rng.integers(0, len(whole), 300):
            damaged = bytearray(whole)
            damaged[at] ^= 1 << int(rng.integers(8))
            path.write_bytes(damaged)
            with contextlib.suppress(InputError):
                AccessLog.read(path)


def test_npz_whose_header_promises_more(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<i4", "fortran_order": False, "shape": (1 << 50,)}
    )
    for kind in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile(tmp_path / "log.npz", "w", kind) as archive:
            archive.writestr("offsets.npy", header.getvalue())
            archive.writestr("ids.npy", header.getvalue())
        with pytest.raises(InputError, match="not as long as its header says"):
            AccessLog.read(tmp_path / "log.npz")


def test_not_a_zip(tmp_path: Path) -> None:
    (tmp_path / "log.npz").write_text("hello")
    with pytest.raises(InputError, match=r"not a complete \.npz file"):
        AccessLog.read(tmp_path / "log.npz")


def test_npz_has_no_columns(tmp_path: Path, log: AccessLog) -> None:
    log.write(tmp_path / "log.npz")
    with pytest.raises(InputError, match="no columns to name"):
        AccessLog.read(tmp_path / "log.npz", columns={"id": "ids"})


def parquet(path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), path, row_group_size=3)
    return path


@pytest.mark.parametrize("name", ["ids", "id", "clicks"])
@pytest.mark.parametrize("kind", [pa.list_(pa.int64()), pa.large_list(pa.uint8())])
def test_parquet_lists(tmp_path: Path, log: AccessLog, name: str, kind: Any) -> None:
    path = parquet(tmp_path / "log.parquet", **{name: pa.array(REQUESTS, kind), "x": [1] * 4})
    assert equal(AccessLog.read(path), log)


def test_parquet_named_list(tmp_path: Path, log: AccessLog) -> None:
    lists = pa.array(REQUESTS, pa.list_(pa.int32()))
    other = pa.array([[1]] * 4, pa.list_(pa.int32()))
    path = parquet(tmp_path / "log.parquet", ids=other, clicked=lists)
    assert equal(AccessLog.read(path, columns={"id": "clicked"}), log)


REQUEST_KEYS = [
    pa.array([7, -2, 7, 5, -2]),
    pa.array(["b", "", "b", "é", ""]),
    pa.array([b"b", b"", b"b", b"\xff", b""]),
    pa.array(["b", "a", "b", "c", "a"]).dictionary_encode(),
    pa.array([2**64 - 1, 0, 2**64 - 1, 1, 0], pa.uint64()),
]


@pytest.mark.parametrize("keys", REQUEST_KEYS, ids=lambda keys: str(keys.type))
def test_parquet_interactions(tmp_path: Path, keys: Any) -> None:
    path = parquet(tmp_path / "log.parquet", request=keys, id=[10, 11, 12, 13, 14])
    read = AccessLog.read(path)
    assert [read.request(k).tolist() for k in range(3)] == [[10, 12], [11, 14], [13]]


TIMES = [
    pa.array([5, 4, 3, 2, 1]),
    pa.array([5, 4, 3, 2, 1], pa.timestamp("us", tz="UTC")),
    pa.array([5, 4, 3, 2, 1], pa.date32()),
    pa.array([1.5, 1.4, 1.3, 1.2, 1.1]),
]


@pytest.mark.parametrize("times", TIMES, ids=lambda times: str(times.type))
def test_parquet_interactions_by_time(tmp_path: Path, times: Any) -> None:
    path = parquet(
        tmp_path / "log.parquet", user=list("abaca"), item=[10, 11, 12, 13, 14], when=times
    )
    read = AccessLog.read(path, columns={"request": "user", "id": "item", "time": "when"})
    assert [read.request(k).tolist() for k in range(3)] == [[14, 12, 10], [13], [11]]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"a": [1], "b": [2]}, r"has no column 'request'; its columns: 'a', 'b'"),
        ({"request": [1], "b": [2]}, r"has no column 'id'; its columns: 'request', 'b'"),
        ({"request": [1], "id": [0.5]}, "column 'id' holds double"),
        ({"request": [1], "id": ["1"]}, "column 'id' holds string"),
        ({"request": [1], "id": [-1]}, "column 'id' holds id -1"),
        ({"request": [1], "id": [2**31]}, "column 'id' holds id 2147483648"),
        ({"request": [1, 2], "id": [3, None]}, "row 1: column 'id' is null"),
        ({"request": [1, None], "id": [3, 3]}, "row 1: column 'request' is null"),
        ({"request": [[[1]]], "id": [3]}, "cannot name a request"),
        ({"request": [1], "id": [3], "time": ["x"]}, "column 'time' holds string"),
        ({"request": [1], "id": [3], "time": ["5"]}, "column 'time' holds string"),
        ({"request": [1], "id": [3], "time": [float("nan")]}, "time that is not finite"),
        ({"ids": [[1], None]}, "row 1: column 'ids' is null"),
        ({"ids": [[1], [2, None]]}, "column 'ids' holds a null"),
        ({"ids": [[1.5]]}, "column 'ids' holds double"),
        ({"ids": [[1, -7]]}, "column 'ids' holds id -7"),
        ({"ids": pa.array([], pa.list_(pa.int32()))}, "holds no requests"),
    ],
)
def test_parquet_refused(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    path = parquet(tmp_path / "log.parquet", **columns)
    with pytest.raises(InputError, match=message) as caught:
        AccessLog.read(path)
    assert str(path) in str(caught.value)


def test_truncated_parquet(tmp_path: Path, log: AccessLog) -> None:
    path = tmp_path / "log.parquet"
    log.write(path)
    whole = path.read_bytes()
    for size in (1, 8, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match="not a complete Parquet file"):
            AccessLog.read(path)


def test_parquet_needs_its_extra(
    tmp_path: Path, log: AccessLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "log.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"bandana-kv\[parquet\]"):
        AccessLog.read(tmp_path / "log.parquet")
    with pytest.raises(MissingExtraError, match=r"bandana-kv\[parquet\]"):
        log.write(tmp_path / "other.parquet")
    assert list(tmp_path.iterdir()) == [tmp_path / "log.parquet"]


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_progress_adds_up(tmp_path: Path, log: AccessLog, suffix: str) -> None:
    log.write(tmp_path / f"log{suffix}")
    seen = Recorded()
    AccessLog.read(tmp_path / f"log{suffix}", progress=seen)
    (label, total, _), *steps, end = seen.calls
    assert label == f"read log{suffix}"
    assert sum(count for (count,) in steps) == total
    assert end == ()
