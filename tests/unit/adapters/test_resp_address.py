"""Addresses of clusters are read, and shown without what is nobody's business."""

from __future__ import annotations

import pickle
import sys

import pytest

from bandana_kv.adapters import adapter_class
from bandana_kv.adapters.resp import RespAdapter
from bandana_kv.adapters.resp_address import Node, parse_address
from bandana_kv.errors import AdapterError, BandanaError, InputError, MissingExtraError, NodeError
from bandana_kv.system.addresses import is_address

SECRET = "s3cr#t"


@pytest.mark.parametrize(
    ("text", "nodes"),
    [
        ("redis://h1", [("h1", 6379)]),
        ("redis://h1:7000,h2:7001/", [("h1", 7000), ("h2", 7001)]),
        ("redis://[::1]:7000,[fe80::1]", [("::1", 7000), ("fe80::1", 6379)]),
        ("rediss://a.b.c:1", [("a.b.c", 1)]),
    ],
)
def test_nodes_are_read(text: str, nodes: list[tuple[str, int]]) -> None:
    address = parse_address(text)
    assert list(address.nodes) == [Node(*node) for node in nodes]
    assert (address.tls is not None) == text.startswith("rediss")
    assert is_address(text)


def test_user_and_password_are_read_and_never_shown() -> None:
    address = parse_address("redis://me:s3cr%23t@h1,h2:7")
    assert (address.user, address.password) == ("me", SECRET)
    other = parse_address("redis://h1", user="me", password=SECRET)
    assert (other.user, other.password) == ("me", SECRET)
    assert parse_address("redis://you:that@h1", user="me", password=SECRET).password == SECRET
    assert parse_address("redis://:p@h1").user is None
    for shown in (str(address), repr(address), f"{other}", repr(other)):
        assert SECRET not in shown
        assert "s3cr" not in shown
    assert str(address) == "redis://h1:6379,h2:7"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "h1:7000",
        "http://h1",
        "redis://",
        "redis://h1:port",
        "redis://h1:0",
        "redis://h1,,h2",
        "redis://h1:70000",
        "redis://h1/2",
        "redis://h1?x=1",
        "unix:///tmp/x",
    ],
)
def test_what_is_no_address_is_refused_without_the_password(text: str) -> None:
    text = text.replace("://", f"://me:{SECRET}@", 1)
    with pytest.raises(InputError) as told:
        parse_address(text)
    assert SECRET not in str(told.value)


def test_what_tls_takes() -> None:
    address = parse_address("rediss://h1", tls={"ca": "/ca.pem", "key": "/k", "certificate": "/c"})
    assert address.tls == {
        "ssl_ca_certs": "/ca.pem",
        "ssl_keyfile": "/k",
        "ssl_certfile": "/c",
    }
    assert parse_address("redis://h1", tls=True).tls == {}
    with pytest.raises(InputError, match="tls has no 'cert'; it takes ca, certificate, key"):
        parse_address("rediss://h1", tls={"cert": "/c"})
    with pytest.raises(InputError, match="tls=False"):
        parse_address("rediss://h1", tls=False)


def test_a_cluster_that_is_not_there_is_named_without_the_password() -> None:
    with pytest.raises(AdapterError, match=r"127\.0\.0\.1:1 cannot be reached") as told:
        RespAdapter.on(f"redis://me:{SECRET}@127.0.0.1:1".replace("#", "%23"))
    assert SECRET not in str(told.value)
    assert "s3cr" not in str(told.value)


@pytest.mark.parametrize(
    "unfit",
    [
        {"prefix": ""},
        {"prefix": "a{b"},
        {"prefix": "a b"},
        {"prefix": "x" * 65},
        {"copies": -1},
        {"second_ask_ms": 0},
        {"second_ask_ms": 50, "patience_ms": 40},
        {"deleted_per_s": 0},
    ],
)
def test_unfit_arguments_are_refused_before_anyone_is_asked(unfit: dict[str, object]) -> None:
    with pytest.raises(InputError):
        RespAdapter.on("redis://127.0.0.1:1", **unfit)  # type: ignore[arg-type]


def test_without_the_client_library_one_error_names_the_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in [name for name in sys.modules if name.startswith("bandana_kv.adapters.resp")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'bandana-kv\[cluster\]'"):
        adapter_class("resp")


def test_an_error_keeps_its_node_on_its_way_to_another_process() -> None:
    error = pickle.loads(pickle.dumps(NodeError("does not come", "h1:7000")))
    assert (str(error), error.node) == ("does not come", "h1:7000")
    assert isinstance(error, BandanaError)
