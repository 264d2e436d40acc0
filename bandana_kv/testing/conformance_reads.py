"""What an adapter promises to those who read."""

# ruff: noqa: D102  # the name of a test says what it is about

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import numpy as np
import pytest

from bandana_kv.adapters.contract import (
    MAX_BLOCK,
    MAX_SPACE,
    PAGE_BYTES,
    Adapter,
    Words,
    block_keys,
)
from bandana_kv.errors import (
    BlockCorruptError,
    BlockMissingError,
    InputError,
)
from bandana_kv.testing.conformance_base import (
    Conformance,
    expected,
    in_threads,
    load,
    payloads_for,
)

__all__ = ["ReadConformance"]


class ReadConformance(Conformance):
    """Blocks are found whole, by any number of threads, and what is not there is named."""

    def test_payload_is_close_to_a_page_and_grows_with_pages(self, adapter: Adapter) -> None:
        assert PAGE_BYTES - 64 <= adapter.payload_bytes <= PAGE_BYTES
        assert adapter.payload_bytes == adapter.payload_of(1)
        for pages in (2, 4, 8):
            assert pages * PAGE_BYTES - 64 <= adapter.payload_of(pages) <= pages * PAGE_BYTES

    def test_get_returns_what_was_loaded(self, loaded: Adapter) -> None:
        key = int(block_keys(3, 42))
        found = loaded.get(key)
        assert found.shape == (loaded.payload_bytes,)
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, expected(loaded, np.array([key], np.uint64))[0])

    def test_what_get_returns_is_the_callers(self, loaded: Adapter) -> None:
        key = int(block_keys(3, 42))
        loaded.get(key)[:] = 0
        np.testing.assert_array_equal(
            loaded.get(key), expected(loaded, np.array([key], np.uint64))[0]
        )

    def test_multi_get_keeps_order_and_duplicates(self, loaded: Adapter) -> None:
        keys = block_keys(3, [7, 3, 99, 3, 0, 7, 7])
        np.testing.assert_array_equal(loaded.multi_get(keys), expected(loaded, keys))

    def test_multi_get_of_nothing_has_no_rows(self, loaded: Adapter) -> None:
        assert loaded.multi_get(np.empty(0, np.uint64)).shape == (0, loaded.payload_bytes)

    def test_multi_get_fills_out(self, loaded: Adapter) -> None:
        keys = block_keys(4, [5, 6])
        out = np.zeros((2, loaded.payload_bytes), np.uint8)
        assert loaded.multi_get(keys, out) is out
        np.testing.assert_array_equal(out, expected(loaded, keys))

    def test_multi_get_fills_part_of_a_larger_array(self, loaded: Adapter) -> None:
        keys = block_keys(4, [5, 6])
        larger = np.zeros((4, loaded.payload_bytes), np.uint8)
        loaded.multi_get(keys, larger[1:3])
        np.testing.assert_array_equal(larger[1:3], expected(loaded, keys))
        assert not larger[0].any()
        assert not larger[3].any()

    def test_compiled_reading_equals_multi_get(self, loaded: Adapter) -> None:
        """Where compiled code can read, it finds the same, and says what is not there."""
        for blocks in ([7], [0, 3, 98, 99], [99, 5, 5, 1000, 0]):
            keys = block_keys(3, np.array(blocks))
            room = np.zeros((len(keys) + 1) * loaded.payload_bytes, np.uint8)
            first = -room.ctypes.data % PAGE_BYTES
            reads = np.zeros((len(keys), 4), np.int64)
            reads[:, 0] = keys.view(np.int64)
            reads[:, 1] = room.ctypes.data + first
            reads[:, 1] += loaded.payload_bytes * np.arange(len(keys))

            def use(words: Words, reads: Words = reads) -> int:
                read = ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * 3)(int(words[0]))
                return int(read(words.ctypes.data, reads.ctypes.data, len(reads)))

            result = loaded.reading(len(keys), use)
            if result is None:
                return
            if result != 0:
                assert 1000 in blocks  # all of these are there
                continue
            for at, block in enumerate(blocks):
                begins = first + at * loaded.payload_bytes
                if block < 100:
                    assert reads[at, 2] == loaded.payload_bytes
                    payload = room[begins : begins + loaded.payload_bytes]
                    np.testing.assert_array_equal(payload, loaded.get(int(keys[at])))
                else:
                    found = int(reads[at, 2])
                    assert found != loaded.payload_bytes
                    error = loaded.why_unread(int(keys[at]), found)
                    assert isinstance(error, BlockMissingError)

    def test_a_queue_brings_what_multi_get_does(self, loaded: Adapter) -> None:
        """Where reads can be begun without waiting for them, each ends once, with its block."""
        queue, engine = type(loaded).queue(), loaded.standing()
        if queue is None or engine is None:
            return
        foreign = ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * 3)
        begin, wait = (foreign(int(word)) for word in queue.words[:2])
        room = int(queue.words[3])
        blocks = np.resize(np.random.default_rng(0).permutation(101), room)
        keys = block_keys(3, np.where(blocks == 100, 1000, blocks))
        memory = np.zeros((room + 1) * loaded.payload_bytes + PAGE_BYTES, np.uint8)
        first = -memory.ctypes.data % PAGE_BYTES
        reads = np.zeros((room, 4), np.int64)
        reads[:, 0] = keys.view(np.int64)
        reads[:, 1] = memory.ctypes.data + first + loaded.payload_bytes * np.arange(room)
        reads_at, ended = reads.ctypes.data, np.zeros(room, np.int64)
        begun = [begin(queue.address, engine.address, reads_at + 32 * at) for at in range(room)]
        assert [at for at in range(room) if not begun[at]] == np.flatnonzero(blocks == 100).tolist()
        left = {reads_at + 32 * at for at in range(room) if begun[at]}
        while left:
            count = wait(queue.address, ended.ctypes.data, 1)
            assert count >= 0
            for address in ended[:count].tolist():
                left.remove(address)
        for at in np.flatnonzero(begun).tolist():
            begins = first + at * loaded.payload_bytes
            assert reads[at, 2] == loaded.payload_bytes
            payload = memory[begins : begins + loaded.payload_bytes]
            np.testing.assert_array_equal(payload, loaded.get(int(keys[at])))
        os.eventfd_write(int(queue.words[2]), 1)
        assert wait(queue.address, ended.ctypes.data, 1) == 0  # it was woken

    def test_multi_get_refuses_an_unfit_out(self, loaded: Adapter) -> None:
        keys = block_keys(3, [1, 2])
        size = loaded.payload_bytes
        frozen = np.zeros((2, size), np.uint8)
        frozen.flags.writeable = False
        unfit = [
            np.zeros((3, size), np.uint8),
            np.zeros((2, size - 1), np.uint8),
            np.zeros((2, size), np.int8),
            np.zeros((2, size * 2), np.uint8)[:, ::2],
            frozen,
        ]
        for out in unfit:
            with pytest.raises(InputError, match="out must be"):
                loaded.multi_get(keys, out)  # type: ignore[arg-type]

    def test_multi_get_refuses_other_keys(self, loaded: Adapter) -> None:
        for keys in (np.array([1]), np.array([1.0]), np.zeros((1, 1), np.uint64)):
            with pytest.raises(InputError, match="keys must be"):
                loaded.multi_get(keys)

    def test_a_missing_key_is_named(self, loaded: Adapter) -> None:
        with pytest.raises(BlockMissingError, match=r"has no space 3, block 100$"):
            loaded.get(int(block_keys(3, 100)))
        with pytest.raises(BlockMissingError, match=r"has no space 5, block 1$"):
            loaded.multi_get(np.concatenate([block_keys(3, [1, 2]), block_keys(5, [1])]))

    def test_a_value_of_another_length_is_named(self, path: Path) -> None:
        with self.create(path) as one_page:
            load(one_page, block_keys(3, np.arange(3)))
            # White box, because the public methods write no other length.
            one_page.pages = 2
            one_page.payload_bytes = one_page.payload_of(2)
            with pytest.raises(BlockCorruptError, match=r"space 3, block 1 is \d+ bytes long, not"):
                one_page.get(int(block_keys(3, 1)))
        self.check_after(path)

    def test_extreme_keys_round_trip(self, adapter: Adapter) -> None:
        keys = np.concatenate(
            [block_keys(space, [0, 255, 256, MAX_BLOCK]) for space in (0, 1, 255, MAX_SPACE)]
        )
        load(adapter, keys)
        np.testing.assert_array_equal(adapter.multi_get(keys), expected(adapter, keys))
        adapter.delete_space(MAX_SPACE)
        assert adapter.space_is_empty(MAX_SPACE)
        np.testing.assert_array_equal(adapter.multi_get(keys[:12]), expected(adapter, keys[:12]))

    def test_blocks_of_several_pages(self, path: Path) -> None:
        with self.create(path, pages=4) as wide:
            keys = block_keys(1, np.arange(50))
            load(wide, keys)
            assert wide.payload_bytes == wide.payload_of(4)
            np.testing.assert_array_equal(wide.multi_get(keys), expected(wide, keys))
        self.check_after(path)

    def test_many_threads_read_at_once(self, adapter: Adapter) -> None:
        keys = block_keys(9, np.arange(2000))
        load(adapter, keys)
        wanted = expected(adapter, keys)

        def read(number: int) -> None:
            random = np.random.default_rng(number)
            for _ in range(10):
                chosen = np.sort(random.integers(0, len(keys), 64))
                np.testing.assert_array_equal(adapter.multi_get(keys[chosen]), wanted[chosen])

        in_threads(16, read)

    def test_threads_read_while_another_writes(self, loaded: Adapter) -> None:
        keys = block_keys(3, np.arange(100))
        states = [payloads_for(keys, loaded.payload_bytes, version) for version in range(2)]

        def work(number: int) -> None:
            for turn in range(20):
                if number == 0:
                    loaded.put_many(keys, states[turn % 2])
                else:
                    found = loaded.multi_get(keys[5:7])
                    assert any(np.array_equal(found[0], state[5]) for state in states)
                    assert any(np.array_equal(found[1], state[6]) for state in states)

        in_threads(8, work)
