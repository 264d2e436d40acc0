"""The arrays beside a table's blocks, each checked to be what it says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from bandana_kv.disk import manifest
from bandana_kv.disk.arrays import map_array
from bandana_kv.disk.block_map import (
    KIND,
    entries_of,
    labels_of,
    numbers_of,
    read_block_map,
    stamps_of,
)
from bandana_kv.disk.placement import Placement
from bandana_kv.disk.table_keys import open_keys, texts_path
from bandana_kv.errors import FormatError
from bandana_kv.kernels.bitpack import unpack, words_for
from bandana_kv.kernels.views import readable
from bandana_kv.keys.texts import TEXT_KINDS, Texts

__all__ = ["TableFiles"]


@dataclass(frozen=True)
class TableFiles:
    """The arrays beside a table's blocks."""

    root: Path
    table: manifest.Table

    def _mapped(
        self, kind: str, dtype: DTypeLike, items: int, below: int | None = None
    ) -> NDArray[Any]:
        if items == 0:
            return np.zeros(0, dtype)
        table = self.table
        path = manifest.table_file(self.root, table.files, table.space, kind)
        return map_array(path, kind, dtype, items, below)

    def positions(self) -> NDArray[np.uint32]:
        """Return the position of each id; FormatError unless they are a permutation."""
        rows = self.table.rows
        positions = unpack(self._mapped("positions", np.uint64, words_for(rows)), rows)
        if not _is_permutation(positions):
            raise FormatError(self._bad("positions", "is no permutation"))
        return positions

    def ids(self) -> NDArray[np.uint32]:
        """Return the id at each position; raises as :meth:`positions`."""
        table = self.table
        placement = Placement(self.positions(), table.rows_per_block, table.placement)
        return placement.id_of_position()

    def heat(self) -> NDArray[np.uint8]:
        """Return how hot each position is."""
        return self._mapped("heat", np.uint8, self.table.rows)

    def original_of(self) -> NDArray[np.uint32]:
        """Return the positions that copies are of; FormatError unless they are what they say."""
        rows, copies = self.table.rows, self.table.copies
        original_of = self._mapped("original-of", np.uint32, copies, rows)
        by_position = self._mapped("by-position", np.uint32, copies, copies)
        if not _is_permutation(by_position):
            raise FormatError(self._bad("by-position", "is no permutation"))
        ordered = original_of[by_position].astype(np.int64)
        if bool((np.diff(ordered) <= 0).any()):
            raise FormatError(self._bad("original-of", "names no distinct rows in that order"))
        return original_of

    def block_map(self) -> NDArray[np.int64] | None:
        """Return where blocks lie; FormatError unless it is of these positions."""
        entries = read_block_map(self.root, self.table)
        if entries is None:
            return None
        if np.unique(numbers_of(entries)).size != entries.size:
            raise FormatError(self._bad(KIND, "has two blocks in one place"))
        per_block, blocks = self.table.rows_per_block, np.arange(entries.size)
        ids = readable(self.ids())
        whole = -(-ids.size // per_block)
        stamps = np.concatenate(
            [
                stamps_of(ids, per_block, blocks[:whole]),
                stamps_of(readable(ids[self.original_of()]), per_block, blocks[whole:] - whole),
            ]
        )
        placed = labels_of(entries, blocks) != blocks
        if not np.array_equal(
            labels_of(entries, blocks)[placed], entries_of(blocks, stamps)[placed]
        ):
            raise FormatError(self._bad(KIND, "is of other positions"))
        return entries

    def check_keys(self) -> None:
        """FormatError unless the keys, where there are some, are as they were written."""
        keys = open_keys(self.root, self.table, verify=True)
        if keys is None:
            return
        ids = keys.live_ids()
        if ids.size != len(keys):
            path = manifest.key_changes_path(self.root, self.table)
            raise FormatError(f"{path}: two keys have one row; restore it from a backup")
        texts = texts_path(self.root, self.table)
        if keys.kind in TEXT_KINDS and texts.exists():
            Texts(texts, keys)

    def _bad(self, kind: str, what: str) -> str:
        path = manifest.table_file(self.root, self.table.files, self.table.space, kind)
        return f"{path}: {what}; load the table again"


def _is_permutation(numbers: NDArray[np.uint32]) -> bool:
    seen = np.zeros(numbers.size, np.bool_)
    seen[numbers[numbers < numbers.size]] = True
    return bool(seen.all())
