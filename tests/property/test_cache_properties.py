"""Random histories of a cache's parts, and of whole caches, against plain containers."""

from __future__ import annotations

from collections import OrderedDict
from typing import get_args

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from bandana_kv.cache.ghosts import (
    check_remembered,
    forget,
    make_remembered,
    remember,
    remembered_bytes,
    remembers,
)
from bandana_kv.cache.policy import Admission, Eviction, Policy, Rule
from bandana_kv.cache.queues import empty_queues, link_middle, link_newest, slots_of, unlink
from bandana_kv.cache.request import COUNTERS, admit, look_up, missing, new_counters
from bandana_kv.cache.state import check, make_state, positions
from bandana_kv.kernels.layout import Layout, cover

ROWS = 60

POLICIES = st.builds(
    lambda evicted, rule, threshold, half_life, weight: Policy(
        evicted, Admission(rule, threshold if rule == "threshold" else None), half_life, weight
    ),
    st.sampled_from(get_args(Eviction)),
    st.sampled_from(get_args(Rule)),
    st.integers(0, 5),
    st.sampled_from([0.1, 3.0, 1e6]),
    st.sampled_from([0.0, 1.0]),
)


@given(
    capacity=st.integers(1, 40),
    halved=st.booleans(),
    steps=st.lists(st.tuples(st.sampled_from("nmu"), st.integers(0, 39)), max_size=120),
)
def test_a_queue_keeps_its_order_and_its_middle(
    capacity: int, halved: bool, steps: list[tuple[str, int]]
) -> None:
    links, older_half = np.zeros((capacity, 2), np.int32), np.zeros(capacity, np.uint8)
    ends = empty_queues(2, halved=halved)
    newest_first: list[int] = []
    for step, number in steps:
        slot = number % capacity
        if slot in newest_first:
            unlink(links, older_half, ends, 1, slot)
            newest_first.remove(slot)
        if step == "n" or (step == "m" and not halved):
            link_newest(links, older_half, ends, 1, slot)
            newest_first.insert(0, slot)
        elif step == "m":
            link_middle(links, older_half, ends, 1, slot)
            newest_first.insert((len(newest_first) + 1) // 2, slot)
        assert slots_of(links, older_half, ends, 1) == newest_first
        assert slots_of(links, older_half, ends, 0) == []


@given(
    capacity=st.integers(0, 70),
    frugal=st.booleans(),
    steps=st.lists(st.tuples(st.booleans(), st.integers(0, ROWS - 1)), max_size=200),
)
def test_a_memory_remembers_the_last_positions(
    capacity: int, frugal: bool, steps: list[tuple[bool, int]]
) -> None:
    memory = make_remembered(capacity, ROWS, frugal=frugal)
    if frugal:
        assert sum(array.nbytes for array in memory) == remembered_bytes(capacity, ROWS)
    model: OrderedDict[int, None] = OrderedDict()
    for forgets, position in steps:
        if forgets:
            assert forget(memory, position) == (position in model)
            model.pop(position, None)
        else:
            remember(memory, position)
            model[position] = None
            model.move_to_end(position)
            if len(model) > capacity:
                model.popitem(last=False)
        slots = slots_of(memory.links, memory.older_half, memory.ends, 0)
        assert memory.held[slots[::-1]].tolist() == list(model)
    check_remembered(memory)
    assert [p for p in range(ROWS) if remembers(memory, p)] == sorted(model)


@settings(max_examples=300)
@given(
    policy=POLICIES,
    capacity=st.integers(0, 70),
    per_block=st.integers(1, 13),
    copies=st.integers(0, ROWS),
    frugal=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
    requests=st.lists(st.lists(st.integers(0, ROWS - 1), min_size=1, max_size=20), max_size=40),
)
def test_any_history_leaves_a_sound_cache_of_the_right_rows(
    policy: Policy,
    capacity: int,
    per_block: int,
    copies: int,
    frugal: bool,
    seed: int,
    requests: list[list[int]],
) -> None:
    """`data` holds each slot's row as the store would: what slots answer must be true of it."""
    rng = np.random.default_rng(seed)
    original_of = rng.permutation(ROWS)[:copies].astype(np.uint32)
    heat = rng.integers(0, 8, ROWS).astype(np.uint8)
    layout = Layout(per_block, heat, original_of, np.argsort(original_of).astype(np.uint32))
    first_copy = -(-ROWS // per_block) * per_block
    row_at = dict(enumerate(range(ROWS))) | dict(enumerate(original_of.tolist(), first_copy))
    state = make_state(policy, capacity, heat, frugal=frugal)
    data = np.full(capacity, -1)
    counters = new_counters()
    for request in requests:
        wanted, slots = np.array(request), np.empty(len(request), np.int64)
        held_before = set(positions(state).tolist())
        missed = look_up(state, wanted, slots, counters)
        assert [slot >= 0 for slot in slots] == [row in held_before for row in request]
        assert data[slots[slots >= 0]].tolist() == wanted[slots >= 0].tolist()
        asked, ordered = missing(wanted, slots, missed)
        assert ordered.tolist() == sorted(set(request) - held_before)
        places = np.empty(ordered.size, np.int64)
        blocks = cover(ordered, layout, places)
        fills = np.empty((blocks.size * per_block + asked.size, 2), np.int64)
        if missed:
            filled = admit(state, layout, asked, ordered, places, blocks, fills, counters)
            for slot, place in fills[:filled].tolist():
                assert place // per_block in blocks
                data[slot] = row_at[place]
        check(state, ROWS)
        held = positions(state)
        assert held.size <= capacity
        assert data[: held.size].tolist() == held.tolist()
        if missed and capacity and policy.eviction != "tinylfu":
            assert asked[-1] in held
    counted = dict(zip(COUNTERS, counters.tolist(), strict=True))
    assert counted["lookups"] == sum(map(len, requests))
    assert counted["neighbours_hit"] <= min(counted["hits"], counted["neighbours_admitted"])
