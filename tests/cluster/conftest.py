"""Real clusters on loopback: one that tests share and only read and write, and some to break."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from bandana_kv.errors import MissingExtraError
from bandana_kv.testing.cluster_node import server_binary
from bandana_kv.testing.real_cluster import RealCluster

OUTSIDE = os.environ.get("BANDANA_TEST_CLUSTER", "")


@dataclass(frozen=True)
class Address:
    """How to reach a cluster, and as whom."""

    address: str
    user: str | None
    password: str | None
    reader: str | None = None


def started() -> RealCluster:
    """Start a cluster, or skip the test for want of a server."""
    try:
        server_binary()
    except MissingExtraError as missing:
        pytest.skip(str(missing))
    return RealCluster()


@pytest.fixture(scope="session")
def shared_cluster() -> Iterator[RealCluster]:
    """A cluster that tests leave as they found it, but for keys of their own prefix."""
    with started() as cluster:
        yield cluster


@pytest.fixture
def cluster() -> Iterator[RealCluster]:
    """A cluster of this test's own, to kill and freeze nodes of."""
    if OUTSIDE:
        pytest.skip("BANDANA_TEST_CLUSTER names a cluster that tests may not break")
    with started() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def address(request: pytest.FixtureRequest) -> Address:
    """Where tests that break nothing read and write: BANDANA_TEST_CLUSTER=host:port,... or ours."""
    if OUTSIDE:
        user, password = (os.environ.get(f"BANDANA_TEST_CLUSTER_{each}") for each in _LOGIN)
        return Address(f"redis://{OUTSIDE}", user, password)
    ours: RealCluster = request.getfixturevalue("shared_cluster")
    return Address(ours.address, ours.user, ours.password, ours.reader)


_LOGIN = ("USER", "PASSWORD")
