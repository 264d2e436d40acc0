"""Logs of keys: every format, keys of every kind, and keys that the table has not."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bandana_kv import AccessLog
from bandana_kv.errors import IdError, InputError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

KEYS: dict[str, Any] = {
    "int64": np.array([-5, 1 << 40, 7, 0, -(1 << 63)]),
    "uint64": np.array([5, (1 << 64) - 1, 7, 0, 1 << 63], np.uint64),
    "str": ["ann", "bob", "cyd", "d,e", "ü"],
    "bytes": [b"ann", b"bob", b"cyd", b"dee", b"e"],
}
REQUESTS = [[0, 1], [2], [4, 2, 0], [3]]
OFFSETS, IDS = [0, 2, 3, 6, 7], [0, 1, 2, 4, 2, 0, 3]


def of(kind: str, numbers: list[int]) -> Any:
    keys = KEYS[kind]
    return keys[numbers] if isinstance(keys, np.ndarray) else [keys[i] for i in numbers]


def same(log: AccessLog) -> bool:
    return log.offsets.tolist() == OFFSETS and log.ids.tolist() == IDS


@pytest.mark.parametrize("kind", KEYS)
def test_lists_in_parquet(tmp_path: Path, kind: str) -> None:
    lists = [of(kind, request) for request in REQUESTS]
    lists = [each.tolist() if isinstance(each, np.ndarray) else each for each in lists]
    value = {"str": pa.string(), "bytes": pa.binary()}.get(kind) or getattr(pa, kind)()
    pq.write_table(pa.table({"ids": pa.array(lists, pa.list_(value))}), tmp_path / "log.parquet")
    assert same(AccessLog.read(tmp_path / "log.parquet", keys=KEYS[kind]))


@pytest.mark.parametrize("kind", KEYS)
def test_interactions_in_parquet(tmp_path: Path, kind: str) -> None:
    request = np.repeat(np.arange(4), np.diff(OFFSETS))
    table = pa.table({"request": request, "key": of(kind, IDS), "time": np.arange(7)})
    pq.write_table(table, tmp_path / "log.parquet")
    log = AccessLog.read(tmp_path / "log.parquet", columns={"id": "key"}, keys=KEYS[kind])
    assert same(log)


@pytest.mark.parametrize("kind", KEYS)
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".csv.gz"])
@pytest.mark.parametrize("header", [True, False])
def test_interactions_in_text(tmp_path: Path, kind: str, suffix: str, header: bool) -> None:
    comma = "\t" if suffix == ".tsv" else ","
    keys = [each.decode() if isinstance(each, bytes) else str(each) for each in of(kind, IDS)]
    keys = [f'"{each}"' if "," in each and comma == "," else each for each in keys]
    request = np.repeat(np.arange(4), np.diff(OFFSETS))
    lines = [f"{r}{comma}{key}" for r, key in zip(request, keys, strict=True)]
    text = "\n".join([f"request{comma}id"] * header + lines) + "\n"
    path = tmp_path / f"log{suffix}"
    opened: Any = gzip.open if suffix.endswith("gz") else open
    with opened(path, "wt", encoding="utf-8") as file:
        file.write(text)
    assert same(AccessLog.read(path, keys=KEYS[kind], header=None if header else False))


@pytest.mark.parametrize("kind", ["int64", "uint64"])
def test_arrays(tmp_path: Path, kind: str) -> None:
    np.savez(tmp_path / "log.npz", offsets=OFFSETS, ids=of(kind, IDS))
    assert same(AccessLog.read(tmp_path / "log.npz", keys=KEYS[kind]))


def test_text_in_arrays(tmp_path: Path) -> None:
    np.savez(tmp_path / "log.npz", offsets=OFFSETS, ids=np.array(of("str", IDS)))
    assert same(AccessLog.read(tmp_path / "log.npz", keys=KEYS["str"]))


@pytest.mark.parametrize("kind", ["int64", "uint64", "bytes"])
def test_lines(tmp_path: Path, kind: str) -> None:
    lines = [
        " ".join(k.decode() if isinstance(k, bytes) else str(k) for k in of(kind, request))
        for request in REQUESTS
    ]
    (tmp_path / "log.txt").write_text("\n".join([*lines, ""]))
    assert same(AccessLog.read(tmp_path / "log.txt", keys=KEYS[kind]))


def said(keys: Any) -> list[Any]:
    listed = keys.tolist() if isinstance(keys, np.ndarray) else keys
    return [each.decode() if isinstance(each, bytes) else each for each in listed]


def json_lines(kind: str, form: str) -> str:
    if form == "lists":
        lines: list[Any] = [said(of(kind, each)) for each in REQUESTS]
    elif form == "objects":
        lines = [{"ids": said(of(kind, each)), "time": at} for at, each in enumerate(REQUESTS)]
    else:
        request = np.repeat(np.arange(4), np.diff(OFFSETS)).tolist()
        pairs = zip(request, said(of(kind, IDS)), strict=True)
        lines = [{"request": name, "id": key} for name, key in pairs]
    return "".join(json.dumps(each) + "\n" for each in lines)


@pytest.mark.parametrize("kind", KEYS)
@pytest.mark.parametrize("form", ["lists", "objects", "interactions"])
@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson.gz"])
def test_json_lines(tmp_path: Path, kind: str, form: str, suffix: str) -> None:
    opened: Any = gzip.open if suffix.endswith("gz") else open
    with opened(tmp_path / f"log{suffix}", "wt", encoding="utf-8") as file:
        file.write(json_lines(kind, form))
    assert same(AccessLog.read(tmp_path / f"log{suffix}", keys=KEYS[kind]))


@pytest.mark.parametrize(
    ("kind", "key"),
    [
        ("int64", '"7"'),
        ("int64", "7.0"),
        ("int64", "true"),
        ("int64", str(-(1 << 63) - 1)),
        ("uint64", "-1"),
        ("uint64", str(1 << 64)),
        ("str", "7"),
        ("bytes", "null"),
    ],
)
def test_json_that_is_no_key(tmp_path: Path, kind: str, key: str) -> None:
    lines = json_lines(kind, "lists")
    (tmp_path / "log.jsonl").write_text(lines + f"[{key}]\n")
    with pytest.raises(InputError, match=f"line 5: .* is not a key; the table's keys are {kind}"):
        AccessLog.read(tmp_path / "log.jsonl", keys=KEYS[kind])
    log = AccessLog.read(tmp_path / "log.jsonl", keys=KEYS[kind], bad_rows="skip")
    assert same(log)
    assert log.skipped_rows == 1


def test_a_key_beyond_int64_is_one_that_the_table_has_not(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text(json_lines("int64", "lists") + f"[{1 << 63}]\n")
    with pytest.raises(InputError, match=f"line 5: the table has no key {1 << 63}"):
        AccessLog.read(tmp_path / "log.jsonl", keys=KEYS["int64"])


@pytest.mark.parametrize("name", ["log.npz", "log.parquet", "log.csv", "log.txt", "log.jsonl"])
def test_keys_that_the_table_has_not(tmp_path: Path, name: str) -> None:
    path, keys = tmp_path / name, KEYS["int64"]
    asked = np.append(keys[IDS], 99)
    if name == "log.npz":
        np.savez(path, offsets=[*OFFSETS[:-1], 8], ids=asked)
    elif name == "log.parquet":
        lists = [keys[each].tolist() for each in REQUESTS]
        lists[-1].append(99)
        pq.write_table(pa.table({"ids": lists}), path)
    elif name == "log.csv":
        request = np.repeat(np.arange(4), [2, 1, 3, 2])
        rows = "".join(f"{r},{key}\n" for r, key in zip(request, asked, strict=True))
        path.write_text("request,id\n" + rows)
    elif name == "log.jsonl":
        path.write_text(json_lines("int64", "lists").rstrip("]\n") + ", 99]\n")
    else:
        lines = [" ".join(map(str, keys[each])) for each in REQUESTS]
        path.write_text("\n".join(lines) + " 99\n")
    with pytest.raises(InputError, match=r"the table has no key .*99.*bad_rows='skip'"):
        AccessLog.read(path, keys=keys)
    log = AccessLog.read(path, keys=keys, bad_rows="skip")
    assert same(log)
    assert log.skipped_rows == 1


def test_keys_of_another_kind(tmp_path: Path) -> None:
    np.savez(tmp_path / "log.npz", offsets=OFFSETS, ids=np.array(IDS))
    with pytest.raises(IdError, match="str"):
        AccessLog.read(tmp_path / "log.npz", keys=KEYS["str"])
    (tmp_path / "log.txt").write_text("a b\n")
    with pytest.raises(InputError, match="int64"):
        AccessLog.read(tmp_path / "log.txt", keys=KEYS["int64"])


def test_what_is_not_read_by_keys(tmp_path: Path) -> None:
    (tmp_path / "log.xml").write_text("[1]\n")
    with pytest.raises(InputError, match="suffix"):
        AccessLog.read(tmp_path / "log.xml", keys=KEYS["int64"])
    with pytest.raises(InputError, match="directory"):
        AccessLog.read(tmp_path, keys=KEYS["int64"])
    with pytest.raises(InputError, match="no such file"):
        AccessLog.read(tmp_path / "none.npz", keys=KEYS["int64"])
    pq.write_table(pa.table({"x": [1]}), tmp_path / "x.parquet")
    with pytest.raises(InputError, match="no column 'id'"):
        AccessLog.read(tmp_path / "x.parquet", keys=KEYS["int64"])


def first_seen(keys: list[Any]) -> list[int]:
    seen: dict[Any, int] = {}
    return [seen.setdefault(key, len(seen)) for key in keys]


@pytest.mark.parametrize("kind", KEYS)
@pytest.mark.parametrize("name", ["log.npz", "log.parquet", "log.csv", "log.txt", "log.jsonl"])
def test_keys_of_a_log_without_a_table(tmp_path: Path, kind: str, name: str) -> None:
    path, rng = tmp_path / name, np.random.default_rng(0)
    numbers = np.sort(rng.integers(-(1 << 63) if kind == "int64" else 0, (1 << 63) - 1, 500))
    names = {"str": [f"u{each}" for each in numbers], "bytes": [b"%d" % each for each in numbers]}
    keys: Any = names.get(kind, numbers.astype(kind, copy=False))
    asked = [rng.integers(0, 500, 7) for _ in range(300)]
    listed = [[keys[at] for at in request] for request in asked]
    text = [said(np.array(each) if kind.endswith("64") else each) for each in listed]
    if name == "log.npz":
        np.savez(path, offsets=np.arange(0, 2101, 7), ids=np.concatenate(listed))
    elif name == "log.parquet":
        pq.write_table(pa.table({"ids": listed}), path)
    elif name == "log.csv":
        rows = [f"{at},{key}\n" for at, each in enumerate(text) for key in each]
        path.write_text("request,id\n" + "".join(rows))
    elif name == "log.txt":
        path.write_text("".join(" ".join(map(str, each)) + "\n" for each in text))
    else:
        path.write_text("".join(json.dumps(each) + "\n" for each in text))
    log = AccessLog.read(path, keys=kind)
    expected = first_seen([at for request in asked for at in request])
    assert log.ids.tolist() == expected
    assert log.offsets.tolist() == list(range(0, 2101, 7))
    assert log.rows == max(expected) + 1


def test_a_kind_of_keys_that_there_is_not(tmp_path: Path) -> None:
    np.savez(tmp_path / "log.npz", offsets=OFFSETS, ids=np.array(IDS))
    with pytest.raises(InputError, match=r"'text'; there are int64, uint64, str, bytes"):
        AccessLog.read(tmp_path / "log.npz", keys="text")
    with pytest.raises(IdError, match="keys are str"):
        AccessLog.read(tmp_path / "log.npz", keys="str")
