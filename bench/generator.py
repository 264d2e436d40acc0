"""An access log of the paper's setting: users whose lists change slowly visit again and again.

    python bench/generator.py --rows 10000000 --out log.npz

A user has a list of 20 to 90 ids, evenly drawn. A request is a visit: it looks up the user's
whole list, after CHURN of it, in the mean, was drawn anew. Who visits is drawn by activities
that follow a power law (Pareto, exponent ACTIVITY, at most MOST_TIMES the least), so that few
users visit often and many rarely; the mean is VISITS times. Requests come in order of time.

How popular rows are follows what Meta published of its production traffic (histogram of lookups
a row in `embedding_bag/2022/locality_stats.txt` of facebookresearch/dlrm_datasets, MIT licence):
the table below gives for each bin of lookups the share of rows and the share of lookups. Each
row of the log is dealt a bin by the first, and weighs what gives the bin its second. Bins of
which no row is left at three digits get as many rows as their lookups at the bin's middle need.

Where an id of a list is drawn from:

- a share of HOT_LOOKUPS, which is what the published rows above 256 lookups get, from the rows
  of those bins, by weight: what everybody looks at;
- of the rest, COMMUNITY_SHARE from the user's communities, by weight inside them. All rows that
  are not hot are dealt at random into communities of 32 to 511 rows (evenly in the logarithm);
  a user belongs to COMMUNITIES of them, drawn by what their rows weigh in all;
- what remains from all rows that are not hot, by weight: noise.

So half of a list comes from communities, 39 % from hot rows, 12 % is noise. An id drawn twice
counts once.

What this grants and what not: that lists last is what a layout learns from, and the gain depends
on it; with a CHURN of 1 there is hardly any but for communities, with VISITS of 1 likewise.
Neither the published figures nor the paper tell how requests overlap, so churn, visits and
communities are assumptions, not measurements. Popularity is Meta's: of all tables of a batch
together, as published.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from bandana_kv import AccessLog

# Lookups of a row (upper end of the bin): share of the rows, share of the lookups.
PUBLISHED = {
    1: (0.342, 0.027),
    2: (0.144, 0.023),
    4: (0.149, 0.040),
    8: (0.138, 0.068),
    16: (0.112, 0.105),
    32: (0.068, 0.120),
    64: (0.029, 0.099),
    128: (0.010, 0.070),
    256: (0.004, 0.059),
    512: (0.002, 0.054),
    1024: (0.001, 0.040),
    2048: (0.001, 0.072),
    4096: (0.0, 0.064),
    8192: (0.0, 0.047),
    16384: (0.0, 0.021),
    32768: (0.0, 0.017),
    65536: (0.0, 0.076),
}
PUBLISHED_MEAN = 12.7  # lookups a row
HOT_ABOVE = 256
HOT_LOOKUPS = sum(lookups for edge, (_, lookups) in PUBLISHED.items() if edge > HOT_ABOVE)

SHORTEST, LONGEST = 20, 90
CHURN = 0.04
VISITS = 10
ACTIVITY, MOST_TIMES = 1.2, 1000
COMMUNITY_SHARE = 0.8
COMMUNITIES = 4
SMALLEST, LARGEST = 32, 512
LOOKUPS_PER_ROW = 3  # of all rows, those never looked up included


class Drawing:
    """Draws rows by weight, from all or from consecutive ones."""

    def __init__(self, rows: NDArray[np.int32], weights: NDArray[np.float64]) -> None:
        self.rows = rows
        self.below = np.concatenate([[0.0], np.cumsum(weights)])

    def draw(
        self,
        rng: np.random.Generator,
        count: int,
        first: NDArray[np.int64] | int = 0,
        end: NDArray[np.int64] | int = -1,
    ) -> NDArray[np.int32]:
        """Draw `count` of rows ``first:end``, which may differ for each."""
        low, high = self.below[first], self.below[end]
        places = np.searchsorted(self.below, low + rng.random(count) * (high - low), "right") - 1
        return self.rows[np.minimum(places, self.rows.size - 1)]


def row_weights(rows: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return how popular each row is, as published."""
    edges = np.array(list(PUBLISHED), np.float64)
    of_rows, of_lookups = np.array(list(PUBLISHED.values())).T
    needed = of_lookups * PUBLISHED_MEAN / (0.75 * edges)
    of_rows = np.where(of_rows > 0, of_rows, needed)
    counts = np.maximum(1, np.round(rows * of_rows / of_rows.sum())).astype(np.int64)
    weights = np.repeat(of_lookups / counts, counts)
    # Rounding leaves some too few or too many of the least popular.
    weights = np.concatenate([np.full(max(0, rows - weights.size), weights[0]), weights])[-rows:]
    return rng.permutation(weights)


def hot_rows(weights: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which rows are in the bins above HOT_ABOVE."""
    order = np.argsort(weights)[::-1]
    below = np.cumsum(weights[order]) <= HOT_LOOKUPS * weights.sum()
    hot = np.zeros(weights.size, np.bool_)
    hot[order[below]] = True
    return hot


class World:
    """Rows with their weights and communities, and how an id of a list is drawn."""

    def __init__(
        self,
        weights: NDArray[np.float64],
        order: NDArray[np.int32],
        ends: NDArray[np.int64],
        rng: np.random.Generator,
    ) -> None:
        """Take the rows that are not hot in the order of their communities, and where each ends."""
        self.rng = rng
        hot = np.flatnonzero(hot_rows(weights)).astype(np.int32)
        self.hot = Drawing(hot, weights[hot])
        self.others = Drawing(order, weights[order])
        self.ends = ends

    def communities(self, users: int) -> NDArray[np.int64]:
        """Return the communities of users (users, COMMUNITIES), drawn by their weight."""
        below = self.others.below[self.ends]
        points = self.rng.random((users, COMMUNITIES)) * below[-1]
        found = np.searchsorted(below, points, "right") - 1
        return np.minimum(found, self.ends.size - 2)

    def draw(self, of_user: NDArray[np.int64]) -> NDArray[np.int32]:
        """Draw an id for each of the users whose communities are given (n, COMMUNITIES)."""
        rng, count = self.rng, len(of_user)
        drawn = np.empty(count, np.int32)
        kind = rng.random(count)
        hot = kind < HOT_LOOKUPS
        drawn[hot] = self.hot.draw(rng, np.count_nonzero(hot))
        own = kind >= 1 - (1 - HOT_LOOKUPS) * COMMUNITY_SHARE
        picked = of_user[own, rng.integers(0, COMMUNITIES, np.count_nonzero(own))]
        drawn[own] = self.others.draw(rng, picked.size, self.ends[picked], self.ends[picked + 1])
        rest = ~hot & ~own
        drawn[rest] = self.others.draw(rng, np.count_nonzero(rest))
        return drawn


def dealt(
    weights: NDArray[np.float64], rng: np.random.Generator
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Deal the rows that are not hot into communities: these rows in order, and all the ends."""
    order = rng.permutation(np.flatnonzero(~hot_rows(weights)).astype(np.int32))
    most = weights.size // SMALLEST + 1
    sizes = np.exp(rng.uniform(np.log(SMALLEST), np.log(LARGEST), most))
    ends = np.cumsum(sizes.astype(np.int64))
    return order, np.concatenate([[0], ends[ends < order.size], [order.size]])


def distinct(lists: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return each list sorted, with -1 in the place of every repeat."""
    lists = np.sort(lists, axis=1)
    lists[:, 1:][lists[:, 1:] == lists[:, :-1]] = -1
    return lists


def visits_of(users: int, visits: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return who visits, in order of time."""
    activity = np.minimum((1 - rng.random(users)) ** (-1 / ACTIVITY), MOST_TIMES)
    below = np.cumsum(activity)
    found = np.searchsorted(below, rng.random(visits) * below[-1], "right")
    return np.minimum(found, users - 1)


def generate(rows: int, lookups: int | None = None, seed: int = 0) -> AccessLog:
    """Return a log of about `lookups` lookups (by default three a row) of a table of `rows`.

    Cost: about 2.5 times the memory of the log; 30 million lookups take some 20 s.
    """
    lookups = lookups or LOOKUPS_PER_ROW * rows
    rng = np.random.default_rng(seed)
    visits = max(VISITS, 2 * lookups // (SHORTEST + LONGEST))
    users = max(1, visits // VISITS)
    weights = row_weights(rows, rng)
    world = World(weights, *dealt(weights, rng), rng)
    who = visits_of(users, visits, rng)
    lengths = rng.integers(SHORTEST, LONGEST + 1, users)
    communities = world.communities(users)
    held = np.arange(LONGEST) < lengths[:, None]
    lists = np.full((users, LONGEST), -1, np.int32)
    lists[held] = world.draw(np.repeat(communities, lengths, axis=0))
    looked_up = np.empty((visits, LONGEST), np.int32)
    for turn in _turns(who, users):
        user = who[turn]
        drawn_anew = held[user] & (rng.random((user.size, LONGEST)) < CHURN)
        now = lists[user]
        now[drawn_anew] = world.draw(
            np.repeat(communities[user], np.count_nonzero(drawn_anew, axis=1), axis=0)
        )
        lists[user] = now
        looked_up[turn] = distinct(now)
    valid = looked_up >= 0
    offsets = np.concatenate([[0], np.cumsum(np.count_nonzero(valid, axis=1))])
    return AccessLog(offsets, looked_up[valid])


def _turns(who: NDArray[np.int64], users: int) -> list[NDArray[np.int64]]:
    """Return the numbers of everybody's first visits, then of second ones, and so on."""
    by_user = np.argsort(who, kind="stable")
    counts = np.bincount(who, minlength=users)
    rank = np.arange(who.size) - np.repeat(np.cumsum(counts) - counts, counts)
    order = np.argsort(rank, kind="stable")
    return np.split(by_user[order], np.cumsum(np.bincount(rank))[:-1])


@click.command()
@click.option("--rows", default=10_000_000, show_default=True)
@click.option("--lookups", type=int, help="About.  [default: three a row]")
@click.option("--seed", default=0, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), required=True)
def main(rows: int, lookups: int | None, seed: int, out: Path) -> None:
    log = generate(rows, lookups, seed)
    log.write(out)
    counts = np.bincount(log.ids, minlength=rows)
    used = np.sort(counts[counts > 0])[::-1]
    print(f"{log}; {used.size} rows looked up; to the most used 5 % of the table's rows go")
    print(f"{used[: rows // 20].sum() / log.lookups:.3f} of the lookups")


if __name__ == "__main__":
    main()
