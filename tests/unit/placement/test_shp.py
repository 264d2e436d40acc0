"""SHP and its refinement: quality, repeatability, threads, resident rows, interruption."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from bandana_kv.errors import InputError
from bandana_kv.placement import fanout, place
from bandana_kv.placement.bisection import Recipe
from bandana_kv.placement.groups import group_of
from bandana_kv.placement.hypergraph import Hypergraph, build_hypergraph, count_requests
from bandana_kv.placement.parallel import Workers
from bandana_kv.placement.swaps import refine_members
from bandana_kv.placement.tree import arrange_all
from bandana_kv.progress import Progress


def overlapping_log(seed: int, rows: int = 4000, requests: int = 6000) -> SimpleNamespace:
    """Return requests of 12 rows: 8 near one point of a ring of shuffled ids, 4 anywhere."""
    rng = np.random.default_rng(seed)
    id_of_point = rng.permutation(rows)
    near = rng.integers(rows, size=requests)[:, None] + rng.integers(40, size=(requests, 8))
    anywhere = rng.integers(rows, size=(requests, 4))
    ids = id_of_point[np.concatenate([near % rows, anywhere], axis=1)].astype(np.int32)
    return SimpleNamespace(offsets=np.arange(0, 12 * requests + 1, 12), ids=ids.ravel())


def hypergraph(log: SimpleNamespace) -> Hypergraph:
    counts = count_requests(log.offsets, log.ids, 4000)
    return build_hypergraph(log.offsets, log.ids, np.arange(4000), counts)


@pytest.fixture(scope="module")
def log() -> SimpleNamespace:
    return overlapping_log(seed=0)


def test_every_quality_is_better_than_the_one_before(log: SimpleNamespace) -> None:
    held_out = overlapping_log(seed=0, requests=9000)
    held_out = SimpleNamespace(
        offsets=held_out.offsets[6000:] - held_out.offsets[6000],
        ids=held_out.ids[held_out.offsets[6000] :],
    )
    plain = fanout(log, place(log, 4000, 32, "shp-plain"))
    found = [
        fanout(log, place(log, 4000, 32, "shp", quality=quality))
        for quality in ("fast", "balanced", "best")
    ]
    assert found[2] < found[1] < found[0] < plain
    assert found[1] < 0.95 * plain


@pytest.mark.parametrize("quality", ["fast", "balanced"])
def test_threads_change_nothing(log: SimpleNamespace, quality: str) -> None:
    one = place(log, 4000, 32, "shp", quality=quality, threads=1)
    for threads in (2, 5):
        more = place(log, 4000, 32, "shp", quality=quality, threads=threads)
        assert np.array_equal(one.position_of_id, more.position_of_id)


def test_cuts_shared_by_threads_are_the_same_cuts(
    log: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = place(log, 4000, 32, "shp-plain", threads=1)
    monkeypatch.setattr("bandana_kv.placement.tree._SHARED_PINS", 1000)
    shared = place(log, 4000, 32, "shp-plain", threads=2)
    assert np.array_equal(alone.position_of_id, shared.position_of_id)


def test_seeds_differ(log: SimpleNamespace) -> None:
    first = place(log, 4000, 32, "shp", quality="fast", seed=0)
    second = place(log, 4000, 32, "shp", quality="fast", seed=1)
    assert not np.array_equal(first.position_of_id, second.position_of_id)


def test_a_start_is_refined_where_it_gains_and_left_alone_elsewhere(log: SimpleNamespace) -> None:
    start = place(log, 4000, 32, "shp", quality="best")
    again = place(log, 4000, 32, "shp", quality="fast", start=start)
    assert fanout(log, again) <= fanout(log, start)
    assert np.mean(again.position_of_id != start.position_of_id) < 0.05
    plain = place(log, 4000, 32, "shp-plain")
    assert fanout(log, place(log, 4000, 32, "shp", start=plain)) < 0.97 * fanout(log, plain)


def test_resident_share_is_packed_last_by_popularity(log: SimpleNamespace) -> None:
    placement = place(log, 4000, 32, "shp", quality="fast", resident=0.05)
    lookups = np.bincount(log.ids, minlength=4000)
    expected = np.argsort(-lookups, kind="stable")[:200]
    assert np.array_equal(placement.id_of_position()[-200:], expected)


def test_resident_rows_do_not_pull_others_about(log: SimpleNamespace) -> None:
    """The others lie as if the log had never looked up the resident ones."""
    mask = np.zeros(4000, np.bool_)
    mask[np.random.default_rng(1).choice(4000, 400, replace=False)] = True
    kept = ~mask[log.ids]
    new_id = np.cumsum(~mask) - 1
    lengths = np.add.reduceat(kept, log.offsets[:-1])
    alone = SimpleNamespace(
        offsets=np.concatenate([[0], np.cumsum(lengths)]), ids=new_id[log.ids[kept]]
    )
    placement = place(log, 4000, 32, "shp", quality="fast", resident=mask)
    expected = place(alone, 3600, 32, "shp", quality="fast")
    assert np.array_equal(placement.position_of_id[~mask], expected.position_of_id)


@pytest.mark.parametrize("resident", [-0.1, 1.5, np.zeros(7, np.bool_), np.zeros(4000)])
def test_resident_is_checked(log: SimpleNamespace, resident: float) -> None:
    with pytest.raises(InputError, match="resident"):
        place(log, 4000, 32, "shp", resident=resident)


def test_large_logs_are_sampled_by_request(log: SimpleNamespace) -> None:
    placement = place(log, 4000, 32, "shp", quality="fast", max_pins=36_000)
    assert 0.49 < placement.learned_from <= 0.5
    assert place(log, 4000, 32, "shp", quality="fast").learned_from == 1.0


def test_swaps_in_a_group_lower_what_they_are_to_lower() -> None:
    log = overlapping_log(seed=2, rows=500)
    counts = count_requests(log.offsets, log.ids, 500)
    graph = build_hypergraph(log.offsets, log.ids, np.arange(500), counts)
    numbers = np.zeros(graph.requests, np.int32)
    stop = np.zeros(1, np.uint8)
    members = np.arange(500, dtype=np.int32)
    refined = refine_members(
        graph.offsets, graph.pins, members, 32, 0.5, 20, 1.0, np.uint64(3), numbers, stop
    )
    assert not np.any(numbers)
    assert np.array_equal(np.sort(refined), members)
    assert cost(graph, refined) < 0.8 * cost(graph, members)


def cost(graph: Hypergraph, members: np.ndarray) -> float:
    """Return the p-fanout (p = 0.5) of rows listed by block of 32, counted plainly."""
    total = 0.0
    for begin in range(0, members.size, 32):
        pins = np.concatenate(
            [
                graph.pins[graph.offsets[vertex] : graph.offsets[vertex + 1]]
                for vertex in members[begin : begin + 32]
            ]
        )
        total += float(np.sum(1 - 0.5 ** np.unique(pins, return_counts=True)[1]))
    return total


def test_group_sums_are_what_counting_says(log: SimpleNamespace) -> None:
    graph = hypergraph(log)
    members = np.arange(0, 300, dtype=np.int32)
    numbers = np.zeros(graph.requests, np.int32)
    group = group_of(graph.offsets, graph.pins, members, 32, 0.5, numbers)
    unit = group.weight[0]
    for row, target in ((0, 3), (40, 0), (299, 2)):
        partner = target * 32
        moved = members.copy()
        moved[[row, partner]] = moved[[partner, row]]
        source = row // 32
        apart = group.near[row, target] - group.stay[row]
        apart += group.near[partner, source] - group.stay[partner]
        both = np.intersect1d(
            group.of_row[group.row_ends[row] : group.row_ends[row + 1]],
            group.of_row[group.row_ends[partner] : group.row_ends[partner + 1]],
        )
        here, there = group.counts[both, source], group.counts[both, target]
        weight = group.weight
        shared = weight[here - 1] - weight[here] + weight[there - 1] - weight[there]
        # a count's weight is in multiples of 1 - p
        gained = (apart - shared.sum()) * 0.5 / unit
        assert cost(graph, members) - cost(graph, moved) == pytest.approx(gained, abs=1e-3)


class Recorder(Progress):
    def __init__(self) -> None:
        self.stages: list[tuple[str, int, int]] = []

    def start(self, label: str, total: int, unit: str) -> None:
        self.stages.append((label, total, 0))

    def advance(self, count: int) -> None:
        label, total, done = self.stages[-1]
        self.stages[-1] = (label, total, done + count)


def test_progress_is_reported(log: SimpleNamespace) -> None:
    progress = Recorder()
    place(log, 4000, 32, "shp", quality="balanced", progress=progress)
    assert [label for label, _, _ in progress.stages] == ["bisect", "refine"]
    for _, total, done in progress.stages:
        assert 0.9 * total < done <= total


def test_an_error_in_a_worker_stops_all() -> None:
    begun = threading.Event()

    def fail(index: int, _: int) -> None:
        begun.set()
        raise ZeroDivisionError(index)

    with pytest.raises(ZeroDivisionError), Workers(2, Progress()) as workers:
        workers.each(10, fail)
    assert begun.is_set()
    assert workers.stop[0]


def test_bisection_stops_when_told(log: SimpleNamespace) -> None:
    graph = hypergraph(log)
    with Workers(1, Progress()) as workers:
        workers.stop[0] = 1
        order = arrange_all(graph, 32, Recipe(0.5, 20, np.uint64(2**32), False), 0, workers)
    assert np.array_equal(np.sort(order), np.arange(graph.vertices))


@pytest.mark.slow
def test_ctrl_c_is_answered_within_a_second() -> None:
    script = """
        import sys, time
        import numpy as np
        from types import SimpleNamespace
        from bandana_kv.placement import place

        rng = np.random.default_rng(0)
        small = SimpleNamespace(offsets=np.arange(0, 40001, 20), ids=rng.integers(0, 4000, 40000))
        place(small, 4000, 32, "shp", quality="best")
        ids = rng.integers(0, 500_000, 6_000_000)
        log = SimpleNamespace(offsets=np.arange(0, 6_000_001, 20), ids=ids)
        print("begun", flush=True)
        try:
            place(log, 500_000, 32, "shp", quality="best")
        except KeyboardInterrupt:
            print("interrupted", flush=True)
    """
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    with child:
        assert child.stdout.readline() == "begun\n"
        threading.Event().wait(3.0)
        assert child.poll() is None
        os.kill(child.pid, signal.SIGINT)
        assert child.wait(timeout=5) == 0
        assert child.stdout.read() == "interrupted\n"
