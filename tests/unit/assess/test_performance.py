"""The performance model by cases whose answer is known, and costs measured in a moment."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from bandana_kv.assess.performance import (
    Costs,
    Load,
    Parts,
    at_rate,
    calibrate,
    calibration,
    predict,
)
from bandana_kv.assess.performance.curve import DeviceCurve
from bandana_kv.assess.performance.fit import Seen, fit_parts, fit_serial
from bandana_kv.assess.performance.model import Demand, Machine, closed_rate
from bandana_kv.device import DeviceProfile
from bandana_kv.errors import InputError
from bandana_kv.simulate import PerRequest

NOTHING = Parts()


@pytest.fixture(scope="module")
def device(profile_of: Callable[..., DeviceProfile]) -> DeviceProfile:
    return profile_of({1: 10_000, 4: 40_000, 16: 90_000, 64: 100_000})


def costs(
    alone: Parts, crowded: Parts | None = None, serial: Parts = NOTHING, processors: int = 2
) -> Costs:
    return Costs("memory", 128, 4096, processors, 8, 128, alone, crowded or alone, serial)


def load(lookups: int, missed: int = 0, reads: int = 0, requests: int = 10) -> Load:
    return Load(*(np.full(requests, each, np.int32) for each in (lookups, missed, reads)))


def test_one_caller_waits_for_itself_alone(device: DeviceProfile) -> None:
    found = predict(costs(Parts(request=50.0)), device, load(4, 1, 1), threads=1)
    assert found.requests_per_second == pytest.approx(1e6 / (50 + 100), rel=1e-3)
    assert found.rows_per_second == pytest.approx(4 * found.requests_per_second)
    assert found.mean_us == pytest.approx(150, rel=1e-3)
    assert found.p50_us == pytest.approx(150, rel=1e-3)
    assert found.p99_us == pytest.approx(150, rel=1e-3)
    assert found.bound_by == "callers"


@pytest.mark.parametrize(
    ("some", "asked", "limit", "by"),
    [
        (costs(Parts(request=50.0), serial=Parts(request=40.0)), load(4), 25_000, "interpreter"),
        (costs(Parts(request=50.0)), load(4), 40_000, "processors"),
        (costs(Parts(request=1.0)), load(4, 4, 4), 25_000, "device"),
    ],
)
def test_many_callers_come_near_to_what_gives_out_first(
    device: DeviceProfile, some: Costs, asked: Load, limit: float, by: str
) -> None:
    found = predict(some, device, asked, threads=200)
    assert 0.95 * limit < found.requests_per_second <= limit
    assert found.bound_by == by
    # Little's law, whatever else.
    assert found.mean_us == pytest.approx(1e6 * 200 / found.requests_per_second, rel=1e-2)


def test_reads_of_a_request_are_in_flight_together_where_the_engine_can(
    device: DeviceProfile,
) -> None:
    plain = costs(Parts(request=1.0))
    one_by_one = msgspec.structs.replace(plain, reads_at_once=1)
    together = predict(plain, device, load(4, 4, 4), threads=1)
    apart = predict(one_by_one, device, load(4, 4, 4), threads=1)
    assert together.mean_us == pytest.approx(1 + 100, rel=1e-3)
    assert apart.mean_us == pytest.approx(1 + 400, rel=1e-3)


def test_crowding_costs_as_much_as_others_hold_the_gil(device: DeviceProfile) -> None:
    some = costs(Parts(request=10.0), Parts(request=100.0), Parts(request=100.0))
    assert predict(some, device, load(4), threads=1).mean_us == pytest.approx(10, rel=1e-3)
    many = predict(some, device, load(4), threads=64)
    assert many.requests_per_second == pytest.approx(10_000, rel=0.05)


def test_requests_that_read_are_the_slow_ones(device: DeviceProfile) -> None:
    mixed = Load(np.full(100, 4), *np.tile([[0] * 9 + [2]], (2, 10)))
    found = predict(costs(Parts(request=20.0)), device, mixed, threads=1)
    assert found.p50_us == pytest.approx(20, rel=1e-3)
    assert found.p99_us == pytest.approx(120, rel=1e-2)
    assert found.mean_us == pytest.approx(30, rel=1e-2)


def test_a_rate_that_cannot_be_met_is_none_and_a_low_one_waits_for_nothing(
    device: DeviceProfile,
) -> None:
    some, asked = costs(Parts(request=50.0), serial=Parts(request=40.0)), load(4, 1, 1)
    most = predict(some, device, asked, threads=8).requests_per_second
    assert at_rate(some, device, asked, 1.05 * most, threads=8) is None
    assert at_rate(some, device, asked, 1e9, threads=8) is None
    idle = at_rate(some, device, asked, 1.0, threads=8)
    assert idle is not None
    assert idle.mean_us == pytest.approx(150, rel=1e-2)
    assert idle.requests_per_second == 1.0
    busy = at_rate(some, device, asked, 0.9 * most, threads=8)
    assert busy is not None
    assert busy.mean_us > 1.5 * idle.mean_us
    assert busy.p99_us > 2 * idle.p99_us


def test_with_one_caller_and_even_service_the_queue_is_that_of_the_textbook(
    device: DeviceProfile,
) -> None:
    """M/D/1 at half load waits for half of a service."""
    found = at_rate(costs(Parts(request=100.0)), device, load(4), 5000, threads=1)
    assert found is not None
    assert found.mean_us == pytest.approx(150, rel=1e-3)


def test_what_cannot_be_predicted_is_said(device: DeviceProfile) -> None:
    some = costs(Parts(request=1.0))
    with pytest.raises(InputError, match="threads 0: at least one must ask"):
        predict(some, device, load(1), threads=0)
    with pytest.raises(InputError, match="requests_per_second 0 is not above 0"):
        at_rate(some, device, load(1), 0, threads=1)
    with pytest.raises(InputError, match="three numbers for each of its requests"):
        load(1, requests=0)
    with pytest.raises(InputError, match="three numbers for each of its requests"):
        Load(np.ones(2), np.ones(2), np.ones(3))


def test_parts_add_up_by_request() -> None:
    counted = PerRequest(*np.array([[3, 5], [0, 2], [0, 1], [0, 3]], np.int32))
    us = Parts(1.0, 10.0, 100.0, 1000.0, 1e4, 1e5).of(Load.of(counted))
    assert us.tolist() == [301.0, 1 + 10 + 500 + 2000 + 1e4 + 3e5]


def test_the_curve_is_what_was_measured_but_for_what_cannot_be(
    profile_of: Callable[..., DeviceProfile],
) -> None:
    disturbed = profile_of({1: 1_000, 4: 40_000, 16: 90_000, 64: 80_000})
    curve = DeviceCurve.of(disturbed, 4096, 128)
    # One read in flight is not slower than four are; more are not served slower.
    assert curve.rate(np.array([1.0, 4.0, 16.0, 64.0, 500.0])) == pytest.approx(
        [10_000, 40_000, 90_000, 90_000, 90_000]
    )
    assert curve.read_us(np.array([0.0, 4.0, 300.0]), 0.0) == pytest.approx(
        [0, 100, 1e6 * 300 / 90_000]
    )


def test_costs_are_found_again_in_what_they_make() -> None:
    rng = np.random.default_rng(0)
    did = np.column_stack(
        [np.ones(12), rng.integers(0, 2, 12), rng.integers(1, 100, (12, 4))]
    ).astype(float)
    wanted = Parts(5.0, 100.0, 0.1, 0.0, 4.0, 7.0)
    found = fit_parts(did, did @ wanted.vector())
    assert msgspec.structs.astuple(found) == pytest.approx(
        msgspec.structs.astuple(wanted), abs=1e-6
    )
    # A part that would have to be negative is none.
    assert fit_parts(did, did @ np.array([5.0, 0.0, 1.0, 0.0, -0.001, 0.0])).block_read == 0.0


def test_serial_time_is_found_again_in_the_rates_that_it_makes() -> None:
    alone, serial = Parts(6.0, 100.0, 0.02), Parts(5.0, 90.0)
    did = np.array(
        [[1, 0, 8, 0, 0, 0], [1, 0.3, 8, 0.3, 0.3, 0], [1, 1, 8, 1, 1, 0], [1, 1, 40, 4, 4, 0]],
        float,
    )
    machine = Machine(4, DeviceCurve(np.array([1.0, 1e9]), np.array([1e4, 1e13]), 1), 8)
    walls = []
    for each in did:
        us = float(each @ alone.vector())
        demand = (us, us, float(each @ serial.vector()), each[1], each[4])
        rate = closed_rate(machine, Demand(*(np.array([one]) for one in demand)))
        walls.append(1e6 / rate)
    seen = Seen(np.array(walls), did @ alone.vector(), did)
    found = fit_serial(alone, seen, 100.0, (4, 8, 1))
    assert found.of(load(8)) == pytest.approx(serial.of(load(8)), rel=0.02)
    assert found.of(load(8, 1, 1)) == pytest.approx(serial.of(load(8, 1, 1)), rel=0.02)


@pytest.mark.parametrize("adapter", ["memory", "blockfile"])
def test_costs_are_measured_and_nothing_is_left(
    adapter: str, device: DeviceProfile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "_SECONDS", 0.01)
    monkeypatch.setattr(calibration, "_ROUNDS", 1)
    monkeypatch.setattr(calibration, "_TABLE_BYTES", 1 << 20)
    found = calibrate(64, threads=2, adapter=adapter, directory=tmp_path)
    assert (found.adapter, found.row_bytes, found.block_bytes) == (adapter, 64, 4096)
    assert found.threads == 2
    for parts in (found.alone, found.crowded, found.serial):
        assert all(0.0 <= us < 1e6 for us in msgspec.structs.astuple(parts))
    assert found.alone.of(load(8, 1, 1))[0] > found.alone.of(load(8))[0] > 0.0
    assert msgspec.json.decode(msgspec.json.encode(found), type=Costs) == found
    assert predict(found, device, load(8, 1, 1), threads=2).rows_per_second > 0
    assert not list(tmp_path.iterdir())


def test_costs_that_cannot_be_measured_leave_nothing_either(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="row_bytes 0 and threads 8 are to be at least 1"):
        calibrate(0)
    with pytest.raises(InputError, match="adapter 'lmdb' keeps files: name a directory"):
        calibrate(64, adapter="lmdb")
    with pytest.raises(InputError, match="is not a directory"):
        calibrate(64, adapter="lmdb", directory=tmp_path / "none")
    with pytest.raises(InputError, match="no adapter 'granite'"):
        calibrate(64, adapter="granite", directory=tmp_path)
    assert not list(tmp_path.iterdir())
