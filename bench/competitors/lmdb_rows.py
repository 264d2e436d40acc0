"""One row per key in LMDB, without read-ahead.

Keys are 4-byte integers in the machine's order, appended in order, so that leaf pages are full:
28 rows of 128 bytes a page. `get` releases the GIL while it faults a page in; `getmulti` takes a
list at once. The page cache is all it has.
"""

from __future__ import annotations

from pathlib import Path

import lmdb
import numpy as np
from numpy.typing import NDArray

from competitors import Reader, Splitting, chunks

VARIANTS = [{"width": width, "many": many} for width, many in ((0, False), (16, False), (16, True))]


def build(rows: Path, path: Path) -> None:
    map_bytes = 2 * rows.stat().st_size + (64 << 20)
    environment = lmdb.open(str(path), map_size=map_bytes, max_dbs=1, sync=False)
    database = environment.open_db(b"rows", integerkey=True)
    for first, part in chunks(rows):
        keys = np.arange(first, first + len(part), dtype=np.uint32)
        with environment.begin(write=True, db=database) as txn:
            for key, row in zip(keys, part, strict=True):
                txn.put(key.tobytes(), row.tobytes(), append=True)
    environment.sync(True)
    environment.close()


class LmdbRows(Splitting):
    def __init__(self, path: Path, width: int, many: bool) -> None:
        super().__init__(width)
        self._environment = lmdb.open(
            str(path), readonly=True, readahead=False, max_dbs=1, max_readers=1024, lock=False
        )
        self._database = self._environment.open_db(b"rows", integerkey=True, create=False)
        self._many = many

    def read_part(self, ids: NDArray[np.int32], out: NDArray[np.float32]) -> None:
        stored = ids.astype(np.uint32).tobytes()
        keys = [stored[at : at + 4] for at in range(0, len(stored), 4)]
        with self._environment.begin(db=self._database, buffers=True) as txn:
            if self._many:
                with txn.cursor() as cursor:
                    values = [value for _, value in cursor.getmulti(keys)]
                    joined = b"".join(values)
            else:
                joined = b"".join(map(txn.get, keys))
        out[:] = np.frombuffer(joined, np.float32).reshape(out.shape)

    def close(self) -> None:
        super().close()
        self._environment.close()


def open(path: Path, cache_bytes: int, width: int, many: bool) -> Reader:
    del cache_bytes  # the page cache is all it has
    return LmdbRows(path, width, many)
