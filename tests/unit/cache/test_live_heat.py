"""Live heat: right in expectation, to the chance of a byte, and forgotten by the half-life.

Values are in eighths of a lookup, as the codes stand for them.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from bandana_kv.cache.heat import heat_of_counts
from bandana_kv.cache.live_heat import _UNITS, _VALUES, age, bump, credit, random32, seeded
from bandana_kv.cache.policy import Policy
from bandana_kv.cache.request import admit, look_up, missing, new_counters
from bandana_kv.cache.state import make_state
from bandana_kv.kernels.compile import kernel
from bandana_kv.kernels.layout import Layout, cover

ROWS = 20_000
NOTHING = np.zeros(0, np.uint32)


@kernel
def _bump_all(live: NDArray[np.uint8], first: int) -> None:
    for position in range(live.size):
        bump(live, position, first + position)


@kernel
def _credit_all(live: NDArray[np.uint8], together: int, first: int) -> None:
    for position in range(live.size):
        credit(live, position, together, first + position)


def mean_lookups(live: NDArray[np.uint8]) -> float:
    return float(_VALUES[live].mean()) / _UNITS


def test_codes_begin_at_nothing_rise_and_reach_far() -> None:
    assert _VALUES[0] == 0.0
    assert np.all(np.diff(_VALUES) > 0)
    assert _VALUES[-1] / _UNITS > 1000


def test_random_numbers_are_even_and_depend_on_the_number_alone() -> None:
    drawn = np.array([random32(number) for number in range(4000)])
    assert drawn.tolist() == [random32(number) for number in range(4000)]
    assert drawn.min() >= 0
    assert drawn.max() < 1 << 32
    sixteenths = np.bincount(drawn >> 28, minlength=16)
    assert np.abs(sixteenths - 250).max() < 5 * math.sqrt(250)


@pytest.mark.parametrize("lookups", [1, 2, 10, 100, 500])
def test_a_lookup_adds_a_lookup_in_expectation(lookups: int) -> None:
    live = np.zeros(ROWS, np.uint8)
    for number in range(lookups):
        _bump_all(live, number * ROWS)
    # A count by chance strays by a share of itself, sqrt((base - 1) / 2) at most.
    tolerance = 5 * lookups * math.sqrt(0.03 / 2) / math.sqrt(ROWS)
    assert mean_lookups(live) == pytest.approx(lookups, abs=tolerance + 5 / math.sqrt(ROWS))


@pytest.mark.parametrize("together", [1, 2, 7, 31])
def test_a_read_is_shared_by_the_rows_that_caused_it(together: int) -> None:
    live = np.full(ROWS, 40, np.uint8)
    before = mean_lookups(live)
    times = 50
    for number in range(times):
        _credit_all(live, together, number * ROWS)
    assert mean_lookups(live) - before == pytest.approx(times / together, rel=0.02)


def test_heat_stops_at_the_last_code() -> None:
    live = np.full(1000, 255, np.uint8)
    for number in range(20):
        _bump_all(live, number * 1000)
        _credit_all(live, 1, number * 1000)
    assert live.min() >= 254


@pytest.mark.parametrize("code", [1, 5, 30, 100, 200, 255])
def test_a_sweep_halves_every_row_once(code: int) -> None:
    live = np.full(ROWS, code, np.uint8)
    before = mean_lookups(live)
    age(live, 0, ROWS // 4)
    assert np.all(live[ROWS // 4 :] == code)
    age(live, ROWS // 4, ROWS)
    gap = (_VALUES[live.max()] - _VALUES[live.min()]) / _UNITS
    assert mean_lookups(live) == pytest.approx(before / 2, abs=4 * gap / math.sqrt(ROWS) + 1e-9)
    assert np.all(live <= code)
    assert live.mean() < code


def test_rows_without_heat_stay_so() -> None:
    live = np.zeros(100, np.uint8)
    age(live, 0, 1000)
    assert not live.any()


def test_more_than_a_sweep_at_once_is_one_sweep() -> None:
    """A request with more lookups than the half-life must not cost more than a pass."""
    live, once = np.full(100, 200, np.uint8), np.full(100, 200, np.uint8)
    age(live, 0, 5 * live.size)
    age(once, 4 * live.size, 5 * live.size)
    assert np.array_equal(live, once)


@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0, 2.0])
def test_seeds_are_what_steady_traffic_would_leave(weight: float) -> None:
    """A row with a share of the lookups has that share of half_life / ln 2 of them."""
    counts = np.random.default_rng(0).geometric(0.1, 1000) - 1
    half_life = 5000
    live = seeded(heat_of_counts(counts), half_life, weight)
    expected = weight * counts / counts.sum() * half_life / math.log(2)
    # The nearest code is off by half its gap at most.
    gaps = np.append(np.diff(_VALUES), 0.0)[live] / _UNITS
    assert np.all(np.abs(_VALUES[live] / _UNITS - expected) <= 0.5 * 1.03 * gaps + 1e-9)
    assert np.all(live[counts == 0] == 0)
    assert np.any(live) == (weight > 0)


def test_a_table_without_a_log_is_seeded_cold() -> None:
    assert not seeded(np.zeros(10, np.uint8), 1000, 1.0).any()


class Asked:
    """A cache, by default of all rows, that nothing is known of beforehand."""

    def __init__(
        self, half_life_lookups: int, rows: int, *, per_block: int = 1, capacity: int | None = None
    ) -> None:
        held = rows if capacity is None else capacity
        policy = Policy("tinylfu", half_life=half_life_lookups / held, seed_weight=0.0)
        self.layout = Layout(per_block, np.zeros(rows, np.uint8), NOTHING, NOTHING)
        self.state = make_state(policy, held, self.layout.heat)
        self.counters = new_counters()

    def ask(self, rows: list[int]) -> None:
        wanted, slots = np.array(rows), np.empty(len(rows), np.int64)
        missed = look_up(self.state, wanted, slots, self.counters)
        if missed:
            asked, ordered = missing(wanted, slots, missed)
            places = np.empty(ordered.size, np.int64)
            blocks = cover(ordered, self.layout, places)
            fills = np.empty((blocks.size * self.layout.rows_per_block + missed, 2), np.int64)
            admit(self.state, self.layout, asked, ordered, places, blocks, fills, self.counters)


def test_nobody_asked_for_a_row_for_one_half_life_and_it_is_half_as_hot() -> None:
    """Ageing is done by requests that miss: here one at the end."""
    rows, half_life = 1000, 64_000
    asked = Asked(half_life, rows)
    asked.ask(list(range(500)))
    asked.state.live[:500] = 150
    for _ in range(half_life // 500):
        asked.ask(list(range(500)))
    grown = asked.state.live.copy()
    asked.ask([999])
    assert mean_lookups(asked.state.live[:500]) == pytest.approx(
        mean_lookups(grown[:500]) / 2, rel=0.01
    )


def test_steady_traffic_settles_at_about_the_seeded_heat() -> None:
    """Between two halvings heat grows from one half-life's lookups to two; seeds are between."""
    rows, half_life = 400, 8_000
    busy = np.arange(0, rows, 4)
    asked = Asked(half_life, rows, capacity=1)
    for _ in range(6 * half_life // busy.size):
        asked.ask(busy.tolist())
    log = np.zeros(rows, np.int64)
    log[busy] = 1
    seeds = seeded(heat_of_counts(log), half_life, 1.0)
    share = half_life / busy.size
    assert mean_lookups(seeds[busy]) == pytest.approx(share / math.log(2), rel=0.02)
    assert mean_lookups(asked.state.live[busy]) == pytest.approx(1.5 * share, rel=0.03)
    assert asked.state.live.sum() == asked.state.live[busy].sum()


def test_rows_missed_together_share_one_lookup_and_a_hit_counts_whole() -> None:
    rows = 3000
    shared, alone = Asked(10**9, rows, per_block=10), Asked(10**9, rows)
    for block in range(rows // 10):
        shared.ask(list(range(10 * block, 10 * block + 5)))
        alone.ask(list(range(10 * block, 10 * block + 5)))
    asked_for = np.arange(rows) % 10 < 5
    assert mean_lookups(shared.state.live[asked_for]) == pytest.approx(1 / 5, rel=0.1)
    assert mean_lookups(alone.state.live[asked_for]) == pytest.approx(1.0, rel=0.05)
    assert not shared.state.live[~asked_for].any()
    before = mean_lookups(shared.state.live[asked_for])
    shared.ask(np.flatnonzero(asked_for).tolist())
    assert mean_lookups(shared.state.live[asked_for]) - before == pytest.approx(1.0, rel=0.05)
