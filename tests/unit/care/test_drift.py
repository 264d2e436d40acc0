"""Advice on planted drift: nothing, a new plan, a part placed anew, everything."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from bandana_kv import AccessLog
from bandana_kv.cache.heat import heat_by_position
from bandana_kv.cache.policy import Admission, Policy
from bandana_kv.care.drift import Advice, Option, Served, advise, placement_for
from bandana_kv.care.drift.advice import _cheapest_enough
from bandana_kv.disk.plan import Choice, Predicted, TablePlan
from bandana_kv.errors import InputError
from bandana_kv.placement import Placement
from bandana_kv.placement.incremental import blocks_changed
from bandana_kv.simulate import replay

ROWS, ROWS_PER_BLOCK, GROUPS = 1280, 8, 160
CAPACITY = 64
IDS = np.random.default_rng(0).permutation(ROWS)
SERVING = Placement(np.argsort(IDS).astype(np.uint32), ROWS_PER_BLOCK, "planted")


def traffic(
    groups: np.ndarray, seed: int, weights: np.ndarray | None = None, requests: int = 3000
) -> AccessLog:
    """Requests that look up most of one group of rows, the first groups as `weights` says."""
    rng = np.random.default_rng(seed)
    drawn = rng.choice(GROUPS, requests, p=weights)
    return AccessLog.from_requests([rng.permutation(groups[group])[:6] for group in drawn])


def groups_that_drifted(share: float) -> np.ndarray:
    """Groups of a block each, of which the first ones have exchanged their rows."""
    groups = IDS.reshape(GROUPS, ROWS_PER_BLOCK).copy()
    count = int(share * GROUPS)
    moved = np.random.default_rng(1).permutation(groups[:count].ravel())
    groups[:count] = moved.reshape(count, ROWS_PER_BLOCK)
    return groups


LRU = Policy()


def served(
    policy: Policy = LRU, predicted: Predicted | None = None, capacity_rows: int = 0
) -> Served:
    choice = None
    if predicted is not None:
        choice = Choice(1, capacity_rows, "shp", 0, policy, predicted, ("", 0.0), 1.0, "")
    return Served(SERVING, capacity_rows, policy, TablePlan(lookups=9, choice=choice))


def test_nothing_changed_nothing_is_advised() -> None:
    advice = advise(traffic(groups_that_drifted(0.0), 2), served(), table="user")
    assert (advice.table, advice.action, advice.blocks) == ("user", "nothing", 0)
    assert not any(each.stands_out for each in advice.options)
    assert "not enough" in advice.reason
    # With a cache, too, once its policy is the one that is advised.
    log = traffic(groups_that_drifted(0.0), 2)
    policy = advise(log, served(capacity_rows=CAPACITY), budgets=(1.0,)).policy or LRU
    again = advise(log, served(policy, capacity_rows=CAPACITY), budgets=(1.0,))
    assert again.action == "nothing"
    # Rows that no request looks up together: whatever is placed anew only fits the noise.
    rng = np.random.default_rng(3)
    noise = AccessLog.from_requests([rng.integers(0, ROWS, 6) for _ in range(3000)])
    assert advise(noise, served(), budgets=(0.25, 1.0)).action == "nothing"


def test_a_part_changed_a_part_is_placed_anew_and_that_keeps_the_gain() -> None:
    weights = np.ones(GROUPS)
    weights[:8] = 40.0  # drifted, and asked for most
    weights /= weights.sum()
    groups = groups_that_drifted(0.05)
    log = traffic(groups, 4, weights)
    advice = advise(log, served(), write_budget_bytes=1 << 20)
    assert advice.action.startswith("place ")
    assert advice.action != "place all anew"
    chosen, everything = advice.chosen, advice.options[-1]
    assert chosen.stands_out
    assert 0 < chosen.blocks <= 0.5 * everything.blocks
    assert chosen.saved >= 0.8 * max(each.saved for each in advice.options)
    assert chosen.written_bytes == 4096 * chosen.blocks
    assert chosen.budget_days == pytest.approx(chosen.blocks / 256)
    placement, _ = placement_for(advice, log, served())
    assert 0 < blocks_changed(SERVING, placement) <= advice.blocks
    later = traffic(groups, 5, weights)
    before, after = (replay(later, each, 0).block_reads for each in (SERVING, placement))
    assert after < (1 - 0.5 * chosen.saved) * before


def test_everything_changed_everything_is_placed_anew() -> None:
    groups = groups_that_drifted(1.0)
    advice = advise(traffic(groups, 6, requests=6000), served())
    assert advice.action == "place all anew"
    assert advice.chosen.saved > 0.5
    assert "saves" in advice.reason


def test_popularity_moved_a_new_plan_is_advised_where_it_is_enough() -> None:
    """A quarter of the rows are asked for one by one all day; the policy keeps old ones."""
    rng = np.random.default_rng(7)
    hot = rng.permutation(ROWS)[:80]
    weights = 1.0 / np.arange(1, hot.size + 1)
    weights /= weights.sum()
    scan = rng.integers(0, ROWS, (5000, 1))
    asked = np.concatenate([hot[rng.choice(hot.size, (5000, 2), p=weights)], scan], axis=1)
    log = AccessLog.from_requests(asked)
    poor = Policy("lru", Admission("all"))
    advice = advise(log, served(poor, capacity_rows=CAPACITY), budgets=(0.25, 1.0))
    new_plan = next(each for each in advice.options if each.action == "new plan")
    assert new_plan.blocks == 0
    assert new_plan.stands_out
    assert advice.policy == new_plan.policy != poor
    assert advice.action == "new plan"
    placement, plan = placement_for(advice, log, served(poor, capacity_rows=CAPACITY))
    assert placement is SERVING
    assert plan.points[0].policy == advice.policy


def test_live_counts_are_held_against_what_the_plan_expected() -> None:
    log = traffic(groups_that_drifted(0.0), 8)
    quiet = advise(log, served()).reads_per_lookup
    expected = Predicted(quiet, 0.98 * quiet, 1.02 * quiet, 1.0, 0.01)
    for live, drifted in ((None, False), (quiet, False), (1.1 * quiet, True), (0.9 * quiet, True)):
        advice = advise(log, served(predicted=expected), live_reads_per_lookup=live)
        assert advice.live == (live is not None)
        assert advice.drifted is drifted
        assert advice.predicted == quiet
    assert advise(log, served()).drifted is None


def test_a_plan_for_the_advice_expects_what_it_says() -> None:
    log = traffic(groups_that_drifted(1.0), 9)
    before = served(predicted=Predicted(0.1, 0.1, 0.1, 1.0, 0.01))
    advice = advise(log, before, budgets=(1.0,))
    _, plan = placement_for(advice, log, before)
    assert plan.choice is not None
    assert plan.choice.predicted.reads_per_lookup == advice.chosen.reads_per_lookup
    assert plan.choice.predicted.low <= plan.choice.predicted.high
    assert plan.lookups == 9


def option(action: str, blocks: int, saved: float, stands_out: bool = True) -> Option:
    return Option(action, None, blocks, 0, None, 1.0, 1.0, 1.0, saved, stands_out)


@pytest.mark.parametrize(
    ("saved", "stands_out", "expected"),
    [
        ((0.0, 0.01, 0.02), (False, False, False), "nothing"),
        ((0.0, 0.10, 0.12), (False, True, True), "part"),
        ((0.0, 0.09, 0.12), (False, True, True), "all"),
        ((0.0, 0.30, 0.12), (False, False, True), "all"),  # a lucky part does not win
    ],
)
def test_the_cheapest_that_keeps_most_of_the_gain(
    saved: tuple[float, ...], stands_out: tuple[bool, ...], expected: str
) -> None:
    options = [
        option(*each)
        for each in zip(("nothing", "part", "all"), (0, 5, 9), saved, stands_out, strict=True)
    ]
    assert _cheapest_enough(options).action == expected


def test_heat_moves_with_its_rows_and_advice_is_json() -> None:
    log = traffic(groups_that_drifted(0.5), 10)
    heat = heat_by_position(log.ids, SERVING.position_of_id)
    policy = Policy("tinylfu", Admission("online"))
    known = Served(SERVING, CAPACITY, policy, heat=heat)
    advice = advise(log, known, budgets=(0.5, 1.0))
    assert msgspec.json.decode(msgspec.json.encode(advice), type=Advice) == advice
    assert advice.lookups == log.lookups


def test_bad_input_is_named() -> None:
    log = traffic(groups_that_drifted(0.0), 11)
    with pytest.raises(InputError, match="99 recorded requests are too few"):
        advise(log.select(np.arange(99)), served())
    with pytest.raises(InputError, match="budgets"):
        advise(log, served(), budgets=(0.0,))
    with pytest.raises(InputError, match="5000"):
        advise(AccessLog.from_requests([[5000, 1]] * 200), served())
