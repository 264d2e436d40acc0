"""RocksDB sources whose files do not all lie in their directory: read whole, or refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rocksdict

import bandana_kv
from bandana_kv.adapters.rows import KEY_CODECS, open_rows
from bandana_kv.errors import AdapterError
from bandana_kv.migration import migrate

ROWS = np.random.default_rng(0).random((60, 6), np.float32)
IDS = np.arange(60)
KEYS = KEY_CODECS["uint64-be"]("t", IDS)
Change = Callable[[rocksdict.Options], None]


def options(change: Change) -> rocksdict.Options:
    made = rocksdict.Options(raw_mode=True)
    made.create_if_missing(True)
    made.create_missing_column_families(True)
    made.set_disable_auto_compactions(True)  # so that nothing goes while it is copied
    change(made)
    return made


def nothing(_: rocksdict.Options) -> None:
    pass


def write(
    path: Path, change: Change = nothing, *, flushed: np.ndarray | None = None, logged: np.ndarray
) -> None:
    """Write rows and leave all as a kill does: some in sorted files, what came last in the log."""
    opened = rocksdict.Rdict(str(path), options(change), {"default": options(change)})
    for key, row in zip(KEYS, [] if flushed is None else flushed, strict=False):
        opened[key] = row.tobytes()
    opened.flush()
    for key, row in zip(KEYS, logged, strict=False):
        opened[key] = row.tobytes()
    around, copy = path.parent, path.parent.with_name(path.parent.name + "-killed")
    shutil.copytree(around, copy)
    opened.close()
    shutil.rmtree(around)
    copy.rename(around)


def log_in(directory: Path) -> Change:
    return lambda made: made.set_wal_dir(str(directory))


def assert_reads(path: Path, rows: np.ndarray, store: Path | None = None) -> None:
    before = {each: each.stat().st_mtime_ns for each in path.iterdir()}
    with open_rows("rocksdb", path) as source:
        assert np.array_equal(source.rows("t", IDS), rows)
        if store is not None:
            migrate(source, store, "t")
            with bandana_kv.open(store, cache_bytes=0) as opened:
                assert np.array_equal(opened.multi_get("t", IDS), rows)
    assert {each: each.stat().st_mtime_ns for each in path.iterdir()} == before


@pytest.mark.parametrize("where", ["beside", "db/inside"])
@pytest.mark.parametrize("flushed", [None, ROWS - 1])
def test_a_log_elsewhere_is_read(where: str, flushed: np.ndarray | None, tmp_path: Path) -> None:
    write(tmp_path / "db", log_in(tmp_path / where), flushed=flushed, logged=ROWS)
    assert_reads(tmp_path / "db", ROWS, tmp_path / "store")


def test_of_a_database_in_use(tmp_path: Path) -> None:
    made = options(log_in(tmp_path / "log: of #1"))
    opened = rocksdict.Rdict(str(tmp_path / "db"), made)
    for key, row in zip(KEYS, ROWS, strict=True):
        opened[key] = row.tobytes()
    assert_reads(tmp_path / "db", ROWS)
    opened.close()


def test_the_newest_options_count(tmp_path: Path) -> None:
    write(tmp_path / "db", log_in(tmp_path / "first"), flushed=ROWS - 2, logged=ROWS[:0])
    for _ in range(4):  # so that numbers of two and three digits meet
        write(tmp_path / "db", flushed=ROWS - 1, logged=ROWS)
    assert_reads(tmp_path / "db", ROWS)


def test_a_log_that_is_gone_is_an_error(tmp_path: Path) -> None:
    write(tmp_path / "db", log_in(tmp_path / "log"), flushed=ROWS - 1, logged=ROWS)
    shutil.rmtree(tmp_path / "log")
    with pytest.raises(AdapterError, match=r"name .*/log for its log \(wal_dir\), which is not"):
        open_rows("rocksdb", tmp_path / "db")
    (tmp_path / "log").mkdir()
    with pytest.raises(AdapterError, match="a checkpoint of it has all"):
        open_rows("rocksdb", tmp_path / "db")


def test_logs_in_two_places_are_an_error(tmp_path: Path) -> None:
    write(tmp_path / "db", log_in(tmp_path / "log"), flushed=ROWS - 1, logged=ROWS)
    (log,) = (tmp_path / "log").glob("*.log")
    shutil.copy(log, tmp_path / "db")
    with pytest.raises(AdapterError, match=r"log \(wal_dir\), which is also in .*/db,"):
        open_rows("rocksdb", tmp_path / "db")


@pytest.mark.parametrize("where", ["db", "db/wal"])
def test_a_database_that_was_moved_has_its_log_with_it(where: str, tmp_path: Path) -> None:
    write(tmp_path / "db", log_in(tmp_path / where), flushed=ROWS - 1, logged=ROWS)
    (tmp_path / "db").rename(tmp_path / "moved")
    assert_reads(tmp_path / "moved", ROWS)


@pytest.mark.parametrize("where", ["db", "db/wal"])
def test_a_copy_is_read_with_its_own_log_and_not_the_originals(where: str, tmp_path: Path) -> None:
    write(tmp_path / "db", log_in(tmp_path / where), flushed=ROWS - 1, logged=ROWS)
    shutil.copytree(tmp_path / "db", tmp_path / "copy")
    write(tmp_path / "db", log_in(tmp_path / where), flushed=ROWS + 1, logged=ROWS + 2)
    assert_reads(tmp_path / "copy", ROWS)
    assert_reads(tmp_path / "db", ROWS + 2)


def test_a_checkpoint_is_read_without_the_log_of_what_it_was_made_of(tmp_path: Path) -> None:
    write(tmp_path / "db", log_in(tmp_path / "log"), flushed=ROWS, logged=ROWS[:0])
    with_it = shutil.ignore_patterns("LOCK", "IDENTITY", "LOG*", "rocksdict-config.json")
    shutil.copytree(tmp_path / "db", tmp_path / "checkpoint", ignore=with_it)
    write(tmp_path / "db", log_in(tmp_path / "log"), flushed=ROWS + 1, logged=ROWS + 2)
    assert_reads(tmp_path / "checkpoint", ROWS)
    shutil.rmtree(tmp_path / "log")
    assert_reads(tmp_path / "checkpoint", ROWS)


def test_files_in_other_directories_are_named_and_can_be_gathered(tmp_path: Path) -> None:
    places = [
        rocksdict.DBPath(str(tmp_path / "one"), 1),
        rocksdict.DBPath(str(tmp_path / "two"), 1 << 40),
    ]
    write(tmp_path / "db", lambda made: made.set_db_paths(places), flushed=ROWS - 1, logged=ROWS)
    with pytest.raises(AdapterError, match=r"\d+\.sst is not in its directory: .*db_paths"):
        open_rows("rocksdb", tmp_path / "db")
    (tmp_path / "gathered").mkdir()
    for place in ("db", "one", "two"):
        if (tmp_path / place).exists():
            for file in (tmp_path / place).iterdir():
                (tmp_path / "gathered" / file.name).symlink_to(file)
    assert_reads(tmp_path / "gathered", ROWS)


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    write(tmp_path / "db", flushed=ROWS, logged=ROWS[:0])
    for file in (tmp_path / "db").glob("*.sst"):
        file.unlink()
    with pytest.raises(AdapterError, match=r"\d+\.sst is not in its directory: .*copied in part"):
        open_rows("rocksdb", tmp_path / "db")


def test_values_in_blob_files_are_refused_and_others_are_read(tmp_path: Path) -> None:
    def in_blobs(made: rocksdict.Options) -> None:
        made.set_enable_blob_files(True)
        made.set_min_blob_size(1)

    families = {"default": options(nothing), "large": options(in_blobs)}
    opened = rocksdict.Rdict(str(tmp_path / "db"), options(nothing), families)
    for name in families:
        family = opened.get_column_family(name)
        for key, row in zip(KEYS, ROWS, strict=True):
            family[key] = row.tobytes()
        family.flush()
        family.close()
    opened.close()
    assert_reads(tmp_path / "db", ROWS)
    with pytest.raises(AdapterError, match=r"family 'large' lie in blob files, such as \d+\.blob"):
        open_rows("rocksdb", tmp_path / "db", inner="large")


def test_messages_elsewhere_do_no_harm(tmp_path: Path) -> None:
    write(
        tmp_path / "db",
        lambda made: made.set_db_log_dir(str(tmp_path / "messages")),
        flushed=ROWS - 1,
        logged=ROWS,
    )
    shutil.rmtree(tmp_path / "messages")
    assert_reads(tmp_path / "db", ROWS)
