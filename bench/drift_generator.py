"""An access log whose traffic drifts: the same users for days, with lists that change every day.

    python bench/drift_generator.py --rows 200000 --days 16 --out log.npz

The users, their lists, how popular rows are and where an id of a list is drawn from are those of
generator.py, which says what of it is published and what assumed. A user visits VISITS_A_DAY
times a day in the mean and looks the whole list up. Requests come in order of time, LOOKUPS_A_DAY
a row and day. Overnight

- LIST_CHANGE of every list is drawn anew, from the world as it is then;
- popularity moves: the weights of WEIGHTS_MOVED of the rows are dealt among them anew, so that
  what everybody looked at may be forgotten, and the other way round;
- communities shift: ROWS_MOVED of the rows that are not hot change places with each other, and
  each of a user's communities is another one with a chance of COMMUNITY_CHANGE.

All of these are assumptions: nobody has published how fast the lists of users change. What stays
in a list although it became unpopular is still looked up, as it is in life.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import numpy as np
from generator import (
    LONGEST,
    SHORTEST,
    World,
    dealt,
    distinct,
    hot_rows,
    row_weights,
    visits_of,
)
from numpy.typing import NDArray

from bandana_kv import AccessLog

LOOKUPS_A_DAY = 2
VISITS_A_DAY = 4.0
LIST_CHANGE = 0.1
WEIGHTS_MOVED = 0.05
ROWS_MOVED = 0.02
COMMUNITY_CHANGE = 0.02


def _deal_anew(values: NDArray[Any], share: float, rng: np.random.Generator) -> None:
    """Permute a share of the values, drawn at random, among their places."""
    chosen = rng.permutation(values.size)[: int(share * values.size)]
    values[chosen] = values[rng.permutation(chosen)]


def _world(
    weights: NDArray[np.float64], community_of_row: NDArray[np.int32], rng: np.random.Generator
) -> World:
    """Return the world as it is after rows became hot or cold, or changed their community."""
    others = np.flatnonzero(~hot_rows(weights)).astype(np.int32)
    order = others[np.argsort(community_of_row[others], kind="stable")]
    ends = np.searchsorted(community_of_row[order], np.arange(community_of_row.max() + 2))
    return World(weights, order, ends, rng)


def drifting(rows: int, days: int, seed: int = 0, visits_a_day: float = VISITS_A_DAY) -> AccessLog:
    """Return the log of `days` days of a table of `rows`.

    Cost: about twice the memory of the log; 8 million lookups take some 5 s.
    """
    rng = np.random.default_rng(seed)
    visits = max(1, 2 * LOOKUPS_A_DAY * rows // (SHORTEST + LONGEST))
    users = max(1, int(visits / visits_a_day))
    weights = row_weights(rows, rng)
    order, ends = dealt(weights, rng)
    # Those that are hot now get a community for the day on which they no longer are.
    community_of_row = rng.integers(0, ends.size - 1, rows, np.int32)
    community_of_row[order] = np.repeat(np.arange(ends.size - 1), np.diff(ends))
    world = World(weights, order, ends, rng)
    who = visits_of(users, days * visits, rng)
    lengths = rng.integers(SHORTEST, LONGEST + 1, users)
    held = np.arange(LONGEST) < lengths[:, None]
    communities = world.communities(users)
    lists = np.full((users, LONGEST), -1, np.int32)
    lists[held] = world.draw(np.repeat(communities, lengths, axis=0))
    looked_up = []
    for visitors in np.split(who, days):
        looked_up.append(distinct(lists[visitors]))
        _deal_anew(weights, WEIGHTS_MOVED, rng)
        _deal_anew(community_of_row, ROWS_MOVED, rng)
        world = _world(weights, community_of_row, rng)
        other = rng.random(communities.shape) < COMMUNITY_CHANGE
        communities = np.where(other, world.communities(users), communities)
        anew = held & (rng.random(lists.shape) < LIST_CHANGE)
        of_user = np.repeat(communities, np.count_nonzero(anew, axis=1), axis=0)
        lists[anew] = world.draw(of_user)
    every = np.concatenate(looked_up)
    valid = every >= 0
    offsets = np.concatenate([[0], np.cumsum(np.count_nonzero(valid, axis=1))])
    return AccessLog(offsets, every[valid])


@click.command()
@click.option("--rows", default=200_000, show_default=True)
@click.option("--days", default=16, show_default=True)
@click.option("--visits", default=VISITS_A_DAY, show_default=True, help="Of a user, a day.")
@click.option("--seed", default=0, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), required=True)
def main(rows: int, days: int, visits: float, seed: int, out: Path) -> None:
    log = drifting(rows, days, seed, visits)
    log.write(out)
    print(f"{log}; {np.unique(log.ids).size} of {rows} rows looked up")


if __name__ == "__main__":
    main()
