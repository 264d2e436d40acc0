"""Whatever the costs: no more than any resource gives, and less where anything costs more."""

from __future__ import annotations

import msgspec
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from bandana_kv.assess.performance import Load, Parts
from bandana_kv.assess.performance.costs import Costs
from bandana_kv.assess.performance.curve import DeviceCurve
from bandana_kv.assess.performance.model import Demand, Machine, closed_rate

US = st.floats(0.01, 1000.0)
PARTS = st.builds(Parts, US, US, st.floats(0, 10), st.floats(0, 10), st.floats(0, 10))


@st.composite
def curves(draw: st.DrawFn) -> DeviceCurve:
    rates = draw(st.lists(st.floats(100.0, 1e6), min_size=1, max_size=8))
    depths = 4.0 ** np.arange(len(rates))
    rising = np.maximum.accumulate(rates)
    latencies = np.minimum.accumulate((depths / rising)[::-1])[::-1]
    return DeviceCurve(depths, depths / latencies, draw(st.sampled_from([1, 16, 128])))


@st.composite
def loads(draw: st.DrawFn) -> Load:
    counts = st.lists(
        st.tuples(st.integers(1, 200), st.integers(0, 50), st.integers(0, 50)),
        min_size=1,
        max_size=20,
    )
    lookups, missed, reads = np.array(draw(counts)).T
    missed = np.minimum(missed, lookups)
    return Load(lookups, missed, np.minimum(reads, missed))


def demand(alone: Parts, crowded: Parts, serial: Parts, load: Load) -> Demand:
    costs = Costs("memory", 128, 4096, 2, 8, 128, alone, crowded, serial)
    return Demand.of(costs, load).mean()


@settings(max_examples=25, deadline=None)
@given(PARTS, PARTS, PARTS, loads(), curves(), st.integers(1, 8), st.integers(1, 64))
def test_no_resource_gives_more_than_it_has(
    alone: Parts,
    crowded: Parts,
    serial: Parts,
    load: Load,
    curve: DeviceCurve,
    processors: int,
    callers: int,
) -> None:
    asked = demand(alone, crowded, serial, load)
    machine = Machine(processors, curve, callers)
    rate = closed_rate(machine, asked)
    assert rate > 0.0
    assert rate * float(asked.serial[0]) <= 1e6
    assert rate * float(asked.alone[0]) <= 1e6 * processors
    assert rate * float(asked.reads[0]) <= curve.most * (1 + 1e-9)
    # A caller has one request at a time, which takes its work and its reads at least.
    least = float((asked.alone + asked.read_us(curve, 0.0))[0])
    assert rate * least <= 1e6 * callers * (1 + 1e-6)


@settings(max_examples=25, deadline=None)
@given(
    PARTS,
    PARTS,
    PARTS,
    loads(),
    curves(),
    st.integers(1, 32),
    st.sampled_from(msgspec.structs.fields(Parts)),
    st.sampled_from(["alone", "crowded", "serial"]),
)
def test_what_costs_more_is_not_served_faster(
    alone: Parts,
    crowded: Parts,
    serial: Parts,
    load: Load,
    curve: DeviceCurve,
    callers: int,
    part: msgspec.structs.FieldInfo,
    which: str,
) -> None:
    machine = Machine(2, curve, callers)
    parts = {"alone": alone, "crowded": crowded, "serial": serial}
    dearer = msgspec.structs.replace(
        parts[which], **{part.name: 2.0 * getattr(parts[which], part.name) + 1.0}
    )
    usual = closed_rate(machine, demand(**parts, load=load))
    assert closed_rate(machine, demand(**(parts | {which: dearer}), load=load)) <= usual * 1.0001
    slower = DeviceCurve(curve.depths, curve.rates / 2, curve.reads_at_once)
    halved = closed_rate(Machine(2, slower, callers), demand(**parts, load=load))
    assert halved <= usual * 1.0001


@settings(max_examples=25, deadline=None)
@given(PARTS, loads(), curves(), st.integers(1, 16))
def test_more_callers_or_processors_are_not_served_less(
    parts: Parts, load: Load, curve: DeviceCurve, callers: int
) -> None:
    """Where a crowd costs no more than one: else more callers may well be served less."""
    asked = demand(parts, parts, Parts(), load)
    usual = closed_rate(Machine(2, curve, callers), asked)
    assert closed_rate(Machine(2, curve, 2 * callers), asked) >= usual * 0.9999
    assert closed_rate(Machine(4, curve, callers), asked) >= usual * 0.9999
