"""Every copy of every block, read back and checked, before a version is served."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bandana_kv.adapters.contract import block_keys
from bandana_kv.cluster.files import FilesOf, check_file_blocks
from bandana_kv.disk import blocks, manifest
from bandana_kv.errors import BlockCorruptError
from bandana_kv.progress import Progress

if TYPE_CHECKING:
    from bandana_kv.adapters.contract import Adapter, Payloads

__all__ = ["check_copies", "check_copies_of_files"]

_CHUNK_BLOCKS = 2048


def check_copies(adapter: Adapter, made: manifest.Manifest, progress: Progress) -> None:
    """Read what a load wrote from every copy, and check it.

    Raises
    ------
    BlockMissingError, BlockCorruptError
        A copy has a block not, or not as it was written; names the node.
    AdapterError
        A copy does not answer.
    """
    for name, table in made.tables.items():
        if table.segment != made.version:
            continue
        progress.start(f"verify {name}", table.blocks, "blocks")
        space = table.space
        shape = (table.rows, table.copies, table.rows_per_block, table.row_bytes)

        def check(
            payloads: Payloads,
            numbers: NDArray[np.int64],
            space: int = space,
            shape: tuple[int, int, int, int] = shape,
            name: str = name,
        ) -> None:
            blocks.verify(payloads, space, numbers, *shape, name)

        _check_space(adapter, space, table.blocks, check, progress)
        progress.finish()


def check_copies_of_files(adapter: Adapter, files: FilesOf) -> None:
    """Read the blocks of files from every copy, and check them; raises as `check_copies`."""

    def check(payloads: Payloads, numbers: NDArray[np.int64]) -> None:
        check_file_blocks(payloads, files, numbers)

    _check_space(adapter, files.space, files.blocks, check, Progress())


def _check_space(
    adapter: Adapter,
    space: int,
    count: int,
    check: Callable[[Payloads, NDArray[np.int64]], None],
    progress: Progress,
) -> None:
    for first in range(0, count, _CHUNK_BLOCKS):
        numbers = np.arange(first, min(first + _CHUNK_BLOCKS, count), dtype=np.int64)
        keys = block_keys(space, numbers)
        for node, payloads in adapter.each_copy(keys):  # type: ignore[attr-defined]
            try:
                check(payloads, numbers)
            except BlockCorruptError as error:
                raise BlockCorruptError(f"the copy on {node}: {error}") from error
        progress.advance(len(numbers))
