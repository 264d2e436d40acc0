"""Every copy of every block, read back and checked, before a version is served."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from bandana_kv.adapters.contract import MAX_BLOCK, block_keys
from bandana_kv.cluster.files import FilesOf, check_file_blocks
from bandana_kv.disk import blocks, manifest
from bandana_kv.errors import BlockCorruptError, BlockMissingError
from bandana_kv.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from bandana_kv.adapters.contract import Adapter, Keys, Payloads

__all__ = ["check_copies", "check_copies_of_files"]

_CHUNK_BLOCKS = 512
# Nodes name a copy a second or two after it has come into step; and one that is busy is late.
_PATIENCE_S, _PAUSE_S = 5.0, 0.25


def check_copies(
    adapter: Adapter, made: manifest.Manifest, copies: int, progress: Progress
) -> None:
    """Read what a load wrote from every copy, and check it.

    Parameters
    ----------
    adapter
        Of the blocks.
    made
        The version.
    copies
        How many must have each block, the primary included. Where a node has more, those that
        answer must have it right, too.
    progress
        Told of the blocks.

    Raises
    ------
    BlockMissingError
        Fewer copies have a block.
    BlockCorruptError
        A copy has one not as it was written; names the node.
    AdapterError
        No copy answers.
    """
    for name, table in made.tables.items():
        if table.segment != made.version:
            continue
        progress.start(f"verify {name}", table.blocks, "blocks")
        shape = (table.rows, table.copies, table.rows_per_block, table.row_bytes, name)

        def check(
            payloads: Payloads,
            numbers: NDArray[np.int64],
            space: int = table.space,
            shape: tuple[int, int, int, int, str] = shape,
        ) -> None:
            blocks.verify(payloads, space, numbers, *shape)

        _check_space(adapter, table.space, table.blocks, copies, check, progress)
        progress.finish()


def check_copies_of_files(adapter: Adapter, files: FilesOf, copies: int) -> None:
    """Read the blocks of files from every copy, and check them; raises as `check_copies`."""

    def check(payloads: Payloads, numbers: NDArray[np.int64]) -> None:
        check_file_blocks(payloads, files, numbers)

    _check_space(adapter, files.space, files.blocks, copies, check, Progress())


def _check_space(
    adapter: Adapter,
    space: int,
    count: int,
    copies: int,
    check: Callable[[Payloads, NDArray[np.int64]], None],
    progress: Progress,
) -> None:
    def of_node(node: str, keys: Keys, payloads: Payloads) -> None:
        try:
            check(payloads, (keys & np.uint64(MAX_BLOCK)).astype(np.int64))
        except BlockCorruptError as error:
            raise BlockCorruptError(f"{node}: {error}") from error

    for first in range(0, count, _CHUNK_BLOCKS):
        numbers = np.arange(first, min(first + _CHUNK_BLOCKS, count), dtype=np.int64)
        keys, until = block_keys(space, numbers), time.monotonic() + _PATIENCE_S
        while (found := adapter.read_every_copy(keys, of_node)) < copies:
            if time.monotonic() < until:
                time.sleep(_PAUSE_S)
                continue
            raise BlockMissingError(
                f"space {space}, blocks {first} to {first + len(numbers) - 1}: {found} of {copies} "
                "copies have one of them; see that all nodes are up, and load again"
            )
        progress.advance(len(numbers))
