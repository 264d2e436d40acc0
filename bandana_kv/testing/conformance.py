"""The contract of an adapter as tests, the same for every engine."""

# ruff: noqa: D102  # the name of a test says what it is about

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bandana_kv import adapters
from bandana_kv.adapters.contract import (
    Adapter,
    block_keys,
)
from bandana_kv.errors import (
    AdapterError,
    BandanaError,
    InputError,
    StoreNotFoundError,
)
from bandana_kv.testing.conformance_base import (
    HINT_BYTES,
    expected,
    in_child,
    in_threads,
    load,
    payloads_for,
)
from bandana_kv.testing.conformance_copies import CopyConformance
from bandana_kv.testing.conformance_reads import ReadConformance
from bandana_kv.testing.conformance_writes import WriteConformance

__all__ = ["AdapterConformance", "in_child", "payloads_for"]


class AdapterConformance(ReadConformance, WriteConformance, CopyConformance):
    """Derive, set :attr:`adapter_name`, and let pytest collect the class.

    An adapter that is opened on a handle rather than a path overrides :meth:`create` and
    :meth:`reopen`, and :meth:`check_after` to look at what else the handle holds.
    """

    # -- opening and closing --------------------------------------------------------------

    def test_what_was_written_is_there_after_reopening(self, loaded: Adapter, path: Path) -> None:
        extra = block_keys(3, [200])
        loaded.put_many(extra, expected(loaded, extra))
        loaded.delete_space(4)
        loaded.close()
        for read_only in (True, False, True):
            with self.reopen(path, read_only=read_only) as again:
                keys = block_keys(3, [*range(100), 200])
                np.testing.assert_array_equal(again.multi_get(keys), expected(again, keys))
                assert again.space_is_empty(4)

    def test_two_readers_at_once(self, loaded: Adapter, path: Path) -> None:
        loaded.close()
        keys = block_keys(3, np.arange(100))
        with self.reopen(path) as second:
            with self.reopen(path) as third:
                np.testing.assert_array_equal(third.multi_get(keys), expected(third, keys))
            np.testing.assert_array_equal(second.multi_get(keys), expected(second, keys))

    def test_a_reader_goes_on_while_a_writer_comes_and_goes(
        self, loaded: Adapter, path: Path
    ) -> None:
        loaded.close()
        keys = block_keys(3, np.arange(100))
        with self.reopen(path) as reader:
            with self.reopen(path, read_only=False) as writer:
                load(writer, block_keys(6, np.arange(500)))
                writer.delete_space(4)
                np.testing.assert_array_equal(reader.multi_get(keys), expected(reader, keys))
            np.testing.assert_array_equal(reader.multi_get(keys), expected(reader, keys))

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
            lambda: loaded.settle(0),
            lambda: loaded.read_every_copy(keys, lambda *_: None),
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
        wanted = expected(loaded, keys)
        started = threading.Barrier(9)

        def work(number: int) -> None:
            started.wait()
            if number == 0:
                loaded.close()
                return
            try:
                for _ in range(50):
                    np.testing.assert_array_equal(loaded.multi_get(keys), wanted)
            except AdapterError as error:
                assert "is closed" in str(error)  # noqa: PT017  # either end is right

        in_threads(9, work)

    def test_a_child_process_reads_on_or_is_refused(self, loaded: Adapter, path: Path) -> None:
        loaded.close()
        keys = block_keys(3, np.arange(100))
        with self.reopen(path) as reader:
            survives = reader.capabilities.survives_fork
            wanted = expected(reader, keys)
            reader.multi_get(keys)

            def reads_on() -> bool:
                try:
                    found = reader.multi_get(keys)
                except BandanaError:
                    return not survives
                return survives and np.array_equal(found, wanted)

            for _ in range(3):
                assert in_child(reads_on)
                np.testing.assert_array_equal(reader.multi_get(keys), wanted)

    def test_a_fork_may_come_while_threads_read(self, loaded: Adapter, path: Path) -> None:
        loaded.close()
        keys = block_keys(3, np.arange(100))
        with self.reopen(path) as reader:
            survives = reader.capabilities.survives_fork
            wanted = expected(reader, keys)
            done = threading.Event()

            def reads_on() -> bool:
                return not survives or np.array_equal(reader.multi_get(keys), wanted)

            def work(number: int) -> None:
                if number == 0:
                    try:
                        assert all(in_child(reads_on) for _ in range(10))
                    finally:
                        done.set()
                while not done.is_set():
                    np.testing.assert_array_equal(reader.multi_get(keys), wanted)

            in_threads(5, work)

    # -- registry -------------------------------------------------------------------------

    def test_a_mistyped_path_is_an_error_and_stays_empty(self, tmp_path: Path) -> None:
        mistyped = tmp_path / "mistyped"
        for read_only in (True, False):
            with pytest.raises(StoreNotFoundError, match="mistyped"):
                adapters.open_existing(self.adapter_name, mistyped, read_only=read_only)
        assert not list(tmp_path.iterdir())

    def test_create_refuses_what_exists(self, tmp_path: Path) -> None:
        path = tmp_path / "fresh"
        made = adapters.create(self.adapter_name, path, size_hint_bytes=HINT_BYTES)
        made.close()
        with pytest.raises(InputError, match="fresh"):
            adapters.create(self.adapter_name, path, size_hint_bytes=HINT_BYTES)

    def test_capabilities_say_how_depth_is_reached(self, adapter: Adapter) -> None:
        assert adapter.capabilities.queue_depth
        assert adapter.capabilities.atomic_writes or adapter.capabilities.remote
        assert adapter.name == self.adapter_name
