"""Recommend, or do not: by what was measured, never by what a log is called."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bandana_kv.assess.data import Cost, Endurance, Inputs, Latency, Throughput
from bandana_kv.assess.fleet_data import Advice
from bandana_kv.assess.performance import Costs
from bandana_kv.assess.table_data import Recommendation, TableReport, Workload
from bandana_kv.units import size_text

__all__ = [
    "LEAST_SAVED_SHARE",
    "Found",
    "Verdict",
    "judge",
    "judge_table",
    "warnings_of",
    "weighed",
]

# Below it a plain cache of rows does about as well, and needs no log, no plan, no retraining.
LEAST_GAIN = 1.2
# The worst part of the log must still be better than the baseline by more than noise.
LEAST_LOW_GAIN = 1.1
# Rows that are read together must at least spare one block in ten; what a gain has beyond
# that is a cache policy, which any cache of rows can have.
LEAST_CO_ACCESS = 1.1
# A row that was never seen lies wherever there was room, and nothing is known of its heat: with
# one lookup in seven of that kind, placement is always behind the traffic.
MOST_UNSEEN = 0.15
# More than half of what was saved is gone before the log ends.
MOST_DRIFT = 0.5
# A working set of half of the table does not shrink: hold all of it.
MOST_DRAM_SHARE = 0.5
# Less is not worth a second kind of memory to run: of memory, and of machines and memory.
LEAST_SAVED_SHARE = 0.1
# A machine costs more than its memory; what a few more of them cost the user knows, and is told.
MOST_MACHINES = 16
# The measurement itself keeps about one runnable thread a processor; twice that is others' doing.
MOST_LOAD = 2.0
# Of one table.
MOST_ROWS = 2**31
# The rating must last that long.
LEAST_YEARS = 3.0


@dataclass(frozen=True)
class Verdict:
    """What to do, whether the workload is suited, and why: the strongest reason first."""

    recommendation: Recommendation
    suited: bool
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Found:
    """What decides for one table."""

    workload: Workload
    gain: float
    gain_low: float
    gain_high: float
    drift: float
    dram_share: float
    dram_bytes: int
    table_bytes: int
    ordered: bool


def judge_table(found: Found) -> Verdict:
    """Judge a table by its log and by the DRAM that it takes."""
    log = found.workload
    unsuited = []
    if log.unseen_share > MOST_UNSEEN:
        unsuited.append(
            f"{log.unseen_share:.1%} of the later lookups go to rows that no earlier request "
            f"looked up (more than {MOST_UNSEEN:.0%}): what was learnt does not know them (the "
            "traffic moves on, or the log is too short)"
        )
    if not found.ordered and log.unseen_in_file_order_share > MOST_UNSEEN >= log.unseen_share:
        unsuited.append(
            f"in the order of the file, {log.unseen_in_file_order_share:.1%} of the later "
            f"lookups go to rows never seen before, and only {log.unseen_share:.1%} when "
            "requests are shuffled: if that order is time, this traffic outruns any plan "
            "(assess it with --ordered); if it is not, shuffle the requests first"
        )
    if found.ordered and found.drift > MOST_DRIFT:
        unsuited.append(
            f"{found.drift:.0%} of the reads that placement and cache save are lost by the end "
            f"of the log (more than {MOST_DRIFT:.0%}): it would have to be learnt anew all the time"
        )
    if log.co_access < LEAST_CO_ACCESS:
        unsuited.append(
            f"rows are hardly read together: a request touches {log.co_access:.2f} times fewer "
            f"blocks when they are placed (less than {LEAST_CO_ACCESS}), and has "
            f"{log.mean_length:.1f} ids on average"
        )
    if found.gain_high < LEAST_GAIN or found.gain_low < LEAST_LOW_GAIN:
        unsuited.append(_against_gain(found))
    against = list(unsuited)
    if found.dram_share > MOST_DRAM_SHARE:
        against.append(
            f"it takes {size_text(found.dram_bytes)} of DRAM for a table of "
            f"{size_text(found.table_bytes)} ({found.dram_share:.0%}): the working set does "
            "not shrink, so hold all of it in DRAM"
        )
    if against:
        return Verdict("do not", not unsuited, tuple(against))
    return Verdict("recommend", True, _for_table(found))


def _against_gain(found: Found) -> str:
    spread = f"({found.gain_low:.2f} to {found.gain_high:.2f} over the parts of the log"
    if found.gain < 1.0:
        return (
            f"a plain row cache of as much DRAM, which needs no index of ids, reads less: "
            f"{found.gain:.2f} times as many blocks {spread})"
        )
    return (
        f"it needs only {found.gain:.2f} times fewer block reads than a plain row cache of as "
        f"much DRAM {spread}; {LEAST_LOW_GAIN} and {LEAST_GAIN} are the least): a plain cache "
        "does as well"
    )


def _for_table(found: Found) -> tuple[str, ...]:
    log = found.workload
    return (
        (
            f"{found.gain:.2f} times fewer block reads than a plain row cache of as much DRAM "
            f"({found.gain_low:.2f} to {found.gain_high:.2f} over the parts of the log), on "
            "requests that it has not learnt from"
        ),
        (
            f"rows are read together: a request touches {log.co_access:.2f} times fewer blocks "
            "once they are placed"
        ),
        f"{log.unseen_share:.1%} of the later lookups go to rows never seen before, and "
        + (
            f"{found.drift:.0%} of what is saved is lost by the end of the log"
            if found.ordered
            else "how fast it ages is not known: the log is not in order of time"
        ),
        (
            f"DRAM for {found.dram_share:.1%} of the table's bytes is enough "
            f"({size_text(found.dram_bytes)} of {size_text(found.table_bytes)})"
        ),
    )


def judge(
    tables: Mapping[str, TableReport],
    inputs: Inputs,
    cost: Cost,
    throughput: Throughput,
    latency: Latency,
    endurance: Endurance,
) -> Verdict:
    """Judge all tables together."""
    suited = any(each.suited for each in tables.values())
    table_bytes = inputs.times * sum(each.table_bytes for each in tables.values())
    against = []
    for option, there in (
        ("the DRAM that is there anyway", inputs.dram_budget_bytes),
        ("the DRAM given to the cache", inputs.cache_bytes),
    ):
        if there is not None and there >= table_bytes:
            against.append(
                f"all tables fit {option}: {size_text(table_bytes)} of {size_text(there)}; hold "
                "them as plain arrays, nothing is faster"
            )
    moved = {name: each for name, each in tables.items() if each.recommendation == "recommend"}
    for name, each in tables.items():
        if not moved:
            against += [_of(name, reason, tables) for reason in each.reasons]
    if latency.budget_met is False:
        against.append(
            f"99 of 100 requests would be answered within {latency.p99 / 1000:.3g} ms, and the "
            f"latency budget is {(latency.budget or 0) / 1000:.3g} ms"
        )
    machines, without = throughput.machines or 0, throughput.dram_only_machines or 0
    if moved and machines > MOST_MACHINES * without:
        against.append(
            f"{throughput.wanted_requests_per_second or 0:,.0f} requests a second take {machines} "
            f"machines like this one, and {without} with all rows in DRAM (more than "
            f"{MOST_MACHINES} times as many)"
        )
    if moved and cost.saved_share < LEAST_SAVED_SHARE:
        against.append(
            f"memory would cost {1 - cost.saved_share:.0%} of what it costs with all rows in DRAM "
            f"(less than {1 - LEAST_SAVED_SHARE:.0%} is asked for), at a price of NVM of "
            f"{cost.price_ratio:.0%} of DRAM's"
        )
    if endurance.years is not None and endurance.years < LEAST_YEARS:
        against.append(
            f"retraining would use up the drive's rating in {endurance.years:.1f} years "
            f"(at least {LEAST_YEARS:.0f} are asked for)"
        )
    if against:
        return Verdict("do not", suited, tuple(against))
    reasons = [
        (
            f"memory costs {cost.saved_share:.0%} less than with all rows in DRAM, and would until "
            f"a GiB of NVM costs {cost.break_even_price_ratio:.0%} of a GiB of DRAM (now "
            f"{cost.price_ratio:.0%})"
        )
    ]
    for name, each in moved.items():
        reasons += [_of(name, reason, tables) for reason in each.reasons]
    return Verdict("recommend", True, tuple(reasons))


def weighed(found: Verdict, advice: Advice) -> Verdict:
    """Return the verdict, once what is saved in all is weighed against what it takes."""
    if found.recommendation == "do not":
        return found
    if advice.answer == "keep it in DRAM":
        return Verdict("do not", found.suited, advice.reasons)
    return Verdict("recommend", True, (*found.reasons, *advice.reasons))


def _of(name: str, reason: str, tables: Mapping[str, TableReport]) -> str:
    return reason if len(tables) == 1 else f"table {name}: {reason}"


def warnings_of(
    tables: Mapping[str, TableReport],
    throughput: Throughput,
    cost: Cost,
    inputs: Inputs,
    costs: Costs,
) -> tuple[str, ...]:
    """Return what does not decide, and should be known."""
    warnings = []
    if costs.load_average > MOST_LOAD * costs.processors:
        warnings.append(
            f"other programs kept this machine busy while serving was measured (a load of "
            f"{costs.load_average:.1f} on {costs.processors} processors): speed and the number of "
            "machines are worth little, assess again on a quiet one"
        )
    wanted = throughput.wanted_requests_per_second
    if wanted is not None and (throughput.machines or 0) > (throughput.dram_only_machines or 0):
        price = cost.break_even_machine_price
        warnings.append(
            f"one machine like this one serves {throughput.requests_per_second:,.0f} requests a "
            f"second from NVM, so that {wanted:,.0f} take {throughput.machines}; with all rows in "
            f"DRAM they take {throughput.dram_only_machines}. Prices of memory do not show that"
            + (f"; it pays as long as one more costs less than {price:.4g}" if price else "")
        )
    if (throughput.devices or 0) > 1:
        warnings.append(
            f"the reads of {wanted:,.0f} requests a second take {throughput.devices} devices"
        )
    if (
        cost.copies_cost_share is not None
        and cost.copies_cost_share > 1 > cost.ours / cost.dram_only
    ):
        warnings.append(
            "memory is reckoned once, with rows shared out among machines; if every machine held "
            f"all of it, it would cost {cost.copies_cost_share:.0%} of "
            "holding all rows in DRAM"
        )
    for name, each in tables.items():
        if inputs.times * each.rows >= MOST_ROWS:
            warnings.append(
                f"table {name}, {inputs.times:,.0f} times as large, has more than {MOST_ROWS:,} "
                "rows: it would have to be loaded as several tables"
            )
    if inputs.sampled_share != 1.0:
        warnings.append(
            f"judged by a sample: {inputs.sampled_share:.2g} of the rows, in blocks drawn from the "
            "whole log, with all that is looked up in them; tables are shown as the sample has "
            "them. A larger one (--most-lookups) says how far it is off"
        )
    if not inputs.ordered:
        warnings.append(
            "the log was judged as one in no order of time: how fast what is learnt ages is not "
            "known; record one in order, and say --ordered"
        )
    kept = [name for name, each in tables.items() if each.recommendation == "do not"]
    if kept and len(kept) < len(tables):
        warnings.append(
            f"leave {', '.join(kept)} in DRAM, for the reasons given there; cost and speed are of "
            "the other tables alone"
        )
    return tuple(warnings)
