"""What a log says of later traffic: wide where traffic changes, narrow where it does not."""

from __future__ import annotations

import numpy as np
import pytest

from bandana_kv import AccessLog
from bandana_kv.cache.heat import heat_by_position
from bandana_kv.errors import InputError
from bandana_kv.plan import Choice
from bandana_kv.plan.choose import Subject, choose
from bandana_kv.plan.outlook import Outlook, outlook
from bandana_kv.progress import Progress
from bandana_kv.simulate import replay

ROWS, PER_BLOCK, CAPACITY = 1500, 15, 150


def steady(requests: int, seed: int) -> AccessLog:
    """Each request looks up some of 15 rows that belong together; some groups are busier."""
    groups = np.random.default_rng(0).permutation(ROWS).reshape(-1, 15)
    rng = np.random.default_rng(seed)
    drawn = (rng.random(requests) ** 2 * len(groups)).astype(int)
    return AccessLog.from_requests(rng.permutation(groups[group])[:6] for group in drawn)


def moody(requests: int, seed: int) -> AccessLog:
    """As steady, but sometimes people come for anything at all."""
    log = steady(requests, seed)
    rng = np.random.default_rng(seed)
    moods = np.repeat(rng.random(-(-requests // 150)), 150)[:requests]
    anything = rng.random(log.lookups) < np.repeat(moods, np.diff(log.offsets))
    ids = np.where(anything, rng.integers(0, ROWS, log.lookups), log.ids)
    return AccessLog(log.offsets, ids)


def looked_ahead(log: AccessLog) -> tuple[Subject, Choice, Outlook]:
    subject = Subject("t", ROWS, 256, PER_BLOCK, log, 0, Progress())
    choice = choose(subject, lambda _: CAPACITY)
    return subject, choice, outlook(subject, choice)


def came(subject: Subject, choice: Choice, later: AccessLog) -> float:
    """Return what later traffic costs, behind the log."""
    placement = subject.placed(subject.log, choice.placement, choice.resident_rows)
    heat = heat_by_position(subject.log.ids, placement.position_of_id)
    served = replay(
        later,
        placement,
        choice.capacity_rows,
        policy=choice.policy,
        heat=heat,
        warm_requests=later.requests // 5,
    )
    return served.reads_per_lookup


def test_later_traffic_lies_in_the_spread() -> None:
    for make in (steady, moody):
        whole = make(6000, 3)
        log, later = whole.split(train=0.7, ordered=True)
        subject, choice, ahead = looked_ahead(log)
        assert len(ahead.by_time) == 15
        assert ahead.low < ahead.reads_per_lookup < ahead.high
        assert ahead.low <= came(subject, choice, later) <= ahead.high


def test_traffic_that_changes_is_less_certain() -> None:
    widths = []
    for make in (steady, moody):
        _, _, ahead = looked_ahead(make(4200, 3))
        widths.append(ahead.high / ahead.low)
    assert widths[1] > 1.5 * widths[0]


def test_what_more_of_the_log_would_teach_is_left_room_for() -> None:
    _, _, ahead = looked_ahead(steady(600, 3))
    assert ahead.learning < 0.95
    # A fifth more teaches a third of what twice as much does, by logarithms.
    assert ahead.low < ahead.reads_per_lookup * ahead.learning**0.3


def test_of_the_same_log_it_says_the_same() -> None:
    assert looked_ahead(steady(1200, 3))[2] == looked_ahead(steady(1200, 3))[2]


def test_a_table_that_fits_reads_nothing_later_either() -> None:
    log = steady(3000, 3)
    subject = Subject("t", ROWS, 256, PER_BLOCK, log, 0, Progress())
    ahead = outlook(subject, choose(subject, lambda _: ROWS))
    assert 0.0 <= ahead.low <= ahead.reads_per_lookup <= ahead.high < 0.05


def test_a_log_too_short_to_look_ahead_is_said() -> None:
    subject, choice, _ = looked_ahead(steady(600, 3))
    short = Subject("t", ROWS, 256, PER_BLOCK, steady(99, 3), 0, Progress())
    with pytest.raises(InputError, match="99 requests is too short to look ahead"):
        outlook(short, choice)
    assert subject.log.requests == 600
