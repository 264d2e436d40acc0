"""A recording read back: access logs, and what the store counted meanwhile."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from bandana_kv.errors import InputError
from bandana_kv.logs.access_log import AccessLog
from bandana_kv.logs.formats.frames import Frame, read_frames, requests_of

__all__ = ["LiveCounts", "Recording", "read_recording"]


class LiveCounts(msgspec.Struct, frozen=True):
    """What a store counted of one table while it recorded, recorded requests or not.

    Attributes
    ----------
    lookups, hits, block_reads : int
        As in the store's ``stats()``.
    seconds : float
        How long that took.
    """

    lookups: int
    hits: int
    block_reads: int
    seconds: float

    @property
    def reads_per_lookup(self) -> float:
        """Block reads per lookup; 0 without lookups."""
        return self.block_reads / self.lookups if self.lookups else 0.0


class Recording:
    """What a directory of recorded requests holds; made by :func:`read_recording`.

    Attributes
    ----------
    tables : tuple of str
        That were looked up, sorted.
    version : int
        Of the store, the last that was served meanwhile; 0 in an empty recording.
    torn_bytes : int
        At the ends of files, that a crash left unfinished.
    """

    def __init__(self, source: str, frames: list[Frame], torn_bytes: int) -> None:
        self._source = source
        self._frames = frames
        self.torn_bytes = torn_bytes
        self.tables = tuple(sorted({frame.table for frame in frames}))
        self.version = max((frame.version for frame in frames[-1:]), default=0)

    def _of(self, table: str) -> list[Frame]:
        if table not in self.tables:
            known = ", ".join(map(repr, self.tables)) or "none"
            raise InputError(f"{self._source}: no table {table!r} was recorded; there are {known}")
        return [frame for frame in self._frames if frame.table == table]

    def log(self, table: str) -> AccessLog:
        """Return the requests of a table, in the order in which they came.

        Raises
        ------
        InputError
            The table was not recorded.
        """
        offsets, ids = requests_of(self._of(table))
        return AccessLog(offsets, ids, source=f"{self._source}, table {table!r}")

    def live(self, table: str) -> LiveCounts:
        """Return what the store counted of a table under :attr:`version`.

        Raises
        ------
        InputError
            The table was not recorded.
        """
        frames = [frame for frame in self._of(table) if frame.version == self.version]
        lookups, hits, block_reads = (sum(frame.counted[at] for frame in frames) for at in range(3))
        return LiveCounts(lookups, hits, block_reads, sum(frame.seconds for frame in frames))


def read_recording(path: str | os.PathLike[str]) -> Recording:
    """Read what :meth:`bandana_kv.EmbeddingStore.record` wrote; it may go on writing.

    Parameters
    ----------
    path
        The directory.

    Raises
    ------
    InputError
        It holds no recording, or cannot be read.
    FormatError
        A file in it is something else, or of a newer format.

    Notes
    -----
    What a crash tore is left out. Cost: reads all files; memory of their size.
    """
    directory = Path(path)
    return Recording(str(directory), *read_frames(directory))
