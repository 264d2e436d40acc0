"""Blocks in a cluster that speaks the protocol of Redis Cluster, as plain string values.

Behind it may be any engine of that protocol. Apache Kvrocks keeps values on NVMe; Valkey and
Redis keep all of them in RAM. Replication, fail-over and the moving of slots are the engine's.
Only commands are used that all of them have: GET, MGET, EXISTS, SET, DEL, ZADD, ZRANGEBYSCORE,
ZREM, WAIT, READONLY, ASKING, CLUSTER SLOTS, and AUTH to log in.

How reads go: :mod:`bandana_kv.adapters.resp_reads`; why: docs/decisions/0018.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar, Self

import numpy as np

from bandana_kv.adapters import resp_replies as wire
from bandana_kv.adapters.contract import (
    PAGE_BYTES,
    Adapter,
    BulkWriter,
    Capabilities,
    Keys,
    Payloads,
    describe_key,
    empty_payloads,
    space_bounds,
)
from bandana_kv.adapters.gate import Gate
from bandana_kv.adapters.keys import checked_keys
from bandana_kv.adapters.payloads import checked_out
from bandana_kv.adapters.resp_address import Address, check_prefix, parse_address
from bandana_kv.adapters.resp_flights import Pace
from bandana_kv.adapters.resp_nodes import COUNTED, Nodes
from bandana_kv.adapters.resp_reads import Reading
from bandana_kv.adapters.resp_spaces import Spaces
from bandana_kv.adapters.resp_writes import Insist, settle
from bandana_kv.errors import InputError, NodeError, StoreNotFoundError

__all__ = ["RespAdapter"]

# What blocks have room for beside their rows in engines that pad values to pages: none do.
_OVERHEAD_BYTES = 64


class RespAdapter(Adapter):
    """Blocks in a cluster, opened on its address by :meth:`on`.

    Readers on all machines see what a writer has written, once its copies have it. Blocks must
    not change while they are served: any copy may answer, and copies are late.

    Notes
    -----
    A read of blocks is one round trip to each node that has some, all of them at once. A node that
    has not answered within ``second_ask_ms`` is left alone for a while, and its copies are asked;
    a block whose copies do not answer within ``patience_ms`` is a :class:`NodeError`, as is
    at once every other block of theirs until one answers again. The others come meanwhile.
    """

    name: ClassVar[str] = "resp"
    engine_errors = (OSError,)

    def __init__(
        self,
        nodes: Nodes,
        spaces: Spaces,
        *,
        pages: int,
        read_only: bool,
        pace: Pace,
        deleted_per_s: float,
    ) -> None:
        self._nodes = nodes
        self._spaces = spaces
        self._pace = pace
        self._deleted_per_s = deleted_per_s
        gate = Gate(after_fork_in_child=self._after_fork_in_child)
        super().__init__(nodes.where, pages=pages, read_only=read_only, gate=gate)

    @classmethod
    def create(cls, path: Path, *, size_hint_bytes: int, pages: int) -> Self:
        """Refuse: a cluster has an address."""
        del path, size_hint_bytes, pages
        raise InputError(_NO_PATH)

    @classmethod
    def open_existing(cls, path: Path, *, read_only: bool, pages: int) -> Self:
        """Refuse: a cluster has an address."""
        del read_only, pages
        raise StoreNotFoundError(f"no {cls.name} store at {path}: {_NO_PATH}")

    @classmethod
    def on(
        cls,
        address: str | Address,
        *,
        prefix: str = "bandana",
        user: str | None = None,
        password: str | None = None,
        tls: bool | Mapping[str, str | os.PathLike[str]] | None = None,
        copies: int = 1,
        pages: int = 1,
        read_only: bool = False,
        second_ask_ms: float = 50.0,
        patience_ms: float = 500.0,
        deleted_per_s: float = 20_000.0,
    ) -> Self:
        """Use a cluster at an address.

        Parameters
        ----------
        address
            ``"redis://host:port,host:port"`` of some of its nodes, ``rediss`` for TLS. User and
            password may be in it; they are in no message, log or manifest.
        prefix
            What keys begin with; whoever shares the cluster has another one.
        user, password
            Instead of those in the address.
        tls
            True, or files under the names ``"ca"``, ``"certificate"`` and ``"key"``.
        copies
            How many replicas must have what is written before a write returns; 0: none, and what
            a primary has acknowledged may be lost with it.
        pages
            Blocks of this many times 4096 bytes.
        read_only
            Refuse writes.
        second_ask_ms
            A node that has not answered by then is slow, and another copy is asked.
        patience_ms
            A block that has not come by then is given up.
        deleted_per_s
            Blocks of a space that are deleted in a second at most.

        Raises
        ------
        InputError
            An argument is not what it should be.
        AdapterError
            No node answers, or all refuse the user.
        MissingExtraError
            The client library is not installed.

        Notes
        -----
        *Cost*: a connection and a round trip. Each thread has connections of its own, made when
        it first asks a node; a forked child makes them anew.
        """
        if not isinstance(address, Address):
            address = parse_address(address, user=user, password=password, tls=tls)
        check_prefix(prefix)
        if not isinstance(copies, int) or copies < 0:
            raise InputError(f"copies must be a number from 0 up, not {copies!r}")
        if not 0 < second_ask_ms <= patience_ms:
            raise InputError("second_ask_ms must be above 0, and patience_ms no less")
        if not deleted_per_s > 0:
            raise InputError(f"deleted_per_s must be above 0, not {deleted_per_s!r}")
        where = f"{cls.name} at {address}"
        wire.ready()
        nodes = Nodes(address, where)
        nodes.view()
        made = cls(
            nodes,
            Spaces(nodes, prefix, Insist(copies)),
            pages=pages,
            read_only=read_only,
            pace=Pace(second_ask_ms / 1000, patience_ms / 1000),
            deleted_per_s=deleted_per_s,
        )
        made._where = str(address)
        return made

    @property
    def capabilities(self) -> Capabilities:
        """What this adapter, opened as it is, can do."""
        return Capabilities(
            persistent=True,
            read_only_media=False,
            shared_by_processes=True,
            survives_fork=True,
            queue_depth="call",
            remote=True,
            atomic_writes=False,
        )

    @property
    def prefix(self) -> str:
        """What keys begin with."""
        return self._spaces.prefix[1:-1].decode()

    def payload_of(self, pages: int) -> int:
        """Return the length of a value that with what engines put beside it is `pages` pages."""
        return pages * PAGE_BYTES - _OVERHEAD_BYTES

    def node_counts(self) -> dict[str, dict[str, int]]:
        """Return what each node was asked since this was opened.

        Returns
        -------
        dict of str to dict of str to int
            By ``host:port``: ``round_trips``, ``bytes_in``, ``bytes_out``, ``second_asks`` (of
            its copies, since it was late), ``redirects``, ``failures``.
        """
        return {
            str(node): dict(zip(COUNTED, counts, strict=True))
            for node, counts in zip(list(self._nodes.known), list(self._nodes.counts), strict=False)
        }

    # -- reading --------------------------------------------------------------------------

    def read_each(self, keys: Keys, out: Payloads) -> dict[int, Exception]:
        """Read what can be read, as :meth:`Adapter.read_each` says; nothing is read twice."""
        keys = checked_keys(keys)
        out = checked_out(out, len(keys), self.payload_bytes)
        return self._call(lambda: self._read_each(keys, out) if len(keys) else {})

    def _read(self, keys: Keys, out: Payloads) -> None:
        errors = self._read_each(keys, out)
        if errors:
            raise errors[min(errors)]

    def _read_each(self, keys: Keys, out: Payloads) -> dict[int, Exception]:
        reading = self._reading(keys, out)
        if reading.any_copy():
            return {}
        errors = self._errors(reading, keys)
        missing = any(not isinstance(error, NodeError) for error in errors.values())
        if missing and self._spaces.changed(keys):  # deleted, and loaded anew
            reading = self._reading(keys, out)
            reading.any_copy()
            errors = self._errors(reading, keys)
        return errors

    def _reading(self, keys: Keys, out: Payloads) -> Reading:
        return Reading(self._nodes, self._spaces.located(keys), out, self._pace)

    def _errors(self, reading: Reading, keys: Keys) -> dict[int, Exception]:
        errors: dict[int, Exception] = {}
        for at in np.flatnonzero(reading.status != wire.TAKEN).tolist():
            key = int(keys[at])
            if reading.status[at] == wire.LENGTH:
                errors[at] = self._wrong_length(key, int(reading.found[at]))
            elif reading.lacks(at):
                errors[at] = self._missing(key)
            else:
                node, why = reading.reason(at)
                message = f"{self.name} at {self._where}: {describe_key(key)} does not come: {why}"
                errors[at] = NodeError(message, node)
        return errors

    def read_every_copy(self, keys: Keys, check: Callable[[str, Keys, Payloads], None]) -> int:
        """Have every copy looked at, as :meth:`Adapter.read_every_copy` says."""
        keys = checked_keys(keys)
        if not len(keys):
            return 1
        return self._call(lambda: self._read_every_copy(keys, check))

    def _read_every_copy(self, keys: Keys, check: Callable[[str, Keys, Payloads], None]) -> int:
        # A copy that was out of step when nodes were asked last was not named.
        self._nodes.refreshed(self._spaces.insist.answer_s)
        located = self._spaces.located(keys)
        shards = [self._nodes.shard(slot) for slot in located.slots.tolist()]
        found = np.zeros(len(keys), np.int64)
        errors: dict[int, Exception] = {}
        out = empty_payloads(len(keys), self.payload_bytes)
        pace = Pace(self._pace.patience_s, 10 * self._pace.patience_s)
        for copy in range(max(1, *map(len, shards))):
            numbers = np.array([each[copy] if copy < len(each) else -1 for each in shards])
            reading = Reading(self._nodes, located, out, pace)
            reading.of_nodes(numbers)
            there = reading.status == wire.TAKEN
            found += there
            errors |= self._errors(reading, keys)
            for number in np.unique(numbers[there]).tolist():
                of_node = there & (numbers == number)
                node = f"{self._where}, node {self._nodes.known[number]}"
                check(node, keys[of_node], out[of_node])
        if not found.all():
            raise errors[int(np.flatnonzero(found == 0)[0])]
        return int(found.min())

    # -- writing --------------------------------------------------------------------------

    def _write(self, keys: Keys, payloads: Payloads) -> None:
        self._spaces.write(keys, payloads, len(keys))

    def _bulk_writer(self, count: int) -> BulkWriter:
        return _Writer(self._spaces, count)

    def _any_stored(self, keys: Keys) -> int | None:
        return self._spaces.any_stored(keys)

    def _space_is_empty(self, space: int) -> bool:
        return self._spaces.is_empty(space)

    def delete_space(self, space: int) -> None:
        """Delete all blocks of one space, and nothing else, no faster than was asked for."""
        self._check_writable()
        space_bounds(space)
        pieces = self._spaces.deleted(space)
        begun, blocks = time.monotonic(), 0
        while (piece := self._call(lambda: next(pieces, None))) is not None:
            # Not inside the gate: whoever closes or forks would wait for it.
            blocks += piece
            time.sleep(max(0.0, begun + blocks / self._deleted_per_s - time.monotonic()))

    def _delete_space(self, space: int) -> None:
        for _ in self._spaces.deleted(space):
            pass

    def settle(self, copies: int) -> None:
        """Wait for copies, as :meth:`Adapter.settle` says.

        *Cost*: two small writes to each primary, and a WAIT.
        """
        self._check_writable()
        prefix = self._spaces.prefix

        def key_of(number: int) -> bytes:
            return prefix + b"settled.%x}" % number

        self._call(lambda: settle(self._nodes, key_of, Insist(copies)))

    def _after_fork_in_child(self, _: bool) -> None:
        self._nodes.after_fork_in_child()
        self._spaces.after_fork_in_child()

    def _close(self) -> None:
        self._nodes.close()


class _Writer:
    """Takes chunks of a bulk load; each is settled before the next."""

    def __init__(self, spaces: Spaces, count: int) -> None:
        self._spaces = spaces
        self._count = count

    def write(self, keys: Keys, payloads: Payloads) -> None:
        self._spaces.write(keys, payloads, self._count)

    def finish(self) -> None:
        pass

    def abort(self) -> None:
        pass


_NO_PATH = (
    "a cluster has an address instead of a path: "
    'RespAdapter.on("redis://host:port,host:port"), given as adapter='
)
