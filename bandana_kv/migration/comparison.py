"""The rows of a version that is not served yet, compared with those of their source."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bandana_kv.care.table_arrays import TableFiles
from bandana_kv.care.verification import opened_engine, stored
from bandana_kv.device.advice import DEFAULT_DEPTH
from bandana_kv.disk.blocks import HEADER_BYTES
from bandana_kv.disk.manifest import Manifest
from bandana_kv.errors import MigrationError
from bandana_kv.kernels.compile import kernel, signed
from bandana_kv.migration.extraction import Reading, digest, digests
from bandana_kv.progress import Progress
from bandana_kv.serve.reader import BlockReader

if TYPE_CHECKING:
    from bandana_kv.adapters.contract import Adapter

__all__ = ["Compared", "compare", "expected_digests"]

_CHUNK_BYTES = 16 << 20
_AT_ONCE = 64
_LISTED = 5


class Compared(NamedTuple):
    """Sums of the digests of all rows, modulo 2^64: the same if all rows are."""

    source: int
    store: int


def expected_digests(
    reading: Reading, rows: int, missing: NDArray[np.int64], progress: Progress
) -> NDArray[np.uint64]:
    """Read the source once more; return the digest of each id with its row, uint64 (rows,).

    Rows of the ids `missing` are zeros.

    Raises
    ------
    MigrationError
        The source has not the rows any more that it had before.
    """
    expected = np.zeros(rows, np.uint64)
    row_bytes = reading.row_bytes or 0
    zeros = np.zeros((_AT_ONCE, row_bytes), np.uint8)
    for first in range(0, missing.size, _AT_ONCE):
        part = missing[first : first + _AT_ONCE]
        expected[part] = digests(part, zeros[: part.size])
    progress.start(f"compare {reading.table}", rows - missing.size, "rows")
    count = 0
    for batch in reading.batches():
        if batch.ids.size and int(batch.ids.max()) >= rows:
            raise _changed(reading.table, f"it has id {int(batch.ids.max())} now")
        expected[batch.ids] = digests(batch.ids, batch.rows)
        count += batch.ids.size
        progress.advance(batch.ids.size)
    progress.finish()
    if count != rows - missing.size:
        raise _changed(reading.table, f"it had {rows - missing.size} rows and has {count} now")
    return expected


def _changed(table: str, what: str) -> MigrationError:
    return MigrationError(
        f"table {table!r}: its source has changed while it was moved ({what}); nothing is served: "
        "restart it (restart=True, --restart)"
    )


@kernel
def _compare(
    payloads: np.ndarray,
    ids: np.ndarray,
    per_block: int,
    row_bytes: int,
    expected: np.ndarray,
    differs: np.ndarray,
) -> np.uint64:
    """Mark the ids whose rows in blocks are not those expected; return the sum of digests."""
    scratch = np.empty(8 + row_bytes, np.uint8)
    total = np.uint64(0)
    for i in range(ids.size):
        row_id, block = signed(ids[i]), i // per_block
        first = block * payloads.shape[1] + HEADER_BYTES + (i % per_block) * row_bytes
        found = digest(scratch, row_id, payloads, first, row_bytes)
        total += found
        if found != expected[row_id]:
            differs[row_id] = True
    return total


def compare(
    root: Path,
    new: Manifest,
    name: str,
    expected: NDArray[np.uint64],
    adapter: Adapter | None,
    progress: Progress,
) -> Compared:
    """Read all blocks of a table, second copies included, and compare every row.

    Raises
    ------
    MigrationError
        Names rows that are not those of the source.
    BlockCorruptError, BlockMissingError, AdapterError
        A block cannot be read, or is not what was written.
    """
    table = new.tables[name]
    differs = np.zeros(table.rows, np.bool_)
    total = 0
    with contextlib.ExitStack() as stack:
        engine = opened_engine(stack, root, new, table, adapter, read_only=True)
        where = stored(root, name, table, engine)
        reader = stack.enter_context(contextlib.closing(BlockReader(DEFAULT_DEPTH)))
        chunk = max(1, _CHUNK_BYTES // where.adapter.payload_bytes)
        progress.start(f"check {name}", table.blocks, "blocks")
        files = TableFiles(root, table)
        of_rows = files.ids()
        of_copies = of_rows[files.original_of()]
        first_block = 0
        for ids, counted in ((of_rows, True), (of_copies, False)):
            blocks = -(-ids.size // table.rows_per_block)
            for first in range(0, blocks, chunk):
                numbers = np.arange(first, min(first + chunk, blocks), dtype=np.int64)
                part = ids[first * table.rows_per_block :][: numbers.size * table.rows_per_block]
                payloads = reader.read(where, first_block + numbers)
                found = _compare(
                    payloads, part, table.rows_per_block, where.row_bytes, expected, differs
                )
                total += int(found) if counted else 0
                progress.advance(numbers.size)
            first_block += blocks
        progress.finish()
    if differs.any():
        listed = ", ".join(map(str, np.flatnonzero(differs)[:_LISTED].tolist()))
        raise MigrationError(
            f"table {name!r}: {int(differs.sum())} rows differ from their source, which may have "
            f"changed meanwhile: ids {listed}{', ...' if differs.sum() > _LISTED else ''}; nothing "
            "of it is served: restart it (restart=True, --restart)"
        )
    return Compared(int(expected.sum(dtype=np.uint64)), total % (1 << 64))
