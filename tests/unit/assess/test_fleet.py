"""How many machines of which kind, by arithmetic that was done by hand."""

from __future__ import annotations

import dataclasses
from typing import Any

import msgspec
import pytest

from bandana_kv.assess.advice import Sizes, Way, advise, kept, machine_of
from bandana_kv.assess.cost import Prices
from bandana_kv.assess.fleet import Served, Whole, in_cluster, in_copies, in_dram, network_of
from bandana_kv.assess.fleet_data import Advice, Machine

GIB = 1 << 30
MACHINE = Machine(8, 256 * GIB, 4096 * GIB, 25e9, 192.0)
PRICES = Prices(3.0, 0.3)
SERVED = Served(500_000.0, 20_000.0, 15_000.0, 500_000.0)
WHOLE = Whole(
    table_bytes=1024 * GIB,
    cache_bytes=50 * GIB,
    index_bytes=10 * GIB,
    nvm_bytes=1536 * GIB,
    requests_per_second=100_000.0,
    lookups=30.0,
    missed_rows=9.0,
    block_reads=3.0,
    row_bytes=128.0,
    block_bytes=4096,
)


def changed(**more: Any) -> Whole:
    return dataclasses.replace(WHOLE, **more)


def advised(
    whole: Whole = WHOLE, machine: Machine = MACHINE, prices: Prices = PRICES, **more: Any
) -> Advice:
    asked: dict[str, Any] = {"served": SERVED, "scale": 1.0, "crossover": None} | more
    ways = [Way(whole, asked.pop("served")), *asked.pop("others", ())]
    return advise(ways, machine, prices, **asked)


def test_all_rows_in_dram() -> None:
    found = in_dram(WHOLE, SERVED, MACHINE, PRICES)
    # a fifth of a machine for the requests, four of 256 GiB for the rows
    assert (found.machines, found.nodes, found.copies, found.bound_by) == (4, 0, 1, "DRAM")
    assert (found.dram_bytes, found.nvm_bytes) == (1024 * GIB, 0)
    assert found.cost == pytest.approx(4 * 192 + 1024 * 3.0)
    assert in_dram(changed(requests_per_second=4e6), SERVED, MACHINE, PRICES).machines == 8


def test_whole_copies() -> None:
    found = in_copies(WHOLE, SERVED, MACHINE, PRICES)
    assert (found.machines, found.nodes, found.copies, found.fits) == (5, 0, 5, True)
    assert (found.dram_bytes, found.nvm_bytes) == (300 * GIB, 7680 * GIB)
    assert found.cost == pytest.approx(5 * 192 + 300 * 3.0 + 7680 * 0.3)
    # four fifths of a drive may be filled
    for nvm_bytes, fits in ((3276 * GIB, True), (3277 * GIB, False)):
        assert in_copies(changed(nvm_bytes=nvm_bytes), SERVED, MACHINE, PRICES).fits is fits
    for cache_bytes, fits in ((246 * GIB, True), (247 * GIB, False)):
        assert in_copies(changed(cache_bytes=cache_bytes), SERVED, MACHINE, PRICES).fits is fits


def test_a_cluster() -> None:
    found = in_cluster(WHOLE, SERVED, MACHINE, PRICES)
    # 300,000 blocks a second: two nodes of 0.7 x 8 / 26 us, and one that may be lost
    assert (found.machines, found.nodes, found.copies, found.fits) == (7, 3, 2, True)
    assert found.nvm_bytes == 3072 * GIB
    assert found.dram_bytes == pytest.approx((7 * 60 + 30.72) * GIB)
    assert found.cost == pytest.approx(10 * 192 + 450.72 * 3.0 + 3072 * 0.3)
    assert found.bound_by == "machines: requests, nodes: the least of a majority"


@pytest.mark.parametrize(
    ("more", "served", "nodes", "because"),
    [
        ({"nvm_bytes": 10_000 * GIB}, SERVED, 8, "NVM"),
        ({"block_reads": 12.0}, SERVED, 7, "processors"),
        ({}, dataclasses.replace(SERVED, device_reads_per_second=50_000.0), 10, "device"),
        ({"block_bytes": 1 << 20, "block_reads": 0.5}, SERVED, 26, "network"),
    ],
)
def test_what_gives_out_first_decides_the_nodes(
    more: dict[str, Any], served: Served, nodes: int, because: str
) -> None:
    found = in_cluster(changed(**more), served, MACHINE, PRICES)
    assert found.nodes == nodes
    assert found.bound_by.endswith(f"nodes: {because}")


def test_a_cache_that_no_machine_holds_is_shared_out() -> None:
    found = in_cluster(changed(cache_bytes=3000 * GIB), SERVED, MACHINE, PRICES)
    # 246 GiB beside the index
    assert (found.machines, found.fits) == (13, True)
    assert found.dram_bytes == pytest.approx((13 * 256 + 30.72) * GIB)
    assert not in_cluster(changed(index_bytes=256 * GIB), SERVED, MACHINE, PRICES).fits


def test_what_travels() -> None:
    found = network_of(WHOLE, SERVED, MACHINE, None)
    assert (found.missed_rows_per_block, found.crossover, found.keys) == (3.0, 1.6, "blocks")
    assert found.bytes_per_lookup == pytest.approx(3 / 30 * 1.03 * 4136)
    assert found.row_a_key_bytes_per_lookup == pytest.approx(9 / 30 * 1.03 * 168)
    assert found.bits_per_second == pytest.approx(1e5 * 3 * 8 * 1.03 * 4136)
    assert found.row_a_key_bits_per_second == pytest.approx(1e5 * 9 * 8 * 1.03 * 168)
    assert found.node_processors == pytest.approx(7.8)
    assert found.client_processors == pytest.approx(6.0)


@pytest.mark.parametrize(
    ("missed", "device_reads", "given", "keys"),
    [
        (4.7, 5e5, None, "a row a key"),
        (4.9, 5e5, None, "blocks"),
        (2.9, 1e5, None, "a row a key"),
        (3.1, 1e5, None, "blocks"),
        (4.9, 5e5, 2.0, "a row a key"),
        (6.1, 5e5, 2.0, "blocks"),
    ],
)
def test_blocks_or_a_row_a_key(
    missed: float, device_reads: float, given: float | None, keys: str
) -> None:
    served = dataclasses.replace(SERVED, device_reads_per_second=device_reads)
    assert network_of(changed(missed_rows=missed), served, MACHINE, given).keys == keys


def test_without_a_rate_or_a_read_nothing_is_made_up() -> None:
    found = network_of(
        changed(requests_per_second=None, missed_rows=0.0, block_reads=0.0), SERVED, MACHINE, None
    )
    assert (found.missed_rows_per_block, found.bits_per_second) == (None, None)
    assert (found.node_processors, found.client_processors) == (None, None)
    quiet = advised(changed(requests_per_second=None))
    assert (quiet.in_copies.machines, quiet.in_cluster.machines) == (1, 1)


def test_the_cheapest_that_fits_is_advised() -> None:
    # 3,840 in DRAM, 4,164 as copies, 4,193.76 in a cluster
    kept_there = advised()
    assert (kept_there.answer, kept_there.machines_added) == ("keep it in DRAM", 1)
    assert kept_there.saved == pytest.approx(3840 - 4164)
    assert "nothing is won" in kept_there.reasons[0]
    # 3,272, 3,454 and 2,773.76
    cheap = msgspec.structs.replace(MACHINE, price=50.0)
    found = advised(machine=cheap)
    assert (found.answer, found.machines_added) == ("cluster", 6)
    assert found.saved == pytest.approx(3272 - 2773.76)
    assert found.least_saved == pytest.approx(327.2)
    # 20,000 requests a second are one machine's: 4 x 192 + 3,072, and 192 + 180 + 460.8
    one = advised(changed(requests_per_second=20_000.0))
    assert (one.answer, one.machines_added) == ("one machine", -3)
    assert one.saved == pytest.approx(3840 - 832.8)
    assert advised(changed(requests_per_second=40_000.0)).answer == "copies"
    assert kept(one).answer == "keep it in DRAM"


def test_what_no_machine_holds_is_not_advised() -> None:
    small = msgspec.structs.replace(MACHINE, dram_bytes=10 * GIB, price=0.0)
    found = advised(changed(requests_per_second=1.0), small)
    assert found.answer == "keep it in DRAM"
    assert "does not fit a machine's DRAM" in found.reasons[0]


def test_where_many_machines_answer_a_smaller_cache_may_be_cheaper() -> None:
    # 25 GiB less on each of 7 machines, a reading more, and a node more for it
    less = Way(changed(cache_bytes=25 * GIB, block_reads=5.0), SERVED)
    found = advised(others=[less])
    assert (found.in_cluster.cache_bytes, found.in_cluster.nodes) == (25 * GIB, 4)
    assert found.in_cluster.cost == pytest.approx(4193.76 + 192 - 7 * 25 * 3.0)
    assert found.in_copies.cost == pytest.approx(4164 - 5 * 25 * 3.0)
    assert found.network.blocks_per_request == 5.0
    assert found.pays_up_to_requests_per_second == advised().pays_up_to_requests_per_second
    dearer = Way(changed(cache_bytes=49 * GIB, block_reads=9.0), SERVED)
    assert advised(others=[dearer]).in_cluster.cache_bytes == 50 * GIB
    # one machine with 260 GiB would cost a third, and has no room for them
    large = dataclasses.replace(SERVED, from_device=100_000.0)
    found = advised(changed(cache_bytes=250 * GIB), served=large, others=[Way(WHOLE, SERVED)])
    assert (found.in_copies.fits, found.in_copies.machines) == (True, 5)


def test_what_does_not_fit_is_not_advised_though_it_costs_less() -> None:
    whole = changed(nvm_bytes=3300 * GIB, requests_per_second=20_000.0)
    found = advised(whole, prices=dataclasses.replace(PRICES, least_saving=0.0))
    assert not found.in_copies.fits
    assert found.in_copies.cost < found.in_cluster.cost
    assert found.answer == "cluster"
    assert found.saved == pytest.approx(found.in_dram.cost - found.in_cluster.cost)


def test_how_far_whole_copies_pay() -> None:
    # a machine and its copy are 832.8; 3,840 less a tenth are 3,456: four of them
    assert advised().pays_up_to_requests_per_second == pytest.approx(80_000.0)
    assert advised(changed(requests_per_second=80_000.0)).answer == "copies"
    assert advised(changed(requests_per_second=80_001.0)).in_copies.cost > 3456
    tiny = changed(table_bytes=3 << 20, cache_bytes=1 << 18, index_bytes=1 << 16, nvm_bytes=7 << 20)
    assert advised(tiny).pays_up_to_requests_per_second is None


def test_a_small_table_stays_and_says_what_would_change_that() -> None:
    tiny = changed(
        table_bytes=3 << 20,
        cache_bytes=1 << 18,
        index_bytes=1 << 16,
        nvm_bytes=3 << 20,
        requests_per_second=None,
    )
    served = dataclasses.replace(SERVED, in_dram=600_000.0, from_device=2_000.0)
    found = advised(tiny, served=served)
    assert found.answer == "keep it in DRAM"
    assert found.saved == pytest.approx(0.007, rel=0.1)
    assert found.times_slower == 300.0
    assert "2,000 requests a second from NVM, and 600,000" in found.reasons[1]
    assert "--scale" in found.reasons[-1]
    assert "--scale" not in advised(tiny, served=served, scale=2.0).reasons[-1]
    least = dataclasses.replace(PRICES, least_saving=0.001)
    assert advised(tiny, served=served, prices=least).answer == "one machine"


def test_what_is_taken_is_said() -> None:
    machine = machine_of(Sizes(), 4, PRICES)
    assert machine.price == 4 * 8 * 3.0
    assert machine_of(Sizes(), 4, dataclasses.replace(PRICES, machine=7.0)).price == 7.0
    text = "; ".join(advised(machine=machine).assumed)
    for said in (
        *("4 processors", "256.00 GiB of DRAM", "4.00 TiB of NVM", "25 Gb/s"),
        *("without memory: 96", "8 GiB of DRAM a processor", "--machine-price", "10% of what"),
    ):
        assert said in text
    given = dataclasses.replace(PRICES, machine=7.0, least_saving=1.0)
    text = "; ".join(advised(prices=given, scale=10.0).assumed)
    assert "--machine-price" not in text
    assert "--least-saving" not in text
    assert "10 times what the log shows" in text
