"""The index against a plain dict, with keys that are hard on it."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from bandana_kv.errors import IdError, InputError
from bandana_kv.keys import KeyIndex, build_index, checked_keys
from bandana_kv.keys.kinds import Kind
from bandana_kv.keys.lookup import FEW
from bandana_kv.keys.parts import key_at_home

INT64, UINT64 = np.iinfo(np.int64), np.iinfo(np.uint64)
ODD = 0x9E3779B97F4A7C15
KINDS: dict[Kind, Any] = {
    "int64": st.integers(INT64.min, INT64.max) | st.integers(-3, 3) | st.just(INT64.max),
    "uint64": st.integers(0, UINT64.max) | st.integers(0, 3) | st.just(UINT64.max),
    "str": st.text(max_size=20),
    "bytes": st.binary(max_size=20),
}


def built(directory: Path, kind: Kind, keys: Any) -> KeyIndex:
    path = directory / "keys"
    build_index(path, kind, checked_keys("t", keys, kind))
    return KeyIndex.open(path)


def ids_of(index: KeyIndex, keys: Any) -> list[int]:
    return index.ids_of(index.words_of("t", keys)).tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_a_dict(kind: Kind, tmp_path_factory: pytest.TempPathFactory) -> None:
    @given(st.lists(KINDS[kind], unique=True, max_size=200), st.lists(KINDS[kind], max_size=200))
    def compare(keys: list[Any], others: list[Any]) -> None:
        index = built(tmp_path_factory.getbasetemp(), kind, keys)
        model = {key: i for i, key in enumerate(keys)}
        assert ids_of(index, keys) == list(range(len(keys)))
        assert ids_of(index, others) == [model.get(key, -1) for key in others]
        index.verify()
        assert (index.kind, index.keys, len(index)) == (kind, len(keys), len(keys))
        if kind in ("int64", "uint64"):
            assert index.keys_in_order().tolist() == keys
        else:
            assert np.array_equal(index.keys_in_order(), checked_keys("t", keys, kind))

    compare()


def spread_evenly(count: int) -> NDArray[np.uint64]:
    """Keys whose ranks are as far apart as can be, and no further: each alone at its home."""
    return np.array([key_at_home(i, count, np.uint64(0)) for i in range(count)], np.uint64)


def crowded(count: int) -> NDArray[np.uint64]:
    """Keys of ranks that follow one another under the first seed: all at one home."""
    back = (pow(0xD6E8FEB86659FD93, -1, 1 << 64), pow(ODD, -1, 1 << 64))
    keys = []
    for rank in range(7 << 60, (7 << 60) + count):
        half = rank * back[0] % (1 << 64)
        keys.append((half ^ half >> 32) * back[1] % (1 << 64))
    return np.array(keys, np.uint64)


ADVERSARIAL = {
    "sequential": np.arange(50_000, dtype=np.uint64),
    "from the top down": UINT64.max - np.arange(50_000, dtype=np.uint64),
    "around 2^63": np.uint64((1 << 63) - 25_000) + np.arange(50_000, dtype=np.uint64),
    "multiples of 2^32": np.arange(50_000, dtype=np.uint64) << np.uint64(32),
    "multiples of 2^48": np.arange(1 << 16, dtype=np.uint64) << np.uint64(48),
    "powers of two": np.uint64(1) << np.arange(64, dtype=np.uint64),
    "multiples of the factor's inverse": np.array(
        [i * pow(ODD, -1, 1 << 64) % (1 << 64) for i in range(50_000)], np.uint64
    ),
    "even ranks": spread_evenly(5000),
    "neighbours": crowded(50),
    "all at one home": crowded(50_000),
}


@pytest.mark.parametrize("what", ADVERSARIAL)
@pytest.mark.parametrize("kind", ["int64", "uint64"])
def test_keys_that_are_hard(what: str, kind: Kind, tmp_path: Path) -> None:
    keys = ADVERSARIAL[what]
    build_index(tmp_path / "keys", kind, keys)
    index = KeyIndex.open(tmp_path / "keys")
    index.verify()
    assert np.array_equal(index.ids_of(keys), np.arange(keys.size))
    assert np.array_equal(index.keys_in_order().view(np.uint64), keys)
    there = set(keys.tolist())
    near = {(key + by) % (1 << 64) for key in there for by in (-1, 1, 1 << 32)} - there
    assert (index.ids_of(np.array(sorted(near), np.uint64)) == -1).all()
    assert index.bytes_on_disk < 14 * keys.size + 4000


@pytest.mark.parametrize("same", [0, 1])
def test_words_that_have_one_in_common(same: int, tmp_path: Path) -> None:
    words = np.zeros((20_000, 2), np.uint64)
    words[:, 1 - same] = np.arange(20_000)
    words[:, same] = 17
    build_index(tmp_path / "keys", "str", words)
    index = KeyIndex.open(tmp_path / "keys")
    assert np.array_equal(index.ids_of(words), np.arange(20_000))
    assert np.array_equal(index.keys_in_order(), words)
    others = words.copy()
    others[:, same] = 18
    assert (index.ids_of(others) == -1).all()
    assert (index.ids_of(np.ascontiguousarray(words[:, ::-1]))[20:] == -1).all()


def test_ranks_that_are_the_same(tmp_path: Path) -> None:
    """Of two words: found by the second one, where the first tells nothing."""

    def stirred(word: int) -> int:
        half = word * ODD % (1 << 64)
        return (half ^ half >> 32) * 0xD6E8FEB86659FD93 % (1 << 64)

    # Whatever the second word, the first is such that all have one rank, which is none's or all's.
    for rank in (12345, UINT64.max):
        half = rank * pow(0xD6E8FEB86659FD93, -1, 1 << 64) % (1 << 64)
        inner = (half ^ half >> 32) * pow(ODD, -1, 1 << 64) % (1 << 64)
        seconds = range(5, 45)
        words = np.array([[inner ^ stirred(each), each] for each in seconds], np.uint64)
        build_index(tmp_path / "keys", "bytes", words)
        index = KeyIndex.open(tmp_path / "keys")
        assert np.array_equal(index.ids_of(words), np.arange(40))
        other = np.array([[inner ^ stirred(each), each] for each in (0, 45, 99)], np.uint64)
        assert index.ids_of(other).tolist() == [-1] * 3


@pytest.mark.parametrize("count", [0, 1, 2, 7, 8, 9, 100, 70_000])
@pytest.mark.parametrize("kind", ["uint64", "str"])
def test_any_number_of_keys(count: int, kind: Kind, tmp_path: Path, rng: Any) -> None:
    width = (2,) if kind == "str" else ()
    words = rng.integers(0, UINT64.max, (count, *width), np.uint64, endpoint=True)
    build_index(tmp_path / "keys", kind, words)
    index = KeyIndex.open(tmp_path / "keys")
    index.verify()
    for asked in (1, FEW, FEW + 1, count):
        assert index.ids_of(words[:asked]).tolist() == list(range(min(asked, count)))
    others = rng.integers(0, UINT64.max, (500, *width), np.uint64, endpoint=True)
    assert (index.ids_of(others) == -1).all()
    assert np.array_equal(index.keys_in_order(), words)
    assert index.bytes_on_disk == (tmp_path / "keys").stat().st_size


def test_files_are_equal_where_keys_are(tmp_path: Path, rng: np.random.Generator) -> None:
    words = rng.permutation(10_000).astype(np.uint64)
    for name in ("a", "b"):
        build_index(tmp_path / name, "uint64", words)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("places", [(0, 1), (3, 49_999), (20_000, 20_001)])
def test_two_keys_that_are_the_same_are_named(places: tuple[int, int], tmp_path: Path) -> None:
    first, second = places
    keys = np.arange(-25_000, 25_000)
    keys[second] = keys[first]
    said = f"key {keys[first]} is there twice, at {first} and {second}"
    with pytest.raises(InputError, match=said):
        build_index(tmp_path / "keys", "int64", checked_keys("t", keys, "int64"))
    texts = [str(key) for key in keys]
    with pytest.raises(InputError, match=f"keys at {first} and {second} are the same"):
        build_index(tmp_path / "keys", "str", checked_keys("t", texts, "str"))
    assert list(tmp_path.iterdir()) == []


def test_the_same_key_over_and_over_is_named(tmp_path: Path) -> None:
    words = np.full(1_000_000, UINT64.max, np.uint64)
    with pytest.raises(InputError, match=f"key {UINT64.max} is there twice, at 0 and 1"):
        build_index(tmp_path / "keys", "uint64", words)
    with pytest.raises(InputError, match="key -1 is there twice, at 0 and 1"):
        build_index(tmp_path / "keys", "int64", words)
    with pytest.raises(InputError, match="keys at 0 and 1 are the same"):
        build_index(tmp_path / "keys", "bytes", np.stack([words, words], axis=1))


def test_numbers_beyond_int64_are_absent_whatever_is_there(tmp_path: Path) -> None:
    keys = np.array([INT64.min, -1, 0, INT64.max], np.int64)
    index = built(tmp_path, "int64", keys)
    beyond = keys.view(np.uint64)  # -1 has the bits of 2^64 - 1
    assert ids_of(index, beyond) == [-1, -1, 2, 3]
    assert ids_of(index, beyond.tolist()) == [-1, -1, 2, 3]
    assert ids_of(index, [-1, 1 << 63]) == [1, -1]
    assert index.absent is not None
    assert index.ids_of(np.array([index.absent], np.uint64)).tolist() == [-1]


@given(st.sets(st.integers(INT64.min, INT64.max), max_size=40))
def test_the_word_that_is_absent_is(
    tmp_path_factory: pytest.TempPathFactory, keys: set[int]
) -> None:
    index = built(tmp_path_factory.getbasetemp(), "int64", sorted(keys))
    assert index.absent is not None
    assert index.ids_of(np.array([index.absent], np.uint64)).tolist() == [-1]


def test_keys_of_ids(tmp_path: Path) -> None:
    index = built(tmp_path, "int64", [7, -7, 1 << 40])
    assert index.key_at([2, 0]).tolist() == [1 << 40, 7]
    assert index.key_at([]).tolist() == []
    for wrong in ([3], [-1], [0.0], [True]):
        with pytest.raises(IdError, match="keys: id"):
            index.key_at(wrong)
    assert repr(index) == f"<KeyIndex of 3 keys, int64, at {str(tmp_path / 'keys')!r}>"


def test_words_of_the_wrong_form_are_refused(tmp_path: Path) -> None:
    index = built(tmp_path, "int64", [7])
    for words in (np.zeros((1, 2), np.uint64), np.zeros(1, np.int64), np.zeros((1, 1), np.uint64)):
        with pytest.raises(InputError, match=r"words of int64 keys are uint64 \(n,\)"):
            index.ids_of(words)  # type: ignore[arg-type]
        with pytest.raises(InputError, match=r"words of int64 keys are uint64 \(n,\)"):
            build_index(tmp_path / "keys", "int64", words)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no kind of keys is called 'int32'"):
        build_index(tmp_path / "keys", "int32", np.zeros(1, np.uint64))


def test_words_may_lie_anyhow(tmp_path: Path) -> None:
    index = built(tmp_path, "uint64", np.arange(1000))
    words = np.arange(1000, dtype=np.uint64)
    assert np.array_equal(index.ids_of(words[::3]), np.arange(0, 1000, 3))
    words.flags.writeable = False
    assert np.array_equal(index.ids_of(words), np.arange(1000))
    assert np.array_equal(index.ids_of(words[:5]), np.arange(5))


def test_keys_may_be_mapped_from_a_file(tmp_path: Path) -> None:
    np.save(tmp_path / "words.npy", np.arange(5000, dtype=np.uint64) * np.uint64(3))
    mapped = np.load(tmp_path / "words.npy", mmap_mode="r")
    build_index(tmp_path / "keys", "uint64", mapped)
    index = KeyIndex.open(tmp_path / "keys")
    assert np.array_equal(index.ids_of(mapped), np.arange(5000))


def test_threads_share_it(tmp_path: Path, rng: np.random.Generator) -> None:
    keys = rng.integers(0, UINT64.max, 50_000, np.uint64)
    index = built(tmp_path, "uint64", keys)
    wrong: list[int] = []

    def ask(seed: int) -> None:
        mine = np.random.default_rng(seed)
        for size in (1, 50, 5000) * 50:
            ids = mine.integers(-1, keys.size, size)
            words = np.where(ids < 0, np.uint64(index.keys), keys[ids])
            wrong.append(int((index.ids_of(words) != ids).sum()))

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == [0] * 8 * 150
