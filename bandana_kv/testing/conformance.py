"""The contract of an adapter as tests, the same for every engine."""

# ruff: noqa: D102  # the name of a test says what it is about

from __future__ import annotations

import ctypes
import itertools
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import pytest

from bandana_kv import adapters
from bandana_kv.adapters.contract import (
    MAX_BLOCK,
    MAX_SPACE,
    PAGE_BYTES,
    Adapter,
    Keys,
    Payloads,
    block_keys,
)
from bandana_kv.errors import (
    AdapterError,
    BandanaError,
    BlockCorruptError,
    BlockMissingError,
    InputError,
    StoreNotFoundError,
)

__all__ = ["AdapterConformance", "in_child", "payloads_for"]

_HINT_BYTES = 1 << 20


def payloads_for(keys: Keys, payload_bytes: int, version: int = 0) -> Payloads:
    """Return payloads that differ between keys and between versions.

    Parameters
    ----------
    keys
        uint64 (n,).
    payload_bytes
        Length of each payload.
    version
        Another number makes other payloads for the same keys.

    Returns
    -------
    uint8 array (n, payload_bytes)
    """
    with np.errstate(over="ignore"):
        seeds = (keys + np.uint64(version * 7919)) * np.uint64(0x9E3779B97F4A7C15)
        steps = np.arange(-(-payload_bytes // 8), dtype=np.uint64) * np.uint64(0xD1B54A32D192ED03)
        words = seeds[:, None] + steps
    payloads: Payloads = words.view(np.uint8)[:, :payload_bytes]
    return payloads


class AdapterConformance:
    """Derive, set :attr:`adapter_name`, and let pytest collect the class.

    An adapter that is opened on a handle rather than a path overrides :meth:`create` and
    :meth:`reopen`, and :meth:`check_after` to look at what else the handle holds.
    """

    adapter_name: ClassVar[str]
    """The name that the adapter is registered under."""

    # -- to override ----------------------------------------------------------------------

    def create(self, path: Path, pages: int = 1) -> Adapter:
        """Return a new, empty, writable adapter at `path`."""
        return adapters.create(self.adapter_name, path, size_hint_bytes=_HINT_BYTES, pages=pages)

    def reopen(self, path: Path, *, read_only: bool = True, pages: int = 1) -> Adapter:
        """Return another adapter on what :meth:`create` made at `path`."""
        return adapters.open_existing(self.adapter_name, path, read_only=read_only, pages=pages)

    def check_after(self, path: Path) -> None:
        """Check, after each test and with its adapters closed, what must be untouched."""

    # -- fixtures -------------------------------------------------------------------------

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        """Give the path of the adapter under test."""
        return tmp_path / "engine"

    @pytest.fixture
    def adapter(self, path: Path) -> Iterator[Adapter]:
        """Give an empty adapter."""
        with self.create(path) as made:
            yield made
        self.check_after(path)

    @pytest.fixture
    def loaded(self, adapter: Adapter) -> Adapter:
        """Give an adapter with blocks 0 to 99 of spaces 3 and 4."""
        for space in (3, 4):
            _load(adapter, block_keys(space, np.arange(100)))
        return adapter

    # -- reading --------------------------------------------------------------------------

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
        np.testing.assert_array_equal(found, _expected(loaded, np.array([key], np.uint64))[0])

    def test_what_get_returns_is_the_callers(self, loaded: Adapter) -> None:
        key = int(block_keys(3, 42))
        loaded.get(key)[:] = 0
        np.testing.assert_array_equal(
            loaded.get(key), _expected(loaded, np.array([key], np.uint64))[0]
        )

    def test_multi_get_keeps_order_and_duplicates(self, loaded: Adapter) -> None:
        keys = block_keys(3, [7, 3, 99, 3, 0, 7, 7])
        np.testing.assert_array_equal(loaded.multi_get(keys), _expected(loaded, keys))

    def test_multi_get_of_nothing_has_no_rows(self, loaded: Adapter) -> None:
        assert loaded.multi_get(np.empty(0, np.uint64)).shape == (0, loaded.payload_bytes)

    def test_multi_get_fills_out(self, loaded: Adapter) -> None:
        keys = block_keys(4, [5, 6])
        out = np.zeros((2, loaded.payload_bytes), np.uint8)
        assert loaded.multi_get(keys, out) is out
        np.testing.assert_array_equal(out, _expected(loaded, keys))

    def test_multi_get_fills_part_of_a_larger_array(self, loaded: Adapter) -> None:
        keys = block_keys(4, [5, 6])
        larger = np.zeros((4, loaded.payload_bytes), np.uint8)
        loaded.multi_get(keys, larger[1:3])
        np.testing.assert_array_equal(larger[1:3], _expected(loaded, keys))
        assert not larger[0].any()
        assert not larger[3].any()

    def test_compiled_reading_equals_multi_get(self, loaded: Adapter) -> None:
        """Where compiled code can read, it finds the same, and says what is not there."""
        for blocks in ([7], [0, 3, 98, 99], [99, 5, 5, 1000, 0]):
            keys = block_keys(3, np.array(blocks))
            reading = loaded.reading(len(keys))
            if reading is None:
                return
            room = np.zeros((len(keys) + 1) * loaded.payload_bytes, np.uint8)
            first = -room.ctypes.data % PAGE_BYTES
            reads = np.zeros((len(keys), 4), np.int64)
            reads[:, 0] = keys.view(np.int64)
            reads[:, 1] = room.ctypes.data + first
            reads[:, 1] += loaded.payload_bytes * np.arange(len(keys))
            read = ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * 3)(int(reading.words[0]))
            read(reading.words.ctypes.data, reads.ctypes.data, len(keys))
            loaded.end_reading(reading)
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
            _load(one_page, block_keys(3, np.arange(3)))
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
        _load(adapter, keys)
        np.testing.assert_array_equal(adapter.multi_get(keys), _expected(adapter, keys))
        adapter.delete_space(MAX_SPACE)
        assert adapter.space_is_empty(MAX_SPACE)
        np.testing.assert_array_equal(adapter.multi_get(keys[:12]), _expected(adapter, keys[:12]))

    def test_blocks_of_several_pages(self, path: Path) -> None:
        with self.create(path, pages=4) as wide:
            keys = block_keys(1, np.arange(50))
            _load(wide, keys)
            assert wide.payload_bytes == wide.payload_of(4)
            np.testing.assert_array_equal(wide.multi_get(keys), _expected(wide, keys))
        self.check_after(path)

    def test_many_threads_read_at_once(self, adapter: Adapter) -> None:
        keys = block_keys(9, np.arange(2000))
        _load(adapter, keys)
        expected = _expected(adapter, keys)

        def read(number: int) -> None:
            random = np.random.default_rng(number)
            for _ in range(10):
                chosen = np.sort(random.integers(0, len(keys), 64))
                np.testing.assert_array_equal(adapter.multi_get(keys[chosen]), expected[chosen])

        _in_threads(16, read)

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

        _in_threads(8, work)

    # -- writing --------------------------------------------------------------------------

    def test_put_many_inserts_and_overwrites(self, loaded: Adapter) -> None:
        keys = block_keys(3, [150, 5, 6])
        new = payloads_for(keys, loaded.payload_bytes, version=1)
        loaded.put_many(keys, new)
        np.testing.assert_array_equal(loaded.multi_get(keys), new)
        others = block_keys(3, [4, 7])
        np.testing.assert_array_equal(loaded.multi_get(others), _expected(loaded, others))

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
        np.testing.assert_array_equal(loaded.multi_get(keys), _expected(loaded, keys))

    def test_delete_space_leaves_others_alone(self, loaded: Adapter) -> None:
        assert not loaded.space_is_empty(3)
        loaded.delete_space(3)
        assert loaded.space_is_empty(3)
        with pytest.raises(BlockMissingError):
            loaded.get(int(block_keys(3, 0)))
        keys = block_keys(4, np.arange(100))
        np.testing.assert_array_equal(loaded.multi_get(keys), _expected(loaded, keys))
        loaded.delete_space(3)

    def test_a_deleted_space_can_be_loaded_again(self, loaded: Adapter) -> None:
        loaded.delete_space(3)
        keys = block_keys(3, np.arange(50, 150))
        _load(loaded, keys, version=1)
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
        np.testing.assert_array_equal(adapter.multi_get(keys), _expected(adapter, keys))

    def test_bulk_load_of_nothing(self, adapter: Adapter) -> None:
        adapter.bulk_load(iter([]), 0)
        assert adapter.space_is_empty(0)

    def test_bulk_load_goes_between_existing_spaces(self, loaded: Adapter) -> None:
        for space in (1, 8):
            _load(loaded, block_keys(space, np.arange(20)))
        keys = np.concatenate([block_keys(space, [0, 19]) for space in (1, 3, 4, 8)])
        np.testing.assert_array_equal(loaded.multi_get(keys), _expected(loaded, keys))

    def test_bulk_load_goes_between_existing_keys(self, adapter: Adapter) -> None:
        even, odd = block_keys(2, np.arange(0, 200, 2)), block_keys(2, np.arange(1, 201, 2))
        _load(adapter, even)
        _load(adapter, odd)
        both = np.sort(np.concatenate([even, odd]))
        np.testing.assert_array_equal(adapter.multi_get(both), _expected(adapter, both))

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
            _load(loaded, keys, version=1)
        np.testing.assert_array_equal(loaded.multi_get(keys[:1]), _expected(loaded, keys[:1]))

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
        _load(adapter, keys)

    def test_more_than_the_size_hint_fits(self, adapter: Adapter) -> None:
        count = 24 * _HINT_BYTES // adapter.payload_bytes
        keys = block_keys(2, np.arange(count))
        _load(adapter, keys)
        adapter.put_many(keys[:100], payloads_for(keys[:100], adapter.payload_bytes, 1))
        last = keys[-3:]
        np.testing.assert_array_equal(adapter.multi_get(last), _expected(adapter, last))

    # -- opening and closing --------------------------------------------------------------

    def test_what_was_written_is_there_after_reopening(self, loaded: Adapter, path: Path) -> None:
        extra = block_keys(3, [200])
        loaded.put_many(extra, _expected(loaded, extra))
        loaded.delete_space(4)
        loaded.close()
        for read_only in (True, False, True):
            with self.reopen(path, read_only=read_only) as again:
                keys = block_keys(3, [*range(100), 200])
                np.testing.assert_array_equal(again.multi_get(keys), _expected(again, keys))
                assert again.space_is_empty(4)

    def test_two_readers_at_once(self, loaded: Adapter, path: Path) -> None:
        loaded.close()
        keys = block_keys(3, np.arange(100))
        with self.reopen(path) as second:
            with self.reopen(path) as third:
                np.testing.assert_array_equal(third.multi_get(keys), _expected(third, keys))
            np.testing.assert_array_equal(second.multi_get(keys), _expected(second, keys))

    def test_a_reader_goes_on_while_a_writer_comes_and_goes(
        self, loaded: Adapter, path: Path
    ) -> None:
        loaded.close()
        keys = block_keys(3, np.arange(100))
        with self.reopen(path) as reader:
            with self.reopen(path, read_only=False) as writer:
                _load(writer, block_keys(6, np.arange(500)))
                writer.delete_space(4)
                np.testing.assert_array_equal(reader.multi_get(keys), _expected(reader, keys))
            np.testing.assert_array_equal(reader.multi_get(keys), _expected(reader, keys))

    def test_a_read_only_adapter_refuses_writes(self, loaded: Adapter, path: Path) -> None:
        loaded.close()
        keys = block_keys(3, [500])
        with self.reopen(path) as reader:
            payloads = payloads_for(keys, reader.payload_bytes)
            writes: list[Callable[[], None]] = [
                lambda: reader.put_many(keys, payloads),
                lambda: reader.bulk_load([(keys, payloads)], 1),
                lambda: reader.delete_space(3),
            ]
            for write in writes:
                with pytest.raises(AdapterError, match="opened read-only"):
                    write()
            assert not reader.space_is_empty(3)

    def test_close_may_be_repeated(self, loaded: Adapter) -> None:
        loaded.close()
        loaded.close()
        assert loaded.closed
        assert "closed" in repr(loaded)

    def test_use_after_close_is_an_error(self, loaded: Adapter) -> None:
        keys = block_keys(3, [1])
        payloads = payloads_for(keys, loaded.payload_bytes)
        loaded.close()
        uses: list[Callable[[], object]] = [
            lambda: loaded.get(int(keys[0])),
            lambda: loaded.multi_get(keys),
            lambda: loaded.multi_get(keys[:0]),
            lambda: loaded.put_many(keys, payloads),
            lambda: loaded.bulk_load([], 0),
            lambda: loaded.delete_space(3),
            lambda: loaded.space_is_empty(3),
        ]
        for use in uses:
            with pytest.raises(AdapterError, match=r"is closed$"):
                use()

    def test_a_context_manager_closes(self, path: Path) -> None:
        with self.create(path) as made:
            made.space_is_empty(1)
        assert made.closed
        self.check_after(path)

    def test_closing_while_threads_read_is_safe(self, loaded: Adapter) -> None:
        keys = block_keys(3, np.arange(100))
        expected = _expected(loaded, keys)
        started = threading.Barrier(9)

        def work(number: int) -> None:
            started.wait()
            if number == 0:
                loaded.close()
                return
            try:
                for _ in range(50):
                    np.testing.assert_array_equal(loaded.multi_get(keys), expected)
            except AdapterError as error:
                assert "is closed" in str(error)  # noqa: PT017  # either end is right

        _in_threads(9, work)

    def test_a_child_process_reads_on_or_is_refused(self, loaded: Adapter, path: Path) -> None:
        loaded.close()
        keys = block_keys(3, np.arange(100))
        with self.reopen(path) as reader:
            survives = reader.capabilities.survives_fork
            expected = _expected(reader, keys)
            reader.multi_get(keys)

            def reads_on() -> bool:
                try:
                    found = reader.multi_get(keys)
                except BandanaError:
                    return not survives
                return survives and np.array_equal(found, expected)

            for _ in range(3):
                assert in_child(reads_on)
                np.testing.assert_array_equal(reader.multi_get(keys), expected)

    def test_a_fork_may_come_while_threads_read(self, loaded: Adapter, path: Path) -> None:
        loaded.close()
        keys = block_keys(3, np.arange(100))
        with self.reopen(path) as reader:
            survives = reader.capabilities.survives_fork
            expected = _expected(reader, keys)
            done = threading.Event()

            def reads_on() -> bool:
                return not survives or np.array_equal(reader.multi_get(keys), expected)

            def work(number: int) -> None:
                if number == 0:
                    try:
                        assert all(in_child(reads_on) for _ in range(10))
                    finally:
                        done.set()
                while not done.is_set():
                    np.testing.assert_array_equal(reader.multi_get(keys), expected)

            _in_threads(5, work)

    # -- registry -------------------------------------------------------------------------

    def test_a_mistyped_path_is_an_error_and_stays_empty(self, tmp_path: Path) -> None:
        mistyped = tmp_path / "mistyped"
        for read_only in (True, False):
            with pytest.raises(StoreNotFoundError, match="mistyped"):
                adapters.open_existing(self.adapter_name, mistyped, read_only=read_only)
        assert not list(tmp_path.iterdir())

    def test_create_refuses_what_exists(self, tmp_path: Path) -> None:
        path = tmp_path / "fresh"
        made = adapters.create(self.adapter_name, path, size_hint_bytes=_HINT_BYTES)
        made.close()
        with pytest.raises(InputError, match="fresh"):
            adapters.create(self.adapter_name, path, size_hint_bytes=_HINT_BYTES)

    def test_capabilities_say_how_depth_is_reached(self, adapter: Adapter) -> None:
        assert adapter.capabilities.queue_depth
        assert adapter.name == self.adapter_name


def _expected(adapter: Adapter, keys: Keys) -> Payloads:
    return payloads_for(keys, adapter.payload_bytes)


def _load(adapter: Adapter, keys: Keys, version: int = 0) -> None:
    def batches() -> Iterator[tuple[Keys, npt.NDArray[np.uint8]]]:
        for at in range(0, len(keys), 64):
            part = keys[at : at + 64]
            yield part, payloads_for(part, adapter.payload_bytes, version)

    adapter.bulk_load(batches(), len(keys))


def _in_threads(count: int, work: Callable[[int], None]) -> None:
    """Run `work` in threads, and raise what the first failing one raised."""
    failures: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            work(number)
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def in_child(question: Callable[[], bool]) -> bool:
    """Answer a question in a forked process; an error or a crash there is a no."""
    with warnings.catch_warnings():
        # Python 3.12 and later warn of threads: that engines have some is the point here.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        answer = False
        try:
            answer = question()
        finally:
            os._exit(0 if answer else 1)
    return os.waitpid(child, 0)[1] == 0
