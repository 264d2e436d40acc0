"""One DRAM budget among tables of different logs: the plan's split against every other one.

    python bench/allocation.py --log a=A.npz --log b=B.npz [--ordered a] --cache 0.05 \
        --train 0.7 --steps 16 --seed 0 --json

`choose_plan` sees the first 70 % of each log. Then each table serves the rest of its log by
replay, as its choice says, with the first fifth to warm it; `reads` are block reads of all tables.

reads_plan
    As the plan shares the budget out.
reads_equal, reads_proportional
    As many bytes for each table; bytes by the tables' sizes.
reads_brute_force
    Of the best split in hindsight, on the test parts, of all that give each table a multiple of
    budget / steps.

For every amount of DRAM placement and policy are chosen in the same way, from training alone: the
splits differ in nothing else. Budget: what 5 % of all rows and their bookkeeping take under LRU.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import click
from common import report, surroundings

from bandana_kv import AccessLog
from bandana_kv.cache.heat import heat_by_position
from bandana_kv.cache.policy import Policy
from bandana_kv.cache.state import cache_bytes_of, capacity_for
from bandana_kv.placement import Placement
from bandana_kv.plan import Choice, choose_plan
from bandana_kv.plan.choose import Base, Subject, choose
from bandana_kv.progress import Progress
from bandana_kv.simulate import replay
from bandana_kv.tools.console import by_table

WARM_SHARE = 0.2
ROW_BYTES = 128


class Served:
    """A table, and what its test part costs with any amount of DRAM."""

    def __init__(self, subject: Subject, test: AccessLog) -> None:
        self.subject, self.test = subject, test
        self.base = Base.of(subject)
        self._placed: dict[tuple[str, int], Placement] = {}
        self._at: dict[int, int] = {}

    def choice(self, cache_bytes: int) -> Choice:
        each = self.subject
        return choose(
            each, lambda p: capacity_for(p, cache_bytes, each.row_bytes, each.rows), self.base
        )

    def reads(self, choice: Choice) -> int:
        how = (choice.placement, choice.resident_rows)
        if how not in self._placed:
            self._placed[how] = self.subject.placed(self.subject.log, *how)
        placement = self._placed[how]
        return replay(
            self.test,
            placement,
            choice.capacity_rows,
            policy=choice.policy,
            heat=heat_by_position(self.subject.log.ids, placement.position_of_id),
            warm_requests=int(WARM_SHARE * self.test.requests),
        ).block_reads

    def reads_at(self, cache_bytes: int) -> int:
        each = self.subject
        # More than holds all rows is no more.
        most = cache_bytes_of(Policy("s3-fifo"), each.rows, each.row_bytes, each.rows)
        wanted = min(cache_bytes, most)
        if wanted not in self._at:
            self._at[wanted] = self.reads(self.choice(wanted))
        return self._at[wanted]


@click.command()
@click.option("--log", "logs", multiple=True, required=True, callback=by_table, help="NAME=LOG")
@click.option("--ordered", multiple=True, help="NAME of a log in order of time.")
@click.option("--row-bytes", multiple=True, callback=by_table, help="NAME=N, where not 128.")
@click.option("--rows-per-block", default=32, show_default=True)
@click.option("--cache", "cache_fraction", default=0.05, show_default=True, help="DRAM / rows.")
@click.option("--train", default=0.7, show_default=True)
@click.option("--steps", default=16, show_default=True, help="Of the grid of splits.")
@click.option("--seed", default=0, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON alone, which it does anyway.")
@click.option("--keep", is_flag=True, help="Keep the result under bench/results/.")
def main(
    logs: dict[str, str],
    ordered: tuple[str, ...],
    row_bytes: dict[str, str],
    rows_per_block: int,
    cache_fraction: float,
    train: float,
    steps: int,
    seed: int,
    as_json: bool,  # noqa: ARG001  # JSON is all it prints
    keep: bool,
) -> None:
    served: dict[str, Served] = {}
    for name, path in logs.items():
        log = AccessLog.read(path)
        learn, test = log.split(train=train, ordered=name in ordered, seed=seed)
        size = int(row_bytes.get(name, ROW_BYTES))
        subject = Subject(name, log.rows, size, rows_per_block, learn, seed, Progress())
        served[name] = Served(subject, test)
    subjects = {name: each.subject for name, each in served.items()}
    budget = sum(
        cache_bytes_of(Policy(), int(cache_fraction * each.rows), each.row_bytes, each.rows)
        for each in subjects.values()
    )
    plan = choose_plan(
        {name: (each.rows, each.row_bytes) for name, each in subjects.items()},
        {name: each.log for name, each in subjects.items()},
        budget,
        rows_per_block=rows_per_block,
        seed=seed,
    )
    choices = {
        name: table.choice for name, table in plan.tables.items() if table.choice is not None
    }
    of_plan = {name: served[name].reads(choice) for name, choice in choices.items()}
    weights = {name: each.rows * each.row_bytes for name, each in subjects.items()}
    grid = {
        name: [each.reads_at(step * budget // steps) for step in range(steps + 1)]
        for name, each in served.items()
    }
    best = _brute_force(list(grid.values()), steps)
    splits = {
        "equal": dict.fromkeys(served, budget // len(served)),
        "proportional": {
            name: budget * weight // sum(weights.values()) for name, weight in weights.items()
        },
        "brute_force": {
            name: step * budget // steps for name, step in zip(served, best, strict=True)
        },
    }
    reads = {
        how: {name: served[name].reads_at(share) for name, share in split.items()}
        for how, split in splits.items()
    }
    reads["plan"] = of_plan
    splits["plan"] = {name: choice.cache_bytes for name, choice in choices.items()}
    total = {how: sum(by_table.values()) for how, by_table in reads.items()}
    result = {
        "tables": {
            name: {
                "log": Path(logs[name]).stem,
                "rows": each.rows,
                "row_bytes": each.row_bytes,
                "training_lookups": each.log.lookups,
                "ordered": name in ordered,
                "placement": choices[name].placement,
                "resident_rows": choices[name].resident_rows,
                "policy": str(choices[name].policy),
                "cache_bytes": {how: split[name] for how, split in splits.items()},
                "reads": {how: by_table[name] for how, by_table in reads.items()},
                "grid_reads": grid[name],
            }
            for name, each in subjects.items()
        },
        "budget_bytes": budget,
        "cache_fraction": cache_fraction,
        "steps": steps,
        **{f"reads_{how}": total[how] for how in total},
        **{
            f"plan_over_{how}": total["plan"] / max(1, total[how]) for how in total if how != "plan"
        },
        "rows_per_block": rows_per_block,
        "surroundings": surroundings(seed),
    }
    report(result, f"allocation-{cache_fraction:g}" if keep else None)


def _brute_force(grid: Sequence[Sequence[int]], steps: int) -> tuple[int, ...]:
    """Return the steps of DRAM for each table that sum to `steps` and read least."""
    splits = (
        (*split, steps - sum(split))
        for split in itertools.product(range(steps + 1), repeat=len(grid) - 1)
        if sum(split) <= steps
    )
    return min(
        splits, key=lambda split: sum(of[step] for of, step in zip(grid, split, strict=True))
    )


if __name__ == "__main__":
    main()
