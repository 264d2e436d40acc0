"""Keys as callers give them: what is taken, as what, and what is refused how."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import xxhash

from bandana_kv.errors import BandanaError, IdError, InputError
from bandana_kv.keys import checked_keys, key_kind
from bandana_kv.keys.kinds import Kind

LEAST, MOST = -(1 << 63), (1 << 63) - 1


@pytest.mark.parametrize(
    "keys",
    [
        np.array([1, -1, LEAST, MOST]),
        [1, -1, LEAST, MOST],
        (1, -1, LEAST, MOST),
        np.array([1, -1, LEAST, MOST], object),
        [np.int8(1), np.int64(-1), LEAST, MOST],
        np.array([1, -1, LEAST, MOST], ">i8"),
        np.array([[1, -1, LEAST, MOST]] * 2).T[:, 0],
        pa.array([1, -1, LEAST, MOST]),
    ],
    ids=str,
)
def test_int64_in_any_form(keys: Any) -> None:
    words = checked_keys("t", keys, "int64")
    assert words.dtype == np.uint64
    assert words.view(np.int64).tolist() == [1, -1, LEAST, MOST]


@pytest.mark.parametrize(
    "keys",
    [
        np.array([1, MOST + 1, 2 * MOST + 1], np.uint64),
        [1, MOST + 1, 2 * MOST + 1],
        np.array([1, MOST + 1, 2 * MOST + 1], object),
        pa.array([1, MOST + 1, 2 * MOST + 1], pa.uint64()),
    ],
    ids=str,
)
def test_uint64_in_any_form(keys: Any) -> None:
    assert checked_keys("t", keys, "uint64").tolist() == [1, MOST + 1, 2 * MOST + 1]
    with pytest.raises(IdError, match=f"key {(2 * MOST + 1)} is not one of|key {MOST + 1} is not"):
        checked_keys("t", keys, "int64")
    assert checked_keys("t", keys, "int64", absent=77).tolist() == [1, 77, 77]


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint32, np.int32])
def test_short_integers_are_the_same_keys(dtype: Any) -> None:
    for kind in ("int64", "uint64"):
        assert checked_keys("t", np.array([0, 5], dtype), kind).tolist() == [0, 5]


def test_what_nearly_all_give_is_not_copied() -> None:
    keys = np.arange(5)
    assert np.shares_memory(checked_keys("t", keys, "int64"), keys)
    words = keys.astype(np.uint64)
    assert checked_keys("t", words, "uint64") is words


@pytest.mark.parametrize(
    "keys", [np.array([3, -1]), [3, -1], np.array([3, -1], object), [-1, 1 << 63]], ids=str
)
def test_a_negative_key_is_none_of_unsigned_ones(keys: Any) -> None:
    with pytest.raises(IdError, match="table 't': key -1 is not one of 0 to 18446744073709551615"):
        checked_keys("t", keys, "uint64")


def hashed(keys: list[bytes]) -> list[list[int]]:
    numbers = [xxhash.xxh3_128_intdigest(key) for key in keys]
    return [[each >> 64, each & ((1 << 64) - 1)] for each in numbers]


TEXTS = ["", "a", "ä", "\0", "a\0", "日本語", "x" * 1000, "🐎"]


@pytest.mark.parametrize(
    "keys",
    [
        TEXTS,
        tuple(TEXTS),
        np.array(TEXTS, object),
        np.array(TEXTS, np.dtypes.StringDType()),
        pa.array(TEXTS),
        pa.chunked_array([TEXTS[:3], TEXTS[3:]]),
        pa.array(TEXTS, pa.large_string()),
    ],
    ids=lambda keys: type(keys).__name__,
)
def test_text_in_any_form(keys: Any) -> None:
    assert checked_keys("t", keys, "str").tolist() == hashed([text.encode() for text in TEXTS])
    assert key_kind("t", keys) == "str"
    with pytest.raises(IdError, match="its keys are bytes; the one at 0 is str"):
        checked_keys("t", keys, "bytes")


BYTES = [text.encode() for text in TEXTS] + [b"\xff\xfe"]


@pytest.mark.parametrize(
    "keys",
    [BYTES, np.array(BYTES, object), pa.array(BYTES), pa.array(BYTES, pa.large_binary())],
    ids=lambda keys: type(keys).__name__,
)
def test_bytes_in_any_form(keys: Any) -> None:
    assert checked_keys("t", keys, "bytes").tolist() == hashed(BYTES)
    assert key_kind("t", keys) == "bytes"
    with pytest.raises(IdError, match="its keys are str; the one at 0 is bytes"):
        checked_keys("t", keys, "str")


def test_numpy_takes_zero_bytes_off_the_end() -> None:
    assert checked_keys("t", np.array([b"a\0", b"a"]), "bytes").tolist() == hashed([b"a", b"a"])
    assert checked_keys("t", np.array(["a\0"]), "str").tolist() == hashed([b"a"])
    assert checked_keys("t", [np.str_("a\0"), np.bytes_(b"")][:1], "str").tolist() == hashed(
        [b"a\0"]
    )


def test_many_are_hashed_as_few_are() -> None:
    texts = [str(i) for i in range(70_000)]
    words = checked_keys("t", texts, "str")
    some = [0, 65_535, 65_536, 69_999]
    assert words[some].tolist() == hashed([texts[i].encode() for i in some])


@pytest.mark.parametrize("at", [0, 65_537])
def test_text_that_is_no_unicode_is_named(at: int) -> None:
    texts = ["a"] * 65_540
    texts[at] = "\ud800"
    with pytest.raises(IdError, match=rf"the key at {at} is no Unicode .*\('\\ud800'\)"):
        checked_keys("t", texts, "str")


def test_no_keys_are_no_words() -> None:
    for keys in ([], (), np.zeros(0), np.zeros(0, object), pa.array([], pa.string())):
        for kind in ("int64", "uint64"):
            assert checked_keys("t", keys, kind).shape == (0,)
        for kind in ("str", "bytes"):
            assert checked_keys("t", keys, kind).shape == (0, 2)


WRONG: list[tuple[Any, str, type[BandanaError], str]] = [
    ([1.0], "int64", IdError, "int64; the one at 0 is float"),
    (np.array([1.0]), "int64", IdError, "its keys are int64, not float64"),
    (np.array([True]), "uint64", IdError, "its keys are uint64, not bool"),
    ([1, True], "int64", IdError, "int64; the one at 1 is bool"),
    (["1"], "int64", IdError, "int64; the one at 0 is str"),
    (np.array(["1"]), "int64", IdError, "its keys are int64, not <U1"),
    ([1, "a"], "int64", IdError, "int64; the one at 1 is str"),
    ([1, None], "int64", IdError, "int64; the one at 1 is NoneType"),
    ([1 << 64], "uint64", IdError, "key 18446744073709551616 is not one of 0 to"),
    ([LEAST - 1], "int64", IdError, "key -9223372036854775809 is not one of"),
    (np.array([1, 2.5], object), "int64", IdError, "int64; the one at 1 is float"),
    (pa.array([1, None]), "int64", IdError, "its keys are int64, not float64"),
    (["a", b"a"], "str", IdError, "str; the one at 1 is bytes"),
    (["a", None], "str", IdError, "str; the one at 1 is NoneType"),
    (pa.array(["a", None]), "str", IdError, "str; the one at 1 is NoneType"),
    ([1], "str", IdError, "str; the one at 0 is int"),
    (np.array([1]), "bytes", IdError, "bytes; the one at 0 is int"),
    (np.array([b"a"]), "str", IdError, "str; the one at 0 is bytes"),
    ([bytearray(b"a")], "bytes", IdError, "bytes; the one at 0 is bytearray"),
    (None, "int64", InputError, "no keys given"),
    ("abc", "str", InputError, "put the one in a list"),
    (b"abc", "bytes", InputError, "put the one in a list"),
    (5, "int64", InputError, r"one-dimensional, not \(\)"),
    ([[1], [2]], "int64", InputError, "not lists in a list"),
    (["a", ["b"]], "str", InputError, "not lists in a list"),
    ([np.zeros(2, np.int64)], "int64", InputError, "not lists in a list"),
    (np.zeros((2, 2), np.int64), "int64", InputError, r"one-dimensional, not \(2, 2\)"),
    ({"a"}, "str", InputError, r"one-dimensional, not \(\)"),
    (np.ma.masked_array([1, 2], [True, False]), "int64", InputError, "a masked array"),
    ([1], "int32", InputError, "no kind of keys is called 'int32'; there are int64, uint64"),
]


@pytest.mark.parametrize(("keys", "kind", "error", "said"), WRONG, ids=lambda each: str(each)[:30])
def test_what_is_refused(keys: Any, kind: str, error: type[BandanaError], said: str) -> None:
    with pytest.raises(error, match=said):
        checked_keys("t", keys, kind, absent=3)


@pytest.mark.parametrize(
    ("keys", "kind"),
    [
        ([1, -1], "int64"),
        ([1, MOST], "int64"),
        ([1, MOST + 1], "uint64"),
        (np.array([1], np.int8), "int64"),
        (np.array([1], np.uint8), "uint64"),
        (np.array([1, MOST + 1], object), "uint64"),
        (["a"], "str"),
        (np.array(["a"]), "str"),
        ([b"a"], "bytes"),
        (np.array([b"a"]), "bytes"),
    ],
    ids=str,
)
def test_of_which_kind_keys_are(keys: Any, kind: Kind) -> None:
    assert key_kind("t", keys) == kind
    assert len(checked_keys("t", keys, kind)) == len(keys)


@pytest.mark.parametrize("keys", [[], np.zeros(0), [1.0], ["a", 1], ["a", b"a"], [True], [[1]]])
def test_of_no_kind_at_all(keys: Any) -> None:
    with pytest.raises((IdError, InputError), match="table 't'"):
        key_kind("t", keys)
