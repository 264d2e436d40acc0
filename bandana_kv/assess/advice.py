"""Where to serve from: what is saved in all, the rate that is lost, the machines that are added."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

from bandana_kv.assess.cost import Prices
from bandana_kv.assess.fleet import Served, Whole, in_cluster, in_copies, in_dram, network_of
from bandana_kv.assess.fleet_data import Advice, Answer, Layout, Machine, Network
from bandana_kv.assess.notation import shown
from bandana_kv.assess.verdict import LEAST_SAVED_SHARE
from bandana_kv.units import size_text

__all__ = ["PROCESSOR_GIB", "Sizes", "Way", "advise", "kept", "machine_of"]

# A processor with its part of board, power and network is taken to cost as much as so much DRAM.
PROCESSOR_GIB = 8
_GIB = 1 << 30


class Sizes(NamedTuple):
    """What a machine has; taken where nothing is said."""

    dram_bytes: int = 256 << 30
    nvm_bytes: int = 4 << 40
    network_bits_per_second: float = 25e9


def machine_of(sizes: Sizes, processors: int, prices: Prices) -> Machine:
    """Return one machine like this one, at the price that is given or taken."""
    price = prices.machine
    if price is None:
        price = processors * PROCESSOR_GIB * prices.dram
    return Machine(processors, *sizes, price)


class Way(NamedTuple):
    """An amount of cache on each machine that answers: what is then asked, and served."""

    whole: Whole
    served: Served


def advise(
    ways: Sequence[Way],
    machine: Machine,
    prices: Prices,
    *,
    scale: float,
    crossover: float | None,
) -> Advice:
    """Weigh the layouts by what they cost.

    Parameters
    ----------
    ways
        The amount of cache that is recommended, and others that may be cheaper where many machines
        answer.
    machine
        As :mod:`~bandana_kv.assess.fleet` takes it.
    prices
        Of memory; `machine` and `least_saving`, where they are given.
    scale
        Of how many times the log's table and traffic this is.
    crossover
        Missed rows a block, above which blocks cost less on a network; None: as measured.

    Returns
    -------
    Advice
        The cheapest layout that fits, if it saves at least what is worth the trouble; else
        everything stays in DRAM. Of two that cost the same, whole copies are taken.
    """
    whole, served = ways[0]
    dram = in_dram(whole, served, machine, prices)
    copies, of_copies = _cheapest(in_copies, ways, machine, prices)
    cluster, of_cluster = _cheapest(in_cluster, ways, machine, prices)
    fitting = [each for each in (copies, cluster) if each.fits] or [cluster]
    best = min(fitting, key=lambda each: each.cost)
    least = prices.least_saving
    if least is None:
        least = LEAST_SAVED_SHARE * dram.cost
    saved = dram.cost - best.cost
    answer: Answer = "keep it in DRAM"
    if best.fits and saved >= least:
        answer = "cluster" if best.nodes else "copies" if best.machines > 1 else "one machine"
    found = Advice(
        answer=answer,
        scale=scale,
        saved=saved,
        least_saved=least,
        times_slower=served.in_dram / max(1e-9, served.from_device),
        machines_added=best.machines + best.nodes - dram.machines,
        pays_up_to_requests_per_second=_pays_up_to(
            in_copies(whole, served, machine, prices), dram, served, least
        ),
        in_dram=dram,
        in_copies=copies,
        in_cluster=cluster,
        network=network_of(of_cluster.whole, of_cluster.served, machine, crossover),
        machine=machine,
        reasons=(),
        assumed=_assumed(machine, prices, scale),
    )
    asked = of_cluster if best.nodes else of_copies
    return msgspec.structs.replace(found, reasons=_reasons(found, best, asked))


def _cheapest(
    layout: Callable[[Whole, Served, Machine, Prices], Layout],
    ways: Sequence[Way],
    machine: Machine,
    prices: Prices,
) -> tuple[Layout, Way]:
    """Return what fits at least cost, and the amount of cache with which it does."""
    found = [(layout(*way, machine, prices), way) for way in ways]
    return min(found, key=lambda each: (not each[0].fits, each[0].cost))


def kept(advice: Advice) -> Advice:
    """Return the same, with everything left in DRAM for reasons that are not of cost."""
    return msgspec.structs.replace(advice, answer="keep it in DRAM")


def _pays_up_to(copies: Layout, dram: Layout, served: Served, least: float) -> float | None:
    """Return the rate up to which whole copies save enough, beside as much DRAM as it is now."""
    if not copies.fits:
        return None
    times = max(0, int((dram.cost - least) / max(1e-12, copies.cost / copies.machines)))
    rate = min(times * served.from_device, dram.machines * served.in_dram)
    return rate if times else None


def _reasons(found: Advice, best: Layout, way: Way) -> tuple[str, ...]:
    """Return what decides first: the saving; then rate and machines; then where, and what travels.

    Where everything stays in DRAM, what would change that comes last.
    """
    reasons = [_saving(found, best), _rate(found, best, way), _where(found)]
    if best.nodes or not found.in_copies.fits:
        reasons.append(_travels(found.network))
    if found.answer == "keep it in DRAM" and found.scale == 1.0:
        reasons.append(
            "if the log is a sample of a larger table, say of how many times as large a one "
            "(--scale)"
        )
    return tuple(reasons)


def _saving(found: Advice, best: Layout) -> str:
    bills = (
        f"all rows in DRAM cost {_money(found.in_dram.cost)}, machines and memory, and from NVM it "
        f"would be {_money(best.cost)}"
    )
    if not best.fits:
        return f"the index of ids alone does not fit a machine's DRAM, {_sizes(found.machine)}"
    if found.saved >= found.least_saved:
        return f"{bills}: {_money(found.saved)} saved ({_money(found.least_saved)} is the least)"
    if found.saved > 0:
        return (
            f"{bills}: {_money(found.saved)} saved, and less than {_money(found.least_saved)} is "
            "not worth a second kind of memory"
        )
    return f"{bills}: nothing is won"


def _rate(found: Advice, best: Layout, way: Way) -> str:
    whole, served = way
    rate = served.from_cluster if best.nodes else served.from_device
    times = served.in_dram / max(1e-9, rate)
    slower = (
        f"one machine answers {rate:,.0f} requests a second from NVM, and "
        f"{served.in_dram:,.0f} with all rows in DRAM ({times:,.3g} times)"
    )
    pays = found.pays_up_to_requests_per_second
    if whole.requests_per_second is None:
        return slower + (
            f"; no rate was said, and up to {pays:,.0f} requests a second whole copies would pay"
            if pays
            else "; no rate was said"
        )
    nodes = f" and {best.nodes} nodes" if best.nodes else ""
    return (
        f"{slower}: {whole.requests_per_second:,.0f} take {_counted(best.machines)}{nodes}, and "
        f"{_counted(found.in_dram.machines)} with all rows in DRAM"
    )


def _where(found: Advice) -> str:
    copies, cluster = found.in_copies, found.in_cluster
    a_copy = (
        f"{size_text(copies.dram_bytes / copies.machines)} of DRAM and "
        f"{size_text(copies.nvm_bytes / copies.machines)} of NVM"
    )
    nodes = (
        f"a cluster of {cluster.nodes} nodes with {cluster.copies} copies behind "
        f"{_counted(cluster.machines)} with {size_text(cluster.cache_bytes)} of cache costs "
        f"{_money(cluster.cost)}"
    )
    if not copies.fits:
        return f"one machine, {_sizes(found.machine)}, does not hold {a_copy}; {nodes}"
    if copies.machines == 1:
        return f"one machine holds all of it, {a_copy}; {nodes}"
    return (
        f"{copies.machines} whole copies behind a router, each {a_copy}, cost "
        f"{_money(copies.cost)}; {nodes}"
    )


def _travels(network: Network) -> str:
    if network.missed_rows_per_block is None:
        return "no block is read: nothing travels"
    seen = (
        f"on the network a request's {network.missed_rows_per_request:.3g} missed rows lie in "
        f"{network.blocks_per_request:.3g} blocks, {network.missed_rows_per_block:.3g} a block"
    )
    if network.keys == "blocks":
        return f"{seen}: blocks cost less than a row a key (from {network.crossover:.3g} up)"
    return (
        f"{seen}: a row a key costs less than blocks (up to {network.crossover:.3g}), so that "
        "placement gains nothing there"
    )


def _assumed(machine: Machine, prices: Prices, scale: float) -> tuple[str, ...]:
    price = (
        "as given"
        if prices.machine is not None
        else f"taken: as much as {PROCESSOR_GIB} GiB of DRAM a processor; --machine-price"
    )
    least = (
        "as given"
        if prices.least_saving is not None
        else f"taken: {LEAST_SAVED_SHARE:.0%} of what all rows in DRAM cost; --least-saving"
    )
    lines = [
        (
            f"a machine: {machine.processors} processors like this one's, {_sizes(machine)} and "
            f"{machine.network_bits_per_second / 1e9:g} Gb/s (--machine-dram, --machine-nvm, "
            "--network-gbps)"
        ),
        f"its price without memory: {_money(machine.price)} ({price})",
        f"the least saving that matters ({least})",
    ]
    if scale != 1.0:
        lines.append(
            f"table and traffic are {scale:,.0f} times what the log shows, with requests as long "
            "and each row as busy (--scale, or a sample); a rate that is asked for is that of the "
            "whole"
        )
    return tuple(lines)


def _money(amount: float) -> str:
    return shown("cost", amount)


def _sizes(machine: Machine) -> str:
    return f"{size_text(machine.dram_bytes)} of DRAM, {size_text(machine.nvm_bytes)} of NVM"


def _counted(machines: int) -> str:
    return "1 machine" if machines == 1 else f"{machines:,} machines"
