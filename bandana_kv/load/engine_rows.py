"""Rows in a running RocksDB or LMDB, one a key, as the rows of a table.

In the order of its keys an engine gives rows for less than a lookup each, and in no other. So all
of them are read once, when the table is opened, into a file without a name, as everything is that
can only be read in order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bandana_kv.adapters.containers import container_of
from bandana_kv.adapters.rows import KeyedRows, shown_key
from bandana_kv.errors import InputError
from bandana_kv.keys.kinds import Kind, checked_kind
from bandana_kv.rows.positioned import PositionedFile, Run
from bandana_kv.rows.staged import unnamed_file, write_all
from bandana_kv.rows.table import RowSource

__all__ = ["EngineRows"]

_MOST_ROWS = (1 << 31) - 1
_FIXED = {"uint64-be": ">u8", "uint64-le": "<u8"}


class EngineRows(RowSource):
    """Rows of one table in an engine, by id or with the engine's own keys.

    Parameters
    ----------
    table
        Its name, which may be a part of every key.
    source
        Stays its owner's to close.
    kind
        None: a key says the id, as the source's key codec reads it; ids are 0 to rows - 1, each
        once. Else what comes behind the prefix is what rows are called by, in the order of the
        engine's keys: ``bytes`` as they are, ``str`` as UTF-8, ``int64`` and ``uint64`` as the key
        codec reads them.

    Raises
    ------
    InputError
        Keys of no id, two of one id, ids without a row; keys that are not of that kind; values of
        several lengths, or that are no bare numbers; no row at all; no such kind.
    DiskFullError
        The rows do not fit into the directory for temporary files.
    AdapterError
        The engine failed.

    Notes
    -----
    *Cost*: reads the table once, in the order of the engine's keys, and writes it once. Memory:
    4 MiB, and 16 bytes a row or its key.
    """

    def __init__(self, table: str, source: KeyedRows, kind: str | None = None) -> None:
        self._name = f"table {table!r}"
        self._source = source
        self._kind: Kind | None = None if kind is None else checked_kind(kind)
        self._parts: list[Any] = []
        self._row_bytes = 0
        file = unnamed_file(self._name)
        try:
            for keys, values in source.scan(table):
                self._check(keys, values)
                self._parts.append(self._called(table, keys))
                write_all(file, source.numbers(values), self._name)
            count = sum(len(part) for part in self._parts)
            if not count:
                raise InputError(
                    f"{self._name}: {source.name} has no row of it; are prefix and key codec right?"
                )
            self._describe(
                self._name, (count, self._row_bytes // source.dtype.itemsize), source.dtype
            )
            self._place = self._settled()
        except BaseException:
            file.close()
            raise
        self._file = PositionedFile(self._name, file)

    def gather(self, ids: NDArray[np.integer], out: NDArray[np.uint8]) -> None:
        """Copy the rows of `ids` (n,) into `out`, uint8 (n, row_bytes)."""
        places = ids if self._place is None else self._place[ids]
        self._file.gather(Run(0, self.row_bytes, self.row_bytes), places, out)

    def close(self) -> None:
        """Let go of the temporary file; the engine stays open."""
        self._file.close()

    def _check(self, keys: Sequence[bytes], values: Sequence[bytes]) -> None:
        if not self._row_bytes:
            self._row_bytes = len(values[0])
            found = container_of(values[0])
            if found is not None:
                raise InputError(
                    f"{self._name}: the value of key {shown_key(keys[0])} is {found}, not the bare "
                    "numbers of a row; write row.tobytes() under such keys, or load the array"
                )
        itemsize = self._source.dtype.itemsize
        for key, value in zip(keys, values, strict=True):
            if len(value) != self._row_bytes or not value or len(value) % itemsize:
                raise InputError(
                    f"{self._name}: the value of key {shown_key(key)} is {len(value)} bytes long, "
                    f"not a row of {self._source.dtype} of {self._row_bytes} bytes as the first"
                )

    def _called(self, table: str, keys: list[bytes]) -> Any:
        """Return the ids of keys, int64 (n,), or what rows are called by."""
        source = self._source
        if self._kind in ("bytes", "str"):
            behind = source.behind_prefix(table, keys)
            if self._kind == "bytes":
                return behind
            try:
                return [each.decode() for each in behind]
            except UnicodeDecodeError as error:
                raise InputError(
                    f"{self._name}: a key is no UTF-8 ({error}); take bytes"
                ) from error
        if self._kind is not None and source.key in _FIXED:
            behind = source.behind_prefix(table, keys)
            wrong = next((at for at, each in enumerate(behind) if len(each) != 8), None)
            if wrong is None:
                wide = np.frombuffer(b"".join(behind), _FIXED[source.key])
                return wide.astype(np.uint64).view(self._kind)
        else:
            ids = source.ids_of(table, keys)
            bad = (ids < 0) | (False if self._kind else ids >= _MOST_ROWS)
            wrong = int(bad.argmax()) if bad.any() else None
            if wrong is None:
                return ids if self._kind is None else ids.astype(self._kind)
        raise InputError(
            f"{self._name}: key {shown_key(keys[wrong])} is of no id by the key codec "
            f"{source.key!r}; name another codec or prefix, or have the keys as they are: "
            "Rows(source, keys='bytes')"
        )

    def _settled(self) -> NDArray[np.uint32] | None:
        """Return where the row of each id lies; None: in their order, and keys are kept."""
        if self._kind is not None:
            if self._kind in ("bytes", "str"):
                keys = np.empty(self.rows, object)
                keys[:] = [key for part in self._parts for key in part]
            else:
                keys = np.concatenate(self._parts)
            self.keys, self._parts = keys, []
            return None
        ids = np.concatenate(self._parts)
        self._parts = []
        if int(ids.max()) >= self.rows or np.bincount(ids, minlength=self.rows).max() > 1:
            self._refuse_ids(ids)
        place = np.empty(self.rows, np.uint32)
        place[ids] = np.arange(self.rows, dtype=np.uint32)
        return place

    def _refuse_ids(self, ids: NDArray[np.int64]) -> None:
        ordered = np.sort(ids)
        twice = ordered[1:][ordered[1:] == ordered[:-1]]
        if twice.size:
            raise InputError(f"{self._name}: id {twice[0]} has two keys, such as 7 and 007")
        first = int(np.flatnonzero(ordered != np.arange(ordered.size))[0])
        raise InputError(
            f"{self._name}: {self.rows} rows with ids up to {int(ordered[-1])}, and none of id "
            f"{first}; `migrate` fills such with zeros, and Rows(source, keys='int64') asks by them"
        )
