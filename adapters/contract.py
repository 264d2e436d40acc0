"""The contract of an adapter, in one file.

An adapter stores blocks, values of one fixed length under 64-bit keys, in an engine. To
write one, derive from :class:`Adapter`, implement the methods marked abstract, name the
class under the entry point group ``bandana_kv.adapters``, and run
``bandana_kv.testing.AdapterConformance`` on it. The public methods are complete here, so
that every adapter checks its arguments alike and raises the same errors in the same words.

Keys are unsigned 64-bit numbers, stored as 8 bytes big-endian, so that the engine's order
is the numbers' order: a 24-bit *space* (one table of one version) in the high bits, a
40-bit block number in the low ones.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import ClassVar, NamedTuple, Protocol, Self, TypeVar

import numpy as np
import numpy.typing as npt

from bandana_kv.adapters.gate import Gate, StaleHandleError
from bandana_kv.errors import (
    AdapterError,
    BandanaError,
    BlockCorruptError,
    BlockMissingError,
    DiskFullError,
    InputError,
)
from bandana_kv.system.ending import PATIENCE_S, end_engine_at_exit
from bandana_kv.system.permission import check_permission, denied_by_engine

__all__ = [
    "MAX_BLOCK",
    "MAX_SPACE",
    "PAGE_BYTES",
    "Adapter",
    "BulkWriter",
    "Capabilities",
    "Keys",
    "Payloads",
    "Reading",
    "block_keys",
    "describe_key",
    "empty_payloads",
    "key_bytes",
    "space_bounds",
]

PAGE_BYTES = 4096
_BLOCK_BITS = 40
MAX_BLOCK = (1 << _BLOCK_BITS) - 1
MAX_SPACE = (1 << (64 - _BLOCK_BITS)) - 1
_KEY_BYTES = 8

# What one write to the engine holds: large enough for sequential writing, small enough
# that a loader stays within a few dozen MiB whatever the size of the table.
_CHUNK_BYTES = 16 << 20

_FULL = ("no space left", "file too large", "disk quota exceeded", "enospc")

Keys = npt.NDArray[np.uint64]
Payloads = npt.NDArray[np.uint8]
T = TypeVar("T")


def _checked_space(space: int) -> int:
    if not 0 <= space <= MAX_SPACE:
        raise InputError(f"space {space} is not within 0..{MAX_SPACE}")
    return int(space)


def block_keys(space: int, blocks: npt.ArrayLike) -> Keys:
    """Return the keys of blocks of one space.

    Parameters
    ----------
    space
        The space, 0 to ``MAX_SPACE``.
    blocks
        Block numbers, integers of 0 to ``MAX_BLOCK``, any shape.

    Returns
    -------
    uint64 array of the same shape

    Raises
    ------
    InputError
        A space or block number out of range, or not an integer.
    """
    base = np.uint64(_checked_space(space) << _BLOCK_BITS)
    numbers = np.asarray(blocks)
    if numbers.size == 0:
        return np.empty(numbers.shape, np.uint64)
    if numbers.dtype.kind not in "iu":
        raise InputError(f"block numbers must be integers, not {numbers.dtype}")
    if int(numbers.min()) < 0 or int(numbers.max()) > MAX_BLOCK:
        raise InputError(f"block numbers must be within 0..{MAX_BLOCK}")
    keys: Keys = numbers.astype(np.uint64) | base
    return keys


def space_bounds(space: int) -> tuple[int, int]:
    """Return the first and the last key that a space can hold, both inclusive."""
    first = _checked_space(space) << _BLOCK_BITS
    return first, first | MAX_BLOCK


def describe_key(key: int) -> str:
    """Return a key as messages name it, for example ``"space 3, block 17"``."""
    return f"space {int(key) >> _BLOCK_BITS}, block {int(key) & MAX_BLOCK}"


def key_bytes(keys: Keys) -> list[bytes]:
    """Return keys as engines store them: 8 bytes each, big-endian."""
    raw = keys.astype(">u8").tobytes()
    return [raw[at : at + _KEY_BYTES] for at in range(0, len(raw), _KEY_BYTES)]


def empty_payloads(count: int, payload_bytes: int) -> Payloads:
    """Return an array for `count` payloads that begins at a page's boundary.

    Direct reads can fill it without a copy if `payload_bytes` is whole pages too.
    """
    held = np.empty(count * payload_bytes + PAGE_BYTES, np.uint8)
    start = -held.ctypes.data % PAGE_BYTES
    return held[start : start + count * payload_bytes].reshape(count, payload_bytes)


class Reading(NamedTuple):
    """What compiled code needs to read blocks of an engine; for one thread at a time.

    Attributes
    ----------
    words : int64 array
        The first is the address of a function of three int64: the address of these words, the
        address of the reads, and their number. Each read is four int64: a key; the address of
        memory for a block, at a page's boundary; written, how many bytes of it were found, or
        what else :meth:`Adapter.why_unread` explains; and one that is not the engine's. Its
        result means nothing. It is called without the GIL.
    kept : object
        What must not go away meanwhile.
    """

    words: npt.NDArray[np.int64]
    kept: object


@dataclass(frozen=True)
class Capabilities:
    """What one opened adapter can do.

    Attributes
    ----------
    persistent
        Blocks outlive the process.
    read_only_media
        Opens for reading on a file system mounted read-only.
    shared_by_processes
        Several processes may have the same path open for reading at once.
    survives_fork
        A child process may go on reading with the adapter that its parent opened.
    queue_depth
        How reads reach the device's queue depth: ``"threads"`` when each thread keeps
        one read in flight, ``"call"`` when one call keeps many, ``"none"`` when there is
        no device.
    """

    persistent: bool
    read_only_media: bool
    shared_by_processes: bool
    survives_fork: bool
    queue_depth: str


class BulkWriter(Protocol):
    """What :meth:`Adapter._bulk_writer` returns: takes one load's chunks in key order.

    The arrays of a chunk are reused for the next one.
    """

    def write(self, keys: Keys, payloads: Payloads) -> None:
        """Take the next chunk; keys (n,) rise, payloads are (n, payload_bytes)."""

    def finish(self) -> None:
        """Make everything durable and visible."""

    def abort(self) -> None:
        """Remove what can be removed; must not raise."""


class Adapter(ABC):
    """Blocks of one fixed length in an engine.

    All methods may be called from many threads at once. Reading never blocks reading.
    Use as a context manager, or call :meth:`close`.

    Parameters
    ----------
    where
        The path or the handle, as messages name it.
    pages
        Device pages of 4096 bytes per block.
    read_only
        Refuse every write.
    gate
        Guards the engine's handle; adapters that share a handle share its gate.
    """

    name: ClassVar[str]
    """The name under which the adapter is registered."""

    engine_errors: ClassVar[tuple[type[Exception], ...]] = ()
    """What the engine raises; translated into :class:`~bandana_kv.errors.AdapterError`."""

    def __init__(
        self, where: str, *, pages: int = 1, read_only: bool = False, gate: Gate | None = None
    ) -> None:
        if pages < 1:
            raise InputError(f"pages must be at least 1, not {pages}")
        self._where = where
        self._read_only = read_only
        self._gate = Gate() if gate is None else gate
        end_engine_at_exit(self)
        self._closed = False
        self.pages = pages
        self.payload_bytes = self.payload_of(pages)

    # -- opening ------------------------------------------------------------------------

    @classmethod
    @abstractmethod
    def create(cls, path: Path, *, size_hint_bytes: int, pages: int) -> Self:
        """Make a new, empty engine at `path` and open it for writing."""

    @classmethod
    @abstractmethod
    def open_existing(cls, path: Path, *, read_only: bool, pages: int) -> Self:
        """Open the engine at `path`; StoreNotFoundError, and no trace, if there is none."""

    # -- what an adapter implements -----------------------------------------------------

    @property
    @abstractmethod
    def capabilities(self) -> Capabilities:
        """What this adapter, opened as it is, can do."""

    @abstractmethod
    def payload_of(self, pages: int) -> int:
        """Return the largest value that costs exactly `pages` device pages to read."""

    @abstractmethod
    def _read(self, keys: Keys, out: Payloads) -> None:
        """Copy the values of `keys` (n,) into `out` (n, payload_bytes).

        Use :meth:`_missing` and :meth:`_wrong_length` for the errors. Release the GIL
        while waiting for the device: queue depth comes from threads.
        """

    @abstractmethod
    def _write(self, keys: Keys, payloads: Payloads) -> None:
        """Write all pairs durably, replacing old values, or none of them."""

    @abstractmethod
    def _bulk_writer(self) -> BulkWriter:
        """Begin a bulk load of new blocks."""

    @abstractmethod
    def _first_key(self, first: int, last: int) -> int | None:
        """Return the lowest 8-byte key stored within first..last, or None."""

    @abstractmethod
    def _delete_range(self, first: int, last: int) -> None:
        """Delete all 8-byte keys within first..last durably, and no others."""

    @abstractmethod
    def _close(self) -> None:
        """Release what this adapter opened; called once, with no call running."""

    def _check_handle(self) -> None:
        """Raise :class:`StaleHandleError` when the handle cannot be used as it is."""
        return

    def _recover(self, error: Exception) -> bool:
        """Repair what made a call fail, if possible, and say whether to repeat it.

        Called with no gate held; take ``self._gate.alone()`` to change the handle.
        """
        del error
        return False

    # -- reading ------------------------------------------------------------------------

    def get(self, key: int) -> Payloads:
        """Return a copy of one block.

        Parameters
        ----------
        key
            A key as made by :func:`block_keys`.

        Returns
        -------
        uint8 array (payload_bytes,)

        Raises
        ------
        BlockMissingError, BlockCorruptError, AdapterError
            As for :meth:`multi_get`.

        Notes
        -----
        *Cost*: one device read of `pages` pages when cold.
        """
        return self.multi_get(np.array([key], np.uint64)).reshape(-1)

    def multi_get(self, keys: Keys, out: Payloads | None = None) -> Payloads:
        """Return copies of many blocks, in the order of `keys`, duplicates included.

        Parameters
        ----------
        keys
            uint64 (n,); reads are cheapest in rising order.
        out
            Where to put the blocks: uint8 (n, payload_bytes), C-contiguous.

        Returns
        -------
        uint8 array (n, payload_bytes)
            `out` if it was given. Nothing in it is to be used when the call raises.

        Raises
        ------
        InputError
            Keys or `out` of another type or shape.
        BlockMissingError
            A key has no value; the message names it.
        BlockCorruptError
            A value is not `payload_bytes` long, or the engine found it damaged.
        AdapterError
            The engine failed, or the adapter is closed.

        Notes
        -----
        *Cost*: `pages` device pages per key when cold, one read after the other: call
        it from several threads with slices of sorted keys to fill the device's queue.
        """
        keys = _checked_keys(keys)
        out = self._checked_out(out, len(keys))
        if len(keys):
            self._call(lambda: self._read(keys, out))
        else:
            self._call(lambda: None)
        return out

    def reading(self, count: int) -> Reading | None:
        """Return what compiled code needs to read `count` blocks of this engine, or None.

        None: only :meth:`multi_get` can. :meth:`end_reading` gives it back.

        Raises
        ------
        AdapterError
            The adapter is closed.
        """
        del count
        return None

    def end_reading(self, reading: Reading) -> None:
        """Take back what :meth:`reading` gave."""
        del reading

    def why_unread(self, key: int, found: int) -> BandanaError:
        """Return the error for a block that was not found whole by compiled code."""
        return self._wrong_length(key, found)

    def space_is_empty(self, space: int) -> bool:
        """Return whether no key of a space is stored. *Cost*: one seek."""
        first, last = space_bounds(space)
        return self._call(lambda: self._first_key(first, last)) is None

    # -- writing ------------------------------------------------------------------------

    def put_many(self, keys: Keys, payloads: Payloads) -> None:
        """Write blocks, new or not, all or none of them; durable on return.

        Parameters
        ----------
        keys
            uint64 (n,), distinct, any order.
        payloads
            uint8 (n, payload_bytes).

        Raises
        ------
        InputError
            Wrong shape or type, or a key twice.
        DiskFullError, AdapterError
            Nothing was written.

        Notes
        -----
        *Cost*: the payloads twice or more in device writes, and one sync. Memory of the
        order of the payloads: send what may be large through :meth:`bulk_load`.
        """
        self._check_writable()
        keys = _checked_keys(keys)
        payloads = self._checked_payloads(keys, payloads)
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        twice = np.flatnonzero(keys[1:] == keys[:-1])
        if len(twice):
            raise InputError(f"put_many was given {describe_key(keys[twice[0]])} twice")
        if len(keys):
            payloads = payloads[order]
            self._call(lambda: self._write(keys, payloads))

    def bulk_load(self, batches: Iterable[tuple[Keys, Payloads]], count: int) -> None:
        """Write new blocks in key order, streaming; durable on return.

        Parameters
        ----------
        batches
            Pairs of keys, uint64 (n,), and payloads, uint8 (n, payload_bytes). Keys rise
            strictly within and across batches. A batch's arrays may be reused by the
            iterable once the next one is asked for.
        count
            How many blocks there will be in all.

        Raises
        ------
        InputError
            Keys out of order or twice, another count, wrong shapes or types.
        AdapterError
            A key exists already, or the engine failed.
        DiskFullError
            No room.

        Notes
        -----
        After an error, or a crash, part of the keys may be stored: delete their spaces.
        *Cost*: the payloads once in sequential device writes; a few dozen MiB of memory.
        """
        self._check_writable()
        writer = self._call(self._bulk_writer)
        try:
            written = 0
            for keys, payloads in self._chunks(batches):
                self._refuse_existing(keys)
                self._call(lambda k=keys, p=payloads: writer.write(k, p))  # type: ignore[misc]
                written += len(keys)
            if written != count:
                raise InputError(f"bulk_load was told of {count} blocks and got {written}")
            self._call(writer.finish)
        except BaseException:
            writer.abort()
            raise

    def delete_space(self, space: int) -> None:
        """Delete all blocks of one space, and nothing else; durable on return."""
        self._check_writable()
        first, last = space_bounds(space)
        self._call(lambda: self._delete_range(first, last))

    # -- closing ------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._closed

    def close(self) -> None:
        """Wait for running calls and release the engine; a second call does nothing."""
        with self._gate.alone():
            if self._closed:
                return
            self._closed = True
        self._released()

    def end(self) -> None:
        """Close it at the end of the interpreter, unless a call hangs."""
        with self._gate.alone_soon(PATIENCE_S) as alone:
            if self._closed or not alone:
                return
            self._closed = True
        self._released()

    def _released(self) -> None:
        try:
            self._close()
        except self.engine_errors as error:
            raise self._translate(error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed else "read-only" if self._read_only else "open"
        return f"<{type(self).__name__} {self._where} ({state})>"

    # -- for implementations ------------------------------------------------------------

    @classmethod
    def _make_directory(cls, path: Path) -> None:
        """Make the directory of a new store; it may exist if it is empty."""
        try:
            path.mkdir(parents=True, exist_ok=True)
            taken = any(path.iterdir())
        except (FileExistsError, NotADirectoryError):
            taken = True
        except OSError as error:
            check_permission(error, path)
            raise AdapterError(f"{cls.name} cannot make the directory {path}: {error}") from error
        if taken:
            raise InputError(f"cannot create a {cls.name} store at {path}: it exists")

    @classmethod
    def _cannot_open(cls, where: str, error: Exception) -> BandanaError:
        """Return the library's error for what the engine raised at opening."""
        if (denied := denied_by_engine(f"{cls.name} at {where}", error)) is not None:
            return denied
        kind = DiskFullError if _is_full(error) else AdapterError
        return kind(f"{cls.name} at {where} cannot be opened: {error}")

    def _missing(self, key: int) -> BlockMissingError:
        return BlockMissingError(f"{self.name} at {self._where} has no {describe_key(key)}")

    def _wrong_length(self, key: int, found_bytes: int) -> BlockCorruptError:
        return BlockCorruptError(
            f"{self.name} at {self._where}: {describe_key(key)} is {found_bytes} bytes "
            f"long, not {self.payload_bytes}"
        )

    def _damaged(self, key: int, error: Exception) -> BlockCorruptError:
        return BlockCorruptError(
            f"{self.name} at {self._where}: {describe_key(key)} is damaged: {error}"
        )

    def _translate(self, error: Exception) -> BandanaError:
        """Return the library's error for one of the engine's."""
        if _is_full(error):
            return DiskFullError(f"{self.name} at {self._where}: no room for more: {error}")
        if (denied := denied_by_engine(f"{self.name} at {self._where}", error)) is not None:
            return denied
        return AdapterError(f"{self.name} at {self._where} failed: {error}")

    def _call(self, work: Callable[[], T]) -> T:
        """Run `work` inside the gate, translating and if possible repairing errors."""
        while True:
            try:
                with self._gate:
                    if self._closed:
                        raise AdapterError(f"{self.name} at {self._where} is closed")
                    self._check_handle()
                    return work()
            except BandanaError:
                raise
            except (StaleHandleError, *self.engine_errors) as error:  # type: ignore[misc]
                failure: Exception = error
            try:
                repaired = self._recover(failure)
            except self.engine_errors as error:
                # What it was to open again is gone or damaged since.
                raise self._translate(error) from error
            if not repaired:
                raise self._translate(failure) from failure

    # -- checks -------------------------------------------------------------------------

    def _check_writable(self) -> None:
        if self._read_only:
            raise AdapterError(f"{self.name} at {self._where} was opened read-only")

    def _checked_out(self, out: Payloads | None, count: int) -> Payloads:
        shape = (count, self.payload_bytes)
        if out is None:
            return empty_payloads(count, self.payload_bytes)
        array = np.asarray(out)
        if array is not out or out.dtype != np.uint8 or out.shape != shape:
            raise InputError(f"out must be a uint8 array of shape {shape}")
        if not (out.flags.c_contiguous and out.flags.writeable):
            raise InputError("out must be C-contiguous and writeable")
        return out

    def _checked_payloads(self, keys: Keys, payloads: Payloads) -> Payloads:
        shape = (len(keys), self.payload_bytes)
        array = np.asarray(payloads)
        if array.dtype != np.uint8 or array.shape != shape:
            raise InputError(
                f"payloads must be uint8 of shape {shape}, not {array.dtype} of {array.shape}"
            )
        return np.ascontiguousarray(array)

    def _chunks(self, batches: Iterable[tuple[Keys, Payloads]]) -> Iterator[tuple[Keys, Payloads]]:
        """Check batches, and yield them joined or cut to chunks of one size."""
        size = max(1, _CHUNK_BYTES // self.payload_bytes)
        keys_held = np.empty(size, np.uint64)
        payloads_held = empty_payloads(size, self.payload_bytes)
        held = 0
        newest = -1
        for batch_keys, batch_payloads in batches:
            keys = _checked_keys(batch_keys)
            payloads = self._checked_payloads(keys, batch_payloads)
            newest = _check_rising(keys, newest)
            at = 0
            while at < len(keys):
                take = min(size - held, len(keys) - at)
                if take == size:  # nothing to join it with
                    yield keys[at : at + size], payloads[at : at + size]
                    at += size
                    continue
                keys_held[held : held + take] = keys[at : at + take]
                payloads_held[held : held + take] = payloads[at : at + take]
                held, at = held + take, at + take
                if held == size:
                    yield keys_held, payloads_held
                    held = 0
        if held:
            yield keys_held[:held], payloads_held[:held]

    def _refuse_existing(self, keys: Keys) -> None:
        """Raise when any of the rising `keys` is stored; leaps over both sides' gaps."""
        last = int(keys[-1])
        at = 0
        while at < len(keys):
            low = int(keys[at])
            found = self._call(lambda low=low: self._first_key(low, last))  # type: ignore[misc]
            if found is None:
                return
            at = int(np.searchsorted(keys, np.uint64(found)))
            if at < len(keys) and int(keys[at]) == found:
                raise AdapterError(
                    f"{self.name} at {self._where} already has {describe_key(found)}; "
                    "a bulk load takes new keys only"
                )


def _is_full(error: Exception) -> bool:
    """Return whether an engine's message says that the device, or a quota, is full."""
    text = str(error).lower()
    return any(sign in text for sign in _FULL)


def _checked_keys(keys: Keys) -> Keys:
    array = np.asarray(keys)
    if array.ndim != 1 or array.dtype != np.uint64:
        raise InputError(
            f"keys must be a one-dimensional uint64 array, not {array.dtype} of {array.shape}"
        )
    return array


def _check_rising(keys: Keys, newest: int) -> int:
    """Return the last of `keys` after checking that they rise strictly from `newest`."""
    if not len(keys):
        return newest
    if int(keys[0]) <= newest:
        before, after = newest, int(keys[0])
    else:
        falls = np.flatnonzero(keys[1:] <= keys[:-1])
        if not len(falls):
            return int(keys[-1])
        before, after = int(keys[falls[0]]), int(keys[falls[0] + 1])
    raise InputError(
        f"keys of a bulk load must rise: {describe_key(after)} came after {describe_key(before)}"
    )
