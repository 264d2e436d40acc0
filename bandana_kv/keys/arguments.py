"""Keys as callers give them, checked, and made the words that are looked up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np
import xxhash
from numpy.typing import NDArray

from bandana_kv.errors import IdError, InputError
from bandana_kv.kernels.views import refuse_masked
from bandana_kv.keys.kinds import Kind, checked_kind

__all__ = ["checked_keys", "items_of", "key_kind"]

_WORD, _COMMON = np.dtype(np.uint64), np.dtype(np.int64)
_CLOSE = (8,)
_RANGES = {"int64": (-(1 << 63), (1 << 63) - 1), "uint64": (0, (1 << 64) - 1)}
_TYPES: dict[Kind, type] = {"str": str, "bytes": bytes}
_MANY = 1 << 16


def checked_keys(table: str, keys: Any, kind: str, absent: int | None = None) -> NDArray[np.uint64]:
    r"""Return the words to look keys up by.

    Parameters
    ----------
    table
        What errors call the table.
    keys
        A list or a one-dimensional array: of integers, of ``str``, or of ``bytes``, as the kind
        is. NumPy takes zero bytes off the end of what it holds as ``S`` or ``U``: such arrays are
        taken as they are, so that ``b"a"`` and ``b"a\0"`` are one key in them, and two in a list.
        Arrays of pyarrow are taken, too.
    kind
        Of the table's keys: ``int64``, ``uint64``, ``str`` or ``bytes``.
    absent
        A word that is no key's, :attr:`bandana_kv.keys.KeyIndex.absent`. It stands for 64-bit
        integers from 2^63 up where the table's are int64: no row has such a key. Without it they
        are errors.

    Returns
    -------
    ndarray
        uint64 (n,) for integers, int64 as the same bits; (n, 2) for text and bytes. May share
        memory with `keys`.

    Raises
    ------
    IdError
        They are no keys of that kind: floats, truth values, text where bytes are meant, a
        negative number where all are unsigned, text that is no Unicode, and the like.
    InputError
        There are none, they are masked, or not one-dimensional; or there is no such kind.

    Notes
    -----
    Cost: nothing for int64 and uint64 as such; some 100 ns a key for text and bytes.
    """
    named = checked_kind(kind)
    if type(keys) is np.ndarray and keys.strides == _CLOSE and keys.size:
        # What nearly all callers give.
        if keys.dtype is _WORD and named == "uint64":
            return keys
        if keys.dtype is _COMMON and named == "int64":
            return keys.view(np.uint64)
    given = _one_dimensional(table, keys)
    if named in ("str", "bytes"):
        return _hashed(table, given, named)
    return _integers(table, given, named, absent)


def key_kind(table: str, keys: Any) -> Kind:
    """Return of which kind keys are: what a table that they belong to is to be called.

    Parameters
    ----------
    table
        What errors call the table.
    keys
        As :func:`checked_keys` takes them, at least one.

    Returns
    -------
    str
        Signed integers are ``int64``, unsigned ones ``uint64``. Of a list of integers: ``int64`` if
        all fit that, else ``uint64``.

    Raises
    ------
    IdError, InputError
        As :func:`checked_keys`; or there is no key to tell it by.
    """
    given = _one_dimensional(table, keys)
    if len(given) == 0:
        raise InputError(f"table {table!r}: of no keys the kind cannot be told; say which it is")
    if isinstance(given, np.ndarray) and given.dtype.kind in "iu":
        return "int64" if given.dtype.kind == "i" else "uint64"
    if isinstance(given, np.ndarray) and given.dtype.kind in "US":
        return "str" if given.dtype.kind == "U" else "bytes"
    items = _items(given)
    if all(issubclass(each, str) for each in set(map(type, items))):
        return "str"
    if all(issubclass(each, bytes) for each in set(map(type, items))):
        return "bytes"
    _refuse_others(table, items, (int, np.integer), "integers, all str, or all bytes")
    return "uint64" if max(map(int, items)) > _RANGES["int64"][1] else "int64"


def items_of(table: str, keys: Any) -> Sequence[Any]:
    """Return keys, as :func:`checked_keys` takes them, as objects of Python; raises as that."""
    return _items(_one_dimensional(table, keys))


def _one_dimensional(table: str, keys: Any) -> NDArray[Any] | Sequence[Any]:
    """Return an array (n,) or a list, whatever it was."""
    if keys is None:
        raise InputError(f"table {table!r}: no keys given")
    refuse_masked(f"table {table!r}: keys", keys)
    if isinstance(keys, (list, tuple)):
        nested = next((each for each in keys if isinstance(each, (list, tuple, np.ndarray))), None)
        if nested is None or (isinstance(nested, np.ndarray) and nested.ndim == 0):
            return keys
        raise InputError(f"table {table!r}: keys must be one-dimensional, not lists in a list")
    if isinstance(keys, (str, bytes)):
        raise InputError(f"table {table!r}: keys must be a list or an array; put the one in a list")
    # pyarrow's, which is not imported for that; its integers numpy knows how to take.
    if type(keys).__module__.startswith("pyarrow") and "int" not in str(keys.type):
        listed: list[Any] = keys.to_pylist()
        return listed
    array = np.asarray(keys)
    if array.ndim != 1:
        raise InputError(f"table {table!r}: keys must be one-dimensional, not {array.shape}")
    return array


def _items(given: NDArray[Any] | Sequence[Any]) -> Sequence[Any]:
    if isinstance(given, np.ndarray):
        listed: list[Any] = given.tolist()
        return listed
    return given


# -- integers -------------------------------------------------------------------------------


def _integers(
    table: str, given: NDArray[Any] | Sequence[Any], kind: Kind, absent: int | None
) -> NDArray[np.uint64]:
    if len(given) == 0:
        return np.zeros(0, np.uint64)
    if not isinstance(given, np.ndarray):
        given = _as_integers(table, given, kind)
    if given.dtype.kind == "O":
        return _of_objects(table, given, kind, absent)
    if given.dtype.kind not in "iu":
        raise IdError(f"table {table!r}: its keys are {kind}, not {given.dtype}")
    if given.dtype.kind == "i":
        array = np.ascontiguousarray(given, np.int64)
        if kind == "uint64" and (least := int(array.min())) < 0:
            _refuse_number(table, least, kind)
        return array.view(np.uint64)
    words = np.ascontiguousarray(given, np.uint64)
    most = _RANGES[kind][1]
    if kind == "int64" and (largest := int(words.max())) > most:
        if absent is None:
            _refuse_number(table, largest, kind)
        return np.where(words > most, np.uint64(absent), words)
    return words


def _as_integers(table: str, listed: Sequence[Any], kind: Kind) -> NDArray[Any]:
    """Return an array of what is in a list: of objects where numpy would make something else."""
    _refuse_others(table, listed, (int, np.integer), kind)
    try:
        array = np.asarray(listed)
    except OverflowError:
        return np.asarray(listed, object)
    # Of integers some of which only uint64 can hold numpy makes floats.
    return array if array.dtype.kind in "iu" else np.asarray(listed, object)


def _of_objects(
    table: str, given: NDArray[Any], kind: Kind, absent: int | None
) -> NDArray[np.uint64]:
    items = given.tolist()
    _refuse_others(table, items, (int, np.integer), kind)
    least, most = _RANGES[kind]
    words = np.empty(len(items), np.uint64)
    for i, each in enumerate(map(int, items)):
        if least <= each <= most:
            words[i] = each & _RANGES["uint64"][1]
        elif kind == "int64" and absent is not None and most < each <= _RANGES["uint64"][1]:
            words[i] = absent
        else:
            _refuse_number(table, each, kind)
    return words


def _refuse_number(table: str, number: int, kind: Kind) -> NoReturn:
    least, most = _RANGES[kind]
    raise IdError(
        f"table {table!r}: key {number} is not one of {least} to {most}; its keys are {kind}"
    )


def _refuse_others(table: str, items: Sequence[Any], types: tuple[type, ...], meant: str) -> None:
    """See that all are of the types; a truth value is no integer."""
    wrong = {each for each in set(map(type, items)) if not issubclass(each, types) or each is bool}
    if wrong:
        at = next(i for i, each in enumerate(items) if type(each) in wrong)
        raise IdError(
            f"table {table!r}: its keys are {meant}; the one at {at} is {type(items[at]).__name__}"
        )


# -- text and bytes -------------------------------------------------------------------------


def _hashed(table: str, given: NDArray[Any] | Sequence[Any], kind: Kind) -> NDArray[np.uint64]:
    words = np.empty((len(given), 2), np.uint64)
    for first in range(0, len(given), _MANY):  # not all as objects of Python at once
        items = _items(given[first : first + _MANY])
        _refuse_others(table, items, (_TYPES[kind],), kind)
        words[first : first + len(items)] = _digests(table, items, kind, first)
    return words


def _digests(table: str, items: Sequence[Any], kind: Kind, first: int) -> NDArray[np.uint64]:
    """Return XXH3's 128 bits of each, (n, 2), the higher 64 first; text as UTF-8."""
    digest = xxhash.xxh3_128_digest
    try:
        raws = [each.encode() for each in items] if kind == "str" else items
    except UnicodeEncodeError:
        at, wrong = next((i, each) for i, each in enumerate(items) if not _is_unicode(each))
        raise IdError(
            f"table {table!r}: the key at {first + at} is no Unicode that has an UTF-8 ({wrong!a})"
        ) from None
    raw = b"".join([digest(each) for each in raws])
    return np.frombuffer(raw, ">u8").astype(np.uint64).reshape(-1, 2)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
