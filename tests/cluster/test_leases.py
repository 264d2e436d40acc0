"""Writers and readers of a store in a cluster: who may write, and what stays for whom."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from bandana_kv.cluster import epochs, leases, records, sweeping
from bandana_kv.cluster.epochs import Epoch
from bandana_kv.cluster.files import FilesOf
from bandana_kv.cluster.writing import Writer, writer_of
from bandana_kv.errors import (
    AdapterError,
    DurabilityError,
    FormatError,
    LeaseLostError,
    LoadInProgressError,
)
from bandana_kv.testing.real_cluster import RealCluster

catalogue_module = pytest.importorskip("bandana_kv.adapters.resp_catalogue")


@pytest.fixture
def at(shared_cluster: RealCluster, request: pytest.FixtureRequest) -> Iterator[Callable[[], Any]]:
    """Make catalogues of one store of this test's own, as several processes would."""
    made = []

    def make() -> Any:
        made.append(
            catalogue_module.Catalogue.at(
                shared_cluster.address,
                request.node.name.replace("[", "-").strip("]")[:60],
                user=shared_cluster.user,
                password=shared_cluster.password,
            )
        )
        return made[-1]

    yield make
    for each in made:
        each.close()


class Deleting:
    """Stands in for blocks: what is asked to be deleted is counted."""

    def __init__(self, *spaces: int) -> None:
        self.spaces = set(spaces)

    def delete_space(self, space: int) -> None:
        self.spaces.discard(space)

    def space_is_empty(self, space: int) -> bool:
        return space not in self.spaces


def publish(writer: Writer, *segments: int) -> int:
    """List a version as whole that is made of segments, and make it current; return its space."""
    sweeping.list_segment(writer)
    space = sweeping.announce_space(writer, writer.fence)
    files = {each: FilesOf(space, 1, 1, "") for each in (*segments, writer.fence)}
    version = writer.fence
    record = records.new_record(version, "s", f"v{version}", "now", 1, ("t",), files)
    records.put_record(writer.catalogue, record)
    writer.catalogue.add(sweeping.VERSIONS, version, version)
    writer.switch(version)
    return space


def test_one_writes_at_a_time(at: Callable[[], Any]) -> None:
    first, second = at(), at()
    with writer_of(first, 5, 1) as writer:
        writer.check()
        with (
            pytest.raises(LoadInProgressError, match="another process is loading"),
            writer_of(second, 5, 1),
        ):
            pass
        writer.check()
    with writer_of(second, 5, 1) as after:
        assert after.fence > writer.fence
    assert first.members("writers") == []


def test_of_many_that_begin_at_once_one_writes(at: Callable[[], Any]) -> None:
    inside: list[int] = []
    most, wrote = [0], [0]

    def write(catalogue: Any) -> None:
        for _ in range(4):
            with contextlib.suppress(LoadInProgressError), writer_of(catalogue, 30, 0) as writer:
                inside.append(writer.fence)
                most[0] = max(most[0], len(inside))
                wrote[0] += 1
                time.sleep(0.02)
                writer.check()
                inside.remove(writer.fence)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(write, [at() for _ in range(4)]))
    assert most == [1]
    assert wrote[0] >= 1


def test_a_writer_that_died_is_waited_for_as_long_as_its_lease_lasts(
    at: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    dead, living = at(), at()
    stack = contextlib.ExitStack()
    writer = stack.enter_context(writer_of(dead, 0.6, 0))
    writer._renewal.stop()  # nobody renews it, nobody gives it back
    with pytest.raises(LoadInProgressError), writer_of(living, 5, 1):
        pass
    time.sleep(0.7)
    with writer_of(living, 5, 1):
        with pytest.raises(LeaseLostError, match="paused or cut off"):
            writer.check()
        with pytest.raises(LeaseLostError):
            writer.switch(writer.fence)
    stack.close()


def test_a_lease_is_renewed_meanwhile(at: Callable[[], Any]) -> None:
    first, second = at(), at()
    with writer_of(first, 0.6, 0) as writer:
        time.sleep(1.0)
        writer.check()
        with pytest.raises(LoadInProgressError), writer_of(second, 5, 1):
            pass


def test_what_a_woken_writer_writes_behind_a_barrier_never_counts(
    at: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was paused after its last look at its lease, just before it switches."""
    woken, after, reader = at(), at(), at()
    with writer_of(woken, 5, 1) as writer:
        publish(writer)
        base = epochs.now(reader)
    with writer_of(woken, 5, 1) as writer:
        monkeypatch.setattr(writer, "check", lambda: None)
        woken.drop(f"writer:{writer.fence}")  # its lease has run out
        with writer_of(after, 5, 1) as other:
            assert other.base[1:] == base[1:]
            with pytest.raises(LeaseLostError):
                writer.switch(writer.fence)
            assert epochs.now(reader) == Epoch(other.fence, base.since, base.version)
            other.check()
            publish(other)
            assert epochs.now(reader) == Epoch(*[other.fence] * 3)
    assert [each.fence for each in epochs.entries(reader)] == [other.fence]


def test_what_it_writes_just_before_the_barrier_counts_for_both(
    at: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    woken, after, reader = at(), at(), at()
    with writer_of(woken, 5, 0) as writer:
        monkeypatch.setattr(writer, "check", lambda: None)
        woken.drop(f"writer:{writer.fence}")
        plain, mine = epochs.put, Epoch(*[writer.fence] * 3)

        def put(catalogue: Any, entry: Epoch) -> None:
            if catalogue is after and entry.since == 0:
                plain(woken, mine)  # between the other's look and its barrier
            plain(catalogue, entry)

        monkeypatch.setattr(epochs, "put", put)
        with writer_of(after, 5, 0) as other:
            assert other.base == mine  # its version is what the other goes on from
            assert epochs.now(reader) == Epoch(other.fence, writer.fence, writer.fence)
            writer.switch(writer.fence)  # and it hears that it was in time
            assert epochs.now(reader) == Epoch(other.fence, writer.fence, writer.fence)
            other.check()


def test_too_few_copies_are_refused_and_nothing_changes(at: Callable[[], Any]) -> None:
    catalogue = at()
    with writer_of(catalogue, 5, 1) as writer:
        publish(writer)
    before = epochs.now(catalogue)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bandana_kv.cluster.writing.SETTLE_S", 0.3)
        with pytest.raises(AdapterError, match="1 of 2 copies have"), writer_of(catalogue, 5, 2):
            pass
        assert epochs.now(catalogue)[1:] == before[1:]
        with writer_of(catalogue, 5, 1) as writer:
            writer.copies = 2
            with pytest.raises(DurabilityError, match="is current, and may not be so"):
                writer.switch(before.version)


def test_what_others_wrote_there_is_named(at: Callable[[], Any]) -> None:
    catalogue = at()
    catalogue.add("current", 1, "theirs")
    with pytest.raises(FormatError, match="says 'theirs' of the current version"):
        epochs.now(catalogue)
    catalogue.put("version:1", b'{"checksum":"0","record":{}}')
    with pytest.raises(FormatError, match="its checksum does not match"):
        records.record_of(catalogue, 1)


def test_numbers_rise_although_their_count_was_lost(at: Callable[[], Any]) -> None:
    catalogue = at()
    with writer_of(catalogue, 5, 1) as writer:
        publish(writer)
    with writer_of(catalogue, 5, 1) as writer:
        pass
    catalogue.drop("fence")
    with writer_of(catalogue, 5, 1) as after:
        assert after.fence > writer.fence


def test_what_is_read_stays_and_what_is_not_goes(at: Callable[[], Any]) -> None:
    catalogue = at()
    blocks: Any = Deleting()
    spaces, versions = [], []
    for _ in range(3):
        with writer_of(catalogue, 5, 1) as writer:
            spaces.append(publish(writer, *versions[:1]))  # all have a table of the first
            versions.append(writer.fence)
    blocks.spaces = {*spaces}
    _, second, third = versions
    leases.take(catalogue, second, "host/1/a", 30)
    leases.take(catalogue, third, "host/2/b", 0.2)
    assert leases.living(catalogue) == {"host/1/a": {second}, "host/2/b": {third}}
    with writer_of(catalogue, 5, 1) as writer:
        sweeping.sweep(writer, blocks, third, keep=1)
    # Nobody may begin with the second any more; who has it goes on.
    assert sweeping.whole_versions(catalogue) == [third]
    assert blocks.spaces == {*spaces}
    leases.give_back(catalogue, second, "host/1/a")
    with writer_of(catalogue, 5, 1) as writer:
        sweeping.sweep(writer, blocks, third, keep=1)
    assert blocks.spaces == {spaces[0], spaces[2]}  # of the first there is a table in use
    assert records.record_of(catalogue, second) is None
    time.sleep(0.2)
    assert leases.living(catalogue) == {}
    # Blocks that a woken writer brought into a space after it was deleted are found again.
    blocks.spaces.add(spaces[1])
    with writer_of(catalogue, 5, 1) as writer:
        sweeping.sweep(writer, blocks, third, keep=1)
    assert blocks.spaces == {spaces[0], spaces[2]}


def test_litter_of_a_load_that_died_is_swept_and_a_version_that_is_lost_is_not(
    at: Callable[[], Any],
) -> None:
    catalogue = at()
    blocks: Any = Deleting()
    with writer_of(catalogue, 5, 1) as writer:
        kept = publish(writer)
    with writer_of(catalogue, 5, 1) as dead:
        sweeping.list_segment(dead)
        blocks.spaces = {kept, sweeping.announce_space(dead, dead.fence)}
    with writer_of(catalogue, 5, 1) as writer:
        sweeping.sweep(writer, blocks, writer.base.version, keep=2)
        assert blocks.spaces == {kept}
        records.drop_record(catalogue, writer.base.version)
        with pytest.raises(FormatError, match="nothing is deleted"):
            sweeping.sweep(writer, blocks, writer.base.version, keep=2)
        assert blocks.spaces == {kept}


def test_a_writer_that_lost_its_lease_deletes_nothing(at: Callable[[], Any]) -> None:
    catalogue = at()
    with writer_of(catalogue, 5, 1) as writer:
        publish(writer)
    with writer_of(catalogue, 5, 1) as dead:
        sweeping.list_segment(dead)
        blocks: Any = Deleting(sweeping.announce_space(dead, dead.fence))
        catalogue.drop(f"writer:{dead.fence}")
        with writer_of(at(), 5, 1):
            with pytest.raises(LeaseLostError):
                sweeping.sweep(dead, blocks, dead.base.version, keep=1)
            with pytest.raises(LeaseLostError):
                sweeping.forget_segment(dead, blocks, dead.fence)
    assert len(blocks.spaces) == 1


def test_a_forked_child_has_a_connection_of_its_own(at: Callable[[], Any]) -> None:
    catalogue = at()
    catalogue.put("who", b"parent")
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            catalogue.put("who", b"child")
            os._exit(0 if catalogue.get("who") == b"child" else 1)
        os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    assert catalogue.get("who") == b"child"


@pytest.mark.parametrize("how", ["kill", "freeze"])
def test_what_was_settled_outlives_the_node_that_had_it(cluster: RealCluster, how: str) -> None:
    with contextlib.closing(
        catalogue_module.Catalogue.at(
            cluster.address, "shop", user=cluster.user, password=cluster.password
        )
    ) as catalogue:
        with writer_of(catalogue, 30, 1) as writer:
            publish(writer)
            had_it = next(each for each in cluster.nodes if each.port == catalogue._held.port)
            getattr(cluster, how)(had_it)
            assert epochs.now(catalogue) == Epoch(*[writer.fence] * 3)
            writer.check()
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("bandana_kv.cluster.writing.SETTLE_S", 0.3)
                with pytest.raises(AdapterError, match="0 of 1 copies"):
                    writer.settle()
        assert catalogue.increment("fence") > writer.fence
