"""A log in files, cut into shares of its requests that fit a worker.

A *share* is requests of one file. What it asks is cleaned once and kept in the work directory,
where whoever works on it maps it: a worker that takes another's place finds it, or makes the same
bytes again.
"""

from __future__ import annotations

import mmap
import os
import uuid
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bandana_kv.errors import InputError
from bandana_kv.kernels.views import readable
from bandana_kv.logs.access_log import AccessLog
from bandana_kv.logs.formats.bad_rows import BadRows
from bandana_kv.logs.formats.check import as_ids, as_offsets, check_log
from bandana_kv.logs.formats.recording import is_recording
from bandana_kv.logs.log_files import read_arrays
from bandana_kv.logs.options import LogOptions
from bandana_kv.placement.distributed.kernels import clean, drawn, split
from bandana_kv.placement.randomness import salted
from bandana_kv.progress import Progress
from bandana_kv.units import size_text

__all__ = ["READ_BYTES", "Requests", "Share", "files_of_log", "share_of_file", "shares_of"]

READ_BYTES = 16
"""What a lookup takes while a file that cannot be mapped is read."""


class Requests(NamedTuple):
    """Requests that look up two rows or more, each row once."""

    ends: NDArray[np.int64]  # (requests + 1,)
    ids: NDArray[np.int32]


@dataclass(frozen=True)
class Share:
    """Requests of one file of a log, as workers are told of them.

    Attributes
    ----------
    number
        Among the log's shares, from 0.
    path
        The file, which every worker reads there.
    source
        What messages call it.
    directory
        The work directory, which every worker reaches.
    options
        How the file is read.
    first, last
        Which of its requests; `last` -1: all.
    lookups
        How many ids they look up, repeats included.
    rows
        Of the table; 0 where that is not known yet.
    train
        Share of the requests to learn from.
    salt
        Says which these are.
    """

    number: int
    path: str
    source: str
    directory: str
    options: LogOptions
    first: int = 0
    last: int = -1
    lookups: int = 0
    rows: int = 0
    train: float = 1.0
    salt: int = 0

    def logged(self) -> AccessLog:
        """Return what was logged, checked.

        Raises
        ------
        InputError
            The file is damaged, or looks up a row that the table has not; names it.
        """
        _, offsets, ids = read_arrays(Path(self.path), self.options, BadRows(False), Progress())
        offsets, ids = as_offsets(offsets, self.source), as_ids(ids, self.source)
        if self.last >= 0:
            offsets = offsets[self.first : self.last + 1]
            ids = ids[offsets[0] : offsets[-1]]
            offsets = offsets - offsets[0]
        check_log(readable(offsets), readable(ids), self.rows or None, self.source)
        return AccessLog(offsets, ids.astype(np.int32, copy=False), source=self.source)

    def learned(self, requests: int) -> NDArray[np.bool_]:
        """Return which requests are learned from, bool (requests,)."""
        return drawn(self.first, requests, np.uint64(self.salt), int(self.train * 2**32))

    def requests(self) -> Requests:
        """Return the requests to learn from, cleaned."""

        def make() -> tuple[NDArray[np.int64], NDArray[np.int32]]:
            log = self.logged()
            return clean(log.offsets, log.ids, self.learned(log.requests), self.rows)

        return self._kept("requests", make)

    def cut(self, cuts: Sequence[NDArray[np.uint8]]) -> Requests:
        """Return the requests to learn from, cut by each row's sides of the `cuts` so far."""
        if not cuts:
            return self.requests()

        def make() -> tuple[NDArray[np.int64], NDArray[np.int32]]:
            before = self.cut(cuts[:-1])
            return split(before.ends, before.ids, readable(cuts[-1]))

        found = self._kept(f"cut-{len(cuts)}", make)
        if len(cuts) > 1:
            for end in ("ends", "ids"):
                self._path(f"cut-{len(cuts) - 1}.{end}").unlink(missing_ok=True)
        return found

    def _path(self, name: str) -> Path:
        return Path(self.directory) / f"share-{self.number:05}.{name}"

    def _kept(
        self, name: str, make: Callable[[], tuple[NDArray[np.int64], NDArray[np.int32]]]
    ) -> Requests:
        """Map two arrays that are kept by name, after making them where they are not there.

        Another worker that has the same share, and is further, may have removed them just now.
        """
        ends, ids = self._path(f"{name}.ends"), self._path(f"{name}.ids")
        while True:
            try:
                return Requests(mapped(ends, np.int64), mapped(ids, np.int32))
            except FileNotFoundError:
                new_ends, new_ids = make()
                keep(ends, new_ends)
                keep(ids, new_ids)


def keep(path: Path, array: NDArray[Any]) -> None:
    """Write an array's bytes in one step; who does so at the same time writes the same."""
    beside = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    array.tofile(beside)
    beside.replace(path)


def mapped(path: Path, dtype: type[np.generic]) -> NDArray[Any]:
    """Return what is kept, read-only and mapped; a pass opens too many to read headers of."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if not size:  # which cannot be mapped
            return readable(np.empty(0, dtype))
        return np.frombuffer(mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ), dtype)


def files_of_log(
    paths: Sequence[str | os.PathLike[str]],
    directory: str | os.PathLike[str],
    options: LogOptions | None = None,
) -> tuple[Share, ...]:
    """Return a share for each file of a log, in the order given; none has been read.

    Parameters
    ----------
    paths
        Files in any format that :meth:`bandana_kv.AccessLog.read` reads; recordings; directories
        of files, which are taken by name.
    directory
        The work directory.
    options
        How files are read.

    Raises
    ------
    InputError
        There is none, or one is missing.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if not path.exists():
            raise InputError(f"{path}: no such file or directory")
        if path.is_dir() and not is_recording(path):
            inside = sorted(each for each in path.iterdir() if not each.name.startswith((".", "_")))
            if not inside:
                raise InputError(f"{path}: is an empty directory; give the files of the log")
            found += inside
        else:
            found.append(path)
    if not found:
        raise InputError("a log in no files: name at least one")
    return tuple(
        Share(number, str(path.absolute()), str(path), str(directory), options or LogOptions())
        for number, path in enumerate(found)
    )


def _is_mapped(share: Share) -> bool:
    """Return whether a file's arrays are mapped as they lie."""
    if Path(share.path).is_dir() or share.options.format not in {None, "npz"}:
        return False
    try:
        with zipfile.ZipFile(share.path) as archive:
            return all(each.compress_type == zipfile.ZIP_STORED for each in archive.infolist())
    except (OSError, zipfile.BadZipFile):
        return False  # if it should be one, reading says what is wrong


def share_of_file(file: Share, worker_memory_bytes: int) -> tuple[int, int, int]:
    """Read a file and see to it that it can be mapped; return its requests, lookups and rows.

    Raises
    ------
    InputError
        It is damaged, or too large to be read by a worker; names it.
    """
    log = file.logged()
    if not _is_mapped(file):
        if log.lookups * READ_BYTES > worker_memory_bytes:
            raise InputError(
                f"{file.source}: {log.lookups} lookups are more than a worker of "
                f"{size_text(worker_memory_bytes)} reads at once; write them as several files, or "
                "with AccessLog.write as .npz, which is mapped"
            )
        log.write(Path(file.directory) / f"file-{file.number:05}.npz")
    return log.requests, log.lookups, log.rows


def shares_of(
    files: Sequence[Share],
    found: NDArray[np.int64],
    rows: int,
    most_lookups: int,
    train: float,
    seed: int,
) -> tuple[Share, ...]:
    """Cut files, which can be mapped by now, into shares of about `most_lookups` or fewer.

    Parameters
    ----------
    files
        As :func:`files_of_log` gives them.
    found
        int64 (files, 3): what :func:`share_of_file` found in each.
    rows
        Of the table.
    most_lookups
        In a share; a file is cut into shares of equal numbers of requests.
    train, seed
        Share of the requests to learn from, and what says which they are.
    """
    shares: list[Share] = []
    for file, (requests, lookups, _) in zip(files, found.tolist(), strict=True):
        kept = Path(file.directory) / f"file-{file.number:05}.npz"
        path = str(kept) if kept.exists() else file.path
        pieces = max(1, min(-(-lookups // most_lookups), requests))
        edges = [requests * piece // pieces for piece in range(pieces + 1)]
        for first, last in pairwise(edges):
            shares.append(
                replace(
                    file,
                    number=len(shares),
                    path=path,
                    options=LogOptions() if kept.exists() else file.options,
                    first=first,
                    last=last,
                    lookups=lookups * (last - first) // max(requests, 1),
                    rows=rows,
                    train=train,
                    salt=int(salted(seed, file.number)),
                )
            )
    return tuple(shares)
