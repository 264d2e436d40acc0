"""RocksDB opened so that a block is one device read, and read without leaving a trace.

- Reopening with ``Rdict(path, options)`` ignores the table options and adds a block cache
  of 8 MiB: the options go into ``column_families`` as well.
- The default mode of rocksdict pickles; only raw mode stores bytes as they are.
- Opening read-only writes a configuration file and a log, fails on read-only media, and
  creates a mistyped path. It is done here through a directory of links, removed at once.
"""

from __future__ import annotations

import resource
import shutil
from pathlib import Path

import rocksdict

from bandana_kv.adapters.contract import PAGE_BYTES
from bandana_kv.adapters.rocksdb_files import missing_file, refuse_blobs
from bandana_kv.adapters.rocksdb_links import Links
from bandana_kv.errors import AdapterError

__all__ = ["BULK_PREFIX", "block_options", "open_to_read", "open_to_write"]

BULK_PREFIX = "bulk-load-"
_WRITE_BUFFER_BYTES = 16 << 20
_FEWEST_OPEN = 20  # the engine takes no less seriously
_FILES_IN_SHARDS = 1 << 10


def block_options(*, direct: bool, most_open: int = -1) -> rocksdict.Options:
    """Return the options under which one block is one device read of its pages.

    `most_open`: sorted files that are open at once; -1 for all, whose indexes stay in memory.
    """
    table = rocksdict.BlockBasedOptions()
    table.set_block_size(PAGE_BYTES)  # no block takes a second value
    table.disable_cache()  # the store's own cache holds rows, not blocks
    table.set_cache_index_and_filter_blocks(False)
    # Updated blocks lie above older ones: the filter spares a read in the wrong file.
    table.set_bloom_filter(10, False)
    options = rocksdict.Options(raw_mode=True)
    options.set_block_based_table_factory(table)
    options.set_compression_type(rocksdict.DBCompressionType.none())
    options.set_use_direct_reads(direct)
    options.set_max_open_files(most_open)
    if 0 <= most_open < _FILES_IN_SHARDS:
        options.set_table_cache_num_shard_bits(0)  # else each of 64 shards keeps one at least
    options.set_write_buffer_size(_WRITE_BUFFER_BYTES)
    options.set_bytes_per_sync(1 << 20)
    options.set_skip_stats_update_on_db_open(True)
    options.set_stats_dump_period_sec(0)
    options.set_keep_log_file_num(2)
    options.create_if_missing(True)
    return options


def _open(
    path: str,
    access: rocksdict.AccessType,
    names: tuple[str, ...] = ("default",),
    most_open: int = -1,
) -> rocksdict.Rdict:
    def attempt(direct: bool) -> rocksdict.Rdict:
        families = {name: block_options(direct=direct, most_open=most_open) for name in names}
        options = block_options(direct=direct, most_open=most_open)
        return rocksdict.Rdict(path, options, families, access)

    try:
        return attempt(True)
    except Exception as error:
        # Some file systems (tmpfs before Linux 6.6) have no direct reads.
        if "invalid argument" not in str(error).lower():
            raise
        return attempt(False)


def _share_of_limit() -> int:
    """Return how many files the engine may keep open of those that the process still may."""
    taken = sum(1 for _ in Path("/proc/self/fd").iterdir())
    return max(_FEWEST_OPEN, (resource.getrlimit(resource.RLIMIT_NOFILE)[0] - taken) // 4)


def _most_open(path: Path) -> int:
    """Return how many sorted files to keep open: all, if that is a part of what there may be."""
    most = _share_of_limit()
    return -1 if sum(1 for _ in path.glob("*.sst")) <= most else most


def open_to_write(path: str) -> rocksdict.Rdict:
    """Open one of ours, or make it, and remove what a killed load left in it."""
    # Not all, however few there are: a load adds one for each table.
    handle = _open(path, rocksdict.AccessType.read_write(), most_open=_share_of_limit())
    # What a killed load left; the lock that opening took says no other load is running.
    for litter in Path(path).glob(f"{BULK_PREFIX}*"):
        shutil.rmtree(litter, ignore_errors=True)
    return handle


def open_to_read(
    path: str, families: tuple[str, ...] = ("default",)
) -> tuple[rocksdict.Rdict, Links | None]:
    """Open without writing to `path`, through links to its files in a directory elsewhere.

    The engine opens every file at once and keeps it open, so that the links can go, and
    files that a writer deletes later stay readable. Where those are too many for the process's
    limit of open files, it opens some again as it reads: then the links come with it, to be kept
    for as long.

    Raises
    ------
    AdapterError
        Not all of the database lies where it can be found; names the way out.
    """
    attempts = 5
    while True:
        attempts -= 1
        refuse_blobs(Path(path), families)
        try:
            most_open = _most_open(Path(path))
            links = Links(Path(path))
            try:
                read_only = rocksdict.AccessType.read_only(False)
                handle = _open(links.path, read_only, families, most_open)
            except BaseException:
                links.remove()
                raise
            if most_open < 0:
                links.remove()
                return handle, None
            return handle, links
        except AdapterError:
            raise
        except Exception as error:
            # A writer may replace files between the listing and the opening.
            if attempts and "no such file" in str(error).lower():
                continue
            missing = missing_file(Path(path), error)
            if missing is None:
                raise
            raise AdapterError(f"rocksdb at {path} cannot be opened: {missing}") from error
