"""Roll-outs: the store's words, who is a canary, what differs, limits, stages, state, metrics."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import bandana_kv
from bandana_kv.errors import (
    BandanaError,
    FallbackError,
    FormatError,
    IdError,
    InputError,
    RowMissingError,
    TableNotFoundError,
)
from bandana_kv.metrics import Buckets
from bandana_kv.rollout import Limits, Report, Rollout, Shares
from bandana_kv.rollout.canary import chosen, key_bytes, request_bytes
from bandana_kv.rollout.comparison import Background, Differences
from bandana_kv.rollout.data import NEW, OLD, STAGES
from bandana_kv.rollout.observations import Observed
from bandana_kv.rollout.stages import Stages
from bandana_kv.rollout.state import read_state, write_state

ROWS = np.random.default_rng(0).random((300, 8), np.float32)
ITEMS = np.arange(100, dtype=np.int8).reshape(20, 5)
TABLES = {"user": ROWS, "item": ITEMS}
ALL = Shares(1.0, 1.0, 1.0)
PATIENCE_S = 30.0
LOOKUPS = st.tuples(st.sampled_from([OLD, NEW]), st.floats(0, 20), st.booleans())


def old_rows(table: str, ids: np.ndarray) -> np.ndarray:
    return TABLES[table][ids]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[bandana_kv.EmbeddingStore]:
    path = tmp_path_factory.mktemp("store")
    bandana_kv.load(path, TABLES, adapter="memory")
    with bandana_kv.open(path) as opened:
        yield opened


class TestWords:
    """Serving code is written once: a roll-out is asked, and refuses, as the store does."""

    @pytest.fixture(params=STAGES)
    def rollout(
        self, store: bandana_kv.EmbeddingStore, request: pytest.FixtureRequest
    ) -> Iterator[Rollout]:
        with Rollout(old_rows, store, stage=request.param, fraction=0.5) as made:
            yield made
            assert made.report().errors == {"old": 0, "new": 0}
            assert made.report().failed_requests == 0

    @pytest.mark.parametrize("ids", [[], [3], [5, 5, 0, 299], np.arange(300, dtype=np.uint8)[::-7]])
    def test_answers(self, store: bandana_kv.EmbeddingStore, rollout: Rollout, ids: Any) -> None:
        ids = [int(each) for each in ids]
        expected = store.multi_get("user", ids)
        found = rollout.multi_get("user", ids)
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        assert found.tobytes() == expected.tobytes() == ROWS[ids].tobytes()
        out = np.empty_like(expected)
        assert rollout.multi_get("user", ids, out=out) is out
        assert out.tobytes() == expected.tobytes()
        both = rollout.multi_get({"item": [1, 1], "user": ids})
        assert list(both) == ["item", "user"]
        assert both["item"].tobytes() == ITEMS[[1, 1]].tobytes()
        assert both["user"].tobytes() == expected.tobytes()
        assert rollout.multi_get({}) == {}
        assert rollout.tables == store.tables
        row = rollout.get("item", 7, key="anybody")
        assert row.shape == (5,)
        assert row.tobytes() == ITEMS[7].tobytes()

    def test_ids_of_any_shape(self, store: bandana_kv.EmbeddingStore, rollout: Rollout) -> None:
        for ids in (7, [[1, 2], [3, 4]], np.zeros((2, 0, 3), int)):
            rows = rollout.multi_get("user", ids)
            assert rows.shape == store.multi_get("user", ids).shape
            assert rows.tobytes() == store.multi_get("user", ids).tobytes()
            both = rollout.multi_get({"user": ids, "item": [1]})
            assert np.array_equal(both["user"], rows)
            out = np.empty_like(rows)
            assert rollout.multi_get("user", ids, out=out) is out
            assert np.array_equal(out, rows)

    @pytest.mark.parametrize(
        ("error", "arguments"),
        [
            (TableNotFoundError, ("nobody", [1])),
            (TableNotFoundError, ({"user": [1], "nobody": [1]},)),
            (IdError, ("user", [-1])),
            (IdError, ("user", [0, 300])),
            (IdError, ({"item": [1], "user": [300]},)),
            (IdError, ("user", [0.5])),
            (IdError, ("user", ["a"])),
            (IdError, ("user", [2**70])),
            (IdError, ("user", np.array([2**63], np.uint64))),
            (InputError, ("user", None)),
            (IdError, ("user", [[1, 300]])),
            (IdError, ("user", [[1], [1, 2]])),
            (IdError, ("user", 300)),
            (InputError, ({"user": [1]}, [1])),
            (InputError, (7, [1])),
        ],
        ids=str,
    )
    def test_refusals(
        self,
        store: bandana_kv.EmbeddingStore,
        rollout: Rollout,
        error: type[BandanaError],
        arguments: tuple[Any, ...],
    ) -> None:
        with pytest.raises(error) as of_store:
            store.multi_get(*arguments)
        with pytest.raises(error) as raised:
            rollout.multi_get(*arguments)
        assert str(raised.value) == str(of_store.value)

    @pytest.mark.parametrize(
        "out", [np.empty((1, 8), np.float32), np.empty((2, 8)), [], np.empty((8, 2), np.float32).T]
    )
    def test_refuses_an_out_that_does_not_fit(self, rollout: Rollout, out: Any) -> None:
        with pytest.raises(InputError, match=r"shape \(2, 8\) and dtype float32"):
            rollout.multi_get("user", [1, 2], out=out)

    def test_refuses_a_key_that_is_none(self, rollout: Rollout) -> None:
        for key in (1.5, True, ["user"]):
            with pytest.raises(InputError, match="is no str, bytes or int"):
                rollout.multi_get("user", [1], key=key)

    def test_closed(self, rollout: Rollout) -> None:
        rollout.close()
        rollout.close()
        for call in (lambda: rollout.get("user", 1), rollout.advance):
            with pytest.raises(InputError, match="the roll-out is closed"):
                call()


def test_what_it_is_made_of_is_checked(store: bandana_kv.EmbeddingStore, tmp_path: Path) -> None:
    for options, said in (
        ({"stage": "half"}, "'half' is none of off, shadow, canary, full"),
        ({"fraction": 1.1}, "fraction 1.1"),
        ({"threads": 0}, "threads 0"),
        ({"waiting_bytes": 1.5}, "waiting_bytes 1.5"),
    ):
        with pytest.raises(InputError, match=said):
            Rollout(old_rows, store, **options)
    with pytest.raises(InputError, match="int gives no rows"):
        Rollout(3, store)
    with pytest.raises(InputError, match="'nobody'"):
        Rollout({"nobody": old_rows}, store)
    bandana_kv.load(tmp_path, {"user": ROWS}, adapter="memory")
    with (
        bandana_kv.open(tmp_path, fallback=old_rows) as masked,
        pytest.raises(InputError, match="open the new store without fallback="),
    ):
        Rollout(old_rows, masked)


@pytest.mark.parametrize(
    "wrong",
    [
        {"mismatch_share": -0.1},
        {"error_share": 2},
        {"error_share": float("nan")},
        {"p99_us": 0},
        {"latency_ratio": "3"},
        {"window": 0},
        {"least": 1.5},
        {"least": 2000},
    ],
    ids=str,
)
def test_limits_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        Limits(**wrong)
    with pytest.raises(InputError, match="shadow"):
        Shares(shadow=-1.0)


def test_a_row_that_only_one_side_has(store: bandana_kv.EmbeddingStore) -> None:
    longer = np.concatenate([ROWS, ROWS[:10] + 1])

    def sparse(table: str, ids: np.ndarray) -> np.ndarray:
        if 5 in ids:
            raise RowMissingError("no row 5")
        return longer[ids]

    with Rollout({"user": sparse, "item": old_rows}, store, shares=ALL) as rollout:
        for stage in ("off", "shadow"):
            rollout.set_stage(stage)
            assert np.array_equal(rollout.get("user", 305), longer[305])
            with pytest.raises(RowMissingError, match="no row 5"):
                rollout.get("user", 5)
        assert rollout.wait(PATIENCE_S)
        assert rollout.report().errors == {"old": 2, "new": 1}  # a new store too short is wrong
        rollout.set_stage("full")
        assert np.array_equal(rollout.get("user", 5), ROWS[5])
        assert np.array_equal(rollout.get("user", 305), longer[305])
        assert rollout.report().rescued_requests == 1
        with pytest.raises(IdError, match="id 310 is out of range"):
            rollout.get("user", 310)


def test_an_old_source_of_another_dtype_is_refused_by_name(
    store: bandana_kv.EmbeddingStore,
) -> None:
    with (
        Rollout(lambda table, ids: TABLES[table][ids].astype(np.float64), store) as rollout,
        pytest.raises(FallbackError, match=r"'user'.* float32, its source gave float64"),
    ):
        rollout.get("user", 1)


def test_an_old_source_is_asked_for_distinct_ids_and_keeps_its_rows(
    store: bandana_kv.EmbeddingStore,
) -> None:
    held = ROWS.copy()

    def old(table: str, ids: np.ndarray) -> np.ndarray:
        assert np.unique(ids).size == ids.size
        return held[ids[0] : ids[-1] + 1]  # its own memory

    with Rollout({"user": old}, store) as rollout:
        for ids in ([4, 5, 6], [4, 6, 5, 5, 4]):
            rows = rollout.multi_get("user", ids)
            assert np.array_equal(rows, ROWS[ids])
            rows += 1
        assert np.array_equal(held, ROWS)


class TestCanary:
    @given(
        ids=st.dictionaries(st.text(max_size=5), st.lists(st.integers(0, 2**40)), max_size=3),
        fractions=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    )
    def test_the_same_request_goes_to_the_same_side(
        self, ids: dict[str, list[int]], fractions: tuple[float, float]
    ) -> None:
        as_arrays = [
            {name: np.array(each, dtype) for name, each in order}
            for dtype in (np.int64, ">i8")
            for order in (ids.items(), reversed(ids.items()))
        ]
        (request,) = {request_bytes(each) for each in as_arrays}
        low, high = sorted(fractions)
        assert chosen(request, 1.0)
        assert not chosen(request, 0.0)
        assert chosen(request, high) or not chosen(request, low)  # who is in, stays in

    def test_sides_never_change(self) -> None:
        """Of one release and the next: numbers that were worked out once."""
        inside = [key for key in range(40) if chosen(key_bytes(key), 0.25)]
        assert inside == [0, 3, 5, 10, 11, 14, 22, 24, 26, 32, 36]
        assert request_bytes({"b": np.array([1]), "a": np.array([2, 3], np.int32)}) == (
            b"a\0" + np.array([2, 3], "<i8").tobytes() + b"\0b\0" + np.array([1], "<i8").tobytes()
        )

    @pytest.mark.parametrize("fraction", [0.01, 0.2, 0.9])
    def test_a_fraction_is_met(self, rng: np.random.Generator, fraction: float) -> None:
        tries = 20_000
        hits = sum(
            chosen(request_bytes({"user": rng.integers(0, 10**6, 10)}), fraction)
            for _ in range(tries)
        )
        assert abs(hits - tries * fraction) < 5 * (tries * fraction * (1 - fraction)) ** 0.5

    def test_requests_go_by_their_ids_or_by_the_key(self, store: bandana_kv.EmbeddingStore) -> None:
        with Rollout(old_rows, store, stage="canary", fraction=0.5) as rollout:

            def side(ids: Any, key: Any = None) -> str:
                before = rollout.report().requests["new"]
                rollout.multi_get("user", ids, key=key)
                return "new" if rollout.report().requests["new"] > before else "old"

            by_ids = [side([id, id + 1]) for id in range(60)]
            assert by_ids == [side(np.array([id, id + 1], np.uint16)) for id in range(60)]
            assert set(by_ids) == {"old", "new"}
            for key in ("a", "b", b"c", 7, ""):
                assert len({side([id], key) for id in range(20)}) == 1
            assert {side([1], key) for key in range(20)} == {"old", "new"}


class TestDifferences:
    def test_rows_are_compared_as_bytes(self) -> None:
        quiet, other = np.array([0x7FC00000, 0x7FC00001], np.uint32).view(np.float32)
        old = np.array([[1, 0.0], [1, quiet], [np.inf, 2], [1, quiet]], np.float32)
        new = np.array([[1, -0.0], [1, quiet], [np.inf, 2], [1, other]], np.float32)
        differences = Differences()
        assert differences.count("user", np.array([10, 11, 12, 13]), old, new) == 2
        zero, nan = differences.kept()
        assert (zero.id, zero.at, zero.old_bytes, zero.new_bytes) == (10, 1, "00000000", "00000080")
        assert (nan.id, nan.at, nan.old_bytes, nan.new_bytes) == (13, 1, "0000c07f", "0100c07f")

    def test_few_are_kept_and_all_are_counted(self) -> None:
        differences = Differences()
        rows = np.zeros((500, 1000), np.float16)
        ids = np.repeat(np.arange(250), 2)
        for _ in range(3):
            assert differences.count("user", ids, rows, rows + 1) == 500
        kept = differences.kept()
        assert len(kept) <= 16
        assert {len(each.old) for each in kept} == {32}
        msgspec.json.encode(kept)

    def test_another_shape_or_dtype_differs_wholly(self) -> None:
        rows = np.zeros((3, 4), np.float32)
        for other in (rows[:, :2], rows.astype(np.float16), rows.view(np.int32)):
            assert Differences().count("user", np.arange(3), rows, other) == 3


def test_what_the_caller_does_with_its_rows_is_no_difference(
    store: bandana_kv.EmbeddingStore,
) -> None:
    hold = threading.Event()

    def slow(table: str, ids: np.ndarray) -> np.ndarray:
        assert hold.wait(PATIENCE_S)
        return old_rows(table, ids)

    with Rollout(slow, store, stage="full", shares=ALL) as rollout:
        ids = np.array([1, 2, 3])
        rows = rollout.multi_get("user", ids)
        rows += 1
        ids += 1
        hold.set()
        assert rollout.wait(PATIENCE_S)
        assert rollout.stage == "full"
        assert rollout.report().compared_rows == 3


class TestBackground:
    def test_what_waits_is_bounded_and_dropped_at_the_end(self) -> None:
        hold, begun = threading.Event(), threading.Semaphore(0)
        seen: list[int] = []

        def work(answer: Any) -> None:
            begun.release()
            assert hold.wait(PATIENCE_S)
            seen.append(answer.number)

        background = Background(work, threads=2, waiting_bytes=10_000)
        rows = {"user": (np.arange(10), np.zeros((10, 11)))}  # 960 bytes
        for number in range(50):
            background.offer(number, OLD, rows)
        assert begun.acquire(timeout=PATIENCE_S)
        assert begun.acquire(timeout=PATIENCE_S)
        assert background.skipped == 45
        background.offer(50, OLD, {"user": (np.arange(1), np.zeros((1, 5000)))})
        assert background.skipped == 46
        stopping = threading.Thread(target=background.stop)
        stopping.start()
        while not background._closing:
            pass
        hold.set()
        stopping.join(PATIENCE_S)
        assert len(seen) == 2
        assert background.skipped == 49
        background.offer(51, OLD, rows)
        assert background.skipped == 50

    def test_a_comparison_that_fails_does_not_end_the_thread(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        seen: list[int] = []

        def work(answer: Any) -> None:
            seen.append(answer.number)
            raise ZeroDivisionError

        background = Background(work, threads=1, waiting_bytes=10_000)
        for number in range(3):
            background.offer(number, OLD, {})
        assert background.wait(PATIENCE_S)
        background.stop()
        assert seen == [0, 1, 2]
        assert "could not be compared" in caplog.text


class TestJudging:
    def test_a_window_slides(self) -> None:
        observed = Observed(Limits(error_share=0.1, window=20, least=1))
        for _ in range(3):
            for failed in (True, True, *[False] * 30):
                assert observed.note((0, NEW, 0.1, failed, True)) is None
            assert observed.seen().breach is None
        assert observed.note((0, NEW, 0.1, True, True)) is None
        assert observed.note((0, NEW, 0.1, True, True)) is None
        number, reason = observed.note((0, NEW, 0.1, True, True)) or (None, "")
        assert number == 0
        assert reason.startswith("3 of the last 20 lookups of the new store failed")
        assert observed.seen().error_share == 3 / 20

    def test_the_old_source_is_not_judged_by_its_errors(self) -> None:
        observed = Observed(Limits())
        assert all(observed.note((0, OLD, 0.1, True, False)) is None for _ in range(500))
        assert observed.counts()["errors_old"] == 500

    def test_latencies_are_judged_from_a_number_on(self) -> None:
        observed = Observed(Limits(latency_ratio=2.0, window=100, least=30))
        for _ in range(29):
            observed.note((0, NEW, 1.0, False, True))
        assert observed.note_compared(0, 1, 0) is None
        observed.note((0, NEW, 1.0, False, True))
        assert observed.note_compared(0, 1, 0) is None  # the old source has not been seen
        for _ in range(30):
            observed.note((0, OLD, 0.4, False, True))
        breach = observed.note_compared(0, 1, 0)
        assert breach is not None
        assert "1000000 us, the old source's 400000 us" in breach[1]

    def test_a_latency_that_few_lookups_had_is_not_judged(self) -> None:
        observed = Observed(Limits(p99_us=1000.0, window=100, least=30))
        for _ in range(29):
            observed.note((0, NEW, 1.0, False, True))
        assert observed.note_compared(0, 1, 0) is None
        observed.note((0, NEW, 1.0, False, True))
        assert observed.note_compared(0, 1, 0) is not None

    def test_good_comparisons_are_counted_anew_after_a_breach(self) -> None:
        observed = Observed(Limits(window=5, least=3))
        for _ in range(4):
            assert observed.note_compared(0, 1, 0) is None
        assert observed.why_not() == ""
        assert observed.note_compared(0, 1, 1) is not None
        for _ in range(5):
            assert "1 of the last 5 compared rows differ" in observed.why_not()
            observed.note_compared(0, 1, 0)
        assert observed.why_not() == ""
        assert observed.seen().good_comparisons == 5
        assert observed.counts()["breaches"] == 1

    def test_one_slow_lookup_of_a_hundred_is_no_p99(self) -> None:
        observed = Observed(Limits(p99_us=1000.0, window=100, least=100))
        for seconds in (*[0.0001] * 99, 1.0):
            observed.note((0, NEW, seconds, False, True))
        assert observed.note_compared(0, 1, 0) is None
        observed.note((0, NEW, 1.0, False, True))
        assert observed.note_compared(0, 1, 0) is not None

    def test_a_share_of_rows_is_that_of_a_full_window(self) -> None:
        observed = Observed(Limits(mismatch_share=0.01, window=100, least=1))
        assert observed.note_compared(0, 10, 10) is None  # 10 of 1,000 are a hundredth
        assert observed.note_compared(0, 10, 1) is not None

    def test_other_stages_are_counted_and_not_judged(self) -> None:
        observed = Observed(Limits(least=1))
        observed.begin(5)
        for _ in range(100):
            assert observed.note((4, NEW, 0.1, True, False)) is None
            assert observed.note_compared(4, 10, 10) is None
        assert observed.counts()["errors_new"] == 100
        assert observed.counts()["mismatched_rows"] == 1000
        assert observed.seen().error_share == observed.seen().mismatch_share == 0
        assert observed.why_not() == "0 of 1 good comparisons were made"

    @given(
        st.lists(
            st.tuples(st.sampled_from([OLD, NEW]), st.floats(0, 20), st.booleans()), max_size=700
        )
    )
    def test_counts_add_up(self, lookups: list[tuple[int, float, bool]]) -> None:
        observed = Observed(Limits(error_share=1.0))
        for side, seconds, failed in lookups:
            observed.note((0, side, seconds, failed, not failed))
        counts = observed.counts()
        for side, name in enumerate(("old", "new")):
            of_side = [each for each in lookups if each[0] == side]
            failed = sum(each[2] for each in of_side)
            assert counts[f"errors_{name}"] == failed
            assert counts[f"requests_{name}"] == len(of_side) - failed
            buckets = observed.latencies()[side]
            assert sum(buckets.counts) == len(of_side)
            assert buckets.total == pytest.approx(sum(each[1] for each in of_side))
            within = 0
            for upper, count in zip(buckets.upper, buckets.counts, strict=False):
                within += count
                assert within == sum(each[1] <= upper for each in of_side)


def test_a_limit_broken_in_an_earlier_stage_moves_nothing() -> None:
    stages = Stages("canary", 0.5, Shares(), Observed(Limits()), None)
    stages.set("full", None, "by hand")
    stages.step_back((0, "what canary did"))
    assert stages.now.stage == "full"
    stages.step_back((1, "what full did"))
    stages.step_back((1, "what full did, said by another thread"))
    assert stages.now.stage == "shadow"
    assert [change.reason for change in stages.history] == ["by hand", "what full did"]


class TestState:
    def test_writers_take_turns(self, tmp_path: Path) -> None:
        """As processes do that share a file: each opens the directory for itself."""
        path = tmp_path / "stage.json"

        def write(writer: int) -> None:
            for number in range(15):
                write_state(path, "full", 1.0, number, f"writer {writer}")
                state = read_state(path)
                assert state is not None
                assert state.stage == "full"

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(write, range(4)))

    def test_it_is_read_as_it_was_written(self, tmp_path: Path) -> None:
        path = tmp_path / "stage.json"
        assert read_state(path) is None
        write_state(path, "canary", 0.25, 12.5, "because of “this”")
        state = read_state(path)
        assert state is not None
        assert (state.stage, state.fraction, state.time) == ("canary", 0.25, 12.5)
        assert state.reason == "because of “this”"
        assert [each.name for each in tmp_path.iterdir()] == ["stage.json"]

    def test_a_torn_one_is_said(self, tmp_path: Path) -> None:
        path = tmp_path / "stage.json"
        write_state(path, "full", 0.25, 12.5, "because")
        whole = path.read_bytes().rstrip()
        for length in range(len(whole)):
            path.write_bytes(whole[:length])
            with pytest.raises(FormatError, match=r"stage\.json .*remove it"):
                read_state(path)
            assert path.read_bytes() == whole[:length]

    @pytest.mark.parametrize(
        "content",
        [
            b"\xff\xfe",
            b"full\n",
            b"[]",
            b'{"format":1,"stage":"ful","fraction":0.1,"time":0,"reason":""}',
            b'{"format":1,"stage":"full","fraction":1.5,"time":0,"reason":""}',
            b'{"format":1,"stage":"full","fraction":1,"time":0,"reason":"","more":1}',
            b'{"format":1,"stage":"full","fraction":1,"time":0,"reason":"\xff"}',
            b'{"format":2,"stage":"full","fraction":1,"time":0,"reason":""}',
        ],
        ids=repr,
    )
    def test_what_is_none_is_said(
        self, store: bandana_kv.EmbeddingStore, tmp_path: Path, content: bytes
    ) -> None:
        (tmp_path / "stage.json").write_bytes(content)
        with pytest.raises(FormatError, match=r"stage\.json .*remove it"):
            Rollout(old_rows, store, state=tmp_path / "stage.json")

    def test_a_mistyped_path_is_said(
        self, store: bandana_kv.EmbeddingStore, tmp_path: Path
    ) -> None:
        with pytest.raises(InputError, match="there is no directory"):
            Rollout(old_rows, store, state=tmp_path / "mistyped" / "stage.json")
        with pytest.raises(InputError, match="cannot be read"):
            Rollout(old_rows, store, state=tmp_path)
        assert not list(tmp_path.iterdir())


def test_metrics_tell_what_the_report_does(store: bandana_kv.EmbeddingStore) -> None:
    with Rollout(old_rows, store, stage="canary", fraction=0.5, shares=ALL) as rollout:
        for id in range(100):
            rollout.multi_get({"user": [id], "item": [1, 2]})
        assert rollout.wait(PATIENCE_S)
        rollout.set_stage("shadow", reason="to see")
        report = rollout.report()
        found = {
            (metric.name.removeprefix("bandana_kv_rollout_"), *metric.labels.values()): metric.value
            for metric in rollout.metrics()
        }
    assert all(metric.help for metric in rollout.metrics())
    assert [found["stage", stage] for stage in STAGES] == [0, 1, 0, 0]
    assert found["canary_fraction",] == 0.5
    assert found["transitions", "canary", "shadow"] == 1
    assert report.requests["old"] + report.requests["new"] == 100
    for side in ("old", "new"):
        assert found["requests", side] == report.requests[side] > 0
        assert found["errors", side] == 0
        latencies = found["latency_seconds", side]
        assert isinstance(latencies, Buckets)
        assert len(latencies.counts) == len(latencies.upper) + 1
    assert found["compared_requests",] == report.compared_requests == report.requests["new"]
    assert found["compared_rows",] == 3 * report.compared_requests
    for name in ("mismatched_rows", "skipped_comparisons", "rescued_requests", "failed_requests"):
        assert found[name,] == getattr(report, name) == 0
    assert report.history[0].reason == "to see"
    assert msgspec.json.decode(msgspec.json.encode(report), type=Report).stage == "shadow"
