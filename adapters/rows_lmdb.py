"""Rows by key in an LMDB environment that somebody else writes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import lmdb
import numpy.typing as npt

from bandana_kv.adapters.gate import StaleHandleError
from bandana_kv.adapters.lmdb import acquire, release
from bandana_kv.adapters.rows import KeyCodec, KeyedRows
from bandana_kv.errors import AdapterError, InputError, StoreNotFoundError

__all__ = ["LmdbRows"]

_DATA_FILE = "data.mdb"


class LmdbRows(KeyedRows):
    """Rows in an environment's main database, or in a named one; sees what a writer commits.

    A process must not open an environment twice: one that it has open already is read with a
    function as the source. Parameters as of :func:`bandana_kv.adapters.rows.open_rows`.
    """

    name: ClassVar[str] = "lmdb"

    def __init__(
        self, path: Path, *, key: str | KeyCodec, dtype: npt.DTypeLike, inner: str | None = None
    ) -> None:
        super().__init__(str(path), key, dtype)
        if path.is_file():
            raise InputError(f"{path}: name the environment's directory")
        if not (path / _DATA_FILE).is_file():
            raise StoreNotFoundError(f"no {self.name} environment at {path}")
        self._inner = None if inner is None else inner.encode()
        self._closed = False
        try:
            self._environment = acquire(path, read_only=True, map_bytes=0)
        except (lmdb.Error, OSError) as error:
            raise AdapterError(f"{self.name} at {path} cannot be opened: {error}") from error
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
                with environment.gate:
                    environment.check()
                    return self._read(environment.handle, keys)
            except (StaleHandleError, lmdb.Error) as error:
                if not environment.recover(error):
                    raise

    def _read(self, handle: lmdb.Environment, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        # The engine keeps the database open, and knows it by its name.
        database = None if self._inner is None else handle.open_db(self._inner, create=False)
        with handle.begin(db=database) as txn:
            return [txn.get(key) for key in keys]

    def close(self) -> None:
        """Close the environment; a second call does nothing."""
        if not self._closed:
            self._closed = True
            release(self._environment)
