"""What more of anything does to the machines it takes, whatever the numbers are."""

from __future__ import annotations

import dataclasses

import msgspec
from hypothesis import assume, given
from hypothesis import strategies as st

from bandana_kv.assess.advice import Sizes, Way, advise, machine_of
from bandana_kv.assess.cost import Prices
from bandana_kv.assess.fleet import Served, Whole, in_cluster, in_copies, in_dram, network_of
from bandana_kv.assess.fleet_data import Advice, Machine

MIB, GIB = 1 << 20, 1 << 30
LAYOUTS = (in_dram, in_copies, in_cluster)

tables = st.integers(MIB, 1 << 50)
rates = st.floats(1.0, 1e7)
more = st.floats(1.0, 1e4)


@st.composite
def wholes(draw: st.DrawFn) -> Whole:
    table_bytes = draw(tables)
    blocks = draw(st.floats(0.001, 100.0))
    return Whole(
        table_bytes=table_bytes,
        cache_bytes=round(draw(st.floats(0.0, 0.5)) * table_bytes),
        index_bytes=round(draw(st.floats(0.001, 0.05)) * table_bytes) + 8,
        nvm_bytes=round(draw(st.floats(1.0, 2.5)) * table_bytes),
        requests_per_second=draw(st.none() | rates),
        lookups=draw(st.floats(1.0, 500.0)),
        missed_rows=blocks * draw(st.floats(1.0, 31.0)),
        block_reads=blocks,
        row_bytes=draw(st.floats(4.0, 4000.0)),
        block_bytes=4096,
    )


@st.composite
def servers(draw: st.DrawFn) -> Served:
    local = draw(st.floats(10.0, 1e5))
    share = draw(st.floats(0.1, 1.5))
    return Served(
        local * draw(st.floats(1.0, 1e3)), local, local * share, draw(st.floats(1e3, 1e6))
    )


machines = st.builds(
    Machine,
    st.integers(1, 128),
    st.integers(GIB, 4096 * GIB),
    st.integers(16 * GIB, 1 << 46),
    st.floats(1e9, 4e11),
    st.floats(0.0, 1e5),
)
prices = st.builds(Prices, st.floats(0.01, 100.0), st.floats(0.001, 100.0))


def advised(whole: Whole, served: Served, machine: Machine, of: Prices) -> Advice:
    return advise([Way(whole, served)], machine, of, scale=1.0, crossover=None)


@given(wholes(), servers(), machines, prices, rates, more)
def test_more_traffic_never_takes_less(
    whole: Whole, served: Served, machine: Machine, of: Prices, rate: float, times: float
) -> None:
    slow = dataclasses.replace(whole, requests_per_second=rate)
    fast = dataclasses.replace(whole, requests_per_second=rate * times)
    for layout in LAYOUTS:
        one, other = layout(slow, served, machine, of), layout(fast, served, machine, of)
        assert other.machines >= one.machines
        assert other.nodes >= one.nodes
        assert other.cost >= one.cost


@given(wholes(), servers(), machines, prices, more)
def test_a_larger_table_never_takes_less(
    whole: Whole, served: Served, machine: Machine, of: Prices, times: float
) -> None:
    larger = dataclasses.replace(
        whole,
        table_bytes=round(times * whole.table_bytes),
        cache_bytes=round(times * whole.cache_bytes),
        index_bytes=round(times * whole.index_bytes),
        nvm_bytes=round(times * whole.nvm_bytes),
    )
    for layout in LAYOUTS:
        one, other = layout(whole, served, machine, of), layout(larger, served, machine, of)
        assert other.machines >= one.machines
        assert other.nodes >= one.nodes
        assert other.cost >= one.cost * (1 - 1e-12)
        assert one.fits or not other.fits


@given(wholes(), servers(), machines, prices)
def test_the_answer_is_the_cheapest_that_fits_and_saves_enough(
    whole: Whole, served: Served, machine: Machine, of: Prices
) -> None:
    found = advised(whole, served, machine, of)
    costs = [each.cost for each in (found.in_copies, found.in_cluster) if each.fits]
    worth = bool(costs) and found.in_dram.cost - min(costs) >= found.least_saved
    assert (found.answer != "keep it in DRAM") is worth
    if found.answer == "cluster":
        assert found.in_cluster.cost == min(costs)
    elif worth:
        assert found.in_copies.cost == min(costs)
        assert (found.answer == "one machine") is (found.in_copies.machines == 1)


@given(wholes(), servers(), machines, prices, st.floats(0.0, 1e6), st.floats(0.0, 1e6))
def test_who_asks_for_more_is_not_told_to_move(
    whole: Whole, served: Served, machine: Machine, of: Prices, least: float, added: float
) -> None:
    asked = dataclasses.replace(of, least_saving=least)
    stricter = dataclasses.replace(of, least_saving=least + added)
    if advised(whole, served, machine, asked).answer == "keep it in DRAM":
        assert advised(whole, served, machine, stricter).answer == "keep it in DRAM"


@given(wholes(), servers(), machines, prices, st.floats(0.0, 1e4))
def test_dearer_machines_never_speak_for_more_of_them(
    whole: Whole, served: Served, machine: Machine, of: Prices, added: float
) -> None:
    of = dataclasses.replace(of, least_saving=0.0)
    found = advised(whole, served, machine, of)
    assume(min(found.in_copies.machines, found.in_cluster.machines) >= found.in_dram.machines)
    dearer = msgspec.structs.replace(machine, price=machine.price + added)
    assert advised(whole, served, dearer, of).saved <= found.saved + 1e-9 * found.in_dram.cost


@given(st.integers(MIB, 3 * MIB), wholes(), servers(), prices, st.integers(1, 128))
def test_a_table_of_some_mib_stays_whatever_the_prices(
    table_bytes: int, whole: Whole, served: Served, of: Prices, processors: int
) -> None:
    tiny = dataclasses.replace(
        whole, table_bytes=table_bytes, cache_bytes=0, index_bytes=8, nvm_bytes=table_bytes
    )
    assume(served.in_dram >= served.from_device)
    found = advised(tiny, served, machine_of(Sizes(), processors, of), of)
    assert found.answer == "keep it in DRAM"


@given(wholes(), servers(), machines, prices, st.floats(0.001, 1.0))
def test_copies_pay_as_far_as_is_said(
    whole: Whole, served: Served, machine: Machine, of: Prices, share: float
) -> None:
    unasked = dataclasses.replace(whole, requests_per_second=None)
    up_to = advised(unasked, served, machine, of).pays_up_to_requests_per_second
    assume(up_to is not None and up_to > 1.0)
    assert up_to is not None
    asked = dataclasses.replace(whole, requests_per_second=share * up_to * (1 - 1e-9))
    found = advised(asked, served, machine, of)
    saved = found.in_dram.cost - found.in_copies.cost
    assert saved >= found.least_saved - 1e-6 * found.in_dram.cost


@given(wholes(), servers(), machines, st.floats(0.5, 5.0))
def test_blocks_travel_where_a_block_has_more_than_the_crossover(
    whole: Whole, served: Served, machine: Machine, crossover: float
) -> None:
    found = network_of(whole, served, machine, crossover)
    assert (found.keys == "blocks") is (whole.missed_rows / whole.block_reads > crossover)
    twice = dataclasses.replace(whole, lookups=2 * whole.lookups)
    half = network_of(twice, served, machine, crossover).bytes_per_lookup
    assert abs(2 * half - found.bytes_per_lookup) <= 1e-9 * found.bytes_per_lookup
