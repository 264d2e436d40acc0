"""The reads of one request, as its scratch has them: which blocks, what came, what went wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bandana_kv.disk.blocks import REASONS, corrupt_block
from bandana_kv.errors import AdapterError
from bandana_kv.kernels.reads import FOUND, READ_WORDS
from bandana_kv.serve import answer, words

if TYPE_CHECKING:
    from bandana_kv.adapters.contract import Adapter, Words
    from bandana_kv.serve.failsafe import Deadline
    from bandana_kv.serve.reader import Errors, StoredTable

__all__ = [
    "blocks_of",
    "blocks_to_read",
    "errors_of",
    "read_by",
    "reads_of",
    "take_blocks",
    "tell",
]

Scratch = NDArray[np.int64]


def read_by(adapter: Adapter, count: int, use: Callable[[Words], int]) -> int | None:
    """Have compiled code read, as :meth:`Adapter.reading` says.

    None also where the engine fails as a whole: read by Python it says which blocks that concerns,
    and those go to the fallback, if there is one. What comes after `use` was called is raised:
    the request has claimed blocks by then, or is answered.
    """
    called = False

    def once(words: Words) -> int:
        nonlocal called
        called = True
        return use(words)

    try:
        return adapter.reading(count, once)
    except AdapterError:
        if called:
            raise
        return None


def reads_of(scratch: Scratch) -> NDArray[np.int64]:
    """Return the reads (n, READ_WORDS) that a request is to do, where they stand."""
    first = words.HEAD + words.ROWS_READ * int(scratch[words.IDS])
    count = int(scratch[words.READS])
    return scratch[first : first + READ_WORDS * count].reshape(count, READ_WORDS)


def blocks_of(scratch: Scratch, reads: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the blocks (n,) that some of its reads are for."""
    first = words.HEAD + words.BLOCKS * int(scratch[words.IDS])
    blocks: NDArray[np.int64] = scratch[first + reads[:, 3]]
    return blocks


def blocks_to_read(scratch: Scratch) -> NDArray[np.int64]:
    """Return the blocks (n,) that a request is to read, sorted."""
    return np.sort(blocks_of(scratch, reads_of(scratch)))


def take_blocks(
    scratch: Scratch, payloads: NDArray[np.uint8], wrong: Errors, errors: Errors
) -> None:
    """Give a request the verified payloads of :func:`blocks_to_read`.

    What is `wrong` with some of them is put into `errors`.
    """
    reads = reads_of(scratch)
    blocks = blocks_of(scratch, reads)
    if (blocks[1:] < blocks[:-1]).any():  # where each missed row reads its block for itself
        payloads = payloads[np.argsort(np.argsort(blocks, kind="stable"), kind="stable")]
    answer.take_payloads(scratch, payloads, 0)
    tell(scratch, reads, blocks, wrong, errors)


def tell(
    scratch: Scratch,
    reads: NDArray[np.int64],
    blocks: NDArray[np.int64],
    wrong: Errors,
    errors: Errors,
) -> None:
    """Note which reads, of `blocks`, went wrong, and how."""
    if wrong:
        bad = np.isin(blocks, list(wrong))
        reads[bad, FOUND] = -1
        first = words.HEAD + words.STATUS * int(scratch[words.IDS])
        scratch[first + reads[bad, 3]] = words.TOLD
        errors |= wrong


def errors_of(
    stored: StoredTable, scratch: Scratch, told: Errors, deadline: Deadline | None
) -> Errors:
    """Return what is wrong with blocks of a request, by their numbers; `told` knows of some."""
    count = int(scratch[words.IDS])
    statuses, blocks, found = (
        scratch[words.HEAD + section * count :][: int(scratch[words.ALL_BLOCKS])]
        for section in (words.STATUS, words.BLOCKS, words.ADDRESSES)
    )
    errors: Errors = {}
    late = []
    for k in np.flatnonzero(statuses).tolist():
        status, block = int(statuses[k]), int(blocks[k])
        if status in REASONS:
            errors[block] = corrupt_block(stored.name, block, REASONS[status])
        elif status == words.TOLD:
            errors[block] = told[block]
        elif status == words.UNREAD:
            errors[block] = stored.unread(block, int(found[k]))
        elif status == words.LATE:
            late.append(block)
    if late and deadline is not None:
        errors |= dict.fromkeys(late, deadline.missed(stored.name, len(late)))
    return errors
