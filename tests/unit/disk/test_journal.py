"""What the journal acknowledged is read back, whatever tore its end; damage is named."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pytest

from bandana_kv.disk.journal import Journal, journal_files, read_records
from bandana_kv.errors import DiskFullError, FormatError, InputError, UpdateInProgressError

RNG = np.random.default_rng(0)


def batch(count: int, row_bytes: int = 16) -> tuple[np.ndarray, np.ndarray]:
    ids = RNG.integers(0, 1000, count).astype(np.uint32)
    return ids, RNG.integers(0, 256, (count, row_bytes)).astype(np.uint8)


def written(root: Path, counts: tuple[int, ...] = (1, 5, 3)) -> list[tuple[np.ndarray, np.ndarray]]:
    batches = [batch(count) for count in counts]
    journal = Journal(root)
    for number, (ids, rows) in enumerate(batches, 1):
        assert journal.append(7, ids, rows) == number
    journal.close()
    return batches


def assert_reads(root: Path, batches: list[tuple[np.ndarray, np.ndarray]]) -> None:
    found = [record for path in journal_files(root) for record, _ in read_records(path)]
    assert [record.sequence for record in found] == list(range(1, len(batches) + 1))
    for record, (ids, rows) in zip(found, batches, strict=True):
        assert record.space == 7
        assert np.array_equal(record.ids, ids)
        assert np.array_equal(record.rows, rows)


def test_reads_what_was_written_also_from_the_middle(tmp_path: Path) -> None:
    batches = written(tmp_path)
    assert_reads(tmp_path, batches)
    (path,) = journal_files(tmp_path)
    first, *_ = read_records(path)
    assert [record.sequence for record, _ in read_records(path, first[1])] == [2, 3]


def test_sequences_go_on_in_a_new_file(tmp_path: Path) -> None:
    batches = written(tmp_path)
    journal = Journal(tmp_path)
    assert journal.append(7, *batches[0]) == 4
    assert journal.rotate() == 4
    journal.append(7, *batches[1])
    journal.close()
    assert_reads(tmp_path, [*batches, batches[0], batches[1]])
    assert [path.name for path in journal_files(tmp_path)] == [
        "000001.log",
        "000002.log",
        "000003.log",
    ]


def test_dropped_files_are_gone_and_the_rest_stays(tmp_path: Path) -> None:
    written(tmp_path)
    journal = Journal(tmp_path)
    journal.append(7, *batch(2))
    journal.drop_before(journal.number)
    journal.close()
    assert [path.name for path in journal_files(tmp_path)] == ["000002.log"]


def test_a_torn_end_loses_only_what_it_tore(tmp_path: Path) -> None:
    batches = written(tmp_path)
    (path,) = journal_files(tmp_path)
    whole = path.read_bytes()
    ends = [end for _, end in read_records(path)]
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        expected = [one for one, end in zip(batches, ends, strict=True) if end <= size]
        assert_reads(tmp_path, expected)


def test_damage_before_acknowledged_updates_is_an_error(tmp_path: Path) -> None:
    written(tmp_path)
    (path,) = journal_files(tmp_path)
    whole = path.read_bytes()
    *_, (_, second_end), _ = read_records(path)
    for at in range(16, second_end):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << int(RNG.integers(8))
        path.write_bytes(damaged)
        with pytest.raises(FormatError, match=r"000001\.log: damaged at byte"):
            list(read_records(path))


@pytest.mark.parametrize(
    ("at", "value", "said"), [(0, b"X", "not a journal"), (4, b"\xff", "newer than this release")]
)
def test_a_wrong_header_is_named(tmp_path: Path, at: int, value: bytes, said: str) -> None:
    written(tmp_path)
    (path,) = journal_files(tmp_path)
    damaged = bytearray(path.read_bytes())
    damaged[at : at + 1] = value
    path.write_bytes(damaged)
    with pytest.raises(FormatError, match=said):
        list(read_records(path))


def test_one_process_at_a_time_and_the_lock_is_given_back(tmp_path: Path) -> None:
    first = Journal(tmp_path)
    with pytest.raises(UpdateInProgressError, match="another process updates"):
        Journal(tmp_path)
    first.close()
    first.close()
    Journal(tmp_path).close()


def test_a_fork_may_not_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path)
    monkeypatch.setattr(os, "getpid", lambda: -1)
    with pytest.raises(InputError, match="not by its fork"):
        journal.append(7, *batch(1))
    monkeypatch.undo()
    journal.close()


def test_a_full_disk_leaves_what_there_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path)
    kept = batch(3)
    journal.append(7, *kept)
    monkeypatch.setattr(os, "pwrite", _filling(os.pwrite))
    with pytest.raises(DiskFullError, match="nothing was updated"):
        journal.append(7, *batch(3))
    monkeypatch.undo()
    more = batch(2)
    journal.append(7, *more)
    journal.close()
    assert_reads(tmp_path, [kept, more])


def _filling(real: object) -> object:
    """Return a pwrite that takes 20 bytes and then has no room."""
    taken: list[int] = []

    def pwrite(handle: int, data: bytes, offset: int) -> int:
        if taken:
            raise OSError(28, "No space left on device")
        taken.append(1)
        return int(real(handle, data[:20], offset))  # type: ignore[operator]

    return pwrite


def test_threads_share_the_journal(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    sequences: list[int] = []

    def write() -> None:
        sequences.extend(journal.append(3, *batch(2)) for _ in range(50))

    threads = [threading.Thread(target=write) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    journal.close()
    found = [
        record.sequence for path in journal_files(tmp_path) for record, _ in read_records(path)
    ]
    assert sorted(sequences) == found == list(range(1, 401))


def test_keys_lie_in_records_of_their_own(tmp_path: Path) -> None:
    ids, rows = batch(3)
    no_rows = np.zeros((3, 0), np.uint8)
    one, two = np.arange(3, dtype=np.uint64) << 60, np.arange(6, dtype=np.uint64).reshape(3, 2)
    texts = [b"a", b"", b"longer"]
    written = [
        (ids, rows, None, []),
        (ids, rows, one, []),
        (ids, no_rows, two, []),
        (ids, rows, two, texts),
    ]
    journal = Journal(tmp_path)
    try:
        for each in written:
            journal.append(1, *each)
    finally:
        journal.close()
    found = [record for path in journal_files(tmp_path) for record, _ in read_records(path)]
    assert [record.deletes for record in found] == [False, False, True, False]
    for record, (given_ids, given_rows, words, given_texts) in zip(found, written, strict=True):
        assert list(record.texts) == given_texts
        assert np.array_equal(record.ids, given_ids)
        assert np.array_equal(record.rows, given_rows)
        assert (record.words is None) == (words is None)
        assert words is None or np.array_equal(record.words, words)


def test_a_sequence_comes_after_one_that_is_known_from_elsewhere(tmp_path: Path) -> None:
    ids, rows = batch(1)
    journal = Journal(tmp_path)
    try:
        assert journal.append(1, ids, rows, after=7) == 8
        assert journal.append(1, ids, rows, after=3) == 9
    finally:
        journal.close()
