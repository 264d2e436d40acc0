"""Rows stored one by one under keys of their own, as many already have them in an engine.

They serve as a fallback, as the source of a repair, and where a table moves in from. Nothing is
ever written, and nothing unpickled: a value is the numbers of one row, little-endian.
"""

from __future__ import annotations

import importlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from bandana_kv.errors import (
    AdapterError,
    BandanaError,
    FallbackError,
    InputError,
    MissingExtraError,
    RowMissingError,
)

__all__ = ["KEY_CODECS", "KeyCodec", "KeyedRows", "open_rows"]

KeyCodec = Callable[[str, npt.NDArray[np.int64]], Sequence[bytes]]
"""A function of a table's name and ids (n,) that returns the key of each."""

_KINDS = "biufc"


def _fixed(dtype: str) -> KeyCodec:
    width = np.dtype(dtype).itemsize

    def keys(table: str, ids: npt.NDArray[np.int64]) -> list[bytes]:
        if ids.size and (int(ids.min()) < 0 or int(ids.max()) >= 1 << (8 * width)):
            raise RowMissingError(f"table {table!r}: not every id fits a key of {width} bytes")
        raw = ids.astype(dtype).tobytes()
        return [raw[at : at + width] for at in range(0, len(raw), width)]

    return keys


def _decimal(_table: str, ids: npt.NDArray[np.int64]) -> list[bytes]:
    return [b"%d" % number for number in ids.tolist()]


def _prefixed(table: str, ids: npt.NDArray[np.int64]) -> list[bytes]:
    return [b"%s:%d" % (table.encode(), number) for number in ids.tolist()]


KEY_CODECS: dict[str, KeyCodec] = {
    "uint64-be": _fixed(">u8"),
    "uint64-le": _fixed("<u8"),
    "uint32-be": _fixed(">u4"),
    "uint32-le": _fixed("<u4"),
    "decimal": _decimal,
    "table:decimal": _prefixed,
}
"""Codecs by name: the id in binary, or as text, with the table's name before it perhaps."""

# Name -> module, class, and the package to install.
_ENGINES = {
    "lmdb": ("bandana_kv.adapters.rows_lmdb", "LmdbRows", "lmdb"),
    "rocksdb": ("bandana_kv.adapters.rows_rocksdb", "RocksdbRows", "rocksdict"),
}


class KeyedRows(ABC):
    """Rows of one dtype, one a key; a source of rows, for any number of threads.

    Parameters
    ----------
    where
        The path or handle, as messages name it.
    key
        One of :data:`KEY_CODECS`, or a function ``(table, ids)`` that returns keys.
    dtype
        Of the numbers in a value.

    Raises
    ------
    InputError
        An unknown codec, or a dtype that is not numeric.
    """

    name: ClassVar[str]

    def __init__(self, where: str, key: str | KeyCodec, dtype: npt.DTypeLike) -> None:
        if isinstance(key, str):
            if key not in KEY_CODECS:
                raise InputError(f"no key codec {key!r}; there are {', '.join(KEY_CODECS)}")
            key = KEY_CODECS[key]
        if not callable(key):
            raise InputError(f"key {key!r} is neither a codec's name nor a function (table, ids)")
        try:
            self._dtype = np.dtype(dtype).newbyteorder("<")
        except TypeError as error:
            raise InputError(f"dtype {dtype!r} is none of numpy's") from error
        if self._dtype.kind not in _KINDS:
            raise InputError(f"dtype {self._dtype} is not numeric; tables hold numbers")
        self._where = where
        self._codec = key

    @abstractmethod
    def _values(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        """Return the value of each key, None where there is none."""

    @abstractmethod
    def close(self) -> None:
        """Release what was opened; a second call does nothing."""

    def rows(self, table: str, ids: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """Return the rows of `ids` (n,): (n, dim).

        Raises
        ------
        RowMissingError
            An id's key is not there; names both.
        FallbackError
            Values differ in length, or are no whole number of the dtype; a codec gave something
            else than a key for each id.
        AdapterError
            The engine failed.

        Notes
        -----
        *Cost*: a lookup in the engine for each id.
        """
        keys = self._codec(table, ids)
        if len(keys) != ids.size or not all(isinstance(key, bytes) for key in keys):
            raise FallbackError(f"table {table!r}: the key codec gave no bytes for each id")
        try:
            values = self._values(keys)
        except BandanaError:
            raise
        except Exception as error:
            raise AdapterError(f"{self.name} at {self._where} failed: {error}") from error
        found: list[bytes] = []
        for row_id, key, value in zip(ids.tolist(), keys, values, strict=True):
            if value is None:
                raise RowMissingError(
                    f"table {table!r}: {self.name} at {self._where} has no row of id {row_id} "
                    f"(key {key!r}); is the key codec the right one?"
                )
            found.append(value)
        lengths = {len(value) for value in found}
        if len(lengths) > 1 or any(length % self._dtype.itemsize for length in lengths):
            raise FallbackError(
                f"table {table!r}: values in {self.name} at {self._where} are "
                f"{', '.join(map(str, sorted(lengths)))} bytes long, not rows of {self._dtype}"
            )
        return np.frombuffer(b"".join(found), self._dtype).reshape(ids.size, -1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def open_rows(
    engine: str,
    path: str | os.PathLike[str],
    *,
    key: str | KeyCodec = "uint64-be",
    dtype: npt.DTypeLike = "float32",
    inner: str | None = None,
) -> KeyedRows:
    """Open rows by key, to read only; nothing is created.

    Parameters
    ----------
    engine
        ``"lmdb"`` or ``"rocksdb"``.
    path
        The database's directory; for LMDB also its file.
    key
        One of :data:`KEY_CODECS`, or a function ``(table, ids)`` that returns keys.
    dtype
        Of the numbers in a value.
    inner
        The column family, or the sub-database; by default the main one.

    Returns
    -------
    KeyedRows
        A context manager.

    Raises
    ------
    InputError
        Unknown engine or codec.
    StoreNotFoundError
        The path, or what is inside, does not exist.
    AdapterError
        The engine cannot open it.
    MissingExtraError
        The engine is not installed.
    """
    if engine not in _ENGINES:
        raise InputError(f"rows by key are not read from {engine!r}, but {', '.join(_ENGINES)}")
    module, attribute, package = _ENGINES[engine]
    try:
        found = getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        raise MissingExtraError(
            f"rows in {engine} need a package: pip install {package} ({error})"
        ) from error
    opened: KeyedRows = found(Path(path), key=key, dtype=dtype, inner=inner)
    return opened
