"""Requests of a live store, into files: sampled in bursts, and never in anybody's way."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import logging
import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from bandana_kv.errors import DiskFullError, InputError
from bandana_kv.logs.formats.frames import FILE_HEADER, Frame, files_of, frame_bytes, path_of
from bandana_kv.logs.recording.bursts import Bursts
from bandana_kv.metrics import Metric, metric
from bandana_kv.system.permission import check_permission
from bandana_kv.system.threads import start

__all__ = ["Counted", "Recorder"]

_log = logging.getLogger("bandana_kv")

Counts: TypeAlias = "tuple[int, int, int]"
"""Lookups, hits and block reads."""

Counted: TypeAlias = "tuple[int, dict[str, tuple[object, Counts]]]"
"""The version that is served, and by table who counts, which equals itself only, and what it has
counted until now."""

_Waiting: TypeAlias = "defaultdict[str, list[Any]]"
# By table, for each request the bytes of its ids, then their dtype.

_LOCK = "lock"
_FLUSH_SECONDS = 0.5
# Requests that wait to be written; more than that in half a second is dropped.
_WAITING_BYTES = 32 << 20
_ENTRY_BYTES = 120  # of the interpreter's own objects, for each
# So that several fit into the smallest file.
_FRAME_BYTES = 256 << 10
_LENGTH_BYTES = 4
_LEAST_FILE_BYTES = 1 << 20


class Recorder:
    """Records the requests of a store until it is closed; made by ``store.record``.

    Parameters
    ----------
    directory
        Where files are written; made if it is not there.
    sample
        Share of the requests.
    max_bytes, file_bytes
        Of all files, and of one.
    burst
        Requests that are recorded one after another.
    counted
        Asks the store what it has counted.

    Raises
    ------
    InputError
        An argument is wrong, the directory cannot be written to, holds something else, or
        another recorder writes there.
    ThreadError
        It cannot begin; nothing is recorded.
    """

    def __init__(
        self,
        directory: Path,
        sample: float,
        max_bytes: int,
        file_bytes: int,
        burst: int,
        counted: Callable[[], Counted],
    ) -> None:
        _check(sample, max_bytes, file_bytes, burst)
        self._files = _Files(directory, max_bytes, file_bytes)
        self._counted = counted
        self._version, self._before = counted()
        self._looked = time.monotonic()
        self._since = dict.fromkeys(self._before, self._looked)
        self._numbers = itertools.count()
        self._bursts = Bursts(sample, burst)
        self._lock = threading.Lock()  # guards what waits, for a few instructions
        self._flushing = threading.Lock()  # held while files are written
        self._waiting: _Waiting = defaultdict(list)
        self._waiting_bytes = 0
        self._dropped = self._recorded = 0
        self._failure: str | None = None
        self._wake = threading.Event()
        self._closed = False
        try:
            self._thread = start(self._run, "bandana-kv-recorder")
        except BaseException:
            self._files.leave_nothing()
            raise

    @property
    def failure(self) -> str | None:
        """Why nothing is recorded any more, or None."""
        return self._failure

    @property
    def closed(self) -> bool:
        """Whether it records no more."""
        return self._closed

    def note(self, table: str, ids: NDArray[np.integer[Any]]) -> None:
        """Record a request, perhaps. Cost: about a microsecond; never waits for the device."""
        if self._closed:
            return
        if not self._bursts.everything and not self._bursts.takes(next(self._numbers)):
            return
        raw = ids.tobytes()
        taken = len(raw) + _ENTRY_BYTES
        with self._lock:
            if self._closed or self._waiting_bytes + taken > _WAITING_BYTES:
                self._dropped += not self._closed
                return
            self._waiting[table].extend((raw, ids.dtype.char))
            self._waiting_bytes += taken
            crowded = 2 * self._waiting_bytes > _WAITING_BYTES
        if crowded:
            self._wake.set()

    def _run(self) -> None:
        """Write what waits, again and again, in a thread of its own."""
        while not self._closed:
            self._wake.wait(_FLUSH_SECONDS)
            self._wake.clear()
            self.flush()

    def flush(self) -> None:
        """Write what waits now. Cost: of the device; lookups go on meanwhile."""
        with self._flushing:
            if not self._closed:
                self._flush()

    def _flush(self) -> None:
        with self._lock:
            waiting, self._waiting = self._waiting, defaultdict(list)
            self._waiting_bytes = 0
        written = 0
        try:
            if self._failure is None:
                for frame in self._frames(waiting):
                    written += self._files.write(frame_bytes(frame)) * frame.lengths.size
        except Exception as error:
            # Recording must never cost an answer; what is recorded so far stays.
            self._failure = str(error)
            _log.warning(
                "%s: requests are not recorded any more (%s)",
                self._files.directory,
                error,
                extra={"event": "recorder_failed", "error": str(error)},
            )
        with self._lock:
            self._recorded += written
            self._dropped += sum(map(len, waiting.values())) // 2 - written

    def _frames(self, waiting: _Waiting) -> list[Frame]:
        """Make frames of what was looked up and counted since the last time.

        What a table counted, and how long, is of the version that is served now: a switch in
        between is noticed late by one such time at most.
        """
        version, now = self._counted()
        moment = time.monotonic()
        if version != self._version:
            self._since = dict.fromkeys(now, self._looked)
        frames = []
        for table in waiting.keys() | now.keys():
            counts = _difference(now.get(table), self._before.get(table))
            requests = waiting.get(table, [])
            if not requests and not any(counts):
                continue
            seconds = moment - self._since.get(table, self._looked)
            self._since[table] = moment
            for lengths, ids in _parts(requests[::2], requests[1::2]):
                frames.append(Frame(table, version, counts, seconds, time.time(), lengths, ids))
                counts, seconds = (0, 0, 0), 0.0
        self._version, self._before, self._looked = version, now, moment
        return frames

    def metrics(self) -> list[Metric]:
        """Return what was recorded, dropped and written; whether it had to stop."""
        return [
            metric(
                "recorder_requests",
                "counter",
                "Requests that were recorded",
                self._recorded,
            ),
            metric(
                "recorder_dropped_requests",
                "counter",
                "Requests that were to be recorded, and were not",
                self._dropped,
            ),
            metric(
                "recorder_written_bytes",
                "counter",
                "Bytes that the recorder wrote",
                self._files.written_bytes,
            ),
            metric(
                "recorder_failed",
                "gauge",
                "1 once recording had to stop, because its files could not be written",
                self._failure is not None,
            ),
        ]

    def after_fork_in_child(self) -> None:
        """Leave recording to the parent."""
        self._closed = True
        self._lock, self._flushing = threading.Lock(), threading.Lock()
        self._files.close()

    def close(self) -> None:
        """Write what waits, and end. A second call does nothing."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._wake.set()
        self._thread.join()
        with self._flushing:
            self._flush()
            self._files.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _check(sample: float, max_bytes: int, file_bytes: int, burst: int) -> None:
    if isinstance(sample, bool) or not isinstance(sample, (int, float)) or not 0 < sample <= 1:
        raise InputError(f"sample {sample!r} is not a share of the requests above 0 and up to 1")
    for name, number, least in (
        ("max_bytes", max_bytes, _LEAST_FILE_BYTES),
        ("file_bytes", file_bytes, _LEAST_FILE_BYTES),
        ("burst", burst, 1),
    ):
        whole = isinstance(number, (int, np.integer)) and not isinstance(number, bool)
        if not whole or number < least:
            raise InputError(f"{name} {number!r} is not a whole number from {least} up")
    if 2 * file_bytes > max_bytes:
        raise InputError(f"file_bytes {file_bytes} is more than half of max_bytes {max_bytes}")


def _difference(now: tuple[object, Counts] | None, before: tuple[object, Counts] | None) -> Counts:
    """Return what was counted between; of a table that was opened anew, all of it."""
    if now is None:
        return (0, 0, 0)
    who, (lookups, hits, block_reads) = now
    if before is None or before[0] != who:
        return now[1]
    return (lookups - before[1][0], hits - before[1][1], block_reads - before[1][2])


def _parts(
    raws: list[bytes], kinds: list[str]
) -> Iterator[tuple[NDArray[np.uint32], NDArray[np.uint32]]]:
    """Return lengths and ids of requests, as much at a time as a frame takes; once at least.

    No step of Python for each request: they are many, and others want the interpreter.
    """
    sizes = np.fromiter(map(len, raws), np.int64, len(raws))
    frames = np.cumsum(sizes + _LENGTH_BYTES) // _FRAME_BYTES
    ends = [*(np.flatnonzero(np.diff(frames)) + 1).tolist(), sizes.size]
    for first, end in itertools.pairwise([0, *ends]):
        yield _arrays(raws[first:end], kinds[first:end], sizes[first:end])


def _arrays(
    raws: list[bytes], kinds: list[str], sizes: NDArray[np.int64]
) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Return the lengths of requests, and their ids one behind the other."""
    kind = np.dtype(kinds[0] if kinds else np.uint32)
    if kinds.count(kind.char) == len(kinds):
        ids = np.frombuffer(b"".join(raws), kind)
        return (sizes // kind.itemsize).astype(np.uint32), ids.astype(np.uint32)
    arrays = [np.frombuffer(raw, kind) for raw, kind in zip(raws, kinds, strict=True)]
    lengths = np.fromiter(map(len, arrays), np.uint32, len(arrays))
    return lengths, np.concatenate(arrays, dtype=np.uint32, casting="unsafe")


class _Files:
    """Rolling files in a directory; the oldest go, so that all stay within their bytes."""

    def __init__(self, directory: Path, max_bytes: int, file_bytes: int) -> None:
        self.directory = directory
        self.written_bytes = 0
        self._max_bytes, self._file_bytes = max_bytes, file_bytes
        self._file: int | None = None
        self._size = 0
        self._made = [path for path in (directory, *directory.parents) if not path.exists()]
        try:
            directory.mkdir(parents=True, exist_ok=True)
            strange = [
                path.name
                for path in directory.iterdir()
                if path.name != _LOCK and path not in files_of(directory)
            ]
            if strange:
                raise InputError(f"{directory}: holds {strange[0]!r}; name a directory of its own")
            self._lock: int | None = os.open(
                directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644
            )
        except OSError as error:
            self._remove_made()
            if isinstance(error, DiskFullError):
                raise
            check_permission(error, directory)
            raise InputError(f"{directory}: cannot be written to ({error.strerror})") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise InputError(f"{directory}: another recorder writes there") from error

    def _remove_made(self) -> None:
        for path in self._made:
            with contextlib.suppress(OSError):
                path.rmdir()

    def leave_nothing(self) -> None:
        """Close it before anything was written, and remove what opening it has made."""
        self.close()
        if self._made:
            (self.directory / _LOCK).unlink(missing_ok=True)
        self._remove_made()

    def write(self, frame: bytes) -> bool:
        """Append a frame; begin a new file where it is time. False: too long for any file."""
        if len(FILE_HEADER) + len(frame) > self._file_bytes:
            return False
        if self._file is None or self._size + len(frame) > self._file_bytes:
            self._begin()
        self._append(frame)
        return True

    def _begin(self) -> None:
        """Begin the next file; the oldest make room for a whole one."""
        # Forgotten first: a child that is forked in between must not close it again.
        file, self._file = self._file, None
        if file is not None:
            os.close(file)
        files = files_of(self.directory)
        sizes = {path: path.stat().st_size for path in files}
        for path in files:
            if sum(sizes.values()) + self._file_bytes <= self._max_bytes:
                break
            path.unlink()
            del sizes[path]
        number = 1 + max((int(path.stem) for path in files), default=0)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._file, self._size = os.open(path_of(self.directory, number), flags, 0o644), 0
        self._append(FILE_HEADER)

    def _append(self, raw: bytes) -> None:
        assert self._file is not None
        view = memoryview(raw)
        while view:
            written = os.write(self._file, view)
            self._size += written
            self.written_bytes += written
            view = view[written:]

    def close(self) -> None:
        """Let go of the files; what they hold stays."""
        handles = (self._file, self._lock)
        self._file = self._lock = None
        for handle in handles:
            if handle is not None:
                os.close(handle)
