"""An assessment: what it says of logs of each kind, and that its numbers are those of replays."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from bandana_kv import AccessLog
from bandana_kv.assess import (
    DEVICE_CLASSES,
    Assessment,
    Drive,
    Prices,
    Question,
    Retraining,
    Sizes,
    Table,
    assess,
    device_class,
)
from bandana_kv.assess.dram import choose_budget
from bandana_kv.assess.endurance import endurance_of
from bandana_kv.assess.performance import Costs
from bandana_kv.assess.performance.costs import Parts
from bandana_kv.assess.run import LEAST_LOG, TRAIN
from bandana_kv.care.inspection import Rating
from bandana_kv.codecs import codec_named, codec_names
from bandana_kv.device import DeviceProfile
from bandana_kv.errors import InputError
from bandana_kv.placement import fanout, place

ROWS, ROW_BYTES = 3100, 128
COSTS = Costs(
    adapter="memory",
    row_bytes=ROW_BYTES,
    block_bytes=4096,
    processors=2,
    threads=8,
    reads_at_once=128,
    alone=Parts(6.0, 100.0, 0.01, 1.0, 5.0),
    crowded=Parts(6.0, 110.0, 0.01, 0.5, 4.0),
    serial=Parts(5.0, 60.0, 0.05, 1.0, 1.0),
)
DEVICE = device_class("nvme-p3700")


def grouped(requests: int = 3000) -> AccessLog:
    """Most of 20 rows that belong together, and of two groups: rows are read together."""
    rng = np.random.default_rng(0)
    groups = rng.permutation(ROWS).reshape(-1, 20)
    drawn = (rng.random((requests, 2)) ** 1.5 * len(groups)).astype(int)
    return AccessLog.from_requests(
        np.concatenate([rng.permutation(groups[each])[:10] for each in pair]) for pair in drawn
    )


def even(requests: int = 3000) -> AccessLog:
    """Eight rows of all, each as likely as any other: nothing to learn."""
    return AccessLog.from_requests(np.random.default_rng(1).integers(0, ROWS, (requests, 8)))


def single(requests: int = 20000) -> AccessLog:
    """One id a request, some busier than others."""
    drawn = np.random.default_rng(2).random(requests) ** 2 * ROWS
    return AccessLog(np.arange(requests + 1), drawn.astype(np.int32))


def passing(requests: int = 3000) -> AccessLog:
    """News: each request is of rows that appeared lately, and are gone soon after."""
    rng = np.random.default_rng(3)
    newest = np.linspace(120, ROWS, requests).astype(int)
    return AccessLog.from_requests(rng.integers(top - 120, top, 8) for top in newest)


# Tables here are of some hundred KiB: machines for nothing, so that the log itself decides.
FREE = Prices(3.0, 0.3, machine=0.0, least_saving=0.0)


def question(log: AccessLog, **more: Any) -> Question:
    asked: dict[str, Any] = {
        "tables": {"user": Table(log, ROWS, ROW_BYTES)},
        "ordered": True,
        "prices": FREE,
        "device": DEVICE.profile(),
        "device_name": DEVICE.title,
        "device_source": DEVICE.source,
    }
    return Question(**(asked | more))


def numbers(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for each in value:
            yield from numbers(each)
    else:
        yield value


@pytest.fixture(scope="module")
def good() -> Assessment:
    return assess(question(grouped(), requests_per_second=3000.0), COSTS)


def test_rows_that_are_read_together_are_recommended(good: Assessment) -> None:
    assert (good.recommendation, good.suited) == ("recommend", True)
    table = good.tables["user"]
    assert table.gain_low > 1.5
    assert table.workload.co_access > 2
    reads = table.reads_per_request
    assert reads.lower_bound <= reads.plan < reads.paper_recipe < reads.baseline
    assert good.cost.saved_share > 0.3
    assert good.verdict.startswith("Serve this table from NVM: ")


def test_what_it_says_adds_up(good: Assessment) -> None:
    table, cost = good.tables["user"], good.cost
    dram = table.dram
    assert dram.cache_bytes + dram.index_bytes + dram.heat_bytes == table.dram_bytes_recommended
    assert table.table_bytes == ROWS * ROW_BYTES == cost.table_bytes
    assert cost.nvm_bytes == 2 * 4096 * -(-ROWS // 31)
    assert cost.ours == pytest.approx(cost.ours_dram + cost.ours_nvm)
    assert cost.saved_share == pytest.approx(1 - cost.ours / cost.dram_only)
    gib = 1 << 30
    assert cost.dram_only == pytest.approx(3.0 * ROWS * ROW_BYTES / gib)
    assert table.gain == pytest.approx(
        table.reads_per_request.baseline / table.reads_per_request.plan
    )
    assert table.gain_low <= table.gain <= table.gain_high
    # Blocks that several callers miss at the same time are read once.
    reads = good.throughput.block_reads_per_second / 3000 / table.reads_per_request.plan
    assert 0.5 < reads < 1.0


def test_it_breaks_even_where_it_says(good: Assessment) -> None:
    cost = good.cost
    for prices, dram in (
        (Prices(3.0, 3.0 * cost.break_even_price_ratio), cost.dram_bytes),
        (Prices(3.0, 0.3), cost.break_even_dram_share * cost.table_bytes),
    ):
        ours = (dram * prices.dram + cost.nvm_bytes * prices.nvm) / (1 << 30)
        assert ours == pytest.approx(cost.dram_only)
    saved = [point.saved_share for point in cost.curve]
    assert saved == sorted(saved, reverse=True)


def test_fanout_is_of_the_later_requests(good: Assessment) -> None:
    learn, judge = grouped().split(train=TRAIN, ordered=True)
    shuffled = place(learn, ROWS, 31, "shuffled", seed=0)
    assert good.tables["user"].fanout_shuffled == fanout(judge, shuffled)


def test_all_numbers_are_finite_and_plain(good: Assessment, tmp_path: Path) -> None:
    good.write(tmp_path / "report.json")
    text = (tmp_path / "report.json").read_bytes()
    assert msgspec.json.decode(text, type=Assessment) == good
    plain = msgspec.to_builtins(good)
    found = [each for each in numbers(plain) if not isinstance(each, (str, bool, type(None)))]
    assert len(found) > 150
    assert all(math.isfinite(each) for each in found)
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_the_same_question_has_the_same_answer(good: Assessment) -> None:
    again = assess(question(grouped(), requests_per_second=3000.0), COSTS)
    assert again.tables == good.tables
    assert again.dram == good.dram


@pytest.mark.parametrize(
    ("log", "because"),
    [
        (even(), "hardly read together"),
        (single(), "hardly read together"),
        (passing(), "no earlier request looked up"),
    ],
)
def test_what_is_not_suited_is_not_recommended(log: AccessLog, because: str) -> None:
    found = assess(question(log), COSTS)
    assert (found.recommendation, found.suited) == ("do not", False)
    assert any(because in reason for reason in found.reasons)
    assert found.verdict.startswith("Do not serve this table from NVM: ")


def test_drift_is_seen_though_order_was_not_said() -> None:
    found = assess(question(passing(), ordered=False), COSTS)
    assert found.recommendation == "do not"
    assert any("--ordered" in reason for reason in found.reasons)
    assert found.tables["user"].workload.unseen_share < 0.05


def test_a_table_that_fits_is_to_stay_in_dram() -> None:
    for more in ({"dram_budget_bytes": 1 << 20}, {"cache_bytes": 1 << 20}):
        found = assess(question(grouped(), **more), COSTS)
        assert (found.recommendation, found.suited) == ("do not", True)
        assert "nothing is faster" in found.reasons[0]


def test_prices_latency_and_wear_may_forbid_it() -> None:
    drive = Drive(1 << 20, Rating(dwpd=1.0), "given")
    for more, because in (
        ({"prices": Prices(3.0, 2.9)}, "memory would cost"),
        ({"latency_budget_us": 50.0, "requests_per_second": 100.0}, "latency budget"),
        ({"retraining": Retraining(100.0, 1.0), "drive": drive}, "drive's rating"),
        (
            {"requests_per_second": 1e6, "device": device_class("aws-gp3").profile()},
            "times as many",
        ),
    ):
        found = assess(question(grouped(1000), **more), COSTS)
        assert found.recommendation == "do not", more
        assert any(because in reason for reason in found.reasons), found.reasons


def test_of_several_tables_those_that_gain_are_moved() -> None:
    tables = {
        "good.one": Table(grouped(), ROWS, ROW_BYTES),
        "bad": Table(single(), ROWS, ROW_BYTES),
    }
    found = assess(question(grouped(), tables=tables), COSTS)
    assert found.recommendation == "recommend"
    assert {name: each.recommendation for name, each in found.tables.items()} == {
        "good.one": "recommend",
        "bad": "do not",
    }
    assert found.cost.table_bytes == ROWS * ROW_BYTES
    assert found.verdict.startswith("Serve 1 of 2 tables from NVM")
    assert any("leave bad in DRAM" in warning for warning in found.warnings)


@pytest.mark.parametrize(
    ("log", "rows"),
    [
        (AccessLog.from_requests([[0]] * 200), 1),
        (AccessLog.from_requests([[0, 1, 2], *([[]] * 300), *([[3]] * 5)]), 10),
        (AccessLog.from_requests(np.random.default_rng(0).integers(0, 5, (200, 4))), 20_000),
    ],
)
def test_logs_that_hardly_ask_are_judged_too(log: AccessLog, rows: int) -> None:
    tables = {"user": Table(log, rows, ROW_BYTES)}
    found = assess(question(log, tables=tables, requests_per_second=1e6), COSTS)
    assert found.recommendation == "do not"
    plain = [each for each in numbers(msgspec.to_builtins(found)) if isinstance(each, float)]
    assert all(math.isfinite(each) for each in plain)


def test_a_busy_machine_is_told() -> None:
    busy = msgspec.structs.replace(COSTS, load_average=7.0)
    log = grouped(200)
    for costs, told in ((busy, True), (COSTS, False)):
        found = assess(question(log), costs)
        assert any("a load of 7.0 on 2" in warning for warning in found.warnings) is told


def test_a_fixed_cache_is_taken_as_given() -> None:
    found = assess(question(grouped(1000), cache_bytes=40_000), COSTS)
    assert found.inputs.cache_bytes == 40_000
    assert 0.9 * 40_000 < found.tables["user"].dram.cache_bytes <= 40_000


def test_a_small_table_stays_in_dram_unless_it_is_a_sample() -> None:
    """It was to be moved, for a thousandth of a unit and a three hundredth of the rate."""
    priced = Prices(3.0, 0.3)
    found = assess(question(grouped(1000), prices=priced), COSTS)
    assert (found.recommendation, found.suited) == ("do not", True)
    assert found.advice.answer == "keep it in DRAM"
    assert found.verdict.startswith("Keep it in DRAM: all rows in DRAM cost 48")
    assert found.tables["user"].recommendation == "recommend"
    assert found.advice.saved == pytest.approx(found.cost.saved)
    assert found.advice.saved < 0.001 < found.advice.least_saved
    assert found.advice.times_slower == pytest.approx(
        found.throughput.dram_only_requests_per_second / found.throughput.requests_per_second
    )
    assert any("--scale" in reason for reason in found.reasons)
    whole = assess(question(grouped(1000), prices=priced, scale=100_000.0), COSTS)
    assert (whole.recommendation, whole.advice.answer) == ("recommend", "one machine")
    assert "one machine holds it" in whole.verdict
    fast = {"prices": priced, "scale": 100_000.0, "requests_per_second": 1e6}
    kept = assess(question(grouped(1000), **fast), COSTS)
    assert kept.advice.answer == "keep it in DRAM"
    assert kept.advice.in_copies.machines > 10
    assert kept.throughput.machines > 10


def test_the_whole_is_so_many_times_what_the_log_shows() -> None:
    one = assess(question(grouped(1000)), COSTS)
    found = assess(question(grouped(1000), scale=1000.0), COSTS)
    assert found.inputs.scale == found.advice.scale == 1000.0
    for key in ("gain", "reads_per_request", "table_bytes", "workload", "rows"):
        assert getattr(found.tables["user"], key) == getattr(one.tables["user"], key)
    assert found.cost.table_bytes == found.dram.table_bytes == 1000 * one.cost.table_bytes
    assert found.cost.nvm_bytes == 1000 * one.cost.nvm_bytes
    assert found.endurance.written_bytes_per_day == 1000 * one.endurance.written_bytes_per_day
    dram = one.tables["user"].dram
    cache_bytes = 1000 * (dram.cache_bytes + dram.heat_bytes)
    # 22 bits of an id's place instead of 12
    index_bytes = found.dram.recommended_bytes - cache_bytes
    assert index_bytes == pytest.approx(1000 * ROWS * 22 / 8, rel=0.001)
    given = {"cache_bytes": 40_000_000, "dram_budget_bytes": 300 * ROWS * ROW_BYTES}
    found = assess(question(grouped(1000), scale=1000.0, **given), COSTS)
    assert 0.9 * 40_000 < found.tables["user"].dram.cache_bytes <= 40_000
    assert not any("nothing is faster" in reason for reason in found.reasons)
    given = {"dram_budget_bytes": 1000 * ROWS * ROW_BYTES}
    found = assess(question(grouped(1000), scale=1000.0, **given), COSTS)
    assert "nothing is faster" in found.reasons[0]


def test_a_table_that_one_machine_does_not_hold_goes_into_a_cluster() -> None:
    sizes = Sizes(dram_bytes=64 << 30, nvm_bytes=512 << 30)
    asked = question(grouped(1000), scale=4e6, sizes=sizes, requests_per_second=2000.0)
    found = assess(asked, COSTS)
    assert (found.recommendation, found.advice.answer) == ("recommend", "cluster")
    assert not found.advice.in_copies.fits
    assert "from a cluster of" in found.verdict
    assert any("on the network a request's" in reason for reason in found.reasons)
    assert any("several tables" in warning for warning in found.warnings)


def test_an_impossible_scale_or_machine_is_named() -> None:
    for more, says in (
        ({"scale": 0.5}, "scale 0.5"),
        ({"scale": float("nan")}, "scale nan"),
        ({"sizes": Sizes(dram_bytes=0)}, "sizes above 0"),
    ):
        with pytest.raises(InputError, match=says):
            assess(question(grouped(200), **more), COSTS)


@pytest.mark.parametrize(
    ("table", "says"),
    [
        (Table(grouped(LEAST_LOG - 1), ROWS, ROW_BYTES), "too short to judge by; 143 are the"),
        (Table(grouped(200), 10, ROW_BYTES), "the table has 10 rows"),
        (Table(grouped(200), ROWS, 0), "3100 rows of 0 bytes"),
        (Table(grouped(200), ROWS, 2 << 20), "more than 1 MiB"),
    ],
)
def test_what_cannot_be_assessed_is_named(table: Table, says: str) -> None:
    with pytest.raises(InputError, match=says):
        assess(question(grouped(200), tables={"user": table}), COSTS)
    with pytest.raises(InputError, match="no tables"):
        assess(question(grouped(200), tables={}), COSTS)


def test_dram_is_the_least_that_serves_the_rate_or_the_knee() -> None:
    # Halves its reads with each doubling of DRAM.
    curves = {"t": [(0, 10.0), *((1000 * 2**k, 10.0 / 2**k) for k in range(1, 7))]}

    def chosen(rate: float | None, **more: Any) -> Any:
        more = {"in_time": None} | more
        return choose_budget(
            curves, 100_000, requests_per_second=rate, device_reads_per_second=1000.0, **more
        )

    # 700 reads a second are 3.5 and 1.4 a request; between its points the curve is straight.
    for rate, least in ((200.0, 3200), (500.0, 7520)):
        found = chosen(rate)
        assert least <= found.cache_bytes < 1.1 * least
        assert "keeps up" in found.why
    knee = chosen(None)
    assert 2000 < knee.cache_bytes < 64_000
    assert chosen(1e9).cache_bytes == knee.cache_bytes
    assert "no amount of DRAM" in chosen(1e9).why
    late = chosen(None, in_time=lambda size: size >= 40_000)
    assert 40_000 <= late.cache_bytes < 44_000
    assert chosen(None, in_time=lambda _: False).cache_bytes == knee.cache_bytes


def test_endurance_is_arithmetic() -> None:
    drive = Drive(1000 << 30, Rating(dwpd=1.0, warranty_years=5.0), "given")
    found = endurance_of(100 << 30, Retraining(10.0, 0.5), drive)
    assert found.written_bytes_per_day == 500 << 30
    assert found.drive_writes_per_day == 0.5
    assert found.years == pytest.approx(10.0)
    assert found.most_retrains_per_day == pytest.approx(20.0)
    assert {each.drive_writes_per_day: each.drive_bytes for each in found.smallest_drives}[1.0] == (
        500 << 30
    )
    still = endurance_of(100 << 30, Retraining(0.0, 1.0), drive)
    assert (still.written_bytes_per_day, still.years) == (0, None)
    unrated = endurance_of(100 << 30, Retraining(1.0, 1.0), Drive(None, None, "none given"))
    assert (unrated.rated_bytes, unrated.years, unrated.drive_writes_per_day) == (None, None, None)
    written = endurance_of(1 << 30, Retraining(1.0, 1.0), Drive(None, Rating(tbw=1.0), "given"))
    assert written.rated_bytes == 10**12


@pytest.mark.parametrize("name", DEVICE_CLASSES)
def test_published_devices_make_consistent_profiles(name: str, tmp_path: Path) -> None:
    kind = device_class(name)
    kind.profile().write(tmp_path / "device.json")
    profile = DeviceProfile.read(tmp_path / "device.json")
    assert profile.reads_per_second(4096, 512) <= kind.reads_per_second * 1.0001
    assert profile.latency_us(4096, 1) == pytest.approx(
        max(kind.latency_us, 1e6 / kind.reads_per_second)
    )
    assert profile.engine == "published"
    assert len(kind.source) > 40
    with pytest.raises(InputError, match="choose one of optane"):
        device_class("ramdisk")


# -- rows in fewer bytes ------------------------------------------------------------------------

FORMS = codec_names()[1:]


def of_forms(path: Path, row_bytes: int = ROW_BYTES) -> Question:
    values = np.random.default_rng(5).standard_normal((500, row_bytes // 4)).astype(np.float32)
    np.save(path / "sample.npy", values)
    tables = {"user": Table(grouped(), ROWS, row_bytes)}
    samples = {"user": str(path / "sample.npy")}
    return question(grouped(), tables=tables, cache_bytes=20_000, forms=FORMS, samples=samples)


def test_shorter_rows_are_read_less_often_and_lose_what_the_sample_says(tmp_path: Path) -> None:
    asked = of_forms(tmp_path)
    found = assess(asked, COSTS).tables["user"]
    assert [form.codec for form in found.forms] == list(FORMS)
    by_name = {form.codec: form for form in found.forms}
    for form in found.forms:
        assert form.row_bytes == codec_named(form.codec).row_bytes(32)
        assert form.gain == pytest.approx(
            found.reads_per_request.plan / form.reads_per_request, rel=1e-6
        )
    assert by_name["int4-rowwise"].gain > by_name["int8-rowwise"].gain > 1.2
    assert by_name["int8-rowwise"].gain > by_name["float16"].gain > 1.0
    values = np.load(tmp_path / "sample.npy")
    codec = codec_named("int8-rowwise")
    back = np.empty_like(values)
    codec.decode(codec.encode(values), back)
    loss = by_name["int8-rowwise"].loss
    assert loss is not None
    assert loss.max_error == pytest.approx(np.abs(values - back).max())


def test_without_a_sample_nothing_is_said_of_losses(tmp_path: Path) -> None:
    asked = dataclasses.replace(of_forms(tmp_path), samples={}, forms=("float16",))
    (form,) = assess(asked, COSTS).tables["user"].forms
    assert form.loss is None


def test_rows_that_are_no_floats_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no rows of float32"):
        assess(of_forms(tmp_path, 130), COSTS)
