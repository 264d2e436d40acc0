"""A bulk load into RocksDB: sorted files are written beside the database, and moved in."""

from __future__ import annotations

import itertools
import os
import shutil
from pathlib import Path

import rocksdict

from bandana_kv.adapters.contract import Keys, Payloads, key_bytes
from bandana_kv.adapters.rocksdb_open import BULK_PREFIX, block_options

__all__ = ["SortedFiles"]

_FILE_BYTES = 256 << 20
_bulk_numbers = itertools.count()


class SortedFiles:
    """Writes a bulk load into sorted files, which the engine then takes over as one.

    Their folder lies in the database's own, so that they can be moved; one that a load left
    behind goes when the database is next opened to write.
    """

    def __init__(self, handle: rocksdict.Rdict, path: str, payload_bytes: int) -> None:
        self._handle = handle
        self._folder = Path(path) / f"{BULK_PREFIX}{os.getpid()}-{next(_bulk_numbers)}"
        self._folder.mkdir()
        self._keys_per_file = max(1, _FILE_BYTES // payload_bytes)
        self._files: list[str] = []
        self._file: rocksdict.SstFileWriter | None = None
        self._keys_in_file = 0

    def write(self, keys: Keys, payloads: Payloads) -> None:
        """Append a chunk."""
        for key, row in zip(key_bytes(keys), payloads, strict=True):
            if self._file is None:
                self._file = self._begin_file()
            self._file[key] = row.tobytes()
            self._keys_in_file += 1
            if self._keys_in_file == self._keys_per_file:
                self._end_file()

    def _begin_file(self) -> rocksdict.SstFileWriter:
        path = str(self._folder / f"{len(self._files):06d}.sst")
        file = rocksdict.SstFileWriter(block_options(direct=False))
        file.open(path)
        self._files.append(path)
        return file

    def _end_file(self) -> None:
        if self._file is not None:
            self._file.finish()  # syncs
            self._file = None
            self._keys_in_file = 0

    def finish(self) -> None:
        """Have the engine take the files over."""
        self._end_file()
        if self._files:
            move = rocksdict.IngestExternalFileOptions()
            move.set_move_files(True)
            self._handle.ingest_external_file(self._files, move)
        self._folder.rmdir()

    def abort(self) -> None:
        """Remove the files."""
        self._file = None
        shutil.rmtree(self._folder, ignore_errors=True)
