"""Spaces in a cluster: how long their chunks are, which there are, and how they are deleted.

Beside its blocks a space has two small keys, in one slot: ``{<prefix>.<space>}shape``, how many
bits of a block's number are its place in its chunk, and ``{<prefix>.<space>}chunks``, a sorted set
of the chunks that may have blocks, which is written before these are. So what is there can be
listed, and deleted, though the keys have no order.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from bandana_kv.adapters.keys import Keys
from bandana_kv.adapters.payloads import Payloads
from bandana_kv.adapters.resp_commands import KEY_TAIL, compose_writes, locate
from bandana_kv.adapters.resp_flights import Located, key_of
from bandana_kv.adapters.resp_link import LinkError, RefusedError
from bandana_kv.adapters.resp_nodes import Nodes
from bandana_kv.adapters.resp_protocol import Failed, command, redirect_of
from bandana_kv.adapters.resp_slots import CRC_TABLE, crc16, slot_of
from bandana_kv.adapters.resp_writes import Insist, carry_out, packed
from bandana_kv.errors import AdapterError, NodeError

__all__ = ["Spaces", "shift_for"]

_MOST_SHIFT = 6  # 64 blocks a chunk
_CHUNKS_A_SHARD = 128
_BLOCK_BITS = 40
_LISTED = 256  # chunks that are listed, or deleted, at once
_KEYS_OF_EXISTS = 64
_ASK_S = 0.5
_MOST_TRIES = 8


def shift_for(blocks: int, shards: int) -> int:
    """Return how many bits of a block's number are its place in its chunk.

    The more blocks a chunk has, the fewer nodes a request asks, and the less evenly they are
    loaded: at most 64, and at least 128 chunks for each shard.
    """
    shift = _MOST_SHIFT
    while shift and blocks >> shift < _CHUNKS_A_SHARD * shards:
        shift -= 1
    return shift


class Spaces:
    """The spaces under one prefix; safe to use from many threads.

    Parameters
    ----------
    nodes
        Of the cluster.
    prefix
        What keys begin with, within their braces.
    insist
        How writes are carried out.
    """

    def __init__(self, nodes: Nodes, prefix: str, insist: Insist) -> None:
        self.nodes = nodes
        self.insist = insist
        self.prefix = b"{" + prefix.encode() + b"."
        self._prefix = np.frombuffer(self.prefix, np.uint8).copy()
        self._crc = crc16(self.prefix[1:])
        # Replaced as a whole: readers take no lock.
        self._shapes: tuple[NDArray[np.int64], NDArray[np.int64]] = (
            np.empty(0, np.int64),
            np.empty(0, np.int64),
        )
        self._lock = threading.Lock()

    def after_fork_in_child(self) -> None:
        """Go on, whatever thread of the parent was changing something."""
        self._lock = threading.Lock()

    # -- where keys are -------------------------------------------------------------------

    def located(self, keys: Keys) -> Located:
        """Return where keys (n,) are; the slot of those whose space is empty is -1.

        Raises
        ------
        AdapterError
            No node tells the shape of a space.
        """
        if not keys.flags.carray:  # of which kernels are compiled; not read-only ones, for example
            keys = keys.copy()
        slots, shift_of = np.empty(len(keys), np.int64), np.empty(len(keys), np.uint8)
        spaces, shifts = self._shapes
        empty: list[int] = []
        while True:
            unknown = locate(keys, spaces, shifts, CRC_TABLE, self._crc, slots, shift_of)
            if unknown < 0:
                break
            space = int(keys[unknown]) >> _BLOCK_BITS
            shift = self.shape(space)
            if shift is None:
                empty.append(space)
                spaces, shifts = np.append(spaces, space), np.append(shifts, 0)
            else:
                spaces, shifts = np.append(spaces, space), np.append(shifts, shift)
        if empty:
            slots[np.isin(keys >> np.uint64(_BLOCK_BITS), np.array(empty, np.uint64))] = -1
        return Located(keys, slots, shift_of, self._prefix, not empty)

    def shape(self, space: int) -> int | None:
        """Return the shift of a space, as its nodes have it now; None: it is empty."""
        key = self._key(space, "shape")
        return self._learnt(space, self._asked(key, command("GET", key)))

    def _shape_at_primary(self, space: int) -> int | None:
        key = self._key(space, "shape")
        return self._learnt(space, self._of_primary(key, command("GET", key)))

    def _learnt(self, space: int, said: object) -> int | None:
        if said is None:
            self._forget(space)
            return None
        if not isinstance(said, bytes) or not said.isdigit() or int(said) > _MOST_SHIFT:
            raise AdapterError(f"{self.nodes.where}: space {space} has the shape {said!r}")
        self._learn(space, int(said))
        return int(said)

    def changed(self, keys: Keys) -> bool:
        """Return whether a space of `keys` has another shape than was thought."""
        before = dict(zip(*(each.tolist() for each in self._shapes), strict=True))
        spaces = np.unique(keys >> np.uint64(_BLOCK_BITS)).tolist()
        changed = [space for space in spaces if self.shape(space) != before.get(space)]
        return bool(changed)

    def _learn(self, space: int, shift: int) -> None:
        with self._lock:
            spaces, shifts = self._shapes
            kept = spaces != space
            self._shapes = np.append(spaces[kept], space), np.append(shifts[kept], shift)

    def _forget(self, space: int) -> None:
        with self._lock:
            spaces, shifts = self._shapes
            kept = spaces != space
            self._shapes = spaces[kept], shifts[kept]

    def _key(self, space: int, what: str) -> bytes:
        return self.prefix + f"{space:06x}}}{what}".encode()

    def _asked(self, key: bytes, data: bytes) -> object:
        """Return what a copy says that is up; None: all have nothing.

        Raises
        ------
        NodeError
            No copy has it, and not all could be asked.
        """
        slot = slot_of(key)
        numbers = self.nodes.copies(slot)
        reasons: list[str] = []
        left = list(numbers)
        while left and len(reasons) < _MOST_TRIES:
            number = left.pop(0)
            try:
                link = self.nodes.links.idle(number, _ASK_S)
                reply = link.ask(data, _ASK_S)
            except (LinkError, RefusedError) as error:
                reasons.append(str(error))
                self.nodes.links.drop(number)
                self.nodes.failed(number, "slow")
                continue
            if isinstance(reply, Failed):
                reasons.append(f"{self.nodes.known[number]}: {reply}")
                redirect = redirect_of(reply, self.nodes.known[number])
                if redirect is not None:
                    self.nodes.care(refresh=True)
                    left.insert(0, self.nodes.number_of(redirect.node))
            elif reply is not None:
                return reply
        if not reasons and len(numbers) == len(self.nodes.shard(slot)) and numbers:
            return None
        why = "; ".join(dict.fromkeys(reasons)) or self.nodes.describe(slot)
        raise NodeError(f"{self.nodes.where}: {why}")

    def _of_primary(self, key: bytes, data: bytes) -> object:
        """Return what the primary of a key's slot says."""
        return carry_out(self.nodes, np.array([slot_of(key)]), packed([data]), self._unsettled)[0]

    # -- what is there --------------------------------------------------------------------

    def is_empty(self, space: int) -> bool:
        """Return whether a space has no chunks, and no shape."""
        return self._shape_at_primary(space) is None and not self._chunks(space, 1)

    def _chunks(self, space: int, most: int) -> list[int]:
        key = self._key(space, "chunks")
        data = command("ZRANGEBYSCORE", key, "-inf", "+inf", "LIMIT", 0, most)
        said = self._of_primary(key, data)
        return [int(each, 16) for each in said] if isinstance(said, list) else []

    def any_stored(self, keys: Keys) -> int | None:
        """Return one of `keys` (n,), which rise, that is stored; None: none is."""
        of_key = keys >> np.uint64(_BLOCK_BITS)
        # By primaries, as all that is written: a space that is empty there needs no other word.
        stored = [s for s in np.unique(of_key).tolist() if self._shape_at_primary(s) is not None]
        keys = keys[np.isin(of_key, np.array(stored, np.uint64))]
        located = self.located(keys)
        order = np.flatnonzero(located.slots >= 0)
        order = order[np.argsort(located.slots[order], kind="stable")]
        parts = [
            part
            for of_slot in np.split(order, np.flatnonzero(np.diff(located.slots[order])) + 1)
            for part in np.split(of_slot, range(_KEYS_OF_EXISTS, of_slot.size, _KEYS_OF_EXISTS))
            if part.size
        ]
        for part in self._those_with(located, parts):
            for at in part.tolist():
                if self._those_with(located, [np.array([at])]):
                    return int(keys[at])
        return None

    def _those_with(
        self, located: Located, parts: list[NDArray[np.int64]]
    ) -> list[NDArray[np.int64]]:
        """Return those parts, each of one slot, of which some key exists."""
        commands = [command("EXISTS", *self._names(located, part)) for part in parts]
        slots = located.slots[[int(part[0]) for part in parts]]
        said = carry_out(self.nodes, slots, packed(commands), self._unsettled)
        return [part for part, reply in zip(parts, said, strict=True) if reply]

    @property
    def _unsettled(self) -> Insist:
        """As writes are carried out, for what changes nothing."""
        each = self.insist
        return Insist(0, each.patience_s, each.answer_s, each.settle_s)

    def _names(self, located: Located, part: NDArray[np.int64]) -> list[bytes]:
        return [
            key_of(self.prefix, int(located.keys[at]), int(located.shift_of[at]))
            for at in part.tolist()
        ]

    # -- changes --------------------------------------------------------------------------

    def write(self, keys: Keys, payloads: Payloads, blocks: int) -> None:
        """Write blocks; on return the copies asked for have them.

        Parameters
        ----------
        blocks
            How many a space will have that is empty as yet.
        """
        self._begin_spaces(keys, blocks)
        located = self.located(keys)
        payloads = payloads if payloads.flags.carray else payloads.copy()
        size = len(self.prefix) + KEY_TAIL + payloads.shape[1] + 64

        def pack(items: NDArray[np.int64], once: bool) -> memoryview:
            buffer = np.empty(items.size * size, np.uint8)
            end = compose_writes(
                located.keys, located.shift_of, payloads, items, once, located.prefix, buffer
            )
            return buffer[:end].data

        carry_out(self.nodes, located.slots, pack, self.insist)

    def _begin_spaces(self, keys: Keys, blocks: int) -> None:
        """Give spaces that are empty a shape, and list the chunks that are about to have blocks."""
        of_key = keys >> np.uint64(_BLOCK_BITS)
        commands, slots = [], []
        for space in np.unique(of_key).tolist():
            shift = self._shape_begun(space, blocks)
            numbers = keys[of_key == space] & np.uint64((1 << _BLOCK_BITS) - 1)
            chunks = np.unique(numbers >> np.uint64(shift)).tolist()
            key = self._key(space, "chunks")
            for first in range(0, len(chunks), _LISTED):
                pairs = [(each, f"{each:x}") for each in chunks[first : first + _LISTED]]
                commands.append(command("ZADD", key, *(word for pair in pairs for word in pair)))
                slots.append(slot_of(key))
        carry_out(self.nodes, np.array(slots, np.int64), packed(commands), self.insist)

    def _shape_begun(self, space: int, blocks: int) -> int:
        spaces, shifts = self._shapes
        known = np.flatnonzero(spaces == space)
        shift = int(shifts[known[0]]) if known.size else self._shape_at_primary(space)
        if shift is not None:
            return shift
        shards = len(self.nodes.view().topology.shards)
        key = self._key(space, "shape")
        words = command("SET", key, shift_for(blocks, shards), "NX")
        carry_out(self.nodes, np.array([slot_of(key)]), packed([words]), self.insist)
        begun = self._shape_at_primary(space)
        if begun is None:
            raise AdapterError(f"{self.nodes.where}: space {space} was deleted during a write")
        return begun

    def deleted(self, space: int) -> Iterator[int]:
        """Delete a space piece by piece, giving how many blocks each may have had."""
        shift = self._shape_at_primary(space)
        chunks_key = self._key(space, "chunks")
        slot = slot_of(chunks_key)
        while shift is not None and (chunks := self._chunks(space, _LISTED)):
            rests = range(1 << shift)
            first = [(space << _BLOCK_BITS) | (chunk << shift) for chunk in chunks]
            names = [[key_of(self.prefix, each | rest, shift) for rest in rests] for each in first]
            slots = np.array([slot_of(each[0]) for each in names], np.int64)
            deletes = [command("DEL", *each) for each in names]
            carry_out(self.nodes, slots, packed(deletes), self.insist)
            gone = command("ZREM", chunks_key, *(f"{chunk:x}" for chunk in chunks))
            carry_out(self.nodes, np.array([slot]), packed([gone]), self.insist)
            yield len(chunks) << shift
        ends = [command("DEL", chunks_key, self._key(space, "shape"))]
        carry_out(self.nodes, np.array([slot]), packed(ends), self.insist)
        self._forget(space)
