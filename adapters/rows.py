"""Rows stored one by one under keys of their own, as many already have them in an engine.

They serve as a fallback, as the source of a repair, and where a table moves in from. Nothing is
ever written, and nothing unpickled: a value is the numbers of one row, in the byte order that its
dtype says. What comes out is little-endian, as in every table.
"""

from __future__ import annotations

import importlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray

from bandana_kv.adapters.codecs import KEY_CODECS, Codec, KeyCodec
from bandana_kv.errors import (
    AdapterError,
    BandanaError,
    FallbackError,
    InputError,
    MissingExtraError,
    RowMissingError,
)
from bandana_kv.system.permission import permission_named

__all__ = [
    "ENGINES",
    "KEY_CODECS",
    "MAX_AGE_S",
    "Codec",
    "KeyCodec",
    "KeyedRows",
    "Pairs",
    "batch_size",
    "open_rows",
    "shown_key",
]

_KINDS = "biufc"
_SHOWN_KEY_BYTES = 64
# What a scan holds at once: so many keys, or about so many bytes of values.
_SCANNED_KEYS, _SCANNED_BYTES = 4096, 4 << 20


# Name -> module, class, and the package to install.
ENGINES = {
    "lmdb": ("bandana_kv.adapters.rows_lmdb", "LmdbRows", "lmdb"),
    "rocksdb": ("bandana_kv.adapters.rows_rocksdb", "RocksdbRows", "rocksdict"),
}


MAX_AGE_S = 5.0
"""So old what lookups see of a database that others write may be, if nothing else is said."""

Pairs = list[tuple[bytes, bytes]]
"""Keys with their values."""


class KeyedRows(ABC):
    """Rows of one dtype, one a key; a source of rows, for any number of threads.

    Parameters
    ----------
    where
        The path or handle, as messages name it.
    key
        One of :data:`KEY_CODECS`, or a function ``(table, ids)`` that returns keys.
    dtype
        Of the numbers in a value, byte order included.
    inner
        The column family or sub-database, None for the main one.
    prefix
        What stands before what the codec makes.

    Attributes
    ----------
    dtype : numpy.dtype
        Of the rows that are given, little-endian.
    value_dtype : numpy.dtype
        Of the numbers in a value: the same, or of the other byte order.
    key : str
        The codec's name; of a function of one's own, what Python calls it.
    inner : str or None
    prefix : bytes

    Raises
    ------
    InputError
        An unknown codec, or a dtype that is not numeric.
    """

    name: ClassVar[str]

    def __init__(
        self,
        where: str,
        key: str | KeyCodec,
        dtype: npt.DTypeLike,
        inner: str | None,
        prefix: bytes,
    ) -> None:
        self.key = key if isinstance(key, str) else getattr(key, "__qualname__", repr(type(key)))
        if isinstance(key, str):
            if key not in KEY_CODECS:
                raise InputError(f"no key codec {key!r}; there are {', '.join(KEY_CODECS)}")
            key = KEY_CODECS[key]
        if not callable(key):
            raise InputError(f"key {key!r} is neither a codec's name nor a function (table, ids)")
        try:
            self.value_dtype = np.dtype(dtype)
        except TypeError as error:
            raise InputError(f"dtype {dtype!r} is none of numpy's") from error
        self.dtype = self.value_dtype.newbyteorder("<")
        if self.dtype.kind not in _KINDS:
            raise InputError(f"dtype {self.dtype} is not numeric; tables hold numbers")
        if not isinstance(prefix, bytes):
            raise InputError(f"prefix {prefix!r} is not bytes")
        self.prefix = prefix
        self.inner = inner
        self._where = where
        self._codec = key

    @abstractmethod
    def _values(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        """Return the value of each key, None where there is none."""

    @abstractmethod
    def _batches(self, prefix: bytes, after: bytes | None) -> Iterator[Pairs]:
        """Yield every key with `prefix` behind the key `after`, with its value, in their order.

        In batches of :func:`batch_size`; whoever goes through them may pause between two.
        """

    @abstractmethod
    def state(self) -> dict[str, str | int]:
        """Return what tells one state of the database from another, as scans see it."""

    @abstractmethod
    def count(self) -> int:
        """Return how many keys there are, or about how many, whatever their prefix."""

    @abstractmethod
    def close(self) -> None:
        """Release what was opened; a second call does nothing."""

    def rows(self, table: str, ids: NDArray[np.int64]) -> NDArray[Any]:
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
        if self.prefix and all(isinstance(key, bytes) for key in keys):
            keys = [self.prefix + key for key in keys]
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
        if len(lengths) > 1 or any(length % self.dtype.itemsize for length in lengths):
            raise FallbackError(
                f"table {table!r}: values in {self.name} at {self._where} are "
                f"{', '.join(map(str, sorted(lengths)))} bytes long, not rows of {self.dtype}"
            )
        return self.numbers(found).reshape(ids.size, -1)

    def numbers(self, values: Sequence[bytes]) -> NDArray[Any]:
        """Return the numbers of values, one after the other, in one array of :attr:`dtype`."""
        stored = np.frombuffer(bytearray().join(values), self.value_dtype)
        return stored.astype(self.dtype, copy=False)

    def scan(
        self, table: str, after: bytes | None = None
    ) -> Iterator[tuple[list[bytes], list[bytes]]]:
        """Yield the keys of `table` and their values, in the order of the keys, in batches.

        Parameters
        ----------
        table
            Its name, which may be a part of every key.
        after
            Begin behind this key.

        Raises
        ------
        AdapterError
            The engine failed, or cannot show the rows of an earlier scan any more.

        Notes
        -----
        Whoever writes meanwhile, all scans see the rows that there were when the database was
        opened, or at the first scan. Keys of other prefixes are neither read nor counted.
        *Cost*: reads the values once, in the order of the keys; some 4 MiB of memory.
        """
        try:
            for batch in self._batches(self._prefix_of(table), after):
                yield [key for key, _ in batch], [value for _, value in batch]
        except BandanaError:
            raise
        except Exception as error:
            raise AdapterError(f"{self.name} at {self._where} failed: {error}") from error

    def ids_of(self, table: str, keys: Sequence[bytes]) -> NDArray[np.int64]:
        """Return the ids of keys that a scan of `table` gave, int64 (n,); -1: it is of none.

        Raises
        ------
        InputError
            The codec is a function that only makes keys, or did not give an id for each.
        """
        if not isinstance(self._codec, Codec):
            raise InputError(
                f"ids cannot be read back from keys by {self.key}: give a Codec(encode, decode)"
            )
        found = np.asarray(self._codec.decode(self.behind_prefix(table, keys)))
        if found.shape != (len(keys),) or found.dtype != np.int64:
            raise InputError(
                f"the decoder gave {found.dtype} of shape {found.shape} for {len(keys)} keys, "
                "not int64, one for each"
            )
        return found

    def behind_prefix(self, table: str, keys: Sequence[bytes]) -> Sequence[bytes]:
        """Return what is behind the prefix in keys that a scan of `table` gave."""
        skip = len(self._prefix_of(table))
        return [key[skip:] for key in keys] if skip else keys

    def origin(self) -> dict[str, str | int]:
        """Return where the rows come from, in which state, and how keys and values are read."""
        return {
            "engine": self.name,
            "path": os.path.realpath(self._where),
            "inner": self.inner or "",
            "key": self.key,
            "prefix": self.prefix.hex(),
            "dtype": self.value_dtype.str,
            **self.state(),
        }

    def _prefix_of(self, table: str) -> bytes:
        own = self._codec.prefix(table) if isinstance(self._codec, Codec) else b""
        return self.prefix + own

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def batch_size(before: Pairs) -> int:
    """Return how many pairs are read at once after such a batch: memory stays bounded."""
    mean_bytes = 1 + sum(len(value) for _, value in before) // len(before)
    return max(1, min(_SCANNED_KEYS, _SCANNED_BYTES // mean_bytes))


@permission_named()
def open_rows(
    engine: str,
    path: str | os.PathLike[str],
    *,
    key: str | KeyCodec = "uint64-be",
    dtype: npt.DTypeLike = "float32",
    inner: str | None = None,
    prefix: bytes = b"",
    max_age_s: float = MAX_AGE_S,
) -> KeyedRows:
    """Open rows by key, to read only; nothing is created.

    Parameters
    ----------
    engine
        ``"lmdb"`` or ``"rocksdb"``.
    path
        The database's directory; of an LMDB environment without one (``subdir=False``) its file,
        under the name by which others open it.
    key
        One of :data:`KEY_CODECS`, or a function ``(table, ids)`` that returns keys; or a
        :class:`Codec`, which can read ids back.
    dtype
        Of the numbers in a value, in their byte order: ``">f4"`` for big-endian ones, as Java
        writes them. Rows are given little-endian.
    inner
        The column family, or the sub-database; by default the main one.
    prefix
        What stands before what the codec makes, as in ``emb:user:123``.
    max_age_s
        Lookups see what others had written this long ago, at the latest: a RocksDB is opened anew
        where it has changed, in the thread that looks up then. 0 looks every time. LMDB shows
        what was committed before each lookup anyhow.

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
    if engine not in ENGINES:
        raise InputError(f"rows by key are not read from {engine!r}, but {', '.join(ENGINES)}")
    if not max_age_s >= 0:
        raise InputError(f"max_age_s {max_age_s!r} is not a number of seconds from 0 up")
    module, attribute, package = ENGINES[engine]
    try:
        found = getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        raise MissingExtraError(
            f"rows in {engine} need a package: pip install {package} ({error})"
        ) from error
    opened: KeyedRows = found(
        Path(path).absolute(),
        key=key,
        dtype=dtype,
        inner=inner,
        prefix=prefix,
        max_age_s=max_age_s,
    )
    return opened


def shown_key(key: bytes) -> str:
    """Return a row's key as messages name it: in hexadecimal, and as Python writes it."""
    more = "..." if len(key) > _SHOWN_KEY_BYTES else ""
    return f"{key[:_SHOWN_KEY_BYTES].hex()}{more} ({key[:_SHOWN_KEY_BYTES]!r}{more})"
