"""What an adapter promises of blocks that fail one by one, and of their copies."""

# ruff: noqa: D102  # the name of a test says what it is about

from __future__ import annotations

import numpy as np
import pytest

from bandana_kv.adapters.contract import Adapter, Keys, Payloads, block_keys, empty_payloads
from bandana_kv.errors import AdapterError, BlockMissingError, InputError
from bandana_kv.testing.conformance_base import Conformance, expected, load, payloads_for

__all__ = ["CopyConformance"]

_MORE_COPIES_THAN_ANYONE_KEEPS = 99


class CopyConformance(Conformance):
    """One bad block keeps no other back, and every copy of a block can be looked at."""

    def test_read_each_brings_all_that_is_there(self, loaded: Adapter) -> None:
        keys = block_keys(3, [0, 7, 7, 99])
        out = empty_payloads(4, loaded.payload_bytes)
        assert loaded.read_each(keys, out) == {}
        np.testing.assert_array_equal(out, expected(loaded, keys))

    def test_read_each_names_those_that_are_not(self, loaded: Adapter) -> None:
        keys = np.concatenate([block_keys(3, [5, 100, 6, 200, 7]), block_keys(5, [1])])
        out = empty_payloads(len(keys), loaded.payload_bytes)
        errors = loaded.read_each(keys, out)
        assert sorted(errors) == [1, 3, 5]
        for at, text in ((1, "space 3, block 100"), (3, "space 3, block 200")):
            assert isinstance(errors[at], BlockMissingError)
            assert text in str(errors[at])
        there = [0, 2, 4]
        np.testing.assert_array_equal(out[there], expected(loaded, keys[there]))

    def test_read_each_of_nothing_has_no_errors(self, loaded: Adapter) -> None:
        out = empty_payloads(0, loaded.payload_bytes)
        assert loaded.read_each(np.empty(0, np.uint64), out) == {}

    def test_read_each_refuses_what_multi_get_does(self, loaded: Adapter) -> None:
        keys = block_keys(3, [1, 2])
        with pytest.raises(InputError, match="out must be"):
            loaded.read_each(keys, empty_payloads(3, loaded.payload_bytes))

    def test_every_copy_of_every_block_is_looked_at(self, loaded: Adapter) -> None:
        keys = block_keys(3, np.arange(100))
        wanted = expected(loaded, keys)
        seen: dict[int, set[str]] = {int(key): set() for key in keys}

        def check(place: str, of_copy: Keys, payloads: Payloads) -> None:
            np.testing.assert_array_equal(payloads, wanted[np.searchsorted(keys, of_copy)])
            for key in of_copy.tolist():
                assert place not in seen[key]
                seen[key].add(place)

        copies = loaded.read_every_copy(keys, check)
        assert copies == min(map(len, seen.values()))
        assert copies >= 1
        if not loaded.capabilities.remote:
            assert copies == 1

    def test_a_block_without_a_copy_is_named(self, loaded: Adapter) -> None:
        with pytest.raises(BlockMissingError, match="has no space 3, block 100"):
            loaded.read_every_copy(block_keys(3, [99, 100]), lambda *_: None)
        with pytest.raises(BlockMissingError, match="has no space 9, block 0"):
            loaded.read_every_copy(block_keys(9, [0]), lambda *_: None)

    def test_what_looks_at_copies_may_refuse_them(self, loaded: Adapter) -> None:
        def refuse(*_: object) -> None:
            raise ZeroDivisionError("not what was written")

        with pytest.raises(ZeroDivisionError, match="not what was written"):
            loaded.read_every_copy(block_keys(3, [1]), refuse)
        keys = block_keys(3, np.arange(100))
        np.testing.assert_array_equal(loaded.multi_get(keys), expected(loaded, keys))

    def test_settling_waits_for_copies_or_refuses(self, loaded: Adapter) -> None:
        loaded.put_many(
            block_keys(3, [5]), payloads_for(block_keys(3, [5]), loaded.payload_bytes, 1)
        )
        loaded.settle(0)
        with pytest.raises(AdapterError, match="cop"):
            loaded.settle(_MORE_COPIES_THAN_ANYONE_KEEPS)
        load(loaded, block_keys(6, np.arange(10)))

    def test_what_was_written_in_part_may_be_written_again(self, loaded: Adapter) -> None:
        keys = block_keys(3, np.arange(90, 130))
        new = payloads_for(keys, loaded.payload_bytes, version=1)
        loaded.put_many(keys[:15], new[:15])
        loaded.put_many(keys, new)
        np.testing.assert_array_equal(loaded.multi_get(keys), new)

    def test_keys_are_found_wherever_they_lie(self, adapter: Adapter) -> None:
        """A load is refused for one key that is there, whatever lies around it."""
        there = block_keys(3, [0, 1000, 1 << 20])
        load(adapter, there)
        for at in range(len(there)):
            keys = np.sort(np.append(block_keys(3, [500, 5000, 1 << 30]), there[at]))
            with pytest.raises(AdapterError, match="already has space 3"):
                load(adapter, keys, version=1)
            np.testing.assert_array_equal(adapter.multi_get(there), expected(adapter, there))
        assert not adapter.space_is_empty(3)
        adapter.delete_space(3)
        assert adapter.space_is_empty(3)
