"""Turns: many share, one is alone, and who waits to be alone is not kept waiting."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from bandana_kv.serve.turns import Turns

PATIENCE_S = 20.0
# How long something that must not happen is waited for.
MOMENT_S = 0.05


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as threads:
        yield threads


@pytest.fixture
def eager_switches() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def begun(call: Callable[[], None]) -> threading.Event:
    """Call in a thread of its own; return what is set once the call came back."""
    done = threading.Event()

    def run() -> None:
        call()
        done.set()

    threading.Thread(target=run, daemon=True).start()
    return done


def test_sharers_are_inside_together(pool: ThreadPoolExecutor) -> None:
    turns, together = Turns(), threading.Barrier(4)

    def share() -> None:
        turns.enter()
        together.wait(PATIENCE_S)  # breaks unless all four are inside
        turns.leave()

    for shared in [pool.submit(share) for _ in range(4)]:
        shared.result(PATIENCE_S)


def test_who_is_alone_waits_for_sharers_and_keeps_everybody_out() -> None:
    turns = Turns()
    turns.enter()
    alone = begun(turns.take)
    assert not alone.wait(MOMENT_S)
    turns.leave()
    assert alone.wait(PATIENCE_S)
    for other in (begun(turns.enter), begun(turns.take)):
        assert not other.wait(MOMENT_S)


def test_who_waits_to_be_alone_keeps_newcomers_out() -> None:
    turns = Turns()
    turns.enter()
    alone = begun(turns.take)
    assert not alone.wait(MOMENT_S)
    late = begun(turns.enter)
    assert not late.wait(MOMENT_S)  # though only sharers are inside
    turns.leave()
    assert alone.wait(PATIENCE_S)
    assert not late.is_set()
    turns.give_back()
    assert late.wait(PATIENCE_S)
    turns.leave()


def test_the_last_of_several_sharers_lets_the_waiter_in() -> None:
    turns = Turns()
    for _ in range(3):
        turns.enter()
    alone = begun(turns.take)
    for _ in range(2):
        turns.leave()
        assert not alone.wait(MOMENT_S)
    turns.leave()
    assert alone.wait(PATIENCE_S)


def test_being_alone_may_be_given_back_by_another_thread() -> None:
    """As after a fork, where the thread that took it may be gone."""
    turns = Turns()
    assert begun(turns.take).wait(PATIENCE_S)
    turns.give_back()
    assert begun(turns.take).wait(PATIENCE_S)


def test_an_interrupted_wait_keeps_nobody_out(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = Turns()
    turns.enter()

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(turns._count, "wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            turns.take()
    assert begun(turns.enter).wait(PATIENCE_S)
    turns.leave()
    turns.leave()
    assert begun(turns.take).wait(PATIENCE_S)


@pytest.mark.usefixtures("eager_switches")
def test_nobody_is_inside_with_who_is_alone(pool: ThreadPoolExecutor) -> None:
    turns, seen = Turns(), []
    state = {"sharing": 0, "alone": 0, "changes": 0}
    count = threading.Lock()

    def share() -> None:
        for _ in range(200):
            turns.enter()
            with count:
                state["sharing"] += 1
            before = state["changes"]
            time.sleep(0)
            if state["alone"] or state["changes"] != before:
                seen.append("changed under a sharer")
            with count:
                state["sharing"] -= 1
            turns.leave()

    def change() -> None:
        for _ in range(100):
            turns.take()
            state["alone"] += 1
            time.sleep(0)
            if state["alone"] != 1 or state["sharing"]:
                seen.append("not alone")
            state["changes"] += 1
            state["alone"] -= 1
            turns.give_back()

    running = [pool.submit(work) for work in [share] * 8 + [change] * 4]
    for each in running:
        each.result(PATIENCE_S)
    assert seen == []
    assert state == {"sharing": 0, "alone": 0, "changes": 400}
