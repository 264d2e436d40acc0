"""Commands and replies as compiled code has them are those of the protocol."""

from __future__ import annotations

import numpy as np
import pytest

from bandana_kv.adapters import block_keys, resp_replies
from bandana_kv.adapters.contract import MAX_BLOCK, MAX_SPACE, Keys
from bandana_kv.adapters.resp_commands import PART_WORDS, compose_reads, compose_writes, locate
from bandana_kv.adapters.resp_flights import key_of
from bandana_kv.adapters.resp_protocol import command, redirect_of, reply_at
from bandana_kv.adapters.resp_slots import CRC_TABLE, crc16, slot_of
from bandana_kv.adapters.resp_spaces import shift_for
from bandana_kv.adapters.resp_topology import Health, topology_of

PREFIX = b"{some.prefix."
SEED = 20261130


def prefix() -> np.ndarray:
    return np.frombuffer(PREFIX, np.uint8).copy()


def located(keys: Keys, shift: int) -> tuple[np.ndarray, np.ndarray]:
    spaces = np.unique(keys >> np.uint64(40)).astype(np.int64)
    slots, shift_of = np.empty(len(keys), np.int64), np.empty(len(keys), np.uint8)
    crc = crc16(PREFIX[1:])
    shifts = np.full(len(spaces), shift)
    assert locate(keys, spaces, shifts, CRC_TABLE, crc, slots, shift_of) == -1
    return slots, shift_of


def random_keys(count: int) -> Keys:
    rng = np.random.default_rng(SEED)
    blocks = np.append(rng.integers(0, MAX_BLOCK, count - 2), [0, MAX_BLOCK])
    keys = [
        block_keys(space, block)
        for space, block in zip([0, MAX_SPACE, 7] * count, blocks, strict=False)
    ]
    return np.array(keys, np.uint64)


def test_slots_are_those_of_the_specification() -> None:
    assert crc16(b"123456789") == 0x31C3
    assert slot_of(b"foo{hash_tag}") == 2515
    assert slot_of(b"{}foo") == crc16(b"{}foo") % 16384


@pytest.mark.parametrize("shift", range(7))
def test_blocks_of_a_chunk_share_a_slot_and_keys_are_all_different(shift: int) -> None:
    keys = random_keys(50)
    slots, shift_of = located(keys, shift)
    assert set(shift_of.tolist()) == {shift}
    names = [key_of(PREFIX, int(key), shift) for key in keys]
    assert [slot_of(name) for name in names] == slots.tolist()
    consecutive = block_keys(3, np.arange(200))
    slots, _ = located(consecutive, shift)
    for chunk in range(200 >> shift):
        assert len(set(slots[chunk << shift : (chunk + 1) << shift].tolist())) == 1
    assert len({key_of(PREFIX, int(key), shift) for key in consecutive}) == 200


def test_an_unknown_space_is_told() -> None:
    keys = np.concatenate([block_keys(1, [1, 2]), block_keys(2, [1])])
    one, out = np.array([1]), np.empty(3, np.int64)
    assert locate(keys, one, one, CRC_TABLE, 0, out, np.empty(3, np.uint8)) == 2


@pytest.mark.parametrize(("count", "most"), [(1, 64), (40, 64), (300, 64), (300, 3), (40, 1)])
def test_commands_ask_each_node_for_its_keys_and_no_others(count: int, most: int) -> None:
    rng = np.random.default_rng(SEED)
    keys = block_keys(5, rng.integers(0, 500, count))
    slots, shift_of = located(keys, 4)
    nodes = slots % 3
    nodes[rng.random(count) < 0.1] = -1
    buffer = np.empty(count * 100, np.uint8)
    order, counts = np.empty(count, np.int64), np.empty(count, np.int64)
    parts = np.empty((count, PART_WORDS), np.int64)
    asked = compose_reads(
        keys, shift_of, slots, nodes, most, prefix(), buffer, order, counts, parts
    )
    seen: list[int] = []
    for node, get, gets, begin, end, key, held in parts[:asked].tolist():
        of_node = order[key : key + held].tolist()
        wanted = b""
        at = 0
        for size in counts[get : get + gets].tolist():
            assert 1 <= size <= most
            group = of_node[at : at + size]
            assert len({int(slots[each]) for each in group}) == 1
            names = [key_of(PREFIX, int(keys[each]), 4) for each in group]
            wanted += command("MGET", *names)
            at += size
        assert at == held
        assert buffer[begin:end].tobytes() == wanted
        assert (nodes[of_node] == node).all()
        seen += of_node
    assert sorted(seen) == np.flatnonzero(nodes >= 0).tolist()


def test_writes_are_commands_of_the_protocol() -> None:
    keys = block_keys(5, [1, 2, 700])
    _, shift_of = located(keys, 3)
    payloads = np.random.default_rng(SEED).integers(0, 256, (3, 100), np.uint8)
    for asking in (False, True):
        buffer = np.empty(1000, np.uint8)
        which = np.array([2, 0])
        end = compose_writes(keys, shift_of, payloads, which, asking, prefix(), buffer)
        wanted = b"".join(
            (command("ASKING") if asking else b"")
            + command("SET", key_of(PREFIX, int(keys[at]), 3), payloads[at].tobytes())
            for at in (2, 0)
        )
        assert buffer[:end].tobytes() == wanted


def take(raw: bytes, cuts: list[int], counts: list[int], size: int) -> tuple[np.ndarray, ...]:
    """Take replies that arrive in pieces; return the cursor, and what became of the keys."""
    keys = sum(counts)
    cursor = np.zeros(resp_replies.CURSOR_WORDS, np.int64)
    cursor[resp_replies.ITEM] = -1
    status, found = np.zeros(keys, np.int8), np.zeros(keys, np.int64)
    out = np.zeros((keys, size), np.uint8)
    order = np.arange(keys)[::-1].copy()
    buffer = np.frombuffer(raw, np.uint8).copy()
    begin = 0
    for end in [*sorted(cuts), len(raw)]:
        begin = resp_replies.take_replies(
            buffer, begin, end, cursor, np.array(counts), order, status, found, out
        )
        if cursor[resp_replies.ENDED] != resp_replies.MORE:
            break
    return cursor, status[::-1], found[::-1], out[::-1]


def test_replies_are_taken_in_whatever_pieces_they_come() -> None:
    rng = np.random.default_rng(SEED)
    raw = b"*2\r\n$4\r\nab\r\n\r\n$-1\r\n+OK\r\n*1\r\n$2\r\n\r\n\r\n*1\r\n$4\r\n$4\r\n\r\n"
    for _ in range(300):
        cuts = rng.integers(0, len(raw) + 1, rng.integers(0, 6)).tolist()
        cursor, status, found, out = take(raw, cuts, [2, 1, 1], 4)
        assert cursor[resp_replies.ENDED] == resp_replies.DONE
        taken, nil, length = resp_replies.TAKEN, resp_replies.NIL, resp_replies.LENGTH
        assert status.tolist() == [taken, nil, length, taken]
        assert found.tolist() == [0, 0, 2, 0]
        assert cursor[resp_replies.UNTAKEN] == 2
        assert out[0].tobytes() == b"ab\r\n"
        assert out[3].tobytes() == b"$4\r\n"


@pytest.mark.parametrize(
    "raw",
    [
        b"*3\r\n",
        b"$4\r\nabcd\r\n",
        b":1\r\n",
        b"*2\r\n*1\r\n",
        b"*2\r\n$x\r\n",
        b"*2\r\n$\r\n",
        b"\r\n",
        b"*2\r\n$9999999999999999999999\r\n",
        b"*\r\n",
    ],
)
def test_what_is_no_such_reply_is_not_taken(raw: bytes) -> None:
    cursor, status, _, _ = take(raw, [], [2], 4)
    assert cursor[resp_replies.ENDED] == resp_replies.BROKEN
    assert not status.any()


def test_random_bytes_do_no_harm() -> None:
    rng = np.random.default_rng(SEED)
    letters = np.frombuffer(b"*$-+:\r\n0123456789x", np.uint8)
    for _ in range(3000):
        raw = rng.choice(letters, rng.integers(1, 60)).tobytes()
        take(raw, rng.integers(0, len(raw) + 1, 2).tolist(), [2, 1], 4)


def test_replies_of_any_kind_are_read_once_they_are_all_there() -> None:
    raw = b"*3\r\n:7\r\n*2\r\n+OK\r\n-ERR no\r\n$3\r\na\r\n\r\n"
    for end in range(len(raw)):
        assert reply_at(raw[:end], 0) is None
    assert reply_at(raw, 0) == ([7, [b"OK", "ERR no"], b"a\r\n"], len(raw))
    with pytest.raises(ValueError, match="begins with"):
        reply_at(b"?\r\n", 0)


def test_redirects_are_read() -> None:
    asked = topology_of([[0, 1, [b"h", 7]]], ("x", 1)).shards[0][0]  # type: ignore[arg-type]
    moved = redirect_of("MOVED 5 h2:8", asked)
    assert moved is not None
    assert (str(moved.node), moved.once) == ("h2:8", False)
    nearby = redirect_of("ASK 5 :8", asked)
    assert nearby is not None
    assert (str(nearby.node), nearby.once) == ("h:8", True)
    for other in ("MOVED", "MOVED 5 h", "ERR 5 h:8"):
        assert redirect_of(other, asked) is None


@pytest.mark.parametrize(
    ("blocks", "shards", "chunk"),
    [(0, 3, 1), (767, 3, 1), (768, 3, 2), (24_575, 3, 32), (24_576, 3, 64), (10**9, 3, 64)],
)
def test_chunks_leave_each_shard_128_of_them(blocks: int, shards: int, chunk: int) -> None:
    assert 1 << shift_for(blocks, shards) == chunk


def test_a_node_is_left_alone_for_a_time_that_doubles_and_is_forgiven() -> None:
    health = Health()
    now = 100.0
    rests = []
    for _ in range(6):
        assert health.failed("slow", now)
        rests.append(health.until - now)
        now = health.until
        health.answered()
    assert rests == [1, 2, 4, 8, 8, 8]
    assert health.failed("slow", now + 1000)
    assert health.until == now + 1001
    assert not health.failed("slow", now + 1000)
    assert health.failed("down", now + 1000)
    assert not health.failed("slow", now + 1000)
    assert health.state == "down"
