"""The circuit breaker against a clock that the test moves, and warnings at a limited rate."""

from __future__ import annotations

import logging

import pytest

from bandana_kv.metrics.quiet_log import QuietLog
from bandana_kv.serve.breaker import Breaker


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> Breaker:
    return Breaker("table 't'", clock)


def opened(breaker: Breaker) -> Breaker:
    for _ in range(5):
        breaker.failed()
    return breaker


def test_it_opens_after_failures_within_the_window(breaker: Breaker) -> None:
    for _ in range(4):
        breaker.failed()
        assert (breaker.state, breaker.allowed(9)) == ("closed", 9)
    breaker.failed()
    assert (breaker.state, breaker.allowed(9), breaker.openings) == ("open", 0, 1)


def test_failures_far_apart_do_not_open_it(breaker: Breaker, clock: Clock) -> None:
    for _ in range(20):
        breaker.failed()
        clock.now += 3.0
    assert breaker.state == "closed"


def test_a_few_failures_among_many_good_reads_do_not_open_it(breaker: Breaker) -> None:
    for _ in range(100):
        for _ in range(2):
            breaker.succeeded()
        breaker.failed()
    assert breaker.state == "closed"


def test_after_a_rest_one_request_at_a_time_tries_a_few_blocks(
    breaker: Breaker, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "bandana_kv")
    opened(breaker)
    clock.now += 4.9
    assert breaker.allowed(9) == 0
    clock.now += 0.2
    assert [breaker.allowed(9), breaker.allowed(9)] == [4, 0]
    breaker.succeeded()
    assert breaker.state == "half-open"
    for _ in range(2):
        assert breaker.allowed(2) == 2
        breaker.succeeded()
    assert (breaker.state, breaker.allowed(9)) == ("closed", 9)
    states = [record.message.rpartition(" ")[2] for record in caplog.records]
    assert states == ["open", "half-open", "closed"]


def test_a_failed_probe_opens_it_again(breaker: Breaker, clock: Clock) -> None:
    opened(breaker)
    clock.now += 5.1
    assert breaker.allowed(9) == 4
    breaker.failed()
    assert (breaker.state, breaker.allowed(9), breaker.openings) == ("open", 0, 2)


def test_a_probe_that_never_comes_back_does_not_block_others(
    breaker: Breaker, clock: Clock
) -> None:
    opened(breaker)
    clock.now += 5.1
    assert breaker.allowed(9) == 4
    clock.now += 5.1
    assert breaker.allowed(9) == 4


def test_it_begins_a_new_count_when_it_closes(breaker: Breaker, clock: Clock) -> None:
    opened(breaker)
    clock.now += 5.1
    for _ in range(3):
        breaker.allowed(1)
        breaker.succeeded()
    breaker.failed()
    assert breaker.state == "closed"


def test_warnings_come_once_in_a_while_with_the_number_left_out(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    log = QuietLog(clock)
    for _ in range(4):
        log.warning("bad")
    clock.now += 5.0
    log.warning("worse")
    log.warning("worse")
    messages = [record.message for record in caplog.records]
    assert messages == ["bad", "worse (3 more like this since the last such line)"]
