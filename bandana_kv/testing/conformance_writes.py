"""What an adapter promises to those who write and load."""

# ruff: noqa: D102  # the name of a test says what it is about

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest

from bandana_kv.adapters.contract import (
    MAX_SPACE,
    Adapter,
    Keys,
    Payloads,
    block_keys,
)
from bandana_kv.errors import (
    AdapterError,
    BlockMissingError,
    InputError,
)
from bandana_kv.testing.conformance_base import (
    HINT_BYTES,
    Conformance,
    expected,
    load,
    payloads_for,
)

__all__ = ["WriteConformance"]


class WriteConformance(Conformance):
    """Blocks are written all or none, and nothing else is touched."""

    # -- writing --------------------------------------------------------------------------

    def test_put_many_inserts_and_overwrites(self, loaded: Adapter) -> None:
        keys = block_keys(3, [150, 5, 6])
        new = payloads_for(keys, loaded.payload_bytes, version=1)
        loaded.put_many(keys, new)
        np.testing.assert_array_equal(loaded.multi_get(keys), new)
        others = block_keys(3, [4, 7])
        np.testing.assert_array_equal(loaded.multi_get(others), expected(loaded, others))

    def test_put_many_of_nothing_does_nothing(self, loaded: Adapter) -> None:
        loaded.put_many(np.empty(0, np.uint64), np.empty((0, loaded.payload_bytes), np.uint8))

    def test_put_many_refuses_what_does_not_fit(self, loaded: Adapter) -> None:
        keys = block_keys(3, [1, 2])
        size = loaded.payload_bytes
        for payloads in (np.zeros((1, size), np.uint8), np.zeros((2, size - 1), np.uint8)):
            with pytest.raises(InputError, match="payloads must be"):
                loaded.put_many(keys, payloads)
        with pytest.raises(InputError, match="payloads must be"):
            loaded.put_many(keys, np.zeros((2, size), np.float32))
        with pytest.raises(InputError, match="space 3, block 1 twice"):
            loaded.put_many(block_keys(3, [1, 2, 1]), np.zeros((3, size), np.uint8))
        np.testing.assert_array_equal(loaded.multi_get(keys), expected(loaded, keys))

    def test_delete_space_leaves_others_alone(self, loaded: Adapter) -> None:
        assert not loaded.space_is_empty(3)
        loaded.delete_space(3)
        assert loaded.space_is_empty(3)
        with pytest.raises(BlockMissingError):
            loaded.get(int(block_keys(3, 0)))
        keys = block_keys(4, np.arange(100))
        np.testing.assert_array_equal(loaded.multi_get(keys), expected(loaded, keys))
        loaded.delete_space(3)

    def test_a_deleted_space_can_be_loaded_again(self, loaded: Adapter) -> None:
        loaded.delete_space(3)
        keys = block_keys(3, np.arange(50, 150))
        load(loaded, keys, version=1)
        np.testing.assert_array_equal(
            loaded.multi_get(keys), payloads_for(keys, loaded.payload_bytes, version=1)
        )
        with pytest.raises(BlockMissingError):
            loaded.get(int(block_keys(3, 49)))

    def test_spaces_out_of_range_are_refused(self, adapter: Adapter) -> None:
        for space in (-1, MAX_SPACE + 1):
            with pytest.raises(InputError, match="space"):
                adapter.space_is_empty(space)
            with pytest.raises(InputError, match="space"):
                adapter.delete_space(space)

    # -- bulk loading ---------------------------------------------------------------------

    def test_bulk_load_takes_batches_of_any_size(self, adapter: Adapter) -> None:
        keys = block_keys(2, np.arange(10_000) * 3)
        payloads = payloads_for(keys, adapter.payload_bytes)
        cuts = [0, 0, 1, 40, 40, 9_000, 10_000]
        batches = ((keys[low:high], payloads[low:high]) for low, high in itertools.pairwise(cuts))
        adapter.bulk_load(batches, len(keys))
        np.testing.assert_array_equal(adapter.multi_get(keys), payloads)

    def test_bulk_load_takes_arrays_that_are_used_again(self, adapter: Adapter) -> None:
        keys = block_keys(2, np.arange(100))
        held = np.empty(1, np.uint64), np.empty((1, adapter.payload_bytes), np.uint8)

        def batches() -> Iterator[tuple[Keys, Payloads]]:
            for key in keys:
                held[0][0] = key
                held[1][:] = payloads_for(held[0], adapter.payload_bytes)
                yield held

        adapter.bulk_load(batches(), len(keys))
        np.testing.assert_array_equal(adapter.multi_get(keys), expected(adapter, keys))

    def test_bulk_load_of_nothing(self, adapter: Adapter) -> None:
        adapter.bulk_load(iter([]), 0)
        assert adapter.space_is_empty(0)

    def test_bulk_load_goes_between_existing_spaces(self, loaded: Adapter) -> None:
        for space in (1, 8):
            load(loaded, block_keys(space, np.arange(20)))
        keys = np.concatenate([block_keys(space, [0, 19]) for space in (1, 3, 4, 8)])
        np.testing.assert_array_equal(loaded.multi_get(keys), expected(loaded, keys))

    def test_bulk_load_goes_between_existing_keys(self, adapter: Adapter) -> None:
        even, odd = block_keys(2, np.arange(0, 200, 2)), block_keys(2, np.arange(1, 201, 2))
        load(adapter, even)
        load(adapter, odd)
        both = np.sort(np.concatenate([even, odd]))
        np.testing.assert_array_equal(adapter.multi_get(both), expected(adapter, both))

    def test_bulk_load_refuses_keys_out_of_order(self, adapter: Adapter) -> None:
        for blocks in ([2, 1], [1, 1]):
            keys = block_keys(2, blocks)
            payloads = payloads_for(keys, adapter.payload_bytes)
            match = f"space 2, block {blocks[1]} came after space 2, block {blocks[0]}"
            with pytest.raises(InputError, match=match):
                adapter.bulk_load([(keys, payloads)], 2)
            with pytest.raises(InputError, match=match):
                adapter.bulk_load([(keys[at : at + 1], payloads[at : at + 1]) for at in (0, 1)], 2)
            adapter.delete_space(2)

    def test_bulk_load_refuses_existing_keys(self, loaded: Adapter) -> None:
        keys = block_keys(3, [99, 100])
        with pytest.raises(AdapterError, match="already has space 3, block 99"):
            load(loaded, keys, version=1)
        np.testing.assert_array_equal(loaded.multi_get(keys[:1]), expected(loaded, keys[:1]))

    def test_bulk_load_refuses_another_count(self, adapter: Adapter) -> None:
        keys = block_keys(2, np.arange(3))
        with pytest.raises(InputError, match="told of 4 blocks and got 3"):
            adapter.bulk_load([(keys, payloads_for(keys, adapter.payload_bytes))], 4)

    def test_an_error_of_the_batches_comes_through(self, adapter: Adapter) -> None:
        keys = block_keys(2, np.arange(3))

        def batches() -> Iterator[tuple[Keys, Payloads]]:
            yield keys, payloads_for(keys, adapter.payload_bytes)
            raise OSError("the source broke")

        with pytest.raises(OSError, match=r"^the source broke$"):
            adapter.bulk_load(batches(), 10)
        adapter.delete_space(2)
        load(adapter, keys)

    def test_more_than_the_size_hint_fits(self, adapter: Adapter) -> None:
        count = 24 * HINT_BYTES // adapter.payload_bytes
        keys = block_keys(2, np.arange(count))
        load(adapter, keys)
        adapter.put_many(keys[:100], payloads_for(keys[:100], adapter.payload_bytes, 1))
        last = keys[-3:]
        np.testing.assert_array_equal(adapter.multi_get(last), expected(adapter, last))
