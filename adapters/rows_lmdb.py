"""Rows by key in an LMDB environment that somebody else writes."""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Iterator, Sequence
from itertools import islice, takewhile
from pathlib import Path
from typing import ClassVar

import lmdb
import numpy.typing as npt

from bandana_kv.adapters.gate import StaleHandleError
from bandana_kv.adapters.lmdb_environment import DATA_FILE, acquire, release
from bandana_kv.adapters.rows import KeyCodec, KeyedRows, Pairs, batch_size
from bandana_kv.errors import AdapterError, InputError, StoreNotFoundError
from bandana_kv.system.permission import check_permission, denied_by_engine

__all__ = ["LmdbRows"]

_MAGIC = b"\xde\xc0\xef\xbe"
_META_BYTES = 64


class LmdbRows(KeyedRows):
    """Rows in an environment's main database, or in a named one; sees what a writer commits.

    A process must not open an environment twice: one that it has open already is read with a
    function as the source. Parameters as of :func:`bandana_kv.adapters.rows.open_rows`.
    """

    name: ClassVar[str] = "lmdb"

    def __init__(
        self,
        path: Path,
        *,
        key: str | KeyCodec,
        dtype: npt.DTypeLike,
        inner: str | None = None,
        prefix: bytes = b"",
        max_age_s: float = 0,
    ) -> None:
        del max_age_s  # each lookup has a transaction of its own
        super().__init__(str(path), key, dtype, inner, prefix)
        file = path if path.is_file() else path / DATA_FILE
        if not file.is_file():
            raise StoreNotFoundError(f"no {self.name} environment at {path}")
        _refuse_others(file)
        self._inner = None if inner is None else inner.encode()
        self._closed = False
        self._snapshot: lmdb.Transaction[bytes] | None = None
        self._scanned_txn: int | None = None
        try:
            self._environment = acquire(path, read_only=True, map_bytes=0)
        except (lmdb.Error, OSError) as error:
            where = f"{self.name} at {path}"
            raise denied_by_engine(where, error) or AdapterError(
                f"{where} cannot be opened: {error}"
            ) from error
        try:
            self._values([])
        except lmdb.NotFoundError as error:
            self.close()
            raise StoreNotFoundError(f"{self.name} at {path} has no database {inner!r}") from error
        except BaseException:
            self.close()
            raise

    def _values(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        if self._closed:
            raise AdapterError(f"{self.name} at {self._where} is closed")
        environment = self._environment
        while True:
            try:
                with environment.gate.inside:
                    environment.check()
                    return self._read(environment.handle, keys)
            except (StaleHandleError, lmdb.Error) as error:
                if not environment.recover(error):
                    raise

    def _read(self, handle: lmdb.Environment, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        with self._begin(handle) as txn:
            return [txn.get(key) for key in keys]

    def _begin(self, handle: lmdb.Environment) -> lmdb.Transaction[bytes]:
        # The engine keeps the database open, and knows it by its name.
        database = None if self._inner is None else handle.open_db(self._inner, create=False)
        return handle.begin(db=database, buffers=False)

    def _batches(self, prefix: bytes, after: bytes | None) -> Iterator[Pairs]:
        # Without reading ahead a cold scan takes several times as long.
        self._advise(mmap.MADV_NORMAL)
        try:
            most = 1
            while batch := self._batch(prefix, after, most):
                yield batch
                after, most = batch[-1][0], batch_size(batch)
        finally:
            self._advise(mmap.MADV_RANDOM)

    def _batch(self, prefix: bytes, after: bytes | None, most: int) -> Pairs:
        start = prefix if after is None else after
        with self._scanned() as txn, txn.cursor() as cursor:
            self._refuse_order(txn, prefix)
            found = cursor.set_range(start) if start else cursor.first()
            if found and cursor.key() == after:
                found = cursor.next()
            pairs = takewhile(lambda pair: pair[0].startswith(prefix), cursor.iternext())
            batch = list(islice(pairs, most)) if found else []
            self._environment.pages.after_reads(len(batch))
        return batch

    def _advise(self, advice: int) -> None:
        with self._environment.gate.inside:
            self._environment.pages.advise(advice)

    def _refuse_order(self, txn: lmdb.Transaction[bytes], prefix: bytes) -> None:
        """Refuse a database with several values a key, or whose order tears prefixes apart."""
        handle = self._environment.handle
        flags = handle.open_db(self._inner, txn=txn, create=False).flags(txn)  # type: ignore[call-arg]
        where = f"{self.name} at {self._where}"
        if flags["dupsort"]:
            raise InputError(f"{where}: the database has several values a key (dupsort)")
        if prefix and (flags["reverse_key"] or flags["integerkey"]):
            raise InputError(f"{where}: the database is not in the order of prefixes of its keys")

    @contextlib.contextmanager
    def _scanned(self) -> Iterator[lmdb.Transaction[bytes]]:
        """Give the transaction of all scans, while the environment cannot be closed."""
        if self._living() is None:
            # Takes a slot of a dead reader, opens it again, or with a map that has grown.
            self._values([])
        with self._environment.gate.inside:
            self._environment.check()
            txn = self._snapshot = self._living() or self._begin(self._environment.handle)
            if self._scanned_txn not in (None, txn.id()):
                raise AdapterError(
                    f"{self.name} at {self._where}: somebody has written, and the rows of the "
                    "first scan are gone: the process has forked, or looked rows up in a map that "
                    "grew"
                )
            self._scanned_txn = txn.id()
            yield txn

    def _living(self) -> lmdb.Transaction[bytes] | None:
        """Return the transaction of earlier scans, unless the environment was closed since."""
        try:
            if self._snapshot is not None:
                self._snapshot.id()
        except lmdb.Error:
            return None
        return self._snapshot

    def state(self) -> dict[str, str | int]:
        """Return the file's inode and the number of the last transaction."""
        with self._scanned() as txn:
            number = txn.id()
        return {"inode": self._environment.data_file.stat().st_ino, "transaction": number}

    def count(self) -> int:
        """Return how many keys there are."""
        with self._scanned() as txn:
            database = self._environment.handle.open_db(self._inner, txn=txn, create=False)
            return int(txn.stat(database)["entries"])

    def close(self) -> None:
        """Close the environment; a second call does nothing."""
        if not self._closed:
            self._closed = True
            if (txn := self._living()) is not None:
                txn.abort()
            release(self._environment)


def _refuse_others(file: Path) -> None:
    """Refuse what is no environment's: opening it would leave a lock file beside it."""
    try:
        with file.open("rb") as opened:
            head = opened.read(_META_BYTES)
    except OSError as error:
        check_permission(error, file)
        raise AdapterError(f"lmdb at {file} cannot be opened: {error}") from error
    if _MAGIC not in head:
        raise AdapterError(f"lmdb at {file} cannot be opened: it is no environment's file")
