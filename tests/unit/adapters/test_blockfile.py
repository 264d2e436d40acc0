"""Block files: fixed offsets, runs, rings, what a crash leaves, and files that are not sound."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import xxhash

from bandana_kv.adapters import block_keys, blockfile_io, blockfile_slots, create, open_existing
from bandana_kv.adapters.blockfile import BlockfileAdapter
from bandana_kv.adapters.blockfile_index import (
    Space,
    overlaid,
    overlap,
    read_index,
    runs_of,
    write_index,
)
from bandana_kv.adapters.contract import MAX_BLOCK, Keys, empty_payloads
from bandana_kv.errors import (
    AdapterError,
    BlockCorruptError,
    BlockMissingError,
    DiskFullError,
    InputError,
)
from bandana_kv.testing import in_child, payloads_for

PAGE = 4096


def own(path: Path, pages: int = 1) -> BlockfileAdapter:
    adapter = create("blockfile", path, size_hint_bytes=1 << 20, pages=pages)
    assert isinstance(adapter, BlockfileAdapter)
    return adapter


def again(path: Path, *, read_only: bool = True) -> BlockfileAdapter:
    adapter = open_existing("blockfile", path, read_only=read_only)
    assert isinstance(adapter, BlockfileAdapter)
    return adapter


def load(adapter: BlockfileAdapter, space: int, count: int) -> None:
    def batches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for at in range(0, count, 500):
            keys = block_keys(space, np.arange(at, min(at + 500, count)))
            yield keys, payloads_for(keys, adapter.payload_bytes)

    adapter.bulk_load(batches(), count)


def put(adapter: BlockfileAdapter, keys: Keys, version: int = 1) -> None:
    adapter.put_many(keys, payloads_for(keys, adapter.payload_bytes, version))


def check(adapter: BlockfileAdapter, keys: Keys, version: int = 0) -> None:
    expected = payloads_for(keys, adapter.payload_bytes, version)
    np.testing.assert_array_equal(adapter.multi_get(keys), expected)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Give a store of 1000 blocks of space 1, closed."""
    with own(tmp_path / "store") as adapter:
        load(adapter, 1, 1000)
    return tmp_path / "store"


# -- the files ----------------------------------------------------------------------------


@pytest.mark.parametrize("pages", [1, 3])
def test_block_b_lies_at_b_times_its_length(tmp_path: Path, pages: int) -> None:
    with own(tmp_path / "store", pages) as adapter:
        assert adapter.payload_bytes == pages * PAGE
        load(adapter, 7, 600)
    keys = block_keys(7, np.arange(600))
    raw = (tmp_path / "store" / "space-7.blocks").read_bytes()
    assert raw == payloads_for(keys, pages * PAGE).tobytes()


def test_blocks_of_any_width_are_read(tmp_path: Path) -> None:
    for pages in (2, 300):
        with own(tmp_path / str(pages), pages) as adapter:
            load(adapter, 1, 10)
            check(adapter, block_keys(1, [9, 0, 5]))


def test_deleting_a_space_frees_its_file(path: Path) -> None:
    with again(path, read_only=False) as adapter:
        adapter.delete_space(1)
        assert not list(path.glob("*.blocks"))
        load(adapter, 1, 10)
        check(adapter, block_keys(1, np.arange(10)))


def test_a_reader_keeps_its_view(path: Path) -> None:
    keys = block_keys(1, np.arange(1000))
    with again(path) as reader, again(path, read_only=False) as writer:
        put(writer, keys[100:900])
        check(writer, keys[100:900], version=1)
        check(reader, keys)
        writer.delete_space(1)
        check(reader, keys)
        with pytest.raises(BlockMissingError, match="space 1, block 0"):
            writer.get(int(keys[0]))


def test_a_reader_leaves_no_trace(path: Path) -> None:
    before = {file.name: file.stat().st_mtime_ns for file in path.iterdir()}
    with again(path) as reader:
        reader.get(int(block_keys(1, 7)))
    assert {file.name: file.stat().st_mtime_ns for file in path.iterdir()} == before


def test_a_second_writer_is_refused_and_a_later_one_is_not(path: Path) -> None:
    with (
        again(path, read_only=False),
        pytest.raises(AdapterError, match="cannot be opened: another"),
    ):
        again(path, read_only=False)
    again(path, read_only=False).close()


def test_blocks_of_another_width_are_refused(path: Path) -> None:
    with pytest.raises(InputError, match="blocks of 1 pages, not 2"):
        open_existing("blockfile", path, pages=2)


# -- runs ---------------------------------------------------------------------------------


def test_runs_laid_over_runs_say_what_a_dictionary_says() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        held: dict[int, int] = {}
        runs = np.empty((0, 3), np.int64)
        slot = 0
        for _ in range(4):
            blocks = np.unique(rng.integers(0, 40, rng.integers(1, 30)))
            new = runs_of(blocks, slot)
            common = overlap(runs, new)
            assert common == min(held.keys() & set(blocks.tolist()), default=None)
            runs = overlaid(runs, new)
            held |= {block: slot + at for at, block in enumerate(blocks.tolist())}
            slot += blocks.size
        said = {first + at: slot + at for first, n, slot in runs.tolist() for at in range(n)}
        assert said == held
        assert sum(runs[:, 1]) == len(held)
        ends = runs[:-1, [0, 2]] + runs[:-1, 1:2]
        assert (runs[1:, 0] >= ends[:, 0]).all()
        assert not (runs[1:, [0, 2]] == ends).all(axis=1).any()  # none could be joined


def test_a_table_loaded_whole_is_one_run_and_stays_one_when_written_again(path: Path) -> None:
    with again(path, read_only=False) as adapter:
        assert len(adapter._view.runs) == 1
        put(adapter, block_keys(1, [5, 500]))
        assert len(adapter._view.runs) == 5
        put(adapter, block_keys(1, np.arange(1000)), version=2)
        assert len(adapter._view.runs) == 1
        check(adapter, block_keys(1, np.arange(1000)), version=2)


# -- reading ------------------------------------------------------------------------------


def without_rings(adapter: BlockfileAdapter) -> None:
    adapter._reads._most_queues = 0
    adapter._reads._words[:] = 0


@pytest.mark.parametrize("rings", [True, False])
@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("count", [1, 2, 127, 128, 129, 1000])
def test_reads_of_any_number_into_any_memory(
    path: Path, rings: bool, aligned: bool, count: int
) -> None:
    with again(path) as adapter:
        if not rings:
            without_rings(adapter)
        keys = block_keys(1, np.random.default_rng(0).integers(0, 1000, count))
        out = empty_payloads(count, PAGE)
        if not aligned:
            out = np.empty(count * PAGE + 1, np.uint8)[1:].reshape(count, PAGE)
        adapter.multi_get(keys, out)
        np.testing.assert_array_equal(out, payloads_for(keys, PAGE))


def test_keys_of_any_layout_are_read(path: Path) -> None:
    keys = block_keys(1, np.arange(100))
    frozen = keys.copy()
    frozen.flags.writeable = False
    with again(path) as adapter:
        check(adapter, keys[::-3])
        check(adapter, frozen)


def test_an_array_for_payloads_begins_on_a_page() -> None:
    for count in (1, 7):
        held = empty_payloads(count, 4080)
        assert held.shape == (count, 4080)
        assert held.ctypes.data % PAGE == 0
        assert held.flags.c_contiguous
    assert empty_payloads(0, 4080).shape == (0, 4080)


def test_more_threads_than_rings_read(path: Path) -> None:
    keys = block_keys(1, np.arange(1000))
    failures: list[BaseException] = []
    with again(path) as adapter:

        def read(_: int) -> None:
            try:
                for _ in range(5):
                    check(adapter, keys)
            except BaseException as failure:
                failures.append(failure)

        threads = [threading.Thread(target=read, args=(number,)) for number in range(24)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        assert len(adapter._reads._queues) <= 8


def test_closing_gives_all_descriptors_back(path: Path) -> None:
    def descriptors() -> list[str]:
        return sorted(file.name for file in Path("/proc/self/fd").iterdir())

    before = descriptors()
    adapter = again(path)
    check(adapter, block_keys(1, np.arange(100)))
    adapter.close()
    assert descriptors() == before


def test_without_rings_it_says_that_threads_are_needed(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    with again(path) as adapter:
        expected = "call" if adapter._reads._queues else "threads"
        assert adapter.capabilities.queue_depth == expected
    monkeypatch.setattr(blockfile_io, "_new_queue", refuse)
    with again(path) as adapter:
        assert adapter.capabilities.queue_depth == "threads"


def test_where_there_are_no_direct_reads_they_are_buffered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = os.open

    def refuse_direct(path: str, flags: int, *rest: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return plain(path, flags, *rest)

    monkeypatch.setattr(os, "open", refuse_direct)
    with own(tmp_path / "store") as adapter:
        load(adapter, 1, 100)
        assert not adapter.direct
    with again(tmp_path / "store") as adapter:
        assert not adapter.direct
        check(adapter, block_keys(1, np.arange(100)))


@pytest.mark.parametrize("slot", [(1 << 19) - 1, 1 << 19, (1 << 20) - 1, 1 << 20, (1 << 31) + 1])
def test_blocks_beyond_2_and_4_gib_are_written_and_read(tmp_path: Path, slot: int) -> None:
    path = tmp_path / "store"
    first = block_keys(1, [0])
    with own(path) as adapter:
        put(adapter, first)
    runs = np.array([[0, 1, 0], [1, 1, slot - 1]])  # as if all between had been replaced
    write_index(path, PAGE, {1: Space(1, slot, runs)})
    os.truncate(path / "space-1.blocks", slot * PAGE)
    keys = block_keys(1, [MAX_BLOCK - 1, MAX_BLOCK, 1 << 31, 1 << 32])
    with again(path, read_only=False) as adapter:
        put(adapter, np.sort(keys))
    with again(path) as adapter:
        check(adapter, keys, version=1)
        check(adapter, first, version=1)
        for key in keys:
            check(adapter, np.array([key]), version=1)
        assert not adapter.get(int(block_keys(1, 1))).any()
        with pytest.raises(BlockMissingError, match="block 2147483649"):
            adapter.multi_get(block_keys(1, [1 << 31, (1 << 31) + 1]))
    with open(path / "space-1.blocks", "rb") as file:
        file.seek(slot * PAGE)
        assert file.read() == payloads_for(np.sort(keys), PAGE, 1).tobytes()


def test_compiled_reads_are_found_again_by_another_process(path: Path) -> None:
    """Their machine code is kept on disk, and names functions of C."""
    code = (
        "import sys, numpy as np\n"
        "from bandana_kv.adapters import block_keys, blockfile_io, open_existing\n"
        "with open_existing('blockfile', sys.argv[1]) as adapter:\n"
        "    adapter.multi_get(block_keys(1, np.arange(100)))\n"
        "    adapter._reads._most_queues, adapter._reads._words[:] = 0, 0\n"
        "    adapter.multi_get(block_keys(1, np.arange(100)))\n"
        "for kernel in (blockfile_io.read_by_ring, blockfile_io.read_singly):\n"
        "    if kernel.stats.cache_path is not None and kernel.signatures:\n"
        "        assert not kernel.stats.cache_misses, kernel\n"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=False, capture_output=True)
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)


# -- what goes wrong ----------------------------------------------------------------------


def test_a_file_cut_short_or_missing_is_refused_at_opening(path: Path) -> None:
    file = path / "space-1.blocks"
    os.truncate(file, 999 * PAGE)
    with pytest.raises(AdapterError, match=r"space-1.blocks is cut short: 4091904 of 4096000"):
        again(path)
    file.unlink()
    with pytest.raises(AdapterError, match=r"cannot be opened.*space-1.blocks"):
        again(path)


@pytest.mark.parametrize("count", [1, 200])
def test_a_file_cut_short_while_open_names_the_block(path: Path, count: int) -> None:
    with again(path) as adapter:
        os.truncate(path / "space-1.blocks", 900 * PAGE + 512)
        keys = block_keys(1, np.arange(901 - count, 901))
        with pytest.raises(BlockCorruptError, match="space 1, block 900 is 512 bytes long, not"):
            adapter.multi_get(keys)
        check(adapter, keys[:-1])  # the ring goes on


@pytest.mark.parametrize("count", [1, 200])
def test_an_error_of_the_device_names_the_block(path: Path, count: int) -> None:
    keys = block_keys(1, np.arange(count))
    with again(path) as adapter:
        handle = int(adapter._view.runs[0, 3])
        folder = os.open(path, os.O_RDONLY)
        adapter._view.runs[:, 3] = folder
        with pytest.raises(AdapterError, match=r"directory: 'space 1, block 0'"):
            adapter.multi_get(keys)
        os.close(folder)
        adapter._view.runs[:, 3] = handle
        check(adapter, keys)


def test_a_ring_that_fails_is_read_around_and_can_be_used_again(path: Path) -> None:
    keys = block_keys(1, np.arange(300))
    with again(path) as adapter:
        if not adapter._reads._queues:
            pytest.skip("no io_uring here")
        words, fd = adapter._reads._words, blockfile_io._QUEUE_WORDS
        handle, words[fd] = int(words[fd]), 1 << 20
        check(adapter, keys)
        words[fd] = handle
        check(adapter, keys)


def test_every_flipped_bit_and_every_cut_of_the_index_is_noticed(path: Path) -> None:
    with again(path, read_only=False) as adapter:
        put(adapter, block_keys(2, [3, 7]))
    index = path / "index"
    whole = index.read_bytes()
    for at in range(len(whole)):
        index.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        with pytest.raises((AdapterError, InputError), match=r"index|holds blocks of"):
            again(path)
        index.write_bytes(whole[:at])
        with pytest.raises(AdapterError, match="index is"):
            again(path)
    index.write_bytes(whole)
    again(path).close()


def test_a_newer_index_says_upgrade(path: Path) -> None:
    raw = bytearray((path / "index").read_bytes())
    raw[4] = 3
    (path / "index").write_bytes(raw)
    with pytest.raises(AdapterError, match=r"format 3, newer .* upgrade"):
        again(path)


def die_putting(path: Path, keys: Keys, module: object, function: str) -> bool:
    """Begin to write in a child that dies where it would call `function`."""

    def die() -> bool:
        writer = again(path, read_only=False)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, function, lambda *_: os._exit(0))
            put(writer, keys)
        return False

    return in_child(die)


@pytest.mark.parametrize(
    ("module", "function"),
    [
        (os, "fdatasync"),
        (blockfile_slots, "sync_directory"),
        (blockfile_slots, "write_index"),
        (Path, "replace"),
    ],
)
def test_a_writer_that_dies_early_leaves_none(path: Path, module: object, function: str) -> None:
    keys = np.concatenate([block_keys(1, np.arange(990, 1010)), block_keys(2, [1, 5])])
    before = (path / "space-1.blocks").stat().st_size
    assert die_putting(path, keys, module, function)
    assert (path / "space-1.blocks").stat().st_size > before
    with again(path) as reader:
        check(reader, block_keys(1, np.arange(1000)))
        assert reader.space_is_empty(2)
    with again(path, read_only=False) as writer:
        assert {file.name for file in path.iterdir()} == {"index", "lock", "space-1.blocks"}
        assert (path / "space-1.blocks").stat().st_size == before
        put(writer, keys)
        check(writer, keys, version=1)


def test_a_writer_that_dies_late_leaves_all(path: Path) -> None:
    keys = np.concatenate([block_keys(1, np.arange(990, 1010)), block_keys(2, [1, 5])])
    assert die_putting(path, keys, blockfile_slots, "View")
    with again(path) as reader:
        check(reader, keys, version=1)
        check(reader, block_keys(1, np.arange(990)))


def test_a_failed_load_leaves_nothing(path: Path) -> None:
    before = (path / "space-1.blocks").stat().st_size
    keys = np.concatenate([block_keys(1, np.arange(1000, 6000)), block_keys(2, np.arange(9))])
    with again(path, read_only=False) as adapter:
        with pytest.raises(InputError, match="told of"):
            adapter.bulk_load([(keys, payloads_for(keys, PAGE))], 10_000)
        assert (path / "space-1.blocks").stat().st_size == before
        assert not (path / "space-2.blocks").exists()
        assert adapter.space_is_empty(2)


def test_what_cannot_fit_is_refused_before_the_first_block(path: Path) -> None:
    def never() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        raise AssertionError("a block was asked for")
        yield

    with again(path, read_only=False) as adapter, pytest.raises(DiskFullError, match="are free"):
        adapter.bulk_load(never(), 1 << 40)


def test_a_space_deleted_under_a_load_is_an_error(path: Path) -> None:
    keys = block_keys(2, np.arange(5000))
    with again(path, read_only=False) as adapter:

        def batches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            yield keys, payloads_for(keys, PAGE)
            adapter.delete_space(2)

        with pytest.raises(AdapterError, match="space 2 was deleted"):
            adapter.bulk_load(batches(), 5000)
        assert adapter.space_is_empty(2)
        load(adapter, 2, 100)
        check(adapter, keys[:100])


def test_writes_during_a_load_are_kept_and_clashes_are_errors(path: Path) -> None:
    keys = block_keys(2, np.arange(5000))
    other = block_keys(2, [7000])
    with again(path, read_only=False) as adapter:
        for clash, extra in ((False, other), (True, keys[:1])):

            def batches(extra: Keys = extra) -> Iterator[tuple[np.ndarray, np.ndarray]]:
                yield keys, payloads_for(keys, PAGE)
                put(adapter, extra)

            if clash:
                with pytest.raises(AdapterError, match="block 0 appeared during the load"):
                    adapter.bulk_load(batches(), 5000)
            else:
                adapter.bulk_load(batches(), 5000)
                check(adapter, keys)
            check(adapter, extra, version=1)
            adapter.delete_space(2)


def test_a_writer_may_read_but_not_write_in_a_child(path: Path) -> None:
    keys = block_keys(1, np.arange(100))
    with again(path, read_only=False) as adapter:

        def reads_only() -> bool:
            check(adapter, keys)
            with pytest.raises(AdapterError, match="before a fork"):
                put(adapter, keys)
            with pytest.raises(AdapterError, match="before a fork"):
                adapter.delete_space(1)
            adapter.close()
            return True

        assert in_child(reads_only)
        put(adapter, keys)
        check(adapter, keys, version=1)
    again(path, read_only=False).close()  # the child did not keep the lock


# -- files that spaces share ------------------------------------------------------------------


def _held(path: Path, count: int) -> dict[int, np.ndarray]:
    """Load so many spaces, and return their payloads."""
    held = {}
    with create("blockfile", path, size_hint_bytes=0) as adapter:
        for space in range(1, count + 1):
            held[space] = np.random.default_rng(space).integers(0, 256, (3, PAGE), np.uint8)
            adapter.bulk_load([(block_keys(space, range(3)), held[space])], 3)
    return held


def _assert_holds(path: Path, held: dict[int, np.ndarray], gone: tuple[int, ...] = ()) -> None:
    with again(path) as adapter:
        for space, payloads in held.items():
            keys = block_keys(space, range(3))
            if space in gone:
                with pytest.raises(BlockMissingError):
                    adapter.multi_get(keys)
            else:
                assert np.array_equal(adapter.multi_get(keys), payloads)


def _stored_bytes(path: Path) -> int:
    return sum(512 * file.stat().st_blocks for file in path.glob("*.blocks"))


def test_small_spaces_share_a_file_and_give_their_room_back(tmp_path: Path) -> None:
    held = _held(tmp_path / "s", 9)
    assert [file.name for file in (tmp_path / "s").glob("*.blocks")] == ["space-1.blocks"]
    _assert_holds(tmp_path / "s", held)
    full_bytes = _stored_bytes(tmp_path / "s")
    with again(tmp_path / "s", read_only=False) as adapter:
        adapter.put_many(block_keys(4, range(3)), held[5])
        for space in (1, 3, 9):
            adapter.delete_space(space)
        held[4] = held[5]
    _assert_holds(tmp_path / "s", held, (1, 3, 9))
    # With what the writing of space 4 has replaced, before the deletions.
    assert _stored_bytes(tmp_path / "s") == full_bytes - 9 * PAGE
    with again(tmp_path / "s", read_only=False) as adapter:
        adapter.bulk_load([(block_keys(9, range(3)), held[9])], 3)
    _assert_holds(tmp_path / "s", held, (1, 3))
    with again(tmp_path / "s", read_only=False) as adapter:
        for space in held:
            adapter.delete_space(space)
    assert not list((tmp_path / "s").glob("*.blocks"))


def test_large_spaces_have_files_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blockfile_slots, "_FILE_BYTES", 4 * PAGE)
    monkeypatch.setattr(blockfile_slots, "_MOST_FILES", 3)
    held = _held(tmp_path / "s", 9)
    names = {file.name for file in (tmp_path / "s").glob("*.blocks")}
    assert names == {"space-1.blocks", "space-3.blocks", "space-5.blocks"}
    _assert_holds(tmp_path / "s", held)


def test_slots_are_not_given_out_twice_when_the_last_space_goes(tmp_path: Path) -> None:
    held = _held(tmp_path / "s", 2)
    with again(tmp_path / "s", read_only=False) as adapter:
        adapter.delete_space(2)
    with again(tmp_path / "s", read_only=False) as adapter:
        adapter.bulk_load([(block_keys(3, range(3)), held[2])], 3)
    with open(tmp_path / "s" / "index", "rb") as file:
        spaces = read_index(file.fileno())[1]
    assert spaces[3].runs.tolist() == [[0, 3, 6]]


def test_an_index_of_the_format_before_is_read(tmp_path: Path) -> None:
    held = _held(tmp_path / "s", 1)
    index = tmp_path / "s" / "index"
    words = np.frombuffer(index.read_bytes(), "<u8").copy()
    assert words[4:8].tolist() == [1, 1, 3, 1]  # space, file, end, runs
    words[0] = (words[0] & 0xFFFFFFFF) | 1 << 32
    body = np.delete(words, 5)[:-1].tobytes()
    index.write_bytes(body + xxhash.xxh3_64_intdigest(body).to_bytes(8, "little"))
    _assert_holds(tmp_path / "s", held)
    with again(tmp_path / "s", read_only=False) as adapter:
        adapter.bulk_load([(block_keys(2, range(3)), held[1])], 3)
    _assert_holds(tmp_path / "s", held | {2: held[1]})
