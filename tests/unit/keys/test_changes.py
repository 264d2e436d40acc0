"""Keys that came and went since an index was built: as a dict, and as a file keeps them."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bandana_kv.errors import FormatError
from bandana_kv.keys import ChangedKeys, KeyIndex, build_index, checked_keys
from bandana_kv.keys.changes_file import read_changes, write_changes

KEYS = 200


def index_of(path: Path, kind: str) -> KeyIndex:
    build_index(path, kind, words(kind, range(KEYS)))
    return KeyIndex.open(path)


def words(kind: str, numbers: object) -> np.ndarray:
    given = [int(number) * 7 for number in numbers]  # type: ignore[attr-defined]
    keys = [f"{number}" for number in given] if kind == "str" else given
    return checked_keys("t", keys, kind)


ACTIONS = st.lists(
    st.tuples(st.booleans(), st.lists(st.integers(0, 3 * KEYS), min_size=1, unique=True)),
    max_size=30,
)


@pytest.mark.parametrize("kind", ["str", "int64"])
@given(actions=ACTIONS)
def test_it_is_as_a_dict_and_so_it_is_kept(
    tmp_path_factory: pytest.TempPathFactory, kind: str, actions: list[tuple[bool, list[int]]]
) -> None:
    root = tmp_path_factory.mktemp("changes")
    index = index_of(root / "keys", kind)
    keys, wanted = ChangedKeys(index), {number: number for number in range(KEYS)}
    for sequence, (adds, numbers) in enumerate(actions, 1):
        each = words(kind, numbers)
        if adds:
            ids, end = keys.assigned("t", each)
            new = [number for number in numbers if number not in wanted]
            assert end == keys.next_id + len(new)
            keys.apply(each, ids, sequence)
            wanted |= {n: int(id) for n, id in zip(numbers, ids, strict=True)}
        else:
            keys.apply(each, np.full(len(numbers), -1), sequence)
            wanted = {n: id for n, id in wanted.items() if n not in numbers}
        assert len(set(wanted.values())) == len(wanted) == len(keys)
    if actions:
        keys.apply(words(kind, [0]), np.array([999]), len(actions))  # was done before
        write_changes(root / "kept", index, keys.changes())
        kept = read_changes(root / "kept", index)
        assert kept is not None
        again = ChangedKeys(index, kept)
    else:
        assert read_changes(root / "kept", index) is None
        again = ChangedKeys(index)
    every = range(3 * KEYS + 1)
    for each_keys in (keys, again):
        found = each_keys.ids_of(words(kind, every))
        assert found.tolist() == [wanted.get(number, -1) for number in every]
        assert (len(each_keys), each_keys.next_id) == (len(wanted), keys.next_id)
        ordered = sorted(wanted, key=lambda number: wanted[number])
        assert each_keys.live_ids().tolist() == [wanted[number] for number in ordered]
        assert (
            np.array_equal(each_keys.keys_in_order().view(np.uint64), words(kind, ordered))
            or not ordered
        )


def test_who_looks_up_meanwhile_finds_what_was_there(tmp_path: Path) -> None:
    keys = ChangedKeys(index_of(tmp_path / "keys", "int64"))
    steady = words("int64", range(0, KEYS, 2))
    ended, wrong = threading.Event(), list[int]()

    def look_up() -> None:
        while not ended.is_set():
            wrong.extend(
                len(part)
                for part in (steady, steady[:10])
                if not np.array_equal(keys.ids_of(part), np.arange(0, 2 * len(part), 2))
            )

    threads = [threading.Thread(target=look_up) for _ in range(2)]
    for thread in threads:
        thread.start()
    for sequence in range(1, 300):
        each = words("int64", range(KEYS + 20 * sequence, KEYS + 20 * sequence + 20))
        keys.apply(each, keys.assigned("t", each)[0], sequence)
    ended.set()
    for thread in threads:
        thread.join()
    assert not wrong


def test_keys_are_listed_while_others_come(tmp_path: Path) -> None:
    keys = ChangedKeys(index_of(tmp_path / "keys", "int64"))
    ended = threading.Event()

    def add() -> None:
        for sequence in range(1, 400):
            each = words("int64", range(KEYS + 20 * sequence, KEYS + 20 * sequence + 20))
            keys.apply(each, keys.assigned("t", each)[0], sequence)
        ended.set()

    thread = threading.Thread(target=add)
    thread.start()
    loaded = words("int64", range(KEYS))
    while not ended.is_set():
        listed = keys.keys_in_order().view(np.uint64)
        assert np.array_equal(listed[:KEYS], loaded)
        assert (len(listed) - KEYS) % 20 == 0
    thread.join()


def test_a_file_of_another_index_is_refused(tmp_path: Path) -> None:
    index = index_of(tmp_path / "keys", "int64")
    keys = ChangedKeys(index)
    keys.apply(words("int64", [KEYS]), np.array([KEYS]), 1)
    write_changes(tmp_path / "kept", index, keys.changes())
    build_index(tmp_path / "other", "int64", words("int64", range(KEYS - 1)))
    with pytest.raises(FormatError, match="another index"):
        read_changes(tmp_path / "kept", KeyIndex.open(tmp_path / "other"))
