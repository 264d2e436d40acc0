"""What re-placement within a budget of writes keeps of a full one's gain, as traffic drifts.

    python bench/drift.py --log L.npz [--ordered] --json
    python bench/drift.py --generator --json

A log: placement and plan are learnt on its first 40 %, a new placement on the next 40 %, and block
reads are counted on the last 20 %, which nothing has seen. A log that is not `--ordered` is put
into random order first: it cannot drift, and the answer should be "nothing".

The generator (drift_generator.py): learnt on OLD_DAYS days; then the table is placed anew every
night from the last OLD_DAYS days, and block reads are counted on the last day. `once` in the result
is the same without all nights but the last: one re-placement after all of the drift.

reads_stale
    With the placement of the old part. The same policy, DRAM and heat of rows everywhere; what the
    new placement is learnt from also warms every cache.
reads_full, blocks_full
    With a full re-placement each time, as the plan places, and the blocks that these rewrote: those
    with rows that no block held together before.
incremental
    For several budgets, as shares of `blocks_full` each time. gain_recovered is
    (stale - reads) / (stale - full); null where a full re-placement gains nothing that stands out
    from the differences between parts of what is counted, and `reason` says so.
strict
    The incremental one learns from what a cache misses, and more from the latest. What a
    re-placement learnt like that reads if it may write what it likes, what it writes, and
    `gain_recovered` held against that one, which is harder. `incremental` has the same budgets.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from common import report, surroundings
from drift_generator import VISITS_A_DAY, drifting

from bandana_kv import AccessLog
from bandana_kv.cache.heat import count_lookups, heat_of_counts
from bandana_kv.care.drift import Served as How
from bandana_kv.care.drift import advise
from bandana_kv.disk.placement import layout_of
from bandana_kv.placement import Placement
from bandana_kv.placement.incremental import Replacing, blocks_changed
from bandana_kv.plan import Choice
from bandana_kv.plan.choose import Subject, choose
from bandana_kv.progress import Progress
from bandana_kv.simulate.replay import Replayed, run_parts, stream_of

BUDGETS = (0.05, 0.1, 0.25, 0.5)
ROW_BYTES = 128
OLD, COUNTED = 0.4, 0.2
GENERATED_ROWS, DAYS, OLD_DAYS = 200_000, 16, 4
PARTS = 5


@dataclass(frozen=True)
class Timeline:
    """A log, and the numbers of the requests at which something happens."""

    log: AccessLog
    rows: int
    learnt_until: int
    placed_at: tuple[int, ...]  # the last one is where counting begins

    def between(self, first: int, last: int) -> AccessLog:
        begin, end = self.log.offsets[first], self.log.offsets[last]
        offsets = self.log.offsets[first : last + 1] - begin
        return AccessLog(offsets, self.log.ids[begin:end])

    def window(self, end: int) -> AccessLog:
        return self.between(end - self.learnt_until, end)


class Served:
    """How the table is served, whatever the placement, and what that costs."""

    def __init__(self, timeline: Timeline, choice: Choice, rows_per_block: int, seed: int) -> None:
        self.timeline, self.choice, self.seed = timeline, choice, seed
        self.rows_per_block = rows_per_block
        old = timeline.between(0, timeline.learnt_until)
        self.heat_of_id = heat_of_counts(count_lookups(old.ids, timeline.rows))
        self.serving = self.placed_as_planned(old)

    def placed_as_planned(self, log: AccessLog) -> Placement:
        rows = self.timeline.rows
        subject = Subject("log", rows, ROW_BYTES, self.rows_per_block, log, self.seed, Progress())
        return subject.placed(log, self.choice.placement, self.choice.resident_rows)

    def heat(self, placement: Placement) -> np.ndarray:
        return self.heat_of_id[placement.id_of_position()]

    def replacing(self, log: AccessLog, placement: Placement) -> Replacing:
        return Replacing.of(
            log,
            placement,
            capacity_rows=self.choice.capacity_rows,
            policy=self.choice.policy,
            heat=self.heat(placement),
            seed=self.seed,
        )

    def counted(self, placement: Placement) -> list[Replayed]:
        """Count what comes after the last re-placement, in parts."""
        first = self.timeline.placed_at[-1]
        begin = first - self.timeline.learnt_until
        log = self.timeline.between(begin, self.timeline.log.requests)
        stream = stream_of(log, placement, first - begin)
        layout = layout_of(placement, self.heat(placement))
        return run_parts(stream, layout, self.choice.policy, self.choice.capacity_rows, PARTS)


@dataclass(frozen=True)
class Outcome:
    """What a way to place anew at several times comes to."""

    parts: list[Replayed]
    rewritten: list[int]  # blocks, each time

    @property
    def reads(self) -> int:
        return sum(part.block_reads for part in self.parts)


def outcome(
    served: Served, times: Sequence[int], anew: Callable[[AccessLog, Placement, int], Placement]
) -> Outcome:
    """Place anew at `times`: `anew` gets the window, what is served, and which time it is."""
    placement, rewritten = served.serving, []
    for number, end in enumerate(times):
        changed = anew(served.timeline.window(end), placement, number)
        rewritten.append(blocks_changed(placement, changed))
        placement = changed
    return Outcome(served.counted(placement), rewritten)


def _nothing_to_recover(stale: Outcome, full: Outcome) -> str | None:
    """Say why a share of the gain would be a division by nearly nothing; None: it is not."""
    pairs = zip(stale.parts, full.parts, strict=True)
    saved = np.array([before.block_reads - after.block_reads for before, after in pairs])
    gain = saved.sum() / max(1, stale.reads)
    if gain >= 0.01 and saved.mean() >= 2 * saved.std(ddof=1) / np.sqrt(saved.size):
        return None
    return (
        f"a full re-placement saves {100 * gain:.1f} % of the reads, which does not stand out "
        "from the differences between parts"
    )


def recovered(stale: Outcome, each: Outcome, full: Outcome) -> float | None:
    if _nothing_to_recover(stale, full):
        return None
    return (stale.reads - each.reads) / (stale.reads - full.reads)


def compare(served: Served, times: tuple[int, ...]) -> dict[str, Any]:
    """Compare all ways of placing anew at `times`."""
    stale = Outcome(served.counted(served.serving), [0])
    full = outcome(served, times, lambda log, _, __: served.placed_as_planned(log))
    strict = outcome(
        served, times, lambda log, before, _: served.replacing(log, before).within(before.blocks)
    )
    incremental = {}
    for budget in BUDGETS:

        def within(log: AccessLog, before: Placement, number: int, budget: float = budget) -> Any:
            return served.replacing(log, before).within(int(budget * full.rewritten[number]))

        incremental[budget] = outcome(served, times, within)
    blocks_full = sum(full.rewritten)
    return {
        "times": len(times),
        "reads_stale": stale.reads,
        "reads_full": full.reads,
        "blocks_full": blocks_full,
        "incremental": [
            {
                "blocks_rewritten_fraction": sum(each.rewritten) / max(1, blocks_full),
                "reads": each.reads,
                "gain_recovered": recovered(stale, each, full),
            }
            for each in incremental.values()
        ],
        "strict": {
            "reads_full": strict.reads,
            "blocks_full": sum(strict.rewritten),
            "gain_recovered": [recovered(stale, each, strict) for each in incremental.values()],
        },
        "lookups": sum(part.lookups for part in stale.parts),
        "reason": _nothing_to_recover(stale, full),
    }


def _advice(served: Served) -> dict[str, Any]:
    """Return what is advised when counting begins, to whoever has not placed anew before."""
    window = served.timeline.window(served.timeline.placed_at[-1])
    how = How(
        served.serving,
        served.choice.capacity_rows,
        served.choice.policy,
        heat=served.heat(served.serving),
    )
    begun = time.perf_counter()
    advice = advise(window, how, seed=served.seed)
    return {
        "action": advice.action,
        "new_plan": None if advice.policy is None else str(advice.policy),
        "blocks": advice.blocks,
        "saved": advice.chosen.saved,
        "reason": advice.reason,
        "seconds": round(time.perf_counter() - begun, 1),
    }


def timeline_of_log(path: Path, ordered: bool, seed: int) -> Timeline:
    log = AccessLog.read(path)
    if not ordered:
        log = log.select(np.random.default_rng(seed).permutation(log.requests))
    count_from = int((1 - COUNTED) * log.requests)
    return Timeline(log, log.rows, int(OLD * log.requests), (count_from,))


def timeline_of_generator(rows: int, days: int, visits: float, seed: int) -> Timeline:
    log = drifting(rows, days, seed, visits)
    day = log.requests // days
    nights = tuple(day * number for number in range(OLD_DAYS + 1, days))
    return Timeline(log, rows, OLD_DAYS * day, nights)


@click.command()
@click.option("--log", "path", type=Path)
@click.option("--ordered", is_flag=True, help="The log is in order of time.")
@click.option("--generator", is_flag=True, help="Instead of a log.")
@click.option("--rows", default=GENERATED_ROWS, show_default=True, help="Of the generator.")
@click.option("--days", default=DAYS, show_default=True, help="Of the generator.")
@click.option("--visits", default=VISITS_A_DAY, show_default=True, help="Of a user, a day.")
@click.option("--rows-per-block", default=32, show_default=True)
@click.option("--cache", "cache_fraction", default=0.05, show_default=True, help="DRAM / rows.")
@click.option("--seed", default=0, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON alone, which it does anyway.")
@click.option("--keep", is_flag=True, help="Keep the result under bench/results/.")
def main(
    path: Path | None,
    ordered: bool,
    generator: bool,
    rows: int,
    days: int,
    visits: float,
    rows_per_block: int,
    cache_fraction: float,
    seed: int,
    as_json: bool,  # noqa: ARG001  # JSON is all it prints
    keep: bool,
) -> None:
    if (path is None) != generator:
        raise click.UsageError("give --log or --generator, and not both")
    begun = time.perf_counter()
    if path is None:
        name, timeline = "generator", timeline_of_generator(rows, days, visits, seed)
    else:
        name, timeline = path.stem, timeline_of_log(path, ordered, seed)
    old = timeline.between(0, timeline.learnt_until)
    capacity_rows = max(1, int(cache_fraction * timeline.rows))
    subject = Subject(name, timeline.rows, ROW_BYTES, rows_per_block, old, seed, Progress())
    choice = choose(subject, lambda _: capacity_rows)
    served = Served(timeline, choice, rows_per_block, seed)
    result = compare(served, timeline.placed_at)
    if generator:
        result["once"] = compare(served, timeline.placed_at[-1:])
    result |= {
        "log": name,
        "ordered": ordered or generator,
        "rows": timeline.rows,
        "days": days if generator else None,
        "visits_a_day": visits if generator else None,
        "advice": _advice(served),
        "blocks": served.serving.blocks,
        "capacity_rows": capacity_rows,
        "placement": choice.placement,
        "policy": str(choice.policy),
        "seconds": round(time.perf_counter() - begun, 1),
        "surroundings": surroundings(seed),
    }
    kind = f"-{visits:g}" if generator and visits != VISITS_A_DAY else ""
    report(result, f"drift-{name}{kind}" if keep else None)


if __name__ == "__main__":
    main()
