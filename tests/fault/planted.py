"""Runs the torture with a bug that was put into the library on purpose.

Reads lines of JSON, the arguments of one run each, and prints what it found. Every run is a fork
of this process, where kernels are compiled and no engine was ever open.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import bandana_kv
from bandana_kv.adapters.blockfile import BlockfileAdapter
from bandana_kv.adapters.lmdb import LmdbAdapter
from bandana_kv.disk import blocks, manifest
from bandana_kv.disk.journal import Journal
from bandana_kv.load import loader
from bandana_kv.serve import replacement, updates
from bandana_kv.serve.table import ServedTable
from bandana_kv.testing import keyed, torture
from bandana_kv.testing.torture_actor import Actor


def no_checksums() -> None:
    blocks.bad_blocks = lambda *_: {}
    for adapter in (BlockfileAdapter, LmdbAdapter):
        adapter.reading = lambda *_: None  # else compiled code verifies


def switch_before_the_blocks() -> None:
    write = loader._write_segment

    def early(begun: Any, *rest: Any) -> Any:
        manifest.point_at(begun.root, begun.version)
        os.kill(os.getpid(), signal.SIGKILL)  # at this point, and not at a random one
        return write(begun, *rest)

    loader._write_segment = early


def no_snapshot() -> None:
    """Each table of a call is read from whatever version is served by then."""
    store = bandana_kv.EmbeddingStore
    one_table = store.multi_get

    def by_table(self: Any, table: Any, ids: Any = None, **options: Any) -> Any:
        if isinstance(table, str):
            return one_table(self, table, ids, **options)
        found = {}
        for name, each in table.items():
            found[name] = one_table(self, name, each)
            time.sleep(0.002)
        return found

    store.multi_get = by_table


def no_journal() -> None:
    Journal._write = lambda *_: None


def late_journal() -> None:
    """Half of an update is safe when it is acknowledged."""
    append = Journal.append

    def half(self: Any, space: int, ids: Any, rows: Any, words: Any = None, *rest: Any) -> int:
        some = (ids.size + 1) // 2
        return append(
            self, space, ids[:some], rows[:some], None if words is None else words[:some], *rest
        )

    Journal.append = half


def place_over_blocks_in_use() -> None:
    replacement.free_numbers = lambda _, count: np.arange(count, dtype=np.int64)


def a_foreign_error() -> None:
    def fail(*_: Any) -> None:
        raise KeyError("planted")

    bandana_kv.EmbeddingStore.refresh = fail


def keys_that_are_not_kept() -> None:
    """What keys came and went is gone with the journal."""
    updates.keep_keys = lambda *_: 0


def keys_before_rows() -> None:
    """Whoever finds a new key just then is answered with what lies there."""
    take = ServedTable.take

    def keys_first(self: Any, record: Any) -> None:
        if record.words is not None and not record.deletes:
            ids = record.ids.astype(np.int64)
            self.keys.apply(record.words, ids, record.sequence, record.texts)
            time.sleep(0.002)
        take(self, record)

    ServedTable.take = keys_first


BUGS: dict[str, Callable[[], None]] = {
    "": lambda: None,
    "no checksums": no_checksums,
    "switch before the blocks": switch_before_the_blocks,
    "no snapshot": no_snapshot,
    "no journal": no_journal,
    "late journal": late_journal,
    "place over blocks in use": place_over_blocks_in_use,
    "a foreign error": a_foreign_error,
    "keys that are not kept": keys_that_are_not_kept,
    "keys before rows": keys_before_rows,
}


# What shows a bug is done again and again, not hoped for among other things.
SHOWN_BY: dict[str, tuple[str, ...]] = {
    "switch before the blocks": ("load",),
    "no snapshot": ("load",),
    "no journal": ("update", "update", "load"),
    "late journal": ("update", "update", "load"),
    "place over blocks in use": ("place", "place", "load"),
}


def main() -> None:
    harnesses = {"torture": torture, "keyed": keyed}
    for harness in harnesses.values():
        harness._warm_up("blockfile")
        harness._warm_up = lambda _: None
    for line in sys.stdin:
        asked = json.loads(line)
        if os.fork() == 0:
            found = {}
            try:
                bug = asked.pop("bug")
                BUGS[bug]()
                Actor.kinds = SHOWN_BY.get(bug, Actor.kinds)
                harness = harnesses[asked.pop("harness")]
                found = harness.run(Path(asked.pop("directory")), **asked)
            finally:
                print(json.dumps(found), flush=True)
                os._exit(0)
        os.wait()


if __name__ == "__main__":
    main()
