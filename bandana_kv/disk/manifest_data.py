"""What a version of a store is made of, as its manifest has it."""

from __future__ import annotations

import msgspec
import numpy as np

from bandana_kv.codecs import codec_named
from bandana_kv.disk.plan import TablePlan

__all__ = ["Loss", "Manifest", "Segment", "Table"]


class Segment(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a load stored its blocks.

    Attributes
    ----------
    adapter : str
        Name of the engine's adapter.
    owned : bool
        The engine's files lie in the segment; False: the user holds the engine.
    payload_bytes : dict of int to int
        Bytes of a block's value, by the 4 KiB device pages that it takes. There is one
        engine for each.
    """

    adapter: str
    owned: bool
    payload_bytes: dict[int, int]


class Loss(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What storing rows by a codec has cost them.

    Attributes
    ----------
    max_error, rms_error : float
        Of a number; the latter over all of them.
    mean_cosine, least_cosine : float
        Between a row and what comes back of it; rows of zeros aside.
    worst_rows : tuple of int
        The ids of the least cosines, the least first.
    """

    max_error: float
    rms_error: float
    mean_cosine: float
    least_cosine: float
    worst_rows: tuple[int, ...]


class Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One table of a version.

    Attributes
    ----------
    segment : int
        The load that wrote it.
    space : int
        Its key space in the engine; never used twice in a store.
    pages : int
        4 KiB device pages of a block.
    rows, dim, dtype
        Shape and numpy dtype of the rows, as they are answered; spare ones are counted.
    rows_per_block : int
    copies : int
        Rows that lie a second time in blocks behind those of the table.
    placement : str
        The method that placed the rows.
    looked_up_rows : int
        Rows that the training log asked for; all rows where there was no log.
    plan : TablePlan
    placed_by : int
        The version that placed the rows anew, and wrote the arrays beside the blocks, a block
        map among them; 0: they lie as they were loaded.
    codec : str
        How rows are stored (:mod:`bandana_kv.codecs`); empty: as they are answered.
    loss : Loss or None
        What that cost; None: nothing.
    keys : str
        The kind of keys that callers ask by (:mod:`bandana_kv.keys`); empty: by ids.
    spare : int
        How many of the rows, the last ids, were loaded with no key: room for new ones.
    """

    segment: int
    space: int
    pages: int
    rows: int
    dim: int
    dtype: str
    rows_per_block: int
    copies: int
    placement: str
    looked_up_rows: int
    plan: TablePlan
    placed_by: int = 0
    codec: str = ""
    loss: Loss | None = None
    keys: str = ""
    spare: int = 0

    @property
    def row_bytes(self) -> int:
        """Bytes of a row as it is stored."""
        if self.codec:
            return codec_named(self.codec).row_bytes(self.dim)
        return self.dim * np.dtype(self.dtype).itemsize

    @property
    def files(self) -> int:
        """The segment in which the arrays beside the blocks lie."""
        return self.placed_by or self.segment

    @property
    def blocks(self) -> int:
        """Blocks of the rows, and behind them those of copies."""
        return -(-self.rows // self.rows_per_block) + -(-self.copies // self.rows_per_block)


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A version: its tables, the segments they lie in, and the next free key space.

    Attributes
    ----------
    store : str
        Random, the same in all versions of a store: two stores may have versions of one number,
        at one path. Empty where the version is of a format before 5.
    identity : str
        Random, and of this version alone.
    """

    format: int
    version: int
    created: str
    next_space: int
    segments: dict[int, Segment]
    tables: dict[str, Table]
    store: str = ""
    identity: str = ""

    @property
    def directories(self) -> set[int]:
        """The segments, those that hold no blocks included."""
        return self.segments.keys() | {table.files for table in self.tables.values()}
