"""Tables loaded straight out of an engine that somebody else runs, by id and by its own keys."""

from __future__ import annotations

import json
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import bandana_kv
from bandana_kv import Rows
from bandana_kv.adapters.rows import KEY_CODECS, open_rows
from bandana_kv.errors import BandanaError, InputError
from bandana_kv.load.engine_rows import EngineRows
from bandana_kv.tools import load_tables

COUNT = 300
RNG = np.random.default_rng(0)
ROWS = RNG.random((COUNT, 6), np.float32)
HASHED = RNG.permutation(np.unique(RNG.integers(0, (1 << 64) - 1, 400, np.uint64)))[:COUNT]
ENGINES = ("lmdb", "rocksdb")
Put = Callable[..., None]


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "t").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "t"))
    return tmp_path / "t"


def by_key(keys: Any, rows: np.ndarray = ROWS) -> dict[bytes, bytes]:
    return {key: row.tobytes() for key, row in zip(keys, rows, strict=True)}


@pytest.mark.parametrize("codec", ["uint64-be", "uint64-le", "decimal", "table:decimal"])
def test_ids_are_read_from_keys(engine: str, codec: str, tmp_path: Path, put_by_key: Put) -> None:
    put_by_key(engine, tmp_path / "db", by_key(KEY_CODECS[codec]("user", np.arange(COUNT))))
    with open_rows(engine, tmp_path / "db", key=codec) as source:
        bandana_kv.load(tmp_path / "s", {"user": source}, placement="shuffled")
        assert np.array_equal(source.rows("user", np.array([7])), ROWS[[7]])  # is open still
    with bandana_kv.open(tmp_path / "s") as store:
        assert store.keys("user") is None
        assert np.array_equal(store.multi_get("user", np.arange(COUNT)), ROWS)
    assert not list((tmp_path / "t").iterdir())


@pytest.mark.parametrize("codec", ["uint64-be", "uint64-le"])
@pytest.mark.parametrize("kind", ["uint64", "int64", "bytes"])
def test_hashed_keys_of_an_engine_become_those_of_the_table(
    engine: str, codec: str, kind: str, tmp_path: Path, put_by_key: Put
) -> None:
    order = "big" if codec.endswith("be") else "little"
    raw = [int(each).to_bytes(8, order) for each in HASHED]
    put_by_key(engine, tmp_path / "db", by_key([b"p:" + each for each in raw]))
    with open_rows(engine, tmp_path / "db", key=codec, prefix=b"p:") as source:
        bandana_kv.load(tmp_path / "s", {"user": Rows(source, keys=kind)}, placement="shuffled")
        with EngineRows("user", source, kind) as rows:
            at_place = sorted(range(COUNT), key=lambda at: raw[at])
            keys: Any = {"bytes": raw}.get(kind, HASHED.view(kind) if kind != "bytes" else None)
            assert rows.keys is not None
            assert rows.keys.tolist() == [keys[at] for at in at_place]
    with bandana_kv.open(tmp_path / "s") as store:
        assert np.array_equal(store.multi_get("user", keys), ROWS)
        assert np.array_equal(store.rows_at("user", range(COUNT)), ROWS[at_place])


def test_text_as_keys(engine: str, tmp_path: Path, put_by_key: Put) -> None:
    names = [f"ü{each}" for each in HASHED]
    put_by_key(engine, tmp_path / "db", by_key([b"user:" + each.encode() for each in names]))
    with open_rows(engine, tmp_path / "db", prefix=b"user:") as source:
        bandana_kv.load(tmp_path / "s", {"user": Rows(source, keys="str")})
    with bandana_kv.open(tmp_path / "s") as store:
        assert np.array_equal(store.multi_get("user", names), ROWS)


def test_keys_given_beside_an_engine_are_those_of_its_ids(
    engine: str, tmp_path: Path, put_by_key: Put
) -> None:
    put_by_key(engine, tmp_path / "db", by_key(KEY_CODECS["decimal"]("user", np.arange(COUNT))))
    with open_rows(engine, tmp_path / "db", key="decimal") as source:
        bandana_kv.load(tmp_path / "s", {"user": Rows(source, keys=HASHED)})
    with bandana_kv.open(tmp_path / "s") as store:
        assert np.array_equal(store.multi_get("user", HASHED), ROWS)


def decimal(*numbers: int) -> dict[bytes, bytes]:
    return {b"%d" % number: ROWS[number].tobytes() for number in numbers}


WRONG: dict[str, tuple[dict[bytes, bytes], str | None, str]] = {
    "nothing": ({}, None, "has no row of it"),
    "no id": (decimal(0, 1) | {b"x": ROWS[2].tobytes()}, None, r"key 78 .* is of no id by the key"),
    "a gap": (decimal(0, 1, 3), None, "3 rows with ids up to 3, and none of id 2; `migrate`"),
    "twice": (decimal(0, 1) | {b"00": ROWS[2].tobytes()}, None, "id 0 has two keys"),
    "beyond": (decimal(0) | {b"%d" % (1 << 31): ROWS[1].tobytes()}, None, "is of no id by the key"),
    "lengths": (
        decimal(0, 1) | {b"2": b"1234"},
        None,
        "is 4 bytes long, not a row of float32 of 24",
    ),
    "no numbers": ({b"0": b"12345"}, None, "is 5 bytes long"),
    "a pickle": ({b"0": pickle.dumps("abcdefghi")}, None, "is a pickle.*not the bare numbers"),
    "no text": ({b"\xff": ROWS[0].tobytes()}, "str", "a key is no UTF-8"),
    "no integer": (decimal(0) | {b"x": ROWS[1].tobytes()}, "int64", "keys='bytes'"),
    "no kind": (decimal(0), "text", "no kind of keys is called 'text'"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_no_table_is_one_error_and_leaves_nothing(
    what: str, engine: str, tmp_path: Path, put_by_key: Put
) -> None:
    held, kind, said = WRONG[what]
    put_by_key(engine, tmp_path / "db", held)
    with (
        open_rows(engine, tmp_path / "db", key="decimal") as source,
        pytest.raises(InputError, match=said) as raised,
    ):
        bandana_kv.load(tmp_path / "s", {"user": Rows(source, keys=kind)})
    assert "\n" not in str(raised.value)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["db", "t"]
    assert not list((tmp_path / "t").iterdir())


def test_a_closed_engine_says_so(engine: str, tmp_path: Path, put_by_key: Put) -> None:
    put_by_key(engine, tmp_path / "db", decimal(0, 1))
    source = open_rows(engine, tmp_path / "db", key="decimal")
    source.close()
    with pytest.raises(BandanaError, match="closed"):
        bandana_kv.load(tmp_path / "s", {"user": source})
    assert not (tmp_path / "s").exists()


def test_an_array_has_no_kind_of_keys(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="put the one in a list"):
        bandana_kv.load(tmp_path / "s", {"user": Rows(ROWS, keys="str")})


def test_the_command_names_an_engine(engine: str, tmp_path: Path, put_by_key: Put) -> None:
    names = [f"k{each}" for each in HASHED]
    held = by_key([b"u:" + each.encode() for each in names]) | {b"other": b"1"}
    put_by_key(engine, tmp_path / "db", held, "emb")
    asked = [[names[at] for at in RNG.integers(0, COUNT, 5)] for _ in range(50)]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(each) + "\n" for each in asked))
    table = f"user={engine}:{tmp_path / 'db'}?prefix=u%3A&inner=emb&keys=str"
    given = ["--table", table, "--log", f"user={tmp_path / 'log.jsonl'}"]
    done = CliRunner().invoke(load_tables.main, [str(tmp_path / "s"), *given])
    assert done.exit_code == 0, done.output
    with bandana_kv.open(tmp_path / "s") as store:
        assert np.array_equal(store.multi_get("user", names), ROWS)
        assert store.placement("user").method == "shp"


@pytest.mark.parametrize(
    ("said", "wrong"),
    [
        ("?size=3", "'size' is none of key, prefix, inner, dtype, keys"),
        ("?key", "write lmdb:PATH or rocksdb:PATH"),
        ("?key=hex", "no key codec 'hex'"),
        ("?keys=text", "no kind of keys is called 'text'"),
        ("/none", "none"),
    ],
)
def test_what_the_command_does_not_understand(
    said: str, wrong: str, engine: str, tmp_path: Path, put_by_key: Put
) -> None:
    put_by_key(engine, tmp_path / "db", decimal(0, 1))
    given = ["--table", f"user={engine}:{tmp_path / 'db'}{said}"]
    done = CliRunner().invoke(load_tables.main, [str(tmp_path / "s"), *given])
    assert done.exit_code == 1
    assert wrong in done.output
    assert not (tmp_path / "s").exists()
