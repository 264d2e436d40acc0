"""An assessment in a sentence, and what it leaves open."""

from __future__ import annotations

from collections.abc import Mapping

from bandana_kv.assess.data import Cost
from bandana_kv.assess.devices import PUBLISHED
from bandana_kv.assess.fleet_data import Advice
from bandana_kv.assess.performance import Costs
from bandana_kv.assess.question import Question
from bandana_kv.assess.table_data import TableReport
from bandana_kv.assess.verdict import Verdict

__all__ = ["gain_of", "not_known", "sentence_of"]


def not_known(asked: Question, costs: Costs) -> tuple[str, ...]:
    """Return what no figure here says."""
    lines = []
    if asked.device.engine == PUBLISHED:
        lines.append(
            "The device was not measured: its figures are published ones, of an idle and empty "
            "device, and its slowest reads are mostly not published. Measure yours with "
            "tools/profile_device.py."
        )
    if not asked.ordered:
        lines.append("How fast what is learnt ages: the log is in no order of time.")
    lines += [
        (
            f"Processor costs were measured on this machine ({costs.processors} processors, "
            f"load {costs.load_average:.1f} meanwhile); throughput and latency are for "
            "machines like it."
        ),
        "Traffic after the log: all figures are of its last three tenths.",
        "What an engine and the drive write on top of blocks.",
    ]
    if asked.scale != 1.0:
        lines.append(
            "Whether the whole is like the sample: tables may be more skewed the larger they are."
        )
    if len(asked.tables) > 1:
        lines.append(
            "Which requests of different tables belong together: they were paired at random."
        )
    return tuple(lines)


def gain_of(tables: list[TableReport]) -> float:
    """Return the reads of plain caches over ours, of tables looked up in equally often."""
    baseline = sum(each.reads_per_request.baseline for each in tables)
    return baseline / max(1e-9, sum(each.reads_per_request.plan for each in tables))


def sentence_of(
    found: Verdict,
    advice: Advice,
    cost: Cost,
    tables: Mapping[str, TableReport],
) -> str:
    """Return the verdict as one sentence."""
    what = "this table" if len(tables) == 1 else "these tables"
    if found.recommendation == "do not":
        if found.reasons[0] == advice.reasons[0]:
            return f"Keep {'it' if len(tables) == 1 else 'them'} in DRAM: {found.reasons[0]}."
        return f"Do not serve {what} from NVM: {found.reasons[0]}."
    moved = [each for each in tables.values() if each.recommendation == "recommend"]
    if len(moved) < len(tables):
        what = f"{len(moved)} of {len(tables)} tables"
    gains = sorted(each.gain for each in moved)
    gain = f"{gains[0]:.2f}" if len(gains) == 1 else f"{gains[0]:.2f} to {gains[-1]:.2f}"
    return (
        f"Serve {what} from NVM: {gain} times fewer reads than a plain cache, and memory costs "
        f"{cost.saved_share:.0%} less than with all rows in DRAM; {_place(advice)}."
    )


def _place(advice: Advice) -> str:
    """Return where to serve it from."""
    if advice.answer == "one machine":
        return "one machine holds it"
    if advice.answer == "copies":
        where = f"{advice.in_copies.machines} whole copies behind a router are cheapest"
    else:
        cluster = advice.in_cluster
        where = f"from a cluster of {cluster.nodes} nodes, behind {cluster.machines} that answer"
    return f"{where}, instead of {advice.in_dram.machines} with all rows in DRAM"
