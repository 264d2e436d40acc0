"""Keys go out beside the rows, and come back as what they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import bandana_kv
from bandana_kv import Rows
from bandana_kv.errors import FormatError, InputError
from bandana_kv.migration import export_formats, export_keys
from bandana_kv.placement import place
from bandana_kv.rows.files import open_rows
from bandana_kv.rows.safetensors import SafetensorsRows
from bandana_kv.tools import export_table, load_tables

COUNT = 2000
RNG = np.random.default_rng(0)
ROWS = RNG.random((COUNT, 5), np.float32)
KEYS: dict[str, Any] = {
    "int64": RNG.permutation(np.arange(COUNT, dtype=np.int64) * 1_000_003 - (1 << 40)),
    "uint64": RNG.permutation(np.arange(COUNT, dtype=np.uint64) + np.uint64((1 << 64) - COUNT)),
    "str": [f"ü{at}" * (at % 4) + f"\0{at}" for at in range(COUNT)],
    "bytes": [b"\xff%d\0" % at if at else b"" for at in range(COUNT)],
}
SUFFIXES = ["safetensors", "parquet"]
MEMBERS = {"safetensors": ":user:user.keys", "parquet": ":values:key"}


@pytest.fixture(params=KEYS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def loaded(path: Path, kind: str) -> Path:
    bandana_kv.load(path, {"user": Rows(ROWS, keys=KEYS[kind])}, placement="shuffled")
    return path


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_table_comes_back_with_its_keys(
    suffix: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_formats, "_GROUP_BYTES", 5000)
    monkeypatch.setattr(export_keys, "_MANY", 300)
    store, out = loaded(tmp_path / "s", kind), tmp_path / f"user.{suffix}"
    assert bandana_kv.export(store, "user", out).keys == kind
    with open_rows("user", f"{out}{MEMBERS[suffix]}") as source:
        assert source.keys is not None
        assert source.keys.tolist() == list(KEYS[kind])
        assert source.keys.dtype == getattr(KEYS[kind], "dtype", object)
    bandana_kv.load(tmp_path / "again", {"user": f"{out}{MEMBERS[suffix]}"}, placement="identity")
    with bandana_kv.open(tmp_path / "again") as again, bandana_kv.open(store) as first:
        asked = np.random.default_rng(1).permutation(COUNT)
        keys = [KEYS[kind][at] for at in asked]
        assert np.array_equal(again.multi_get("user", keys), ROWS[asked])
        expected, found = first.keys("user"), again.keys("user")
        assert expected is not None
        assert found is not None
        assert np.array_equal(expected, found)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_commands_do_it(suffix: str, kind: str, tmp_path: Path) -> None:
    store, out = loaded(tmp_path / "s", kind), tmp_path / f"user.{suffix}"
    done = CliRunner().invoke(export_table.main, [str(store), "--table", "user", "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert f"keys of {kind}" in done.output
    given = ["--table", f"user={out}{MEMBERS[suffix]}", "--adapter", "blockfile"]
    done = CliRunner().invoke(load_tables.main, [str(tmp_path / "again"), *given])
    assert done.exit_code == 0, done.output
    with bandana_kv.open(tmp_path / "again") as again:
        assert np.array_equal(again.multi_get("user", [KEYS[kind][7]]), ROWS[[7]])


def test_without_them_being_asked_for_rows_are_numbered(kind: str, tmp_path: Path) -> None:
    store = loaded(tmp_path / "s", kind)
    for suffix in SUFFIXES:
        out = tmp_path / f"user.{suffix}"
        bandana_kv.export(store, "user", out)
        with open_rows("user", out) as source:
            assert source.keys is None
    assert bandana_kv.export(store, "user", tmp_path / "user.npy").keys == ""
    assert np.array_equal(np.load(tmp_path / "user.npy"), ROWS)


def test_after_updates_and_a_new_placement(kind: str, tmp_path: Path) -> None:
    store = loaded(tmp_path / "s", kind)
    with bandana_kv.open(store) as served:
        served.update("user", [KEYS[kind][3]], np.full((1, 5), 9, np.float32))
        per_block = served.placement("user").rows_per_block
        served.place_anew("user", place(None, COUNT, per_block, "identity"))
    bandana_kv.export(store, "user", tmp_path / "a.parquet")
    table = pq.read_table(tmp_path / "a.parquet")
    assert table["key"].to_pylist() == list(KEYS[kind])
    assert table["values"][3].as_py() == [9] * 5
    assert table["id"].to_pylist() == list(range(COUNT))


def test_columns_have_the_kind_of_the_keys(kind: str, tmp_path: Path) -> None:
    bandana_kv.export(loaded(tmp_path / "s", kind), "user", tmp_path / "a.parquet")
    schema = pq.read_schema(tmp_path / "a.parquet")
    texts = {"str": pa.large_string(), "bytes": pa.large_binary()}
    assert schema.names == ["id", "key", "values"]
    assert schema.field("key").type == (texts.get(kind) or getattr(pa, kind)())


@pytest.mark.parametrize("kind", ["str", "bytes"])
def test_keys_that_were_not_kept_or_are_damaged(kind: str, tmp_path: Path) -> None:
    store = loaded(tmp_path / "s", kind)
    (path,) = (tmp_path / "s").rglob("*key-texts*")
    assert bandana_kv.verify(store).sound
    image = path.read_bytes()
    for damaged in (image[:-1], image[:40], image[:20], image[:100] + b"~" + image[101:], b""):
        path.write_bytes(damaged)
        assert not bandana_kv.verify(store).sound
        with pytest.raises(FormatError, match=r"key-texts.*load the table again"):
            bandana_kv.export(store, "user", tmp_path / "a.parquet")
    path.unlink()
    with pytest.raises(FormatError, match=r"the text of keys is not known.*\.npy"):
        bandana_kv.export(store, "user", tmp_path / "a.safetensors")
    assert bandana_kv.export(store, "user", tmp_path / "a.npy").keys == ""
    with bandana_kv.open(store) as served:  # which never needs it
        assert np.array_equal(served.multi_get("user", [KEYS[kind][5]]), ROWS[[5]])
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a.npy", "s"]


def test_what_is_no_tensor_of_keys(tmp_path: Path) -> None:
    out = tmp_path / "a.safetensors"
    bandana_kv.export(loaded(tmp_path / "s", "str"), "user", out)
    wrong = {
        "user": r"F32 of shape \(2000, 5\); keys are \(2000,\) whole numbers",
        "user.keys.offsets": r"I64 of shape \(2001,\); keys are",
        "keys": "no tensor 'keys'; did you mean",
    }
    for key, said in wrong.items():
        with (
            pytest.raises(InputError, match=said),
            open_rows("user", f"{out}:user:{key}") as source,
        ):
            source.keys  # noqa: B018 - it is read then


@pytest.mark.parametrize(
    ("sound", "damaged", "said"),
    [
        ("I64", "F64", "not I64 of"),
        ('"user.keys":"str"', '"user.keys":"STR"', ""),
        ("\u00fc1", "\xff", "the key of row 1 is no UTF-8"),
        ((7).to_bytes(8, "little"), (1 << 40).to_bytes(8, "little"), "is no rising 0 to"),
    ],
)
def test_damaged_tensors_of_keys(tmp_path: Path, sound: Any, damaged: Any, said: str) -> None:
    out = tmp_path / "a.safetensors"
    bandana_kv.export(loaded(tmp_path / "s", "str"), "user", out)
    sound = sound if isinstance(sound, bytes) else sound.encode()
    damaged = damaged if isinstance(damaged, bytes) else damaged.encode("latin-1")
    image = out.read_bytes()
    assert sound in image
    out.write_bytes(image.replace(sound, damaged.ljust(len(sound), b"\xff"), 1))
    with SafetensorsRows(out, "user:user.keys") as source:
        if not said:  # a kind that is not known is bytes
            assert source.keys is not None
            assert source.keys[1] == KEYS["str"][1].encode()
            return
        with pytest.raises(InputError, match=said):
            source.keys  # noqa: B018 - it is read then


@pytest.mark.parametrize("suffix", [*SUFFIXES, "npy"])
@pytest.mark.parametrize("flushed", [False, True], ids=["in the journal", "in blocks"])
def test_keys_that_came_and_went_do_so_in_an_export(
    suffix: str, kind: str, flushed: bool, tmp_path: Path
) -> None:
    store, out = loaded(tmp_path / "s", kind), tmp_path / f"user.{suffix}"
    new = {
        "int64": [-5, -6],
        "uint64": [5, 6],
        "str": ["new", "newer \0"],
        "bytes": [b"new\0", b"newer"],
    }[kind]
    with bandana_kv.open(store) as opened:
        opened.upsert("user", [new[0], KEYS[kind][3]], ROWS[:2] + 7)
        if flushed:
            opened.flush()
        opened.upsert("user", [new[1]], ROWS[2:3] + 7)
        assert opened.delete("user", [KEYS[kind][1], KEYS[kind][COUNT - 1]]) == 2
        if flushed:
            opened.flush()
        numbers = opened.row_numbers("user")
    wanted = dict(zip(KEYS[kind], ROWS, strict=True)) | {new[0]: ROWS[0] + 7, new[1]: ROWS[2] + 7}
    wanted[KEYS[kind][3]] = ROWS[1] + 7
    del wanted[KEYS[kind][1]], wanted[KEYS[kind][COUNT - 1]]
    assert bandana_kv.verify(store).sound
    exported = bandana_kv.export(store, "user", out)
    assert exported.rows == len(wanted) == numbers.size == COUNT
    if suffix == "npy":
        assert np.array_equal(np.load(out), np.array(list(wanted.values())))
        return
    with open_rows("user", f"{out}{MEMBERS[suffix]}") as source:
        assert source.keys.tolist() == list(wanted)
    bandana_kv.load(tmp_path / "again", {"user": f"{out}{MEMBERS[suffix]}"})
    with bandana_kv.open(tmp_path / "again") as again:
        rows = again.multi_get("user", list(wanted))
        assert np.array_equal(rows, np.array(list(wanted.values())))


def test_what_a_crash_left_behind_the_texts_is_written_over(tmp_path: Path) -> None:
    store = loaded(tmp_path / "s", "str")
    (texts,) = store.glob("segments/*/key-texts-*")
    for round_ in range(3):
        with texts.open("ab") as file:
            file.write(b"torn")
        assert bandana_kv.verify(store).sound
        with bandana_kv.open(store) as opened:
            opened.upsert("user", [f"new {round_}"], ROWS[:1])
            opened.flush()
        assert bandana_kv.verify(store).sound
    bandana_kv.export(store, "user", tmp_path / "user.parquet")
    found = pq.read_table(tmp_path / "user.parquet")["key"].to_pylist()
    assert found == [*KEYS["str"], "new 0", "new 1", "new 2"]
