"""Stores opened by the address of a cluster: followed, refused, kept and let go."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bandana_kv
from bandana_kv import Rows
from bandana_kv import cluster as clusters
from bandana_kv.cluster import leases, publishing
from bandana_kv.errors import (
    AdapterError,
    BandanaError,
    BlockMissingError,
    InputError,
    MissingExtraError,
    StoreNotFoundError,
)
from bandana_kv.testing.real_cluster import RealCluster

pytest.importorskip("redis")

ROWS = np.random.default_rng(0).random((400, 16), np.float32)
KEYS = np.random.default_rng(1).permutation(1000)[:400].astype(np.int64)
IDS = np.arange(400)
QUICK: dict[str, Any] = {"watch_seconds": 0.05, "lease_seconds": 3.0}


@pytest.fixture
def store(shared_cluster: RealCluster, request: pytest.FixtureRequest) -> dict[str, Any]:
    """Where a store of this test's own is, as a writer; give it to `load`."""
    prefix = request.node.name.replace("[", "-").strip("]")[:60]
    return {
        "address": f"{shared_cluster.address}/?prefix={prefix}",
        "user": shared_cluster.user,
        "password": shared_cluster.password,
    }


def loaded(store: dict[str, Any], tables: dict[str, Any], **options: Any) -> int:
    options = {"placement": "identity", "ready_seconds": 10.0, **options}
    where = {name: value for name, value in store.items() if name != "address"}
    version: int = bandana_kv.load(store["address"], tables, **where, **options)
    return version


def opened(store: dict[str, Any], directory: Path, **options: Any) -> bandana_kv.EmbeddingStore:
    login = {"user": "bandana-reader", "password": store["password"]}
    return bandana_kv.open(
        store["address"], cache_bytes=20_000, local_dir=directory, **login, **{**QUICK, **options}
    )


def wait_for(come: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not come():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_store_is_followed_from_its_address_alone(store: dict[str, Any], tmp_path: Path) -> None:
    first = loaded(store, {"plain": ROWS, "keyed": Rows(ROWS, keys=KEYS)}, seed=3)
    with opened(store, tmp_path) as served:
        assert served.version == first
        assert np.array_equal(served.multi_get("plain", IDS), ROWS)
        assert np.array_equal(served.multi_get("keyed", KEYS[::-1]), ROWS[::-1])
        before = served["plain"]
        # The other table stays, and is neither loaded nor fetched again.
        second = loaded(store, {"keyed": Rows(ROWS + 1, keys=KEYS)})
        assert second > first
        wait_for(lambda: served.version == second)
        assert np.array_equal(served.multi_get("keyed", KEYS), ROWS + 1)
        assert np.array_equal(before.multi_get(IDS), ROWS)
        # It was ready before the switch: so its cache is warm.
        assert served.stats()["plain"]["hits"] > 0
        for change in (
            lambda: served.update("plain", [1], ROWS[:1]),
            lambda: served.upsert("keyed", [5], ROWS[:1]),
            lambda: served.delete("keyed", KEYS[:1]),
        ):
            with pytest.raises(InputError, match="takes versions instead of updates"):
                change()
        with pickle.loads(pickle.dumps(served)) as again:
            assert np.array_equal(again.multi_get("plain", IDS), ROWS)
        roots = list(tmp_path.iterdir())
    assert len(roots) == 1
    assert not list((roots[0] / "segments").glob("*.fetching"))


def test_versions_are_listed_with_who_serves_them_and_rolled_back(
    store: dict[str, Any], tmp_path: Path
) -> None:
    numbers = [loaded(store, {"t": ROWS + each}) for each in range(2)]
    login = {name: store[name] for name in ("user", "password")}
    with opened(store, tmp_path) as served:
        listed = clusters.versions(store["address"], **login)
        assert [each.number for each in listed] == numbers
        assert [each.current for each in listed] == [False, True]
        assert [len(each.processes) for each in listed] == [0, 1]
        assert f"/{os.getpid()}/" in listed[1].processes[0]
        assert bandana_kv.versions(store["address"], **login) == listed
        assert bandana_kv.rollback(store["address"], **login) == numbers[0]
        wait_for(lambda: served.version == numbers[0])
        assert np.array_equal(served.multi_get("t", IDS), ROWS)
        with pytest.raises(InputError, match="keeps no 99; it has"):
            clusters.rollback(store["address"], 99, **login)
        last = loaded(store, {"t": ROWS + 2})
        wait_for(lambda: served.version == last)
    left = clusters.versions(store["address"], **login)
    assert [each.number for each in left] == [numbers[0], last]  # what was rolled back from is gone


def test_rows_that_do_not_fit_a_page_have_blocks_of_several(
    store: dict[str, Any], tmp_path: Path
) -> None:
    long = np.random.default_rng(0).random((30, 1500), np.float32)
    with pytest.raises(InputError, match="use blocks of more pages"):
        loaded(store, {"t": long})
    loaded(store, {"t": long}, pages=2)
    with pytest.raises(InputError, match="blocks have 2 pages, not 1"):
        loaded(store, {"other": ROWS}, pages=1)
    last = loaded(store, {"other": ROWS})
    with opened(store, tmp_path) as served:
        assert served.version == last
        assert np.array_equal(served.multi_get("t", IDS[:30]), long)
        assert np.array_equal(served.multi_get("other", IDS), ROWS)
    with pytest.raises(TypeError, match="no argument 'adapter'"):
        loaded(store, {"t": long}, adapter="lmdb")


def test_what_has_no_meaning_for_a_cluster_says_so(store: dict[str, Any]) -> None:
    for function in (bandana_kv.verify, bandana_kv.repair):
        with pytest.raises(InputError, match="takes the path of a store's directory"):
            function(store["address"])


def test_one_clear_error_and_no_directory(
    store: dict[str, Any], shared_cluster: RealCluster, tmp_path: Path
) -> None:
    directory = tmp_path / "index"
    login = {name: store[name] for name in ("user", "password")}
    bad: list[tuple[type[BandanaError], str, dict[str, Any]]] = [
        (AdapterError, "no node answers", {"address": "redis://127.0.0.1:1"}),
        (StoreNotFoundError, "holds no store; make one with", {}),
        (AdapterError, "invalid username-password", {"password": "wrong"}),
        (InputError, "has no option 'db'", {"address": f"{shared_cluster.address}/?db=3"}),
        (InputError, "is no host:port", {"address": "redis://:0"}),
        (InputError, "cannot begin keys", {"prefix": "a b", "address": shared_cluster.address}),
        (InputError, "the address says prefix", {"prefix": "other"}),
        (InputError, "watch_seconds", {"watch_seconds": 0}),
        (InputError, "lease_seconds", {"lease_seconds": -1}),
    ]
    for kind, said, changed in bad:
        options = {**store, **QUICK, **changed}
        with pytest.raises(kind, match=said) as raised:
            bandana_kv.open(options.pop("address"), local_dir=directory, **options)
        assert "\n" not in str(raised.value)
        assert login["password"] not in str(raised.value)
        assert not directory.exists()
    for changed in ({"copies": -1}, {"keep": 0}, {"lease_seconds": 0}, {"ready_seconds": -1}):
        with pytest.raises(InputError, match=next(iter(changed))):
            loaded(store, {"t": ROWS}, **changed)
    # More copies than there are; and a table that is wrong. Nothing is left of either.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bandana_kv.cluster.writing.SETTLE_S", 0.3)
        with pytest.raises(AdapterError, match="1 of 2 copies"):
            loaded(store, {"t": ROWS}, copies=2, local_dir=directory)
    with pytest.raises(InputError):
        loaded(store, {"t": ROWS[0]}, local_dir=directory)
    assert not directory.exists()
    with pytest.raises(StoreNotFoundError):
        clusters.versions(store["address"], **login)


def test_without_the_client_library_it_names_the_extra(tmp_path: Path) -> None:
    code = f"""
import sys
sys.modules["redis"] = None
import bandana_kv
from bandana_kv.errors import MissingExtraError
try:
    bandana_kv.open("redis://127.0.0.1:1", local_dir={str(tmp_path / "index")!r})
except MissingExtraError as error:
    print(error)
"""
    local = f"""
import sys
import numpy as np
import bandana_kv
bandana_kv.load({str(tmp_path / "store")!r}, {{"t": np.zeros((9, 4), np.float32)}})
bandana_kv.open({str(tmp_path / "store")!r}).close()
print([name for name in sys.modules if name in ("redis", "bandana_kv.cluster")])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.count("\n") == 1
    assert "pip install 'bandana-kv[cluster]'" in done.stdout
    assert list(tmp_path.iterdir()) == []
    done = subprocess.run([sys.executable, "-c", local], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    assert issubclass(MissingExtraError, BandanaError)


def test_a_forked_child_has_leases_of_its_own_and_follows(
    store: dict[str, Any], tmp_path: Path
) -> None:
    login = {name: store[name] for name in ("user", "password")}
    first = loaded(store, {"t": ROWS})
    told, tell = os.pipe()
    with opened(store, tmp_path) as served:
        child = os.fork()
        if not child:
            code = 1
            with contextlib.suppress(BaseException):
                os.close(told)
                os.write(tell, b"%d " % served.version)
                wait_for(lambda: served.version != first)
                assert np.array_equal(served.multi_get("t", IDS), ROWS + 1)
                os.write(tell, b"%d" % served.version)
                served.close()
                code = 0
            os._exit(code)
        os.close(tell)

        def processes() -> int:
            listed = clusters.versions(store["address"], **login)
            return sum(len(each.processes) for each in listed if each.current)

        wait_for(lambda: processes() == 2)
        second = loaded(store, {"t": ROWS + 1})  # both are ready for it
        assert os.waitpid(child, 0)[1] == 0
        with os.fdopen(told) as pipe:
            assert pipe.read() == f"{first} {second}"
        wait_for(lambda: processes() == 1)
    assert processes() == 0


def test_what_a_killed_process_served_goes_when_its_lease_has_run_out(
    store: dict[str, Any], shared_cluster: RealCluster, tmp_path: Path
) -> None:
    first = loaded(store, {"t": ROWS})
    script = Path(__file__).with_name("lookup_forever.py")
    login = [store["address"], shared_cluster.reader, store["password"]]
    process = subprocess.Popen(
        [sys.executable, str(script), *login, str(tmp_path / "killed"), "2.0"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline()) == {"version": first}
    finally:
        process.kill()
        process.communicate()
    killed_at = time.monotonic()
    with opened(store, tmp_path / "living") as served:
        loads = [loaded(store, {"t": ROWS + 1}, keep=1, ready_seconds=0.3)]
        if time.monotonic() - killed_at < 1.5:  # its lease keeps what it served
            assert first in _segments(store)
        time.sleep(max(0.0, killed_at + 2.5 - time.monotonic()))
        loads.append(loaded(store, {"t": ROWS + 2}, keep=1))
        wait_for(lambda: served.version == loads[-1])
        clusters.sweep(store["address"], keep=1, user=store["user"], password=store["password"])
        assert _segments(store) == [loads[-1]]
        assert np.array_equal(served.multi_get("t", IDS), ROWS + 2)
    assert _blocks(store, shared_cluster) == 1


def _segments(store: dict[str, Any]) -> list[int]:
    place = publishing.place_of(store["address"], None, store["user"], store["password"], None)
    with contextlib.closing(publishing.catalogue_of(place)) as catalogue:
        return [int(each) for each in catalogue.members("segments")]


def _blocks(store: dict[str, Any], cluster: RealCluster) -> int:
    """Return how many versions' worth of keys the primaries have: each has the same tables."""
    prefix = store["address"].partition("prefix=")[2]
    spaces = {
        key[len(prefix) + 2 : len(prefix) + 8]
        for node in cluster.primaries()
        for key in node.ask("KEYS", "{" + prefix + ".*")
        if b"settled" not in key
    }
    assert len(spaces) % 2 == 0
    return len(spaces) // 2


@pytest.fixture
def killing(
    cluster: RealCluster, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str], None]]:
    """Return what has a primary killed just before a step of a load."""

    def before(step: str) -> None:
        plain = getattr(publishing, step)

        def killed(*arguments: Any, **options: Any) -> Any:
            monkeypatch.setattr(publishing, step, plain)
            cluster.kill(cluster.primaries()[0])
            return plain(*arguments, **options)

        monkeypatch.setattr(publishing, step, killed)

    yield before
    monkeypatch.undo()


@pytest.mark.parametrize("copies", [1, 0])
def test_a_primary_killed_after_the_blocks_are_written_costs_the_load_or_nothing(
    copies: int,
    cluster: RealCluster,
    killing: Callable[[str], None],
    tmp_path: Path,
) -> None:
    """Without copies nothing was settled: then reading back finds what is missing."""
    store = {
        "address": f"{cluster.address}/?prefix=shop",
        "user": cluster.user,
        "password": cluster.password,
    }
    big = np.random.default_rng(0).random((20_000, 16), np.float32)
    outcomes = set()
    first = loaded(store, {"t": big})
    for step in ("check_copies", "_await_ready"):
        cluster.wait_whole()
        killing(step)
        dead = cluster.primaries()[0]
        try:
            newest = loaded(store, {"t": big + 1}, copies=copies)
            outcomes.add("loaded")
        except (AdapterError, BlockMissingError):
            newest = first
            outcomes.add("refused")
        cluster.restart(dead)
        cluster.wait_whole()
        with opened(store, tmp_path) as served:
            rows = served.multi_get("t", np.arange(len(big)))
            assert np.array_equal(rows, big if served.version == first else big + 1)
            assert served.version == newest
        first = loaded(store, {"t": big})
    assert outcomes <= {"loaded", "refused"}


def test_a_lease_that_ran_out_is_taken_again(store: dict[str, Any], tmp_path: Path) -> None:
    """As of a process that was paused: it goes on, and others see it again."""
    loaded(store, {"t": ROWS})
    place = publishing.place_of(store["address"], None, store["user"], store["password"], None)
    with (
        opened(store, tmp_path, lease_seconds=0.6) as served,
        contextlib.closing(publishing.catalogue_of(place)) as catalogue,
    ):
        (member,) = catalogue.members("readers")
        catalogue.remove("readers", member)
        wait_for(lambda: bool(leases.living(catalogue)))
        assert catalogue.members("readers") == [member]
        assert np.array_equal(served.multi_get("t", IDS), ROWS)
