"""One row per key in RocksDB through rocksdict, with a block cache and direct reads.

Keys are 4 bytes; blocks of 4 KiB, uncompressed; sorted files ingested, so that there is one level
and no compaction. No Bloom filter, as every key is there. The index of blocks lies in memory
beside the block cache and comes out of the same DRAM. A list of keys is one MultiGet without
the GIL.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import rocksdict
from numpy.typing import NDArray

from competitors import Reader, Splitting, chunks

VARIANTS = [{"width": 0}, {"width": 16}]
_FILE_ROWS = 1 << 21


def build(rows: Path, path: Path) -> None:
    table = _open(path, _options(None, direct=False), read_only=False)
    folder = path.with_name(path.name + "-files")
    folder.mkdir()
    files: list[str] = []
    writer = None
    for first, part in chunks(rows):
        if writer is None:
            files.append(str(folder / f"{len(files):06d}.sst"))
            writer = rocksdict.SstFileWriter(_options(None, direct=False))
            writer.open(files[-1])
        for key, row in zip(_keys(np.arange(first, first + len(part))), part, strict=True):
            writer[key] = row.tobytes()
        if (first + len(part)) % _FILE_ROWS == 0:
            writer.finish()
            writer = None
    if writer is not None:
        writer.finish()
    move = rocksdict.IngestExternalFileOptions()
    move.set_move_files(True)
    table.ingest_external_file(files, move)
    folder.rmdir()
    table.close()


def _keys(ids: NDArray[np.integer]) -> list[bytes]:
    stored = ids.astype(">u4").tobytes()
    return [stored[at : at + 4] for at in range(0, len(stored), 4)]


def _options(cache: rocksdict.Cache | None, *, direct: bool) -> rocksdict.Options:
    blocks = rocksdict.BlockBasedOptions()
    blocks.set_block_size(4096)
    blocks.set_cache_index_and_filter_blocks(False)
    if cache is None:
        blocks.disable_cache()
    else:
        blocks.set_block_cache(cache)
    options = rocksdict.Options(raw_mode=True)
    options.set_block_based_table_factory(blocks)
    options.set_compression_type(rocksdict.DBCompressionType.none())
    options.set_use_direct_reads(direct)
    options.set_max_open_files(-1)
    options.set_stats_dump_period_sec(0)
    options.set_skip_stats_update_on_db_open(True)
    options.create_if_missing(True)
    return options


def _open(path: Path, options: rocksdict.Options, *, read_only: bool) -> rocksdict.Rdict:
    access = rocksdict.AccessType.read_write()
    if read_only:
        access = rocksdict.AccessType.read_only(False)
    return rocksdict.Rdict(str(path), options, {"default": options}, access)


class RocksdictRows(Splitting):
    def __init__(self, path: Path, cache_bytes: int, width: int) -> None:
        super().__init__(width)
        table = _open(path, _options(None, direct=True), read_only=True)
        index_bytes = int(table.property_int_value("rocksdb.estimate-table-readers-mem") or 0)
        table.close()
        self._cache = rocksdict.Cache(max(0, cache_bytes - index_bytes))
        self._table = _open(path, _options(self._cache, direct=True), read_only=True)
        self.private_bytes = cache_bytes

    def read_part(self, ids: NDArray[np.int32], out: NDArray[np.float32]) -> None:
        values = self._table.get(_keys(ids))
        out[:] = np.frombuffer(b"".join(values), np.float32).reshape(out.shape)

    def close(self) -> None:
        super().close()
        self._table.close()


def open(path: Path, cache_bytes: int, width: int) -> Reader:
    return RocksdictRows(path, cache_bytes, width)
