"""The blocks of a table, gathered from its rows in the order of a placement, and sealed."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from bandana_kv import adapters
from bandana_kv.adapters.contract import empty_payloads
from bandana_kv.disk import blocks
from bandana_kv.load.jobs import Job
from bandana_kv.placement import Placement
from bandana_kv.progress import Progress

if TYPE_CHECKING:
    from bandana_kv.adapters.contract import Keys, Payloads

__all__ = ["one_ahead", "sealed_blocks"]

_CHUNK_BYTES = 16 << 20
# Rows in the order of a placement lie anywhere in their source. Of a sixteenth of them, several
# lie close together there, and are read at once.
_WINDOWS, _LEAST_WINDOW_BYTES, _MOST_WINDOW_BYTES = 16, 64 << 20, 256 << 20
Batch: TypeAlias = "tuple[Keys, Payloads]"


def one_ahead(batches: Iterator[Batch]) -> Generator[Batch]:
    """Make each batch while the engine still writes the one before."""
    with ThreadPoolExecutor(1, thread_name_prefix="bandana-kv-seal") as thread:
        coming = thread.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = thread.submit(next, batches, None)
            yield batch


def sealed_blocks(
    job: Job, placement: Placement, payload_bytes: int, progress: Progress
) -> Iterator[Batch]:
    """Seal the table's blocks, then those of copies, in the order of their keys."""
    ids = placement.id_of_position()
    yield from _sealed_run(job, placement, payload_bytes, 0, ids, progress)
    if placement.replicas is not None:
        copies = placement.replicas
        first = placement.blocks
        yield from _sealed_run(job, placement, payload_bytes, first, copies, progress)


def _sealed_run(
    job: Job,
    placement: Placement,
    payload_bytes: int,
    first_block: int,
    ids: NDArray[np.uint32],
    progress: Progress,
) -> Iterator[Batch]:
    """Gather rows `ids` into blocks from `first_block` on, and seal them."""
    per_block = placement.rows_per_block
    in_order = placement.method == "identity"
    chunk = max(1, _CHUNK_BYTES // payload_bytes)
    window_bytes = ids.size * job.stored.row_bytes // _WINDOWS
    window_bytes = min(max(window_bytes, _LEAST_WINDOW_BYTES), _MOST_WINDOW_BYTES)
    window = chunk if in_order else max(chunk, window_bytes // payload_bytes)
    # New memory for each batch would cost as much as filling it. One is written meanwhile.
    held = [empty_payloads(chunk, payload_bytes) for _ in range(2)]
    held_rows = np.empty((window * per_block, job.stored.row_bytes), np.uint8)
    copies = 0 if placement.replicas is None else placement.replicas.size
    turn = 0
    for first in range(0, -(-ids.size // per_block), window):
        of_window = ids[first * per_block : (first + window) * per_block]
        rows = _gathered(job, of_window, held_rows, per_block)
        for at in range(0, len(rows), chunk):
            part = rows[at : at + chunk]
            payloads, turn = held[turn][: len(part)], 1 - turn
            _fill(payloads, part)
            numbers = np.arange(len(part), dtype=np.int64) + first_block + first + at
            blocks.seal(
                payloads,
                job.space,
                numbers,
                placement.rows,
                copies,
                per_block,
                job.stored.row_bytes,
            )
            yield adapters.block_keys(job.space, numbers), payloads
            progress.advance(len(part))


def _gathered(
    job: Job, ids: NDArray[np.uint32], held: NDArray[np.uint8], per_block: int
) -> NDArray[np.uint8]:
    """Return the rows of `ids` by block, zeros behind the last: uint8 (blocks, bytes of rows)."""
    count = -(-ids.size // per_block)
    given = int(np.count_nonzero(ids < job.stored.rows))  # spare ones are the last
    job.stored.gather(ids[:given], held[:given])
    held[given : count * per_block] = 0
    return held[: count * per_block].reshape(count, -1)


def _fill(payloads: NDArray[np.uint8], rows: NDArray[np.uint8]) -> None:
    end = blocks.HEADER_BYTES + rows.shape[1]
    payloads[:, : blocks.HEADER_BYTES] = 0
    payloads[:, blocks.HEADER_BYTES : end] = rows
    payloads[:, end:] = 0
