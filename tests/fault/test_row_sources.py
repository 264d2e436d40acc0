"""Malformed files of rows: one clear error, nothing loaded or left."""

from __future__ import annotations

import json
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import bandana_kv
from bandana_kv.errors import BandanaError, InputError
from bandana_kv.rows.files import open_rows

ROWS = np.random.default_rng(0).random((300, 8), np.float32)
DATA = ROWS.tobytes()


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path / "temporary"


def refused(path: Path, table: object, said: str) -> None:
    """Load a table, and see it refused with one error that names the file; nothing is left."""
    before = sorted(path.parent.rglob("*"))
    with pytest.raises(InputError, match=said) as raised:
        bandana_kv.load(path.parent / "store", {"user": table})
    assert str(path.parent) in str(raised.value)
    assert "\n" not in str(raised.value)
    assert sorted(path.parent.rglob("*")) == before


def safetensors(header: object, data: bytes = DATA, length: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(raw) if length is None else length).to_bytes(8, "little") + raw + data


def tensor(dtype: object = "F32", shape: object = (300, 8), places: object = (0, 9600)) -> Any:
    return {"dtype": dtype, "shape": shape, "data_offsets": places}


SOUND = safetensors({"user": tensor()})
HEADERS: dict[str, tuple[object, str]] = {
    "no JSON": (b"{user", "header cannot be read"),
    "no text": (b"\xff\xfe\xfd\xfc\xfb", "header cannot be read"),
    "a list": ([], "no JSON object"),
    "too deep": (b'{"a":' * 100_000, "header cannot be read"),
    "a name twice": (b'{"a":{},"a":{}}', "a name stands in it twice"),
    "no entry": ({"user": 3}, "'user' is nonsense"),
    "no shape": ({"user": {"dtype": "F32", "data_offsets": [0, 9600]}}, "'user' is nonsense"),
    "a shape of text": ({"user": tensor(shape="300")}, "nonsense"),
    "a shape below zero": ({"user": tensor(shape=(-300, -8))}, "nonsense"),
    "a shape of fractions": ({"user": tensor(shape=(300.0, 8))}, "nonsense"),
    "a shape of truths": ({"user": tensor(shape=(True, 2400))}, "nonsense"),
    "a shape beyond all": ({"user": tensor(shape=(1 << 62, 1 << 62))}, "takes .* header says 9600"),
    "a shape beyond numbers": ({"user": tensor(shape=(1 << 100, 8))}, "nonsense"),
    "many dimensions": ({"user": tensor(shape=[1] * 1000)}, "nonsense"),
    "another shape": ({"user": tensor(shape=(300, 9))}, "takes 10800 bytes, its header says 9600"),
    "another dtype": ({"user": tensor("F64")}, "takes 19200 bytes"),
    "an unknown dtype": ({"user": tensor("F8_E4M3", (1200, 8))}, "dtype F8_E4M3 is not read"),
    "no dtype": ({"user": tensor(None)}, "nonsense"),
    "places below zero": ({"user": tensor(places=(-8, 9592))}, "nonsense"),
    "places backwards": ({"user": tensor(places=(9600, 0))}, "nonsense"),
    "one place": ({"user": tensor(places=(9600,))}, "nonsense"),
    "places beyond the end": (
        {"user": tensor(places=(9600, 19200))},
        r"truncated: \d+ bytes, its header promises \d+ \(tensor 'user'\)",
    ),
    "tensors that overlap": (
        {"a": tensor(places=(0, 9600)), "b": tensor("I8", (10, 10), (9500, 9600))},
        "tensors 'a' and 'b' overlap",
    ),
    "one tensor twice": (
        {"a": tensor(), "b": tensor()},
        "tensors 'a' and 'b' overlap",
    ),
}


@pytest.mark.parametrize("what", HEADERS)
def test_a_header_that_lies_is_refused(what: str, tmp_path: Path) -> None:
    header, said = HEADERS[what]
    path = tmp_path / "a.safetensors"
    path.write_bytes(safetensors(header))
    refused(path, path, said)


@pytest.mark.parametrize("keep", [0, 1, 7, 8, 9, 30, len(SOUND) - 9600, len(SOUND) - 1])
def test_a_safetensors_file_cut_short_is_refused(keep: int, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(SOUND[:keep])
    refused(path, path, "truncated")


@pytest.mark.parametrize("length", [0, 1, 10, 9000, 1 << 20, 1 << 40, (1 << 64) - 1])
def test_a_wrong_length_of_the_header_is_refused(length: int, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(safetensors({"user": tensor()}, length=length))
    refused(path, path, "truncated|header cannot be read")


@given(
    st.lists(
        st.tuples(
            st.integers(0, len(SOUND) - len(DATA) - 1),
            st.sampled_from(b"([{'\"\\\n0L-,9\x00\xff"),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_a_damaged_header_ends_in_our_error_or_in_a_table(
    tmp_path_factory: pytest.TempPathFactory, damage: list[tuple[int, int]]
) -> None:
    image = bytearray(SOUND)
    for at, byte in damage:
        image[at] = byte
    path = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    path.write_bytes(image)
    try:
        with open_rows("user", path) as source:
            out = np.empty((source.rows, source.row_bytes), np.uint8)
            source.gather(np.arange(source.rows), out)
    except BandanaError:
        pass


INDEXES: dict[str, tuple[object, str]] = {
    "no JSON": (b"{", "no index of tensors"),
    "too deep": (b'{"a":' * 100_000, "no index of tensors"),
    "a list": ([], "no index of tensors"),
    "no map": ({"metadata": {}}, "no index of tensors"),
    "a map of numbers": ({"weight_map": {"user": 3}}, "no index of tensors"),
    "a list for a map": ({"weight_map": ["user"]}, "no index of tensors"),
    "nothing": ({"weight_map": {}}, "holds no tensor"),
    "a path": ({"weight_map": {"user": "../a.safetensors"}}, "no file beside it"),
    "all of a path": ({"weight_map": {"user": "/etc/passwd"}}, "no file beside it"),
    "what is above": ({"weight_map": {"user": ".."}}, "no file beside it"),
    "no name": ({"weight_map": {"user": ""}}, "no file beside it"),
    "a zero": ({"weight_map": {"user": "a\0.safetensors"}}, "no file beside it"),
    "another kind": ({"weight_map": {"user": "a.txt"}}, "a.txt, which is"),
    "a missing shard": (
        {"weight_map": {"user": "b.safetensors"}},
        "names b.safetensors, which is not beside it",
    ),
    "a tensor elsewhere": (
        {"weight_map": {"item": "a.safetensors"}},
        "'item' is in a.safetensors, which has no such tensor",
    ),
}


@pytest.mark.parametrize("what", INDEXES)
@pytest.mark.parametrize("named", [False, True])
def test_an_index_that_lies_is_refused(what: str, named: bool, tmp_path: Path) -> None:
    said, error = INDEXES[what]
    (tmp_path / "a.safetensors").write_bytes(SOUND)
    path = tmp_path / "model.safetensors.index.json"
    path.write_bytes(said if isinstance(said, bytes) else json.dumps(said).encode())
    holds = isinstance(said, dict) and isinstance(said.get("weight_map"), dict)
    name = next(iter(said["weight_map"]), "") if holds else ""  # type: ignore[call-overload,index]
    (tmp_path / "a.txt").touch()
    refused(path, f"{path}:{name}" if named else path, error)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("keep", [0, 4, 30, 100, 4000, -4000, -100, -22, -1])
def test_an_npz_file_cut_short_is_refused(
    save: Callable[..., None], keep: int, tmp_path: Path
) -> None:
    path = tmp_path / "a.npz"
    save(path, user=ROWS)
    path.write_bytes(path.read_bytes()[:keep])
    refused(path, path, "not a complete .npz file")


def zipped(path: Path, content: bytes, **options: Any) -> None:
    with zipfile.ZipFile(path, "w", **options) as archive:
        archive.writestr("user.npy", content)


def npy(shape: tuple[int, ...], data: bytes = DATA, descr: str = "<f4") -> bytes:
    fields = {"descr": descr, "fortran_order": False, "shape": shape}
    header = repr(fields).encode().ljust(117) + b"\n"
    return np.lib.format.magic(1, 0) + b"\x76\x00" + header + data


@pytest.mark.parametrize("packed", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (npy((300, 9)), "header promises 10928"),
        (npy((1 << 40, 1 << 40)), "header promises"),
        (npy((-300, -8)), "truncated or damaged|holds no row"),
        (npy((300, 8), DATA + b"more"), "9732 bytes, its header promises 9728"),
        (npy((300, 8), DATA[:-1]), "header promises 9728"),
        (npy((300, 8), descr="|O"), "not numeric"),
        (b"", "not a readable .npy"),
        (b"\x93NUMPY\x01\0\xff\xff", "not a readable .npy"),
    ],
)
def test_an_npz_member_that_lies_is_refused(
    packed: int, content: bytes, said: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.npz"
    zipped(path, content, compression=packed)
    refused(path, path, "not use" if packed == zipfile.ZIP_BZIP2 else said)


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    content = npy((1 << 28, 8), b"")
    zipped(path, content, compression=zipfile.ZIP_DEFLATED)
    size = len(content).to_bytes(4, "little")
    path.write_bytes(path.read_bytes().replace(size, (0xFFFFFFFE).to_bytes(4, "little")))
    refused(path, path, "claims more bytes than the file can hold")


def test_damage_in_the_middle_of_packed_rows_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez_compressed(path, user=ROWS)
    image = bytearray(path.read_bytes())
    image[len(image) // 2] ^= 0xFF
    path.write_bytes(image)
    refused(path, path, "not a complete .npz file")


def write_parquet(path: Path) -> None:
    lists = pa.FixedSizeListArray.from_arrays(pa.array(ROWS.reshape(-1)), 8)
    pq.write_table(pa.table({"user": lists}), path)


def write_arrow(path: Path) -> None:
    lists = pa.FixedSizeListArray.from_arrays(pa.array(ROWS.reshape(-1)), 8)
    table = pa.table({"user": lists})
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table)


@pytest.mark.parametrize(
    ("name", "write"), [("a.parquet", write_parquet), ("a.arrow", write_arrow)]
)
@pytest.mark.parametrize("keep", [0, 3, 4, 12, 100, 4000, -100, -8, -1])
def test_a_file_of_columns_cut_short_is_refused(
    name: str, write: Callable[[Path], None], keep: int, tmp_path: Path
) -> None:
    path = tmp_path / name
    write(path)
    path.write_bytes(path.read_bytes()[:keep])
    refused(path, path, "not a complete Parquet or Arrow file")


@pytest.mark.parametrize("wrong", [1 << 20, -8, 4])
def test_an_arrow_file_that_leads_out_of_itself_is_refused(wrong: int, tmp_path: Path) -> None:
    path = tmp_path / "a.arrow"
    lists = pa.array(ROWS.tolist(), pa.list_(pa.float32()))
    with pa.ipc.new_file(path, pa.schema([("user", lists.type)])) as writer:
        writer.write_table(pa.table({"user": lists}))
    places = np.arange(0, ROWS.size + 1, 8, dtype=np.int32)
    image, sound = path.read_bytes(), places.tobytes()
    assert sound in image
    places[17] = wrong
    path.write_bytes(image.replace(sound, places.tobytes()))
    refused(path, path, "not a complete Parquet or Arrow file")


@pytest.mark.parametrize(
    "name", ["a.npy", "a.npz", "a.safetensors", "a.parquet", "a.arrow", "a.pt", "a.index.json"]
)
@pytest.mark.parametrize("directory", [False, True])
def test_nothing_and_a_directory_are_refused(name: str, directory: bool, tmp_path: Path) -> None:
    path = tmp_path / name
    if directory:
        path.mkdir()
    refused(path, path, "Is a directory" if directory else "cannot be opened")
