"""Bad blocks written anew, from rows of a source."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bandana_kv.care.table_arrays import TableFiles
from bandana_kv.care.verification import Report, bad_blocks_of, opened_engine, stored, verify
from bandana_kv.codecs import codec_named
from bandana_kv.codecs.unfit import encoded
from bandana_kv.device.advice import DEFAULT_DEPTH
from bandana_kv.disk import blocks as block_format
from bandana_kv.disk import ledger, manifest
from bandana_kv.disk.lock import writer_lock
from bandana_kv.disk.table_keys import open_keys
from bandana_kv.errors import FallbackError
from bandana_kv.progress import Progress
from bandana_kv.rows.source import Source, check_tables, checked_rows, source_of
from bandana_kv.serve.reader import BlockReader, StoredTable
from bandana_kv.system.addresses import by_address
from bandana_kv.system.permission import permission_named
from bandana_kv.system.threads import threads_named

if TYPE_CHECKING:
    from bandana_kv.adapters.contract import Adapter

__all__ = ["repair"]

# So many sound blocks are compared with the source before anything is written.
_COMPARED = 64
_CHUNK = 256


@by_address()
@permission_named()
@threads_named()
def repair(
    path: str | os.PathLike[str],
    source: object,
    *,
    adapter: Adapter | None = None,
    readers: int | None = None,
    progress: Progress | None = None,
) -> Report:
    """Write the bad blocks of the version that is served anew, and check the store again.

    Parameters
    ----------
    path
        The store's directory. Nobody else may be writing; a process that serves from it may
        have to open it again to see the repaired blocks.
    source
        Where rows come from, as for `fallback` of :func:`bandana_kv.open`. It must hold the rows
        that the version was made from.
    adapter, readers, progress
        As for :func:`bandana_kv.verify`.

    Returns
    -------
    Report
        Of the check afterwards. What is bad beside blocks of the served version stays as it
        is, and the report says what to do.

    Raises
    ------
    FallbackError, RowMissingError
        The source failed, or its rows are not those of blocks that are sound: nothing of the
        table was written.
    InputError
        The source gave a row that the table's codec cannot hold, whose id is named.
    LoadInProgressError
        Somebody is writing.
    FormatError
        The manifest, or the positions of a table with bad blocks, are damaged.

    Notes
    -----
    Cost: reads every block twice; writes each bad block once.
    """
    root = Path(path).absolute()
    rows = source_of(source)
    manifest.read_current(root)  # or the lock would make a directory of a mistyped path
    repaired = 0
    with writer_lock(root):
        current = manifest.read_current(root)
        check_tables(rows, current.tables)
        with contextlib.closing(BlockReader(readers or DEFAULT_DEPTH)) as reader:
            for name in current.tables:
                repaired += _repair_table(
                    root, current, name, rows, adapter, reader, progress or Progress()
                )
        report = verify(root, adapter=adapter, readers=readers, progress=progress)
    report.repaired_blocks = repaired
    return report


def _repair_table(
    root: Path,
    current: manifest.Manifest,
    name: str,
    source: Source,
    adapter: Adapter | None,
    reader: BlockReader,
    progress: Progress,
) -> int:
    """Write the bad blocks of a table anew; return how many."""
    table = current.tables[name]
    with contextlib.ExitStack() as stack:
        engine = opened_engine(stack, root, current, table, adapter, read_only=True)
        where = stored(root, name, table, engine)
        bad: list[int] = []
        for _, errors in bad_blocks_of(where, table.blocks, reader, progress):
            bad += errors
        if not bad:
            return 0
        made = _Blocks(table, where, source, TableFiles(root, table))
        _compare(made, where, np.setdiff1d(np.arange(table.blocks), bad), reader)
    meter = ledger.Meter()
    with contextlib.ExitStack() as stack:
        engine = opened_engine(stack, root, current, table, adapter, read_only=False)
        numbers = np.array(sorted(bad), np.int64)
        for first in range(0, numbers.size, _CHUNK):
            part = numbers[first : first + _CHUNK]
            engine.put_many(where.keys(part), made.sealed(part))
        handed_bytes = numbers.size * engine.payload_bytes
    ledger.note(root, meter.entry("repair", current.version, (name,), handed_bytes))
    return len(bad)


class _Blocks:
    """Makes the blocks of a table from rows of a source."""

    def __init__(
        self,
        table: manifest.Table,
        where: StoredTable,
        source: Source,
        files: TableFiles,
    ) -> None:
        self._table = table
        self._where = where
        self.name = where.name
        self._source = source
        self._payload_bytes = where.adapter.payload_bytes
        self._id_of_position = files.ids()
        self._id_of_copy = self._id_of_position[files.original_of()]
        keys = open_keys(files.root, table, verify=False)
        self._given = table.rows if keys is None else keys.next_id

    def are_loaded(self, block: int) -> bool:
        """Return whether all rows of a block came with the load, and with no key since."""
        return bool((self._ids(block) < self._table.rows - self._table.spare).all())

    def _ids(self, block: int) -> NDArray[np.uint32]:
        table = self._table
        whole = -(-table.rows // table.rows_per_block)
        ids = self._id_of_position if block < whole else self._id_of_copy
        first = (block if block < whole else block - whole) * table.rows_per_block
        return ids[first : first + table.rows_per_block]

    def sealed(self, numbers: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the payloads of blocks."""
        table, dtype = self._table, np.dtype(self._table.dtype)
        ids = [self._ids(block) for block in numbers.tolist()]
        distinct, inverse = np.unique(np.concatenate(ids).astype(np.int64), return_inverse=True)
        raw = np.zeros((distinct.size, table.row_bytes), np.uint8)  # as spare rows are
        known = distinct[distinct < self._given]
        rows = checked_rows(self._source, self.name, known, table.dim, dtype)
        if table.codec:
            floats = rows.astype(np.float32, copy=False)
            codec = codec_named(table.codec)
            raw[: known.size] = encoded(codec, f"table {self.name!r}", known, floats)
        else:
            raw[: known.size] = np.ascontiguousarray(rows).view(np.uint8)
        raw = raw[inverse]
        payloads = np.zeros((numbers.size, self._payload_bytes), np.uint8)
        used = 0
        for payload, of_block in zip(payloads, ids, strict=True):
            part = raw[used : used + of_block.size].reshape(-1)
            payload[block_format.HEADER_BYTES : block_format.HEADER_BYTES + part.size] = part
            used += of_block.size
        self._where.seal(payloads, numbers)
        return payloads


def _compare(
    made: _Blocks, where: StoredTable, sound: NDArray[np.int64], reader: BlockReader
) -> None:
    """Refuse a source whose rows are not those of sound blocks: it would mix two versions."""
    sound = sound[[made.are_loaded(block) for block in sound.tolist()]]
    if not sound.size:
        return
    at = np.unique(np.linspace(0, sound.size - 1, _COMPARED).astype(np.int64))
    numbers = sound[at]
    differ = (reader.read(where, numbers) != made.sealed(numbers)).any(axis=1)
    if differ.any():
        raise FallbackError(
            f"table {made.name!r}: the source has other rows than block "
            f"{int(numbers[differ][0])}, which is sound; repair it from the rows that this "
            "version was loaded from, or load the table again"
        )
