"""A real cluster that is killed, frozen and moved while threads read: rows must stay right.

Four threads look rows up and compare every one. Meanwhile nodes are killed with SIGKILL and
frozen with SIGSTOP, never both copies of anything at once; slots move; a node joins; versions are
loaded and switched to, some while a replica is frozen; and primaries are killed at the moment that
a load returns. Then nothing may be missing: a load fails, or each of its blocks has its copies.

Run it as ``python -m bandana_kv.testing.cluster_faults --seconds 180 --seed 0 --json``.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click

from bandana_kv.testing.cluster_readers import Readers, Stretch
from bandana_kv.testing.cluster_trial import Trial
from bandana_kv.testing.hushed import hushed
from bandana_kv.testing.real_cluster import RealCluster

__all__ = ["BAD", "main", "run"]

BAD = ("wrong_rows", "errors", "lost_rows")
"""What must be zero. The last: rows of a load that was not refused, gone with a primary."""

# More than sockets hold of it: the kernel passes on what a dead primary had written to one.
_TABLE: dict[str, Any] = {"rows": 20_000, "dim": 500}
# Loads and all these servers share the machine's cores, so that what is late need not be lost.
_PATIENCE_MS = 3000.0
_WATCH_S = 1.5
_MOVES, _LOADS = ("move", "move by key"), ("load", "frozen load", *("killed load",) * 2)
# What is done, as often as it stands here.
_ROUNDS = (*("kill",) * 3, *("freeze",) * 3, "both", *_MOVES, *_LOADS)


def run(
    seconds: float, seed: int, *, threads: int = 4, only: str | None = None, most: int | None = None
) -> dict[str, Any]:
    """Break a cluster of its own for some time.

    Parameters
    ----------
    seconds
        How long, but for the start and the end.
    seed
        Of what is broken when; how processes are scheduled it does not govern.
    threads
        That read.
    only
        One of the rounds, to do nothing else.
    most
        End after so many rounds.

    Returns
    -------
    dict
        Counts: of what was done, and of what must not be (:data:`BAD`); the longest call in ms,
        and `why`, the first errors in words.

    Raises
    ------
    MissingExtraError
        There is no server to start.
    """
    with (
        hushed(),
        tempfile.TemporaryDirectory(prefix="bandana-kv-cluster-faults-") as directory,
        RealCluster() as cluster,
        Trial(
            cluster, Path(directory) / "store", seed, patience_ms=_PATIENCE_MS, **_TABLE
        ) as trial,
    ):
        begun = time.monotonic()
        with Readers(trial.ask, trial.judge, trial.requests(5000), threads=threads) as readers:
            trial.join()
            while time.monotonic() < begun + seconds and trial.counts["rounds"] != most:
                _round(trial, readers, only or trial.rng.choice(_ROUNDS))
        trial.counts["lost_rows"] += trial.wrong_rows()
        return _found(trial, readers.stretches(), seed, time.monotonic() - begun)


def _round(trial: Trial, readers: Readers, what: str) -> None:
    """Break something, watch, and mend it."""
    trial.counts["rounds"] += 1
    readers.begin(what)
    if what in ("kill", "both"):
        trial.kill()
    if what in ("freeze", "both"):
        trial.freeze()
    if what.startswith("move"):
        by_key = what != "move"
        trial.move(0.002 if by_key else 0.05, by_key=by_key)
    if what == "load":
        trial.try_to_load()
    if what == "frozen load":
        trial.freeze_a_replica()
        trial.try_to_load()
    if what == "killed load":
        trial.counts["settled_and_killed"] += trial.load_and_kill()
    time.sleep(trial.rng.uniform(0, _WATCH_S))
    trial.mend()


def _found(trial: Trial, stretches: list[Stretch], seed: int, seconds: float) -> dict[str, Any]:
    names = ("calls", "rows", "wrong_rows", "errors")
    seen = {name: sum(getattr(each, name) for each in stretches) for name in names}
    return {
        "seed": seed,
        "seconds": round(seconds, 1),
        **trial.counts,
        **seen,
        "lost_rows": trial.counts["lost_rows"],
        "longest_ms": round(max(each.longest_ms for each in stretches), 1),
        "why": [f"{each.name}: {why}" for each in stretches for why in each.why][:20],
    }


@click.command()
@click.option("--seconds", default=60.0, show_default=True, type=click.FloatRange(0, min_open=True))
@click.option("--seed", default=0, show_default=True)
@click.option("--threads", default=4, show_default=True, type=click.IntRange(1))
@click.option("--only", type=click.Choice(sorted(set(_ROUNDS))), help="Rounds of one kind.")
@click.option("--rounds", "most", type=click.IntRange(1), help="End after so many.")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def main(
    seconds: float, seed: int, threads: int, only: str | None, most: int | None, as_json: bool
) -> None:
    """Kill, freeze and move a real cluster under readers; the status is 1 if anything was wrong."""
    found = run(seconds, seed, threads=threads, only=only, most=most)
    if as_json:
        click.echo(json.dumps(found, indent=1))
    else:
        for reason in found.pop("why"):
            click.echo(reason)
        click.echo(", ".join(f"{name.replace('_', ' ')} {count}" for name, count in found.items()))
    sys.exit(1 if any(found[name] for name in BAD) else 0)


if __name__ == "__main__":
    main()
