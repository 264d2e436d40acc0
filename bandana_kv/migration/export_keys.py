"""The keys of a table, on their way into a file beside its rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bandana_kv.disk import manifest
from bandana_kv.disk.table_keys import texts_path
from bandana_kv.keys.texts import Texts

if TYPE_CHECKING:
    from bandana_kv.serve.store import EmbeddingStore

__all__ = ["TableKeys", "keys_of", "raw_parts"]

_MANY = 1 << 16


class TableKeys(NamedTuple):
    """Keys in the order of the ids: `numbers` (rows,), or of text and bytes `texts`."""

    kind: str
    numbers: NDArray[Any] | None
    texts: Texts | None

    @property
    def offsets(self) -> NDArray[np.int64]:
        """Where each text begins in all of them, (rows + 1,)."""
        assert self.texts is not None
        return np.concatenate([[0], np.cumsum(self.texts.lengths, dtype=np.int64)])


def keys_of(root: Path, table: str, store: EmbeddingStore) -> TableKeys | None:
    """Return the keys of a table in the version that a store serves; None: it has none.

    Raises
    ------
    FormatError
        The files that have them are damaged.
    """
    entry = manifest.read_version(root, store.version).tables[table]
    if not entry.keys:
        return None
    if entry.keys in ("int64", "uint64"):
        return TableKeys(entry.keys, store.keys(table), None)
    served = store.key_changes(table)
    assert served is not None
    return TableKeys(entry.keys, None, Texts(texts_path(root, entry), served))


def raw_parts(keys: TableKeys) -> Iterator[bytes]:
    """Yield the bytes of keys of text, all behind one another."""
    assert keys.texts is not None
    rows = keys.texts.lengths.size
    for first in range(0, rows, _MANY):
        yield keys.texts.raw(first, min(first + _MANY, rows))
