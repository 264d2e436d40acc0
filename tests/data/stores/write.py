"""Writes one of the kept stores with the release that is imported: see README.md beside it.

Called as ``write.py ENGINE STORE.tar.xz``. It uses only what every release with a store can do.
"""

from __future__ import annotations

import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import bandana_kv
from bandana_kv import AccessLog
from bandana_kv.placement import Placement

USERS, ITEMS, WORDS = 60, 40, 30


def users(generation: int) -> NDArray[np.float32]:
    """Return what the rows of "user" are; updated ones are of generation 1."""
    ids, columns = np.ogrid[:USERS, :128]
    return (1000 * generation + ids + columns / 128).astype(np.float32)


def items(generation: int) -> NDArray[np.int8]:
    """Return what the rows of "item" are in the first load, 0, and in the last, 1."""
    ids, columns = np.ogrid[:ITEMS, :16]
    return (50 * generation + ids + columns % 5).astype(np.int8)


def words() -> tuple[list[str], NDArray[np.float32]]:
    """Return the keys of "word", and its rows, of which int8-rowwise loses nothing."""
    steps = np.arange(16) * 17
    rows = np.arange(WORDS)[:, None] + steps / np.float32(255)
    return [f"word {number}" for number in range(WORDS)], rows.astype(np.float32)


def write(store: Path, engine: str) -> None:
    """Make a store with two versions, updates in blocks, and updates in the journal."""
    log = AccessLog.from_requests(np.random.default_rng(0).integers(0, USERS, (80, 6)))
    tables = {"user": users(0), "item": items(0)}
    more = {}
    if hasattr(bandana_kv, "Rows"):
        keys, rows = words()
        tables["word"] = bandana_kv.Rows(rows, keys=keys)
        more["store_as"] = {"word": "int8-rowwise"}
    bandana_kv.load(store, tables, {"user": log}, adapter=engine, replicate=0.5, **more)
    changed = users(1)
    with bandana_kv.open(store) as served:
        served.update("user", range(5), changed[:5])
        served.flush()
        if hasattr(served, "place_anew"):
            backwards = np.arange(USERS, dtype=np.uint32)[::-1].copy()
            per_block = served.placement("user").rows_per_block
            served.place_anew("user", Placement(backwards, per_block, "backwards"))
        served.update("user", range(3, 8), changed[3:8])
        served.flush()
    bandana_kv.load(store, {"item": items(1)}, adapter=engine)
    with bandana_kv.open(store) as served:
        served.update("user", [8, 9], changed[8:10])


def anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Leave out whose file it is, and RocksDB's log of what it did where."""
    if Path(member.name).name.startswith("LOG"):
        return None
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


def main() -> None:
    engine, archive = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store"
        write(store, engine)
        with tarfile.open(archive, "w:xz") as file:
            file.add(store, "store", filter=anonymous)


if __name__ == "__main__":
    main()
