"""Block files: signals, forks, closing, threads, rings that are forbidden, and reads cut short."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import signal
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from bandana_kv.adapters import block_keys, blockfile_io, blockfile_slots, create, open_existing
from bandana_kv.adapters.blockfile import BlockfileAdapter
from bandana_kv.adapters.contract import Words
from bandana_kv.errors import AdapterError
from bandana_kv.testing import in_child, payloads_for

PAGE = 4096
# Of each of 8 rings one, and those of its two mappings.
MOST_DESCRIPTORS = 3 * 8
KEYS = block_keys(1, np.arange(1000))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with create("blockfile", tmp_path / "store", size_hint_bytes=0) as adapter:
        adapter.bulk_load([(KEYS, payloads_for(KEYS, PAGE))], KEYS.size)
    return tmp_path / "store"


@pytest.fixture
def adapter(path: Path) -> Iterator[BlockfileAdapter]:
    with again(path) as opened:
        yield opened


def again(path: Path, *, read_only: bool = True) -> BlockfileAdapter:
    opened = open_existing("blockfile", path, read_only=read_only)
    assert isinstance(opened, BlockfileAdapter)
    return opened


def check(adapter: BlockfileAdapter) -> None:
    np.testing.assert_array_equal(adapter.multi_get(KEYS), payloads_for(KEYS, PAGE))


def descriptors(sign: str = "") -> list[str]:
    """Return what this process has open, where `sign` is in its name."""
    found = []
    for each in Path("/proc/self/fd").iterdir():
        try:
            name = str(each.readlink())
        except FileNotFoundError:
            continue  # that of the directory itself
        if sign in name:
            found.append(name)
    return found


def has_ring(adapter: BlockfileAdapter) -> bool:
    adapter.multi_get(KEYS[:2])
    return bool(adapter._reads._queues)


# -- exceptions and signals -------------------------------------------------------------------


def test_readings_that_an_exception_dropped_cost_no_rings(
    adapter: BlockfileAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not has_ring(adapter):
        pytest.skip("no io_uring here")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    for _ in range(20):
        with pytest.raises(KeyboardInterrupt):
            adapter.reading(2, interrupted)
        with monkeypatch.context() as patch:
            patch.setattr(blockfile_io, "_read", interrupted)
            with pytest.raises(KeyboardInterrupt):
                adapter.multi_get(KEYS)
    assert has_ring(adapter)
    assert len(descriptors("io_uring")) <= MOST_DESCRIPTORS
    check(adapter)


def test_signals_in_the_middle_of_batches(adapter: BlockfileAdapter) -> None:
    class AlarmError(Exception):
        pass

    def raises(*_: object) -> None:
        raise AlarmError

    expected, interrupts = payloads_for(KEYS, PAGE), 0
    handler = signal.signal(signal.SIGALRM, raises)
    end = time.monotonic() + 1.5
    try:
        while time.monotonic() < end:
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.002)
                assert np.array_equal(adapter.multi_get(KEYS), expected)
            except AlarmError:
                interrupts += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
    assert interrupts
    check(adapter)
    assert len(descriptors("io_uring")) <= MOST_DESCRIPTORS


# -- forks, threads, closing ------------------------------------------------------------------


def test_parent_and_child_read_at_once_with_a_ring_open(adapter: BlockfileAdapter) -> None:
    check(adapter)
    stop = threading.Event()
    failures: list[BaseException] = []

    def read() -> None:
        try:
            while not stop.is_set():
                check(adapter)
        except BaseException as failure:
            failures.append(failure)

    thread = threading.Thread(target=read)
    thread.start()

    def child_reads() -> bool:
        for _ in range(5):
            check(adapter)
        return has_ring(adapter) == adapter._reads.many_at_once

    try:
        for _ in range(3):
            assert in_child(child_reads)
    finally:
        stop.set()
        thread.join()
    assert not failures
    check(adapter)


def test_threads_that_come_and_go_leave_no_rings(path: Path) -> None:
    with again(path) as adapter:
        for _ in range(5):
            threads = [threading.Thread(target=check, args=(adapter,)) for _ in range(12)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert len(descriptors("io_uring")) <= MOST_DESCRIPTORS
    assert not descriptors("io_uring")
    assert not descriptors("space-1.blocks")


def test_closing_under_reads_gives_whole_rows_or_says_that_it_is_closed(path: Path) -> None:
    expected = payloads_for(KEYS, PAGE)
    for pause in (0, 0.001, 0.01):
        adapter = again(path)
        said: list[str] = []

        def read(adapter: BlockfileAdapter = adapter, said: list[str] = said) -> None:
            try:
                while True:
                    if not np.array_equal(adapter.multi_get(KEYS), expected):
                        said.append("wrong")
            except AdapterError as error:
                said.append(str(error).rsplit(" ", 1)[1])

        threads = [threading.Thread(target=read) for _ in range(3)]
        for thread in threads:
            thread.start()
        time.sleep(pause)
        adapter.close()
        for thread in threads:
            thread.join()
        assert said == ["closed"] * 3
        assert not descriptors("space-1.blocks")
        assert not descriptors("io_uring")


def test_a_reading_that_outlives_closing_gives_its_descriptors_back(path: Path) -> None:
    adapter = again(path)

    def close(_: Words) -> int:
        adapter.close()
        assert descriptors("space-1.blocks")
        return 1

    gc.disable()
    try:
        adapter.reading(1, lambda _: 0)
        assert adapter.reading(2, close) == 1
        assert not descriptors("space-1.blocks")
        assert not descriptors("io_uring")
    finally:
        gc.enable()


def test_files_of_deleted_spaces_are_not_kept_open(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else their room would not come back while the process lives."""
    monkeypatch.setattr(blockfile_slots, "_FILE_BYTES", PAGE)
    keys = block_keys(2, np.arange(10))
    with again(path, read_only=False) as adapter:
        adapter.bulk_load([(keys, payloads_for(keys, PAGE))], keys.size)
        adapter.reading(2, lambda _: adapter.reading(2, lambda _: 1) or 1)
        adapter.reading(1, lambda _: 1)
        adapter.delete_space(1)
        assert not descriptors(".blocks (deleted)")
        np.testing.assert_array_equal(adapter.multi_get(keys), payloads_for(keys, PAGE))


# -- what the system refuses ------------------------------------------------------------------

_SET_UP, _ENTER = 425, 426
_IO_SETUP, _IO_SUBMIT = 206, 209


def forbid(number: int) -> None:
    """Have a system call fail with EPERM from now on in this process, as containers do."""
    program = [
        (0x20, 0, 0, 0),  # load the number
        (0x15, 0, 1, number),  # another one: skip the next
        (0x06, 0, 0, 0x00050001),  # fails with EPERM
        (0x06, 0, 0, 0x7FFF0000),  # goes on
    ]
    filters = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *each) for each in program))
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    described = struct.pack("@HP", len(program), ctypes.addressof(filters))
    longs = [ctypes.c_ulong] * 4
    prctl.argtypes = [ctypes.c_int, *longs]
    assert prctl(38, 1, 0, 0, 0) == 0
    prctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_char_p, *longs[2:]]
    assert prctl(22, 2, described, 0, 0) == 0, os.strerror(ctypes.get_errno())


@pytest.mark.skipif(platform.machine() != "x86_64", reason="numbers of one architecture")
@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize(
    "numbers",
    [[_SET_UP], [_ENTER], [_SET_UP, _IO_SETUP], [_SET_UP, _IO_SUBMIT]],
    ids=str,
)
def test_ways_to_read_forbidden_before_and_after_opening(
    path: Path, numbers: list[int], before: bool
) -> None:
    def reads() -> bool:
        if before:
            for number in numbers:
                forbid(number)
        with again(path) as adapter:
            check(adapter)
            if before and numbers[0] == _SET_UP:
                expected = "threads" if len(numbers) > 1 else "call"
                assert adapter.capabilities.queue_depth == expected
            if not before:
                for number in numbers:
                    forbid(number)
            for _ in range(3):
                check(adapter)
        return not descriptors("io_uring")

    assert in_child(reads)


def test_one_read_of_many_that_fails_is_named_and_the_others_are_right(
    adapter: BlockfileAdapter,
) -> None:
    os.truncate(adapter._path / "space-1.blocks", 999 * PAGE)
    reads = np.zeros((KEYS.size, blockfile_io.READ_WORDS), np.int64)
    memory = blockfile_io.aligned_bytes(KEYS.size * PAGE).reshape(-1, PAGE)
    reads[:, blockfile_io.KEY] = KEYS
    reads[:, blockfile_io.ADDRESS] = memory.ctypes.data + PAGE * np.arange(KEYS.size)
    reads[:, blockfile_io.FOUND] = PAGE  # of another request
    for count in (2, 1):
        memory[:] = 0
        adapter.reading(
            count,
            lambda words: blockfile_io._read(words, reads.ctypes.data, KEYS.size),
        )
        np.testing.assert_array_equal(memory[:-1], payloads_for(KEYS[:-1], PAGE))
        assert reads[:, blockfile_io.FOUND].tolist() == [PAGE] * 999 + [0]


def test_a_read_that_ends_early_goes_on(path: Path) -> None:
    """Files of /proc give a page or less at a time, as disks do up to a bad sector."""
    special = Path("/proc/kallsyms")
    if not special.exists() or len(expected := special.read_bytes()[: 32 * PAGE]) < 32 * PAGE:
        pytest.skip("no file here whose reads are short")
    handle = os.open(special, os.O_RDONLY)
    try:
        assert len(os.pread(handle, 16 * PAGE, 0)) < 16 * PAGE
        reads = blockfile_io.BlockReads(16 * PAGE)
        with again(path) as adapter:
            view = adapter._view
            view.runs[:, 3] = handle
            for count in (1, 2):
                out = np.empty((count, 16 * PAGE), np.uint8)
                assert reads.read(view, KEYS[:count], out) == (-1, 0)
                assert out.tobytes() == expected[: out.size]
        reads.close()
    finally:
        os.close(handle)
