"""Row updates on disk before they are in blocks: what was acknowledged survives a crash.

What lies in the files is said in :mod:`bandana_kv.disk.journal_files`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bandana_kv.disk.journal_files import (
    HEADER_BYTES,
    Record,
    encoded,
    header,
    journal_files,
    journal_path,
    read_records,
    settle,
    write_at,
)
from bandana_kv.errors import (
    DiskFullError,
    DurabilityError,
    InputError,
    UpdateInProgressError,
)
from bandana_kv.system.durable import NO_ROOM, make_directory, sync_directory, write_durably
from bandana_kv.system.permission import check_permission

__all__ = ["Journal", "Record", "journal_files", "read_records"]

_FULL = (*NO_ROOM, errno.EFBIG)


def _locked(root: Path) -> int:
    """Return a descriptor of the lock file, locked; the directory is made if need be."""
    try:
        make_directory(journal_path(root))
        handle = os.open(journal_path(root) / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except DurabilityError:
        raise
    except OSError as error:
        check_permission(error, root)
        raise InputError(f"{root}: cannot be updated ({error.strerror})") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise UpdateInProgressError(
            f"{root}: another process updates its rows; update through that one, or close it"
        ) from error
    return handle


class Journal:
    """Takes updates; safe to use from many threads, in the process that opened it.

    Parameters
    ----------
    root
        The store. One process at a time may hold its journal for writing.

    Raises
    ------
    UpdateInProgressError
        Another process holds it.
    InputError
        The directory cannot be written to.
    DurabilityError
        What it has could not be made durable.
    """

    def __init__(self, root: Path) -> None:
        self._directory = journal_path(root)
        self._process = os.getpid()
        self._writing = threading.Lock()
        self._syncing = threading.Lock()
        self._handle = self._end = self._safe = -1
        # Why nothing is taken any more, and whether what was not safe then is known to be gone.
        self._failure: OSError | None = None
        self._is_cut: bool | None = None
        self._older_bytes = 0
        self.written_bytes = 0
        """Bytes written since it was opened."""
        self._lock = _locked(root)
        try:
            # What made this version the current one may have died before that was durable.
            sync_directory(root)
            files = journal_files(root)
            self.number = max((int(path.stem) for path in files), default=0)
            self._sequence = max(map(settle, files), default=0)
            self.rotate()
        except BaseException:
            os.close(self._lock)
            raise

    @property
    def sequence(self) -> int:
        """The sequence of the last update."""
        return self._sequence

    @property
    def end(self) -> tuple[int, int]:
        """The number of the file that is written to, and its length."""
        return self.number, self._end

    @property
    def size_bytes(self) -> int:
        """Length of all files that this one has written and not dropped."""
        return self._older_bytes + self._end

    def rotate(self) -> int:
        """Begin a new file, and return the last sequence of those before it.

        Raises
        ------
        DurabilityError
            The device failed, now or earlier; nothing is taken any more.
        """
        with self._writing, self._syncing:
            self._refuse_after_failure()
            try:
                if self._safe < self._end:
                    os.fdatasync(self._handle)
                    self._safe = self._end
                handle = self._begin(self.number + 1)
            except OSError as error:
                if error.errno in _FULL and self._safe == self._end:
                    raise self._full(error) from error  # the file before goes on
                self._failure = error
                raise self._refused(error, "nothing was changed") from error
            if self._handle >= 0:
                os.close(self._handle)
                self._older_bytes += self._end
            self._handle = handle
            self.number += 1
            self._end = self._safe = HEADER_BYTES
            return self._sequence

    def _begin(self, number: int) -> int:
        """Make a new file, and return its descriptor."""
        path = self._directory / f"{number:06d}.log"
        try:
            # By a rename, so that there is none with half a header.
            write_durably(path, header(number))
            return os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        except OSError:
            with contextlib.suppress(OSError):
                path.unlink()
            raise

    def append(
        self,
        space: int,
        ids: NDArray[np.uint32],
        rows: NDArray[np.uint8],
        words: NDArray[np.uint64] | None = None,
        texts: Sequence[bytes] = (),
        after: int = 0,
    ) -> int:
        """Write one update, and return its sequence once it is safe on the device.

        What they are, :class:`~bandana_kv.disk.journal_files.Record` says. The sequence is later
        than all here, and than `after`: those of files that were dropped are not known any more.

        Threads that write at the same time share a sync.

        Raises
        ------
        DiskFullError
            There is no room; nothing was updated.
        DurabilityError
            The device failed: says whether the update is known not to be made. No other is taken
            until the journal was opened anew.
        InputError
            The process is a fork of the one that opened the journal.
        """
        if os.getpid() != self._process:
            raise InputError("a store is updated by the process that opened it, not by its fork")
        with self._writing:
            sequence = max(self._sequence, after) + 1
            record = Record(space, sequence, ids, rows, words, texts)
            self._write(record)
            self._sequence = record.sequence
            number, end = self.number, self._end
        self._sync(number, end)
        return record.sequence

    def keep(self, record: Record) -> None:
        """Write an update of an earlier file anew, as it was. Raises as :meth:`append`."""
        with self._writing:
            self._write(record)
            number, end = self.number, self._end
        self._sync(number, end)

    def _sync(self, number: int, end: int) -> None:
        """Make the file safe up to `end`."""
        with self._syncing:
            # Of a file that was rotated away meanwhile, rotate has made all safe.
            if number != self.number or end <= self._safe:
                return
            failure = self._failure
            if failure is None:
                upto = self._end
                try:
                    os.fdatasync(self._handle)
                    self._safe = upto
                    return
                except OSError as error:
                    self._failure = failure = error
        known = "this update was not made"
        if not self._cut_off():
            known = "whether this update was made is not known before then"
        raise self._refused(failure, known) from failure

    def _cut_off(self) -> bool:
        """After a failure, cut off what is not safe, once; return whether that is known to last.

        Else it would be read back by whoever opens the store, and be gone or not after a crash.
        """
        with self._writing, self._syncing:
            if self._is_cut is None:
                self._is_cut = False
                with contextlib.suppress(OSError):
                    os.ftruncate(self._handle, self._safe)
                    self._end = self._safe
                    # Not the sync that failed, again: it is the new length that must be safe.
                    os.fsync(self._handle)
                    self._is_cut = True
            return self._is_cut

    def _refuse_after_failure(self) -> None:
        if self._failure is not None:
            raise self._refused(self._failure, "nothing was updated")

    def _refused(self, failure: OSError, outcome: str) -> DurabilityError:
        return DurabilityError(
            failure.errno,
            f"{self._directory}: the device did not make updates durable ({failure.strerror}); "
            f"{outcome}. No more are taken until this store is closed and opened again, which "
            "reads back what is there; see the system's log",
        )

    def _write(self, record: Record) -> None:
        self._refuse_after_failure()
        data = encoded(record, self._safe)
        try:
            write_at(self._handle, data, self._end)
        except BaseException as error:
            try:
                os.ftruncate(self._handle, self._end)
            except OSError as failure:
                self._failure = failure  # half a record stays
            if not isinstance(error, OSError):
                raise
            if error.errno in _FULL and self._failure is None:
                raise self._full(error) from error
            self._failure = error
            # Half a record is none.
            raise self._refused(error, "this update was not made") from error
        self._end += len(data)
        self.written_bytes += len(data)

    def _full(self, error: OSError) -> DiskFullError:
        return DiskFullError(error.errno, f"{self._directory}: no space left; nothing was updated")

    def drop_before(self, number: int) -> None:
        """Delete the files before `number`: their updates are in blocks.

        Raises
        ------
        DurabilityError
            The device failed; nothing is taken any more.
        """
        try:
            for path in journal_files(self._directory.parent):
                if int(path.stem) < number:
                    path.unlink()
                    # One after the other: an update must not come back without a later one.
                    sync_directory(self._directory)
        except OSError as error:
            self._failure = error
            raise self._refused(error, "those in blocks are safe") from error
        self._older_bytes = 0

    def after_fork_in_child(self) -> None:
        """Let go of the lock, which stays the parent's."""
        self.close()

    def close(self) -> None:
        """Let other processes update."""
        if self._lock < 0:
            return
        os.close(self._handle)
        os.close(self._lock)
        self._lock = -1
