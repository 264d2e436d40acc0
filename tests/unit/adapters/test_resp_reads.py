"""Reads of a cluster go on, right, whatever its nodes say."""

from __future__ import annotations

import shutil
import ssl
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bandana_kv.adapters import block_keys, resp_replies
from bandana_kv.adapters.resp import RespAdapter
from bandana_kv.errors import AdapterError, BlockCorruptError, BlockMissingError, NodeError
from tests.unit.adapters.scripted_node import ScriptedCluster, Words, values

SIZE = 4032
Answer = Callable[[Words], list[bytes] | None]


def block_of(key: bytes) -> bytes:
    return key.ljust(SIZE, b".")


def holds(words: Words) -> list[bytes]:
    """Have all blocks."""
    return [values(*map(block_of, words[1:]))]


def silent(words: Words) -> None:
    del words


def opened(cluster: ScriptedCluster, **options: float) -> RespAdapter:
    pace = {"second_ask_ms": 100.0, "patience_ms": 600.0} | options
    return RespAdapter.on(cluster.address, prefix="t", copies=0, read_only=True, **pace)


def check(adapter: RespAdapter, blocks: list[int]) -> None:
    found = adapter.multi_get(block_keys(1, blocks))
    wanted = [block_of(b"{t.000001%010x}00" % block) for block in blocks]
    assert [bytes(row) for row in found] == wanted


def once(first: Answer, then: Answer = holds) -> Answer:
    """Answer in one way, and from then on in another."""
    left = [first]
    return left.pop() if left else then


def test_one_command_a_slot_and_all_of_them_at_once() -> None:
    with ScriptedCluster(holds) as cluster, opened(cluster) as adapter:
        check(adapter, [3, 1, 2, 3])
        assert sorted(map(len, cluster.asked[0])) == [2, 2, 3]


@pytest.mark.parametrize("cut", [1, 7, 4000, 4043, 4050])
def test_replies_may_come_in_any_pieces(cut: int) -> None:
    def in_pieces(words: Words) -> list[bytes]:
        whole = holds(words)[0]
        return [whole[:cut], whole[cut:]]

    with ScriptedCluster(in_pieces) as cluster, opened(cluster) as adapter:
        for _ in range(20):
            check(adapter, list(range(70)))


def test_a_silent_node_is_left_alone_and_its_copy_asked() -> None:
    with ScriptedCluster(silent, holds) as cluster, opened(cluster) as adapter:
        begun = time.monotonic()
        check(adapter, [1, 2])
        assert 0.09 < time.monotonic() - begun < 0.5
        asked = len(cluster.asked[0])
        begun = time.monotonic()
        for _ in range(5):
            check(adapter, [1, 2])
        assert time.monotonic() - begun < 0.09
        assert len(cluster.asked[0]) == asked
        counts = adapter.node_counts()[f"127.0.0.1:{cluster.ports[0]}"]
        assert counts["second_asks"] == 1
        assert counts["failures"] >= 1


def test_a_late_reply_is_no_answer_to_the_next_question() -> None:
    def late(words: Words) -> list[bytes]:
        time.sleep(0.2 if len(cluster.asked[0]) == 1 else 0)
        return holds(words)

    with ScriptedCluster(late, holds) as cluster, opened(cluster) as adapter:
        check(adapter, [1, 2])
        time.sleep(0.3)
        for block in range(10):
            check(adapter, [block])


def test_without_a_copy_that_answers_the_error_names_the_node_and_comes_at_once_then() -> None:
    with ScriptedCluster(silent, silent) as cluster, opened(cluster) as adapter:
        begun = time.monotonic()
        with pytest.raises(NodeError, match=r"space 1, block 2 does not come: 127.0.0.1:\d+ did"):
            adapter.get(int(block_keys(1, 2)))
        assert time.monotonic() - begun < 1.0
        begun = time.monotonic()
        errors = adapter.read_each(block_keys(1, [3, 4]), np.empty((2, SIZE), np.uint8))
        assert time.monotonic() - begun < 0.3
        assert [type(errors[at]) for at in (0, 1)] == [NodeError, NodeError]
        assert all(f"127.0.0.1:{port} is down" in str(errors[0]) for port in cluster.ports)


def test_a_copy_that_has_not_got_a_block_is_not_the_last_word() -> None:
    def lacks(words: Words) -> list[bytes]:
        return [values(*[None] * (len(words) - 1))]

    with ScriptedCluster(lacks, holds) as cluster, opened(cluster) as adapter:
        check(adapter, [1, 2, 3])
    with (
        ScriptedCluster(lacks, lacks) as cluster,
        opened(cluster) as adapter,
        pytest.raises(BlockMissingError, match="has no space 1, block 1"),
    ):
        adapter.get(int(block_keys(1, 1)))
    with (
        ScriptedCluster(lacks, silent) as cluster,
        opened(cluster) as adapter,
        pytest.raises(NodeError, match="did not answer"),
    ):
        adapter.get(int(block_keys(1, 1)))


def test_a_value_of_another_length_is_named() -> None:
    def short(words: Words) -> list[bytes]:
        return [values(*[b"short"] * (len(words) - 1))]

    with (
        ScriptedCluster(short) as cluster,
        opened(cluster) as adapter,
        pytest.raises(BlockCorruptError, match="block 1 is 5 bytes long, not 4032"),
    ):
        adapter.get(int(block_keys(1, 1)))


@pytest.mark.parametrize("said", ["MOVED", "ASK"])
def test_redirects_are_obeyed(said: str) -> None:
    ports: list[int] = []

    def elsewhere(words: Words) -> list[bytes]:
        return [f"-{said} 5 127.0.0.1:{ports[1]}\r\n".encode()]

    def only_if_asking(words: Words) -> list[bytes]:
        if words[0] == b"ASKING":
            return [b"+OK\r\n"]
        before = cluster.asked[1][-2][0] if len(cluster.asked[1]) > 1 else b""
        return holds(words) if said == "MOVED" or before == b"ASKING" else [b"-MOVED 5 :1\r\n"]

    with ScriptedCluster(elsewhere, only_if_asking) as cluster:
        ports += cluster.ports
        # Where this process is kept for long, a copy asked for lateness would be counted as well.
        with opened(cluster, second_ask_ms=5000, patience_ms=10_000) as adapter:
            check(adapter, [1, 2, 3, 1])
            assert adapter.node_counts()[f"127.0.0.1:{ports[0]}"]["redirects"] == 3


def test_a_chunk_that_moves_is_asked_for_singly() -> None:
    def half_moved(words: Words) -> list[bytes]:
        return holds(words) if len(words) == 2 else [b"-TRYAGAIN some have moved\r\n"]

    with ScriptedCluster(half_moved) as cluster, opened(cluster) as adapter:
        check(adapter, [1, 1, 2])


def test_redirects_without_end_are_an_error() -> None:
    def round_and_round(words: Words) -> list[bytes]:
        return [b"-MOVED 5 127.0.0.1:%d\r\n" % cluster.ports[0]]

    with (
        ScriptedCluster(round_and_round) as cluster,
        opened(cluster) as adapter,
        pytest.raises(NodeError, match="sends from node to node"),
    ):
        adapter.get(int(block_keys(1, 1)))


@pytest.mark.parametrize(
    "said",
    [
        b"-LOADING it begins\r\n",
        b"-CLUSTERDOWN the cluster is down\r\n",
        b"-MASTERDOWN the link is down\r\n",
        b"*7\r\n",
        b"+what\r\n*1\r\n:5\r\n",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
    ],
)
def test_a_node_that_talks_of_something_else_is_not_believed(said: bytes) -> None:
    with ScriptedCluster(lambda _: [said], holds) as cluster, opened(cluster) as adapter:
        check(adapter, [1, 2, 3])
    with (
        ScriptedCluster(lambda _: [said]) as cluster,
        opened(cluster) as adapter,
        pytest.raises(NodeError, match="space 1, block 1 does not come"),
    ):
        adapter.get(int(block_keys(1, 1)))


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Give a certificate of 127.0.0.1, and its key."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("there is no openssl to make a certificate with")
    directory = tmp_path_factory.mktemp("tls")
    made, key = directory / "made.pem", directory / "key.pem"
    what = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=127.0.0.1"]
    what += ["-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"]
    asked = [openssl, *what, "-keyout", str(key), "-out", str(made)]
    subprocess.run(asked, check=True, capture_output=True)
    return made, key


def test_blocks_come_through_tls(certificate: tuple[Path, Path]) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    with ScriptedCluster(silent, holds, tls=context) as cluster:
        with pytest.raises(AdapterError, match="no certificate that is trusted"):
            RespAdapter.on(cluster.address, prefix="t")
        adapter = RespAdapter.on(
            cluster.address,
            prefix="t",
            tls={"ca": certificate[0]},
            second_ask_ms=100,
            patience_ms=4000,
        )
        with adapter:
            for _ in range(10):
                check(adapter, list(range(90)))


def test_an_interrupted_read_leaves_no_reply_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    exchange = resp_replies.exchange

    def interrupted(*given: object) -> int:
        exchange(*given[:-1], 0)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    with ScriptedCluster(holds) as cluster, opened(cluster) as adapter:
        check(adapter, [1])
        for block in range(2, 6):
            with monkeypatch.context() as patch:
                patch.setattr(resp_replies, "exchange", interrupted)
                with pytest.raises(KeyboardInterrupt):
                    adapter.get(int(block_keys(1, block)))
            time.sleep(0.02)
            check(adapter, [block + 100])
