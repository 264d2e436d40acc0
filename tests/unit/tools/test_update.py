"""The command that replaces rows, and its failures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import bandana_kv
from bandana_kv.errors import AdapterError
from bandana_kv.tools import update_rows
from bandana_kv.tools.update_rows import main

ROWS = np.random.default_rng(0).random((300, 16), np.float32)
NEW = np.random.default_rng(1).random((40, 16), np.float32)
IDS = np.random.default_rng(2).choice(300, 40, replace=False)


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    bandana_kv.load(tmp_path / "s", {"user": ROWS}, placement="identity")
    np.save(tmp_path / "ids.npy", IDS)
    np.save(tmp_path / "rows.npy", NEW)
    np.save(tmp_path / "few.npy", NEW[:3])
    (tmp_path / "torn.npy").write_bytes((tmp_path / "rows.npy").read_bytes()[:100])
    return tmp_path


def run(inputs: Path, table: str, ids: str, rows: str, *more: str) -> tuple[int, str]:
    arguments = [str(inputs / "s"), "--table", table]
    arguments += ["--ids", str(inputs / ids), "--rows", str(inputs / rows), *more]
    done = CliRunner().invoke(main, arguments)
    return done.exit_code, done.output


@pytest.mark.parametrize("more", [(), ("--flush",)])
def test_rows_are_new(inputs: Path, more: tuple[str, ...]) -> None:
    status, said = run(inputs, "user", "ids.npy", "rows.npy", *more)
    assert status == 0, said
    assert "40 rows of user are new" in " ".join(said.split())
    expected = ROWS.copy()
    expected[IDS] = NEW
    with bandana_kv.open(inputs / "s") as store:
        assert np.array_equal(store.multi_get("user", np.arange(300)), expected)


@pytest.mark.parametrize(
    ("table", "ids", "rows", "said"),
    [
        ("item", "ids.npy", "rows.npy", "no table 'item'"),
        ("user", "ids.npy", "few.npy", "not (n,) and (n, dim)"),
        ("user", "nowhere.npy", "rows.npy", "nowhere.npy: not a readable .npy file"),
        ("user", "ids.npy", "torn.npy", "torn.npy: not a readable .npy file"),
    ],
)
def test_a_failure_is_one_line(inputs: Path, table: str, ids: str, rows: str, said: str) -> None:
    status, output = run(inputs, table, ids, rows)
    assert status == 1
    assert said in " ".join(output.split())
    with bandana_kv.open(inputs / "s") as store:
        assert np.array_equal(store.multi_get("user", np.arange(300)), ROWS)


@pytest.mark.parametrize(
    ("ids", "rows", "said"),
    [
        ([5, 6, 300], None, "id 300 is out of range"),
        ([5, 6, -1], None, "id -1 is out of range"),
        ([5, 6, 5], None, "id 5 is to be updated twice"),
        ([5, 6, 7], np.array([[0.0] * 16, [0.0] * 16, [1e300] * 16]), "does not fit float32"),
    ],
)
def test_what_is_bad_in_a_later_part_stops_all(
    inputs: Path,
    monkeypatch: pytest.MonkeyPatch,
    ids: list[int],
    rows: np.ndarray | None,
    said: str,
) -> None:
    monkeypatch.setattr(update_rows, "_ROWS_AT_ONCE", 2)
    np.save(inputs / "bad.npy", np.array(ids))
    np.save(inputs / "of_bad.npy", NEW[:3] if rows is None else rows)
    status, told = run(inputs, "user", "bad.npy", "of_bad.npy")
    assert status == 1
    assert said in told
    with bandana_kv.open(inputs / "s", cache_bytes=0) as store:
        assert np.array_equal(store.multi_get("user", np.arange(300)), ROWS)


def test_a_failure_in_a_later_part_says_how_many_were_replaced(
    inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(update_rows, "_ROWS_AT_ONCE", 16)
    update, calls = bandana_kv.EmbeddingStore.update, []

    def fails(*given: object) -> None:
        calls.append(given)
        if len(calls) == 3:
            raise AdapterError("the device fails")
        update(*given)

    monkeypatch.setattr(bandana_kv.EmbeddingStore, "update", fails)
    status, told = run(inputs, "user", "ids.npy", "rows.npy")
    assert status == 1
    assert "the first 32 rows were replaced, and no others" in told
    expected = ROWS.copy()
    expected[IDS[:32]] = NEW[:32]
    with bandana_kv.open(inputs / "s", cache_bytes=0) as store:
        assert np.array_equal(store.multi_get("user", np.arange(300)), expected)
