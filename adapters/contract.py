"""The contract of an adapter.

An adapter stores blocks, values of one fixed length under 64-bit keys, in an engine. To
write one, derive from :class:`Adapter`, implement the methods marked abstract, name the
class under the entry point group ``bandana_kv.adapters``, and run
``bandana_kv.testing.AdapterConformance`` on it. The public methods are complete here, so
that every adapter checks its arguments alike and raises the same errors in the same words;
what an engine's handle needs is in :class:`~bandana_kv.adapters.open_engine.OpenEngine`, and
how compiled code reads in :class:`~bandana_kv.adapters.compiled_reads.CompiledReads`.
Whatever an adapter imports is here, wherever it is made.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Self

import numpy as np

from bandana_kv.adapters.capabilities import OF_BLOCKS, BulkWriter, Capabilities
from bandana_kv.adapters.compiled_reads import CompiledReads
from bandana_kv.adapters.gate import Gate
from bandana_kv.adapters.keys import (
    MAX_BLOCK,
    MAX_SPACE,
    Keys,
    block_keys,
    checked_keys,
    describe_key,
    key_bytes,
    space_bounds,
)
from bandana_kv.adapters.payloads import (
    PAGE_BYTES,
    Payloads,
    checked_out,
    checked_payloads,
    chunks,
    empty_payloads,
)
from bandana_kv.adapters.words import Queue, Standing, Words
from bandana_kv.errors import (
    AdapterError,
    BandanaError,
    BlockCorruptError,
    InputError,
)

__all__ = [
    "MAX_BLOCK",
    "MAX_SPACE",
    "OF_BLOCKS",
    "PAGE_BYTES",
    "Adapter",
    "BulkWriter",
    "Capabilities",
    "Keys",
    "Payloads",
    "Queue",
    "Standing",
    "Words",
    "block_keys",
    "describe_key",
    "empty_payloads",
    "key_bytes",
    "space_bounds",
]


class Adapter(CompiledReads):
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

    def __init__(
        self, where: str, *, pages: int = 1, read_only: bool = False, gate: Gate | None = None
    ) -> None:
        if pages < 1:
            raise InputError(f"pages must be at least 1, not {pages}")
        super().__init__(where, read_only=read_only, gate=gate)
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
        """Write all pairs durably, replacing old values, or none of them.

        Where ``capabilities.atomic_writes`` is False some may be written when it raises.
        """

    @abstractmethod
    def _bulk_writer(self, count: int) -> BulkWriter:
        """Begin a bulk load of `count` new blocks."""

    @abstractmethod
    def _any_stored(self, keys: Keys) -> int | None:
        """Return one of `keys` (n,), which rise, that is stored, or None."""

    @abstractmethod
    def _space_is_empty(self, space: int) -> bool:
        """Return whether no block of a space is stored."""

    @abstractmethod
    def _delete_space(self, space: int) -> None:
        """Delete all blocks of a space durably, and nothing else."""

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

        Notes
        -----
        Raises as :meth:`multi_get`. *Cost*: one device read of `pages` pages when cold.
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
        keys = checked_keys(keys)
        out = checked_out(out, len(keys), self.payload_bytes)
        if len(keys):
            self._call(lambda: self._read(keys, out))
        else:
            self._call(lambda: None)
        return out

    def read_each(self, keys: Keys, out: Payloads) -> dict[int, Exception]:
        """Read what can be read, as :meth:`multi_get`; return what is wrong with the others.

        Returns
        -------
        dict of int to Exception
            By place in `keys`: what :meth:`multi_get` would raise for that block alone. `out` has
            all others.

        Raises
        ------
        InputError
            As :meth:`multi_get`.

        Notes
        -----
        *Cost*: as :meth:`multi_get`; once more, one after the other, where that fails without
        saying which block is to blame. Remote engines say so, and nothing is read again.
        """
        try:
            self.multi_get(keys, out)
        except OF_BLOCKS as error:
            if len(keys) == 1:
                return {0: error}
            # Singly, since nothing says how far the engine came.
            each = ((at, slice(at, at + 1)) for at in range(len(keys)))
            found = ((at, self.read_each(keys[one], out[one])) for at, one in each)
            return {at: errors[0] for at, errors in found if errors}
        return {}

    def read_every_copy(self, keys: Keys, check: Callable[[str, Keys, Payloads], None]) -> int:
        """Have every copy of blocks looked at, each where it lies.

        Parameters
        ----------
        keys
            uint64 (n,); some hundreds at a time.
        check
            Called with a copy's place, keys that it has and their payloads, uint8 (n,
            payload_bytes), good until it returns. What it raises comes through.

        Returns
        -------
        int
            How many copies there are of the block that has fewest. A copy that has not got the
            block, or does not answer, is none.

        Raises
        ------
        BlockMissingError, BlockCorruptError, AdapterError
            No copy has a block; or it is of another length.

        Notes
        -----
        *Cost*: a read for each copy of each block.
        """
        check(self._where, keys, self.multi_get(keys))
        return 1

    def why_unread(self, key: int, found: int) -> BandanaError:
        """Return the error for a block that was not found whole by compiled code."""
        return self._wrong_length(key, found)

    def space_is_empty(self, space: int) -> bool:
        """Return whether no key of a space is stored. *Cost*: one seek."""
        space_bounds(space)
        return self._call(lambda: self._space_is_empty(space))

    # -- writing ------------------------------------------------------------------------

    def put_many(self, keys: Keys, payloads: Payloads) -> None:
        """Write blocks, new or not, all or none of them; durable on return.

        Where ``capabilities.atomic_writes`` is False some may be written when it raises; to
        write them again is safe.

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
            Nothing was written, if writes are atomic.

        Notes
        -----
        *Cost*: the payloads twice or more in device writes, and one sync. Memory of the
        order of the payloads: send what may be large through :meth:`bulk_load`.
        """
        self._check_writable()
        keys = checked_keys(keys)
        payloads = checked_payloads(keys, payloads, self.payload_bytes)
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
        writer = self._call(lambda: self._bulk_writer(count))
        try:
            written = 0
            for keys, payloads in chunks(batches, self.payload_bytes):
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
        space_bounds(space)
        self._call(lambda: self._delete_space(space))

    def settle(self, copies: int) -> None:
        """Wait until as many copies as asked for have all that was written before, by anyone.

        Parameters
        ----------
        copies
            Beside the one that was written to. Engines of this machine have none.

        Raises
        ------
        AdapterError
            There are fewer, or they do not have it in time: to switch to it now could lose it.
        """
        self._call(lambda: None)
        if copies > 0:
            raise AdapterError(
                f"{self.name} at {self._where} keeps one copy; ask for copies=0, or load into a "
                "cluster"
            )

    def _refuse_existing(self, keys: Keys) -> None:
        found = self._call(lambda: self._any_stored(keys))
        if found is not None:
            raise AdapterError(
                f"{self.name} at {self._where} already has {describe_key(found)}; "
                "a bulk load takes new keys only"
            )

    # -- for implementations ------------------------------------------------------------

    def _wrong_length(self, key: int, found_bytes: int) -> BlockCorruptError:
        return BlockCorruptError(
            f"{self.name} at {self._where}: {describe_key(key)} is {found_bytes} bytes "
            f"long, not {self.payload_bytes}"
        )
