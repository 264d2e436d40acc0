"""Requests that a live store records, and what reads back."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import bandana_kv
from bandana_kv import AccessLog
from bandana_kv.errors import FormatError, IdError, InputError
from bandana_kv.logs.formats import frames
from bandana_kv.logs.recording import Recorder, read_recording, recorder

ROWS, DIM = 500, 8


@pytest.fixture
def root(tmp_path: Path, rng: np.random.Generator) -> Path:
    rows = rng.random((ROWS, DIM), dtype=np.float32)
    bandana_kv.load(tmp_path / "store", tables={"user": rows, "item": rows[::-1].copy()})
    return tmp_path / "store"


def requests_of(log: AccessLog) -> list[list[int]]:
    return [log.request(number).tolist() for number in range(log.requests)]


def values_of(recording: Recorder) -> dict[str, object]:
    return {metric.name: metric.value for metric in recording.metrics()}


def make_requests(rng: np.random.Generator, count: int) -> list[np.ndarray]:
    kinds = (np.int64, np.int32, np.uint32)
    return [rng.integers(0, ROWS, rng.integers(1, 40)).astype(kinds[at % 3]) for at in range(count)]


def test_everything_is_read_back_in_order(
    root: Path, tmp_path: Path, rng: np.random.Generator
) -> None:
    asked = make_requests(rng, 300)
    with bandana_kv.open(root, cache_bytes=4096) as store:
        store.multi_get("user", asked[0])  # nobody records yet
        with store.record(tmp_path / "log") as recording:
            for ids in asked:
                store.multi_get("user", ids)
            store.multi_get({"user": [1, 2], "item": [3, 3]})
            store.get("item", 7)
        store.multi_get("user", [5])  # nor any more
        after = store.stats()["user"]
    found = read_recording(tmp_path / "log")
    assert found.tables == ("item", "user")
    assert requests_of(found.log("user")) == [*(each.tolist() for each in asked), [1, 2]]
    assert requests_of(found.log("item")) == [[3, 3], [7]]
    assert found.version == 1
    assert found.torn_bytes == 0
    live = found.live("user")
    assert (
        live.lookups == sum(each.size for each in asked) + 2 == after["lookups"] - 1 - len(asked[0])
    )
    assert 0 < live.block_reads <= live.lookups
    assert live.seconds > 0
    values = values_of(recording)
    assert values["bandana_kv_recorder_requests"] == len(asked) + 3
    assert values["bandana_kv_recorder_dropped_requests"] == 0
    assert values["bandana_kv_recorder_failed"] == 0


def test_the_callers_array_may_change_afterwards(root: Path, tmp_path: Path) -> None:
    ids = np.arange(10)
    with bandana_kv.open(root) as store, store.record(tmp_path / "log"):
        store.multi_get("user", ids)
        ids[:] = 0
    assert requests_of(AccessLog.read(tmp_path / "log", table="user")) == [list(range(10))]


def test_failed_lookups_are_not_recorded(root: Path, tmp_path: Path) -> None:
    with bandana_kv.open(root) as store, store.record(tmp_path / "log"):
        with pytest.raises(IdError):
            store.multi_get("user", [ROWS])
        store.multi_get("user", [1])
    assert requests_of(AccessLog.read(tmp_path / "log")) == [[1]]


def test_bursts_are_consecutive_and_make_up_the_share(root: Path, tmp_path: Path) -> None:
    with bandana_kv.open(root) as store, store.record(tmp_path / "log", sample=0.1, burst=50):
        for number in range(5000):
            store.multi_get("user", [number % ROWS, number // ROWS])
    ids = AccessLog.read(tmp_path / "log").ids.reshape(-1, 2)
    numbers = ids[:, 0].astype(int) + ROWS * ids[:, 1].astype(int)
    assert numbers.size == 500
    assert np.array_equal(np.unique(numbers // 500), np.arange(10)), "one burst in each cycle"
    assert (np.diff(numbers.reshape(10, 50)) == 1).all(), "of consecutive requests"
    assert len(set((numbers[::50] % 500).tolist())) > 5, "that begin at random"


def test_old_files_make_room(root: Path, tmp_path: Path) -> None:
    most = 4 << 20
    with bandana_kv.open(root) as store:
        recording = store.record(tmp_path / "log", max_bytes=most, file_bytes=1 << 20)
        for number in range(100):
            store.multi_get("user", np.full(20_000, number))
            recording.flush()
            size = sum(path.stat().st_size for path in (tmp_path / "log").iterdir())
            assert size <= most
        recording.close()
    last = AccessLog.read(tmp_path / "log").ids[::20_000]
    assert last.tolist() == list(range(100 - last.size, 100))
    assert 30 < last.size < 60


def test_more_than_fits_is_dropped_and_counted(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "_WAITING_BYTES", 10_000)
    monkeypatch.setattr(recorder.Recorder, "_run", lambda self: self._wake.wait())
    with bandana_kv.open(root) as store:
        recording = store.record(tmp_path / "log")
        for number in range(100):
            store.multi_get("user", np.full(100, number))
        recording.close()
    kept = AccessLog.read(tmp_path / "log").requests
    values = values_of(recording)
    assert kept == values["bandana_kv_recorder_requests"] == 10
    assert values["bandana_kv_recorder_dropped_requests"] == 90


def test_a_full_disk_ends_recording_and_no_lookup(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with bandana_kv.open(root) as store:
        recording = store.record(tmp_path / "log")
        store.multi_get("user", [1])
        recording.flush()

        def full(handle: int, raw: Any) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(recorder.os, "write", full)
        for _ in range(3):
            store.multi_get("user", [2])
            recording.flush()
        recording.close()
        assert recording.failure is not None
        assert "No space left" in recording.failure
    assert len([record for record in caplog.records if "not recorded" in record.message]) == 1
    values = values_of(recording)
    assert values["bandana_kv_recorder_failed"] == 1
    assert values["bandana_kv_recorder_dropped_requests"] == 3
    assert requests_of(AccessLog.read(tmp_path / "log")) == [[1]]


def test_recording_goes_on_where_it_ended(root: Path, tmp_path: Path) -> None:
    with bandana_kv.open(root) as store:
        for number in range(3):
            with store.record(tmp_path / "log"):
                store.multi_get("user", [number])
    assert requests_of(AccessLog.read(tmp_path / "log")) == [[0], [1], [2]]


@pytest.mark.parametrize("cut", range(0, 84, 7))
def test_a_torn_end_is_left_out(root: Path, tmp_path: Path, cut: int) -> None:
    with bandana_kv.open(root) as store, store.record(tmp_path / "log") as recording:
        store.multi_get("user", [1, 2])
        recording.flush()
        store.multi_get("user", [3])
    (file,) = frames.files_of(tmp_path / "log")
    whole = file.read_bytes()
    first = next(frames.frames_of(file))[1]
    file.write_bytes(whole[: first + cut])
    found = read_recording(tmp_path / "log")
    assert requests_of(found.log("user")) == [[1, 2]]
    assert found.torn_bytes == min(cut, len(whole) - first)


def test_every_flipped_byte_is_noticed(root: Path, tmp_path: Path) -> None:
    with bandana_kv.open(root) as store, store.record(tmp_path / "log"):
        store.multi_get("user", [1, 2])
    (file,) = frames.files_of(tmp_path / "log")
    whole = file.read_bytes()
    for at in range(len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 0x55
        file.write_bytes(damaged)
        try:
            assert read_recording(tmp_path / "log").tables == (), at
        except FormatError:
            assert at < len(frames.FILE_HEADER)


def test_kill_loses_only_what_was_not_written(root: Path, tmp_path: Path) -> None:
    child = textwrap.dedent(
        """
        import sys, bandana_kv
        store = bandana_kv.open(sys.argv[1])
        recording = store.record(sys.argv[2])
        for number in range(200):
            store.multi_get("user", [number, number])
        recording.flush()
        print("written", flush=True)
        for number in range(200, 500):
            store.multi_get("user", [number, number])
        print("asked", flush=True)
        sys.stdin.read()
        """
    )
    with subprocess.Popen(
        [sys.executable, "-c", child, str(root), str(tmp_path / "log")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert [process.stdout.readline(), process.stdout.readline()] == ["written\n", "asked\n"]
        process.send_signal(signal.SIGKILL)
        process.wait()
    numbers = AccessLog.read(tmp_path / "log").ids[::2].tolist()
    assert numbers == list(range(len(numbers)))
    assert len(numbers) >= 200
    with bandana_kv.open(root) as store, store.record(tmp_path / "log"):  # the lock went as well
        store.multi_get("user", [9])
    assert requests_of(AccessLog.read(tmp_path / "log"))[-1] == [9]


def test_a_forked_child_does_not_record(root: Path, tmp_path: Path) -> None:
    with bandana_kv.open(root) as store, store.record(tmp_path / "log"):
        ended = bandana_kv.open(root)  # whose recorder has let go of its files
        ended.record(tmp_path / "ended")
        ended.close()
        store.multi_get("user", [1])
        child = os.fork()
        if child == 0:
            status = 1
            try:
                store.multi_get("user", [2])
                store.close()
                status = 0
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        store.multi_get("user", [3])
    assert requests_of(AccessLog.read(tmp_path / "log")) == [[1], [3]]


def test_counts_begin_anew_with_a_version(root: Path, tmp_path: Path) -> None:
    with bandana_kv.open(root) as store, store.record(tmp_path / "log") as recording:
        store.multi_get("user", np.arange(100))
        recording.flush()
        rows = np.zeros((ROWS, DIM), np.float32)
        bandana_kv.load(root, tables={"user": rows})
        store.refresh(warm_seconds=0)
        store.multi_get("user", np.arange(30))
    found = read_recording(tmp_path / "log")
    assert found.version == 2
    assert found.live("user").lookups == 30
    assert found.log("user").lookups == 130


def test_a_table_that_stays_at_a_switch_counts_on(root: Path, tmp_path: Path) -> None:
    """What it had counted before is not of the new version, nor of the recording."""
    with bandana_kv.open(root, cache_bytes=100_000) as store:
        store.multi_get("item", np.arange(100))
        with store.record(tmp_path / "log") as recording:
            store.multi_get("item", np.arange(20))
            recording.flush()
            bandana_kv.load(root, tables={"user": np.zeros((ROWS, DIM), np.float32)})
            store.refresh(warm_seconds=0)
            store.multi_get("item", np.arange(7))
    found = read_recording(tmp_path / "log")
    assert found.version == 2
    assert found.live("item").lookups == 7
    assert found.log("item").lookups == 27


def test_a_table_that_is_opened_anew_counts_all_of_it(tmp_path: Path) -> None:
    """Also where it has counted more than the one before it, under the same version."""
    counted: dict[str, Any] = {"user": ("first", (10, 5, 5))}
    with Recorder(tmp_path / "log", 1.0, 4 << 20, 1 << 20, 4096, lambda: (1, counted)) as recording:
        counted = {"user": ("first", (13, 6, 7))}
        recording.flush()
        counted = {"user": ("second", (100, 60, 40))}
        recording.flush()
    live = read_recording(tmp_path / "log").live("user")
    assert (live.lookups, live.hits, live.block_reads) == (103, 61, 42)


def test_time_without_requests_is_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(recorder.time, "monotonic", lambda: now)
    monkeypatch.setattr(recorder.Recorder, "_run", lambda self: self._wake.wait())
    version, counted = 1, {"user": ("it", (0, 0, 0)), "item": ("it", (0, 0, 0))}
    with Recorder(
        tmp_path / "log", 1.0, 4 << 20, 1 << 20, 4096, lambda: (version, dict(counted))
    ) as recording:
        for seconds, lookups in ((10, 0), (10, 1), (10, 1), (10, 5)):
            now += seconds
            counted["user"] = ("it", (lookups, 0, lookups))
            recording.flush()
        assert read_recording(tmp_path / "log").live("user").seconds == 40
        version, now = 2, now + 3
        counted["user"] = ("it", (6, 0, 6))
        recording.flush()
    live = read_recording(tmp_path / "log").live("user")
    assert (live.lookups, live.seconds) == (1, 3)


def test_much_at_once_fits_into_small_files(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder.Recorder, "_run", lambda self: self._wake.wait())
    asked = [[number % ROWS] * 1000 for number in range(600)]
    with bandana_kv.open(root) as store:
        with store.record(tmp_path / "log", max_bytes=8 << 20, file_bytes=1 << 20) as recording:
            for ids in asked:
                store.multi_get("user", np.array(ids, np.int32))
        assert values_of(recording)["bandana_kv_recorder_dropped_requests"] == 0
    assert requests_of(AccessLog.read(tmp_path / "log")) == asked


@pytest.mark.parametrize("kind", [int, float])
def test_arguments_are_checked(root: Path, tmp_path: Path, kind: type) -> None:
    with bandana_kv.open(root) as store:
        for sample in (0, 1.5, float("nan"), True, "all"):
            with pytest.raises(InputError, match="sample"):
                store.record(tmp_path / "log", sample=sample)  # type: ignore[arg-type]
        with pytest.raises(InputError, match="file_bytes"):
            store.record(tmp_path / "log", file_bytes=17)
        with pytest.raises(InputError, match="burst"):
            store.record(tmp_path / "log", burst=0)
        with pytest.raises(InputError, match="half of max_bytes"):
            store.record(tmp_path / "log", max_bytes=kind(1 << 20) and 1 << 20, file_bytes=1 << 20)
    assert not (tmp_path / "log").exists()


def test_only_one_records_to_a_directory(root: Path, tmp_path: Path) -> None:
    with bandana_kv.open(root) as store, bandana_kv.open(root) as other:
        recording = store.record(tmp_path / "log")
        with pytest.raises(InputError, match="close that recorder first"):
            store.record(tmp_path / "other")
        with pytest.raises(InputError, match="another recorder"):
            other.record(tmp_path / "log")
        recording.close()
        recording.close()
        other.record(tmp_path / "log")
    with pytest.raises(InputError, match="closed"):
        store.record(tmp_path / "log")


def test_a_strange_directory_is_left_alone(root: Path, tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "mine.txt").write_text("mine")
    with bandana_kv.open(root) as store:
        with pytest.raises(InputError, match=r"mine\.txt"):
            store.record(tmp_path / "log")
        (tmp_path / "file").write_text("")
        with pytest.raises(InputError, match="cannot be written"):
            store.record(tmp_path / "file" / "log")
    assert [path.name for path in (tmp_path / "log").iterdir()] == ["mine.txt"]


def test_reading_says_what_is_wrong(root: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no recorded requests"):
        read_recording(tmp_path / "nowhere")
    with pytest.raises(InputError, match="without a recording"):
        AccessLog.read(tmp_path)
    with pytest.raises(InputError, match="no such file or directory"):
        AccessLog.read(tmp_path / "nowhere")
    with bandana_kv.open(root) as store, store.record(tmp_path / "log"):
        store.multi_get({"user": [1], "item": [2]})
    with pytest.raises(InputError, match="'item', 'user'"):
        AccessLog.read(tmp_path / "log")
    with pytest.raises(InputError, match="no table 'users'"):
        AccessLog.read(tmp_path / "log", table="users")
    frames.path_of(tmp_path / "log", 7).write_bytes(b"BKVR\xff\x00\x00\x00")
    with pytest.raises(FormatError, match="newer"):
        read_recording(tmp_path / "log")


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["user", "item", "später"]),
            st.sampled_from([np.int64, np.int32, np.uint32]),
            st.lists(st.integers(0, 2**31 - 1), max_size=20),
        ),
        max_size=30,
    ),
    st.integers(1, 7),
)
def test_any_requests_come_back(
    tmp_path_factory: pytest.TempPathFactory, asked: list[tuple[str, Any, list[int]]], every: int
) -> None:
    directory = tmp_path_factory.mktemp("any") / "log"
    with Recorder(directory, 1.0, 4 << 20, 1 << 20, 4096, lambda: (3, {})) as recording:
        for number, (table, kind, ids) in enumerate(asked):
            recording.note(table, np.array(ids, kind))
            if number % every == 0:
                recording.flush()
    if not asked:
        return
    found = read_recording(directory)
    for table in {table for table, _, _ in asked}:
        mine = [ids for each, _, ids in asked if each == table]
        assert requests_of(found.log(table)) == mine


def test_flushing_what_is_closed_writes_nothing(root: Path, tmp_path: Path) -> None:
    with bandana_kv.open(root) as store:
        recording = store.record(tmp_path / "log")
        store.multi_get("user", [1])
        recording.close()
        before = {path.name: path.read_bytes() for path in (tmp_path / "log").iterdir()}
        recording.flush()
        assert {path.name: path.read_bytes() for path in (tmp_path / "log").iterdir()} == before
