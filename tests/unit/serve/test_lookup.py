"""The compiled steps of a request: locks, blocks in flight, and what threads see of each other."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bandana_kv.kernels.addresses import (
    add,
    bytes_at,
    compare_and_set,
    enter_lock,
    leave_lock,
    load,
    lock_alone,
    store,
    try_enter_lock,
    try_lock_alone,
    unlock_alone,
    words_at,
)
from bandana_kv.kernels.compile import kernel
from bandana_kv.serve.answer import deliver_ahead
from bandana_kv.serve.inflight import (
    _GOLDEN,
    AHEAD,
    BAD,
    READING,
    READY,
    InFlight,
    claim_entry,
    entry_address,
    entry_state,
    finish_entry,
    leave_entry,
    lock_entries,
    mark_ahead,
    take_ahead,
    unlock_entries,
    wait_for_entry,
)

TURNS = 100_000


@kernel
def write_pairs(words: np.ndarray, turns: int, locked: bool) -> None:
    for _ in range(turns):
        if locked:
            lock_alone(words, 0)
        store(words, 8, load(words, 8) + 1)
        store(words, 16, load(words, 16) + 1)
        if locked:
            unlock_alone(words, 0)


@kernel
def see_pairs(words: np.ndarray, turns: int) -> int:
    torn = 0
    for _ in range(turns):
        enter_lock(words, 0)
        torn += load(words, 8) != load(words, 16)
        leave_lock(words, 0)
    return torn


def together(*works: Callable[[], object]) -> list[object]:
    found: list[object] = [None] * len(works)

    def run(number: int) -> None:
        found[number] = works[number]()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_whoever_is_alone_is_alone_and_sharers_see_it_whole() -> None:
    words = np.zeros(24, np.int64)
    found = together(
        *[lambda: write_pairs(words, TURNS, True)] * 3,
        *[lambda: see_pairs(words, TURNS)] * 3,
    )
    assert found[3:] == [0, 0, 0]
    assert words[8] == words[16] == 3 * TURNS
    assert words[0] == 0


@kernel
def write_half(words: np.ndarray, locked: bool) -> None:
    """Begin a change, and end it once the other has looked, or could not."""
    if locked:
        lock_alone(words, 0)
    store(words, 8, 1)
    while load(words, 17) == 0:
        pass
    store(words, 16, 1)
    if locked:
        unlock_alone(words, 0)


@kernel
def see_half(words: np.ndarray) -> int:
    while load(words, 8) == 0:
        pass
    got = try_enter_lock(words, 0)
    torn = got and load(words, 8) != load(words, 16)
    if got:
        leave_lock(words, 0)
    store(words, 17, 1)
    return np.int64(torn)  # type: ignore[return-value]


@pytest.mark.parametrize("locked", [True, False])
def test_a_missing_lock_is_seen(locked: bool) -> None:
    words = np.zeros(24, np.int64)
    _, torn = together(lambda: write_half(words, locked), lambda: see_half(words))
    assert torn == (0 if locked else 1)


@kernel
def tries(words: np.ndarray, found: np.ndarray) -> None:
    found[0] = try_enter_lock(words, 0)
    found[1] = try_lock_alone(words, 0)
    leave_lock(words, 0)
    found[2] = try_lock_alone(words, 0)
    found[3] = try_enter_lock(words, 0)
    unlock_alone(words, 0)
    found[4] = compare_and_set(words, 1, 5, 6)
    found[5] = add(words, 1, 7)


def test_trying_does_not_wait() -> None:
    words, found = np.array([0, 4], np.int64), np.zeros(6, np.int64)
    tries(words, found)
    assert found.tolist() == [1, 0, 1, 0, 0, 4]
    assert words.tolist() == [0, 11]


@kernel
def look(words: np.ndarray) -> int:
    return int(bytes_at(words[0], words[1])[2]) + words_at(words[2], 1)[0]


def test_arrays_are_found_by_their_addresses() -> None:
    data, number = np.arange(5, dtype=np.uint8), np.array([40], np.int64)
    assert look(np.array([data.ctypes.data, data.size, number.ctypes.data])) == 42


@kernel
def claim(words: np.ndarray, key: np.uint64) -> int:
    lock_entries(words)
    entry = claim_entry(words, key)
    unlock_entries(words)
    return entry


@kernel
def leave(words: np.ndarray, entry: int) -> None:
    lock_entries(words)
    leave_entry(words, entry)
    unlock_entries(words)


@kernel
def mark(words: np.ndarray, entry: int) -> None:
    mark_ahead(words, entry)


@kernel
def take(words: np.ndarray, entry: int) -> bool:
    return take_ahead(words, entry)


@kernel
def finish(words: np.ndarray, entry: int, state: int) -> None:
    finish_entry(words, entry, state)


@kernel
def state_of(words: np.ndarray, entry: int) -> int:
    return entry_state(words, entry)


@kernel
def address_of(words: np.ndarray, entry: int) -> int:
    return entry_address(words, entry)


@kernel
def wait(words: np.ndarray, entry: int) -> int:
    state = READING
    while state & ~AHEAD == READING:
        state = wait_for_entry(words, entry, 0)
    return state


def test_entries_equal_a_dictionary_of_users() -> None:
    rng = np.random.default_rng(0)
    in_flight = InFlight(4096, 8)
    users: dict[int, list[int]] = {}  # key -> entry, users
    for _ in range(4000):
        key = int(rng.integers(0, 20)) << 40 | int(rng.integers(0, 2))
        if rng.random() < 0.55:
            entry = claim(in_flight.words, np.uint64(key))
            if key in users:
                assert entry == -2 - users[key][0]
                users[key][1] += 1
            elif len(users) == 8:
                assert entry == -1
            else:
                assert entry >= 0
                assert entry not in {held for held, _ in users.values()}
                assert state_of(in_flight.words, entry) == READING
                users[key] = [entry, 1]
        elif users:
            key = list(users)[int(rng.integers(0, len(users)))]
            leave(in_flight.words, users[key][0])
            users[key][1] -= 1
            if not users[key][1]:
                del users[key]
        assert in_flight.count == len(users)
    addresses = {address_of(in_flight.words, entry) for entry in range(8)}
    assert len(addresses) == 8
    assert all(address % 4096 == 0 for address in addresses)


@pytest.mark.parametrize("state", [READY, BAD])
def test_all_who_wait_are_woken(state: int) -> None:
    in_flight = InFlight(4096, 4)
    entry = claim(in_flight.words, np.uint64(7))
    found: list[int] = []
    threads = [
        threading.Thread(target=lambda: found.append(wait(in_flight.words, entry)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    finish(in_flight.words, entry, state)
    for thread in threads:
        thread.join(20)
    assert found == [state] * 4


def test_what_is_forgotten_is_read_anew_while_its_users_go_on() -> None:
    in_flight = InFlight(4096, 4)
    entry = claim(in_flight.words, np.uint64(7))
    in_flight.forget(np.array([7], np.uint64))
    other = claim(in_flight.words, np.uint64(7))
    assert other >= 0
    assert other != entry
    leave(in_flight.words, entry)
    assert claim(in_flight.words, np.uint64(7)) == -2 - other
    assert in_flight.count == 1


def test_a_block_read_ahead_is_taken_once_or_dropped() -> None:
    in_flight = InFlight(4096, 4)
    keys = np.array([7, 8], np.uint64)
    entries = np.array([claim(in_flight.words, key) for key in keys])
    for entry in entries:
        mark(in_flight.words, entry)
    in_flight.drop_ahead(entries[1:], keys[1:])
    assert in_flight.count == 2  # it is still being read: its memory is nobody else's
    deliver_ahead(in_flight.words, entries, np.zeros((2, 4096), np.uint8))
    assert in_flight.count == 1
    assert state_of(in_flight.words, entries[0]) == READY | AHEAD
    assert take(in_flight.words, entries[0])
    assert not take(in_flight.words, entries[0])
    in_flight.drop_ahead(entries, keys)
    assert in_flight.count == 1  # the one that was taken is its taker's to leave
    leave(in_flight.words, entries[0])
    assert in_flight.count == 0


_FEW = 8
# Of sixteen homes these keys have three, side by side, one of them the last.
_NEAR = [key for key in range(60) if (key * int(_GOLDEN) >> 32) & 15 in (14, 15, 0)]
_STEPS = st.lists(
    st.tuples(st.sampled_from(["claim", "claim", "leave", "forget"]), st.sampled_from(_NEAR)),
    max_size=120,
)


@given(steps=_STEPS)
def test_blocks_in_flight_equal_a_dict(steps: list[tuple[str, int]]) -> None:
    """Keys collide, and gaps close over each other's homes."""
    table = InFlight(64, _FEW)
    entry_of: dict[int, int] = {}
    forgotten: list[int] = []
    users: Counter[int] = Counter()
    for what, key in steps:
        if what == "claim":
            found = claim(table.words, np.uint64(key))
            if key in entry_of:
                assert found == -2 - entry_of[key]
                users[entry_of[key]] += 1
            elif len(users) == _FEW:
                assert found == -1
            else:
                assert found >= 0
                assert found not in users
                entry_of[key] = found
                users[found] = 1
        elif what == "forget":
            table.forget(np.array([key], np.uint64))
            forgotten += [entry_of.pop(key)] if key in entry_of else []
        elif key in entry_of:
            entry = entry_of[key]
            leave(table.words, entry)
            users[entry] -= 1
            if not users[entry]:
                del users[entry]
                del entry_of[key]
        elif forgotten:
            # What nobody finds any more is still whoever's who has claimed it.
            entry = forgotten.pop()
            while users[entry]:
                leave(table.words, entry)
                users[entry] -= 1
            del users[entry]
        assert table.count == len(users)
        for each, at in entry_of.items():
            assert claim(table.words, np.uint64(each)) == -2 - at
            leave(table.words, at)
