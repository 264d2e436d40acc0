"""The kernels against plain models: what each policy holds, in which order, and what it counts."""

from __future__ import annotations

from collections import Counter, OrderedDict
from typing import get_args

import numpy as np
import pytest

from bandana_kv.cache import eviction
from bandana_kv.cache import request as batch
from bandana_kv.cache.ghosts import Remembered
from bandana_kv.cache.policy import Admission, Eviction, Policy, Rule
from bandana_kv.cache.queues import slots_of
from bandana_kv.cache.request import COUNTERS, admit, look_up, missing, new_counters
from bandana_kv.cache.state import (
    LOW,
    MAIN,
    UNASKED,
    CacheState,
    bookkeeping_bytes,
    cache_bytes_of,
    capacity_for,
    check,
    hits_relink,
    make_state,
    positions,
)
from bandana_kv.kernels.layout import Layout, cover

ROWS, PER_BLOCK = 300, 7
FIRST_COPY = 43 * PER_BLOCK
EVICTIONS, RULES = get_args(Eviction), get_args(Rule)
POLICIES = [
    Policy(evicted, Admission(rule, 2 if rule == "threshold" else None), half_life=3.0)
    for evicted in EVICTIONS
    for rule in RULES
]


class Lru:
    """Rows from the oldest to the newest."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.queue: list[int] = []
        self.times_asked: Counter[int] = Counter()

    def used(self, row: int) -> None:
        self.queue.remove(row)
        self.queue.append(row)

    def victim(self) -> int:
        return self.queue[0]

    def leave(self, row: int) -> None:
        self.queue.remove(row)

    def enter(self, row: int, low: bool) -> None:
        self.times_asked[row] = 0
        self.queue.insert(len(self.queue) // 2 if low else len(self.queue), row)

    def queues(self) -> list[list[int]]:
        return [self.queue, []]


class Clock(Lru):
    """Who was asked for since he was last looked at goes to the end once more."""

    def used(self, row: int) -> None:
        self.times_asked[row] = 1

    def victim(self) -> int:
        while self.times_asked[self.queue[0]]:
            row = self.queue.pop(0)
            self.times_asked[row] = 0
            self.queue.append(row)
        return self.queue[0]


class Sieve(Clock):
    """A hand moves from old to new over rows that stay where they are."""

    hand: int | None = None

    def next_of(self, row: int) -> int | None:
        at = self.queue.index(row) + 1
        return self.queue[at] if at < len(self.queue) else None

    def victim(self) -> int:
        row = self.queue[0] if self.hand is None else self.hand
        while self.times_asked[row]:
            self.times_asked[row] = 0
            following = self.next_of(row)
            row = self.queue[0] if following is None else following
        self.hand = row
        return row

    def leave(self, row: int) -> None:
        if self.hand == row:
            self.hand = self.next_of(row)
        super().leave(row)


class S3Fifo(Lru):
    """A small queue on trial, a main one, and the memory of who left the small one."""

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self.main: list[int] = []
        self.small_size = capacity // 10
        self.ghost: OrderedDict[int, None] = OrderedDict()
        self.to_main = self.evicted = False

    def used(self, row: int) -> None:
        self.times_asked[row] = min(3, self.times_asked[row] + 1)

    def asks_to_enter(self, row: int) -> None:
        """Look into the ghost, before whoever makes room is put there."""
        self.to_main = row in self.ghost
        self.ghost.pop(row, None)

    def victim(self) -> int:
        while True:
            if len(self.main) > self.capacity - self.small_size or not self.queue:
                while self.times_asked[self.main[0]]:
                    self.times_asked[self.main[0]] -= 1
                    self.main.append(self.main.pop(0))
                return self.main[0]
            while self.queue:
                if self.times_asked[self.queue[0]] < 2:
                    return self.queue[0]
                self.times_asked[self.queue[0]] = 0
                self.main.append(self.queue.pop(0))

    def leave(self, row: int) -> None:
        self.evicted = True
        if row in self.main:
            self.main.remove(row)
            return
        self.queue.remove(row)
        remember(self.ghost, row, int(0.9 * self.capacity))

    def enter(self, row: int, low: bool) -> None:
        early = not self.evicted and len(self.queue) >= self.small_size
        if not low and (self.to_main or early):
            self.times_asked[row] = 0
            self.main.append(row)
        else:
            super().enter(row, low)
        self.to_main = False

    def queues(self) -> list[list[int]]:
        return [self.queue, self.main]


class TinyLfu(Lru):
    """No queue: the coldest of eight slots, drawn in a known order."""

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self.draws = 0
        self.slots: list[int] = []
        self.free: int | None = None
        self.low: set[int] = set()
        self.live = np.zeros(ROWS, np.uint8)

    def used(self, row: int) -> None:
        pass

    def code(self, row: int) -> int:
        return int(self.live[row]) - (23 if row in self.low else 0)

    def victim(self) -> int:
        self.draws += 1
        drawn = [random32(self.draws * 8 + draw) * self.capacity >> 32 for draw in range(8)]
        return min((self.slots[slot] for slot in drawn), key=self.code)

    def leave(self, row: int) -> None:
        self.free = self.slots.index(row)
        self.low.discard(row)

    def enter(self, row: int, low: bool) -> None:
        if self.free is None:
            self.slots.append(row)
        else:
            self.slots[self.free] = row
        self.free = None
        if low:
            self.low.add(row)


MODELS = {"lru": Lru, "clock": Clock, "s3-fifo": S3Fifo, "sieve": Sieve, "tinylfu": TinyLfu}


def random32(number: int) -> int:
    """SplitMix64's finish, in numbers without end."""
    ones = (1 << 64) - 1
    bits = number * 0x9E3779B97F4A7C15 & ones
    bits = (bits ^ bits >> 30) * 0xBF58476D1CE4E5B9 & ones
    bits = (bits ^ bits >> 27) * 0x94D049BB133111EB & ones
    return (bits ^ bits >> 31) >> 32


def remember(memory: OrderedDict[int, None], row: int, capacity: int) -> None:
    memory[row] = None
    memory.move_to_end(row)
    if len(memory) > capacity:
        memory.popitem(last=False)


class Model:
    """A cache and its admission. Live heat is taken from the kernels; others test it."""

    def __init__(self, policy: Policy, capacity: int, layout: Layout) -> None:
        self.policy, self.rule = policy, policy.admission.rule
        self.capacity, self.heat = capacity, layout.heat
        self.places_of = {position: [position] for position in range(ROWS)}
        self.row_at = {position: position for position in range(ROWS)}
        for copy, original in enumerate(layout.original_of.tolist()):
            self.places_of[original].append(FIRST_COPY + copy)
            self.row_at[FIRST_COPY + copy] = original
        self.order = MODELS[policy.eviction](capacity)
        self.unasked: dict[int, bool] = {}  # of every cached row: came along, never asked for
        self.shadow: OrderedDict[int, None] = OrderedDict()
        self.counts = dict.fromkeys(COUNTERS, 0)

    def cover(self, asked: set[int]) -> list[int]:
        """Blocks of rows in one place first, then greedily whichever gives most."""
        blocks_of = {p: [place // PER_BLOCK for place in self.places_of[p]] for p in asked}
        chosen = {blocks[0] for blocks in blocks_of.values() if len(blocks) == 1}
        while left := [p for p in asked if not chosen & {blocks_of[p][0], *blocks_of[p][1:]}]:
            gives = Counter(block for p in left for block in blocks_of[p])
            chosen.add(min(gives, key=lambda block: (-gives[block], block)))
        return sorted(chosen)

    @property
    def full(self) -> bool:
        return len(self.unasked) == self.capacity

    def swap(self, victim: int | None, row: int, *, unasked: bool, low: bool = False) -> None:
        if victim is not None:
            self.order.leave(victim)
            del self.unasked[victim]
        self.order.enter(row, low)
        self.unasked[row] = unasked
        self.counts["neighbours_admitted"] += unasked

    def look_up(self, wanted: list[int]) -> list[int]:
        """Return what missed."""
        asked = []
        for row in wanted:
            self.counts["lookups"] += 1
            if row in self.unasked:
                self.counts["hits"] += 1
                self.counts["neighbours_hit"] += self.unasked[row]
                self.unasked[row] = False
                if isinstance(self.order, TinyLfu):
                    self.order.low.discard(row)
                self.order.used(row)
            else:
                asked.append(row)
            if "shadow" in self.rule:
                remember(self.shadow, row, self.capacity)
        return asked

    def wants(self, row: int) -> bool:
        worthy = {
            "none": False,
            "threshold": self.heat[row] > 2,
            "shadow": row in self.shadow,
        }
        return worthy.get(self.rule, True)

    def admit(self, asked: list[int], live: np.ndarray) -> None:
        if not self.capacity:
            return
        if isinstance(self.order, TinyLfu):
            self.order.live = live
        victim = None
        for block in self.cover(set(asked)):
            for place in range(block * PER_BLOCK, (block + 1) * PER_BLOCK):
                row = self.row_at.get(place)
                if row is None or row in asked or row in self.unasked or not self.wants(row):
                    continue
                if self.full and victim is None:
                    victim = self.order.victim()
                if self.rule == "online" and victim is not None and live[row] <= live[victim]:
                    continue  # the victim stays chosen
                low = self.rule == "lower" or (
                    self.rule == "shadow-lower" and row not in self.shadow
                )
                self.swap(victim, row, unasked=True, low=low)
                victim = None
        for row in asked:
            if row in self.unasked:
                self.order.used(row)
                continue
            if isinstance(self.order, S3Fifo):
                self.order.asks_to_enter(row)
            victim = self.order.victim() if self.full else None
            if victim is None or self.policy.eviction != "tinylfu" or live[row] > live[victim]:
                self.swap(victim, row, unasked=False)


def layout_of(rng: np.random.Generator, copies: int) -> Layout:
    heat = rng.integers(0, 6, ROWS).astype(np.uint8)
    original_of = rng.permutation(ROWS)[:copies].astype(np.uint32)
    return Layout(PER_BLOCK, heat, original_of, np.argsort(original_of).astype(np.uint32))


def remembered_rows(memory: Remembered) -> list[int]:
    """Return what is remembered, oldest first."""
    slots = slots_of(memory.links, memory.older_half, memory.ends, 0)
    return memory.held[slots[::-1]].tolist()


def queued_rows(state: CacheState) -> list[list[int]]:
    """Return the rows of both queues, oldest first."""
    both = [slots_of(state.links, state.older_half, state.ends, queue)[::-1] for queue in (0, 1)]
    return [state.held[slots].tolist() for slots in both]


@pytest.mark.parametrize(("frugal", "copies"), [(True, 60), (False, 0)])
@pytest.mark.parametrize("capacity", [0, 1, 2, 13, 100, ROWS])
@pytest.mark.parametrize("policy", POLICIES, ids=lambda p: f"{p.eviction}+{p.admission.rule}")
def test_kernels_do_what_the_model_does(
    policy: Policy, capacity: int, frugal: bool, copies: int
) -> None:
    rng = np.random.default_rng(capacity)
    layout = layout_of(rng, copies)
    model = Model(policy, capacity, layout)
    state = make_state(policy, capacity, layout.heat, frugal=frugal)
    counters = new_counters()
    for _ in range(200):
        size = int(rng.integers(1, 12))
        wanted = np.minimum(rng.geometric(0.02, size), ROWS) - 1
        slots = np.empty(size, np.int64)
        missed = look_up(state, wanted, slots, counters)
        asked, ordered = missing(wanted, slots, missed)
        places = np.empty(ordered.size, np.int64)
        blocks = cover(ordered, layout, places)
        fills = np.empty((blocks.size * PER_BLOCK + asked.size, 2), np.int64)
        filled = admit(state, layout, asked, ordered, places, blocks, fills, counters)

        assert model.look_up(wanted.tolist()) == asked.tolist()
        assert blocks.tolist() == model.cover(set(asked.tolist()))
        assert all(
            place in model.places_of[position] and place // PER_BLOCK in blocks
            for position, place in zip(ordered.tolist(), places.tolist(), strict=True)
        )
        model.admit(asked.tolist(), state.live)
        held = positions(state).tolist()
        assert set(held) == set(model.unasked)
        last_fill = dict(fills[:filled].tolist())
        assert all(held[slot] == model.row_at[place] for slot, place in last_fill.items())
        if state.links.size:
            assert queued_rows(state) == model.order.queues()
        if isinstance(model.order, S3Fifo):
            assert remembered_rows(state.ghost) == list(model.order.ghost)
        assert remembered_rows(state.shadow) == list(model.shadow)
    check(state, ROWS)
    unasked = {row for slot, row in enumerate(held) if state.marks[slot] & UNASKED}
    assert unasked == {row for row, never in model.unasked.items() if never}
    counted = dict(zip(COUNTERS, counters.tolist(), strict=True))
    elsewhere = {"block_reads": 0, "copies_read": 0}
    assert counted | elsewhere == model.counts | elsewhere
    if capacity < 100:  # large caches leave little to read
        assert (counted["copies_read"] > 0) == (copies > 0)


@pytest.mark.parametrize("policy", POLICIES, ids=lambda p: f"{p.eviction}+{p.admission.rule}")
def test_bookkeeping_is_counted_to_the_byte(policy: Policy) -> None:
    rows = 6000
    for capacity in (0, 1, 9, 10, 1000, 5000, rows):
        state = make_state(policy, capacity, np.zeros(rows, np.uint8))
        parts = [*state[:-2], *state.ghost, *state.shadow]
        needed = sum(array.nbytes for array in parts) - state.live.nbytes
        assert needed == bookkeeping_bytes(policy, capacity, rows)
        # Without a cache heat would be aged at every request, and decide nothing.
        assert state.live.size == (rows if policy.watches_heat and capacity else 0)


@pytest.mark.parametrize("policy", POLICIES, ids=lambda p: f"{p.eviction}+{p.admission.rule}")
def test_the_capacity_is_the_most_that_fits(policy: Policy) -> None:
    rows, row_bytes = 6000, 100
    for cache_bytes in (0, 10_000, 123_456, 600_000):
        capacity = capacity_for(policy, cache_bytes, row_bytes, rows)
        assert capacity == 0 or cache_bytes_of(policy, capacity, row_bytes, rows) <= cache_bytes
        assert cache_bytes_of(policy, capacity + 1, row_bytes, rows) > cache_bytes
    assert capacity_for(policy, 1 << 40, row_bytes, rows) == rows


def test_lookups_take_turns_where_hits_move_something() -> None:
    alone = {(p.eviction, p.admission.rule) for p in POLICIES if hits_relink(p)}
    lru = {("lru", rule) for rule in RULES}
    shadow = {(evicted, rule) for evicted in EVICTIONS for rule in ("shadow", "shadow-lower")}
    assert alone == lru | shadow


class Served:
    """A state that is asked for one row at a time, each a block of its own."""

    def __init__(self, policy: Policy, capacity: int, heat: np.ndarray) -> None:
        nothing = np.zeros(0, np.uint32)
        self.layout = Layout(1, heat, nothing, nothing)
        self.state = make_state(policy, capacity, heat)
        self.counters = new_counters()

    def ask(self, row: int) -> bool:
        """Return whether the row was cached."""
        slots, places = np.empty(1, np.int64), np.empty(1, np.int64)
        missed = look_up(self.state, np.array([row]), slots, self.counters)
        if missed:
            asked, ordered = missing(np.array([row]), slots, missed)
            blocks = cover(ordered, self.layout, places)
            fills = np.empty((2, 2), np.int64)
            admit(self.state, self.layout, asked, ordered, places, blocks, fills, self.counters)
        return not missed


def test_a_row_colder_than_all_that_are_cached_never_enters_tinylfu() -> None:
    heat = np.full(50, 100, np.uint8)
    heat[20:] = 0
    served = Served(Policy("tinylfu", half_life=1e6), 20, heat)
    for row in range(20):
        served.ask(row)
    for row in range(20, 50):
        assert served.state.live[row] < served.state.live[:20].min()
        assert not served.ask(row)
        assert set(positions(served.state).tolist()) == set(range(20))
    check(served.state, 50)


def test_tinylfu_lets_a_row_in_once_it_is_hotter() -> None:
    served = Served(Policy("tinylfu", half_life=1e6, seed_weight=0.0), 4, np.zeros(10, np.uint8))
    for row in (0, 1, 2, 3) * 5:
        served.ask(row)
    asked = 0
    while 9 not in positions(served.state):
        assert not served.ask(9)
        asked += 1
    assert 4 <= asked <= 8  # the others were asked five times
    assert served.ask(9)
    check(served.state, 10)


def test_a_neighbour_that_entered_low_leaves_sooner() -> None:
    """Of two rows that nobody asked for, with a block of two: low is half a cache away."""
    nothing = np.zeros(0, np.uint32)
    stayed = {}
    for rule in ("all", "lower"):
        layout = Layout(2, np.zeros(100, np.uint8), nothing, nothing)
        state = make_state(Policy("lru", Admission(rule)), 20, layout.heat)
        stayed[rule] = 0
        for request in range(50):
            wanted, slots, places = np.array([2 * request]), np.empty(1, np.int64), np.zeros(1, int)
            asked, ordered = missing(wanted, slots, look_up(state, wanted, slots, new_counters()))
            blocks = cover(ordered, layout, places)
            fills = np.empty((3, 2), np.int64)
            admit(state, layout, asked, ordered, places, blocks, fills, new_counters())
            if 2 * 30 + 1 in positions(state):
                stayed[rule] += 1
        check(state, 100)
    assert stayed["lower"] < stayed["all"]


def filled(policy: Policy, capacity: int = 4) -> CacheState:
    served = Served(policy, capacity, np.arange(100, dtype=np.uint8))
    for row in (3, 50, 99):
        served.ask(row)
    check(served.state, 100)
    return served.state


@pytest.mark.parametrize("evicted", ["lru", "clock", "sieve", "s3-fifo"])
def test_check_notices_a_broken_queue(evicted: str) -> None:
    state = filled(Policy(evicted))
    state.links[1, 1] = 1
    with pytest.raises(AssertionError, match="queue"):
        check(state, 100)


@pytest.mark.parametrize("evicted", EVICTIONS)
def test_check_notices_a_lost_position(evicted: str) -> None:
    state = filled(Policy(evicted))
    state.held[0] = 4
    with pytest.raises(AssertionError, match="index misses"):
        check(state, 100)


@pytest.mark.parametrize(
    ("said", "array", "at", "value"),
    [
        ("more slots in use", "clock", 0, 9),
        ("cached twice", "held", 0, 50),
        ("disagree in number", "buckets", slice(None), 0),
        ("another queue", "marks", 1, MAIN),
        ("the hand", "clock", 2, 3),
    ],
)
def test_check_notices_what_contradicts_itself(
    said: str, array: str, at: int | slice, value: int
) -> None:
    state = filled(Policy("sieve", Admission("lower")))
    getattr(state, array)[at] = value
    with pytest.raises(AssertionError, match=said):
        check(state, 100)


def test_check_notices_a_middle_elsewhere_and_a_memory_that_is_broken() -> None:
    state = filled(Policy("lru", Admission("lower")))
    state.older_half[:] = 1 - state.older_half
    with pytest.raises(AssertionError, match="middle"):
        check(state, 100)
    state = filled(Policy("lru", Admission("shadow")))
    state.shadow.held[:] += 1
    with pytest.raises(AssertionError, match="misses a position"):
        check(state, 100)
    state = filled(Policy("lru", Admission("shadow")))
    state.shadow.counts[0] += 1
    with pytest.raises(AssertionError, match="lost, or used twice"):
        check(state, 100)
    with pytest.raises(AssertionError, match="another table"):
        check(filled(Policy("tinylfu")), 101)


def test_the_model_names_what_the_kernels_do() -> None:
    """Numbers that the model repeats, so that a change of one is noticed here."""
    assert (eviction._SAMPLE, eviction._LOW_CODES) == (8, 23)
    assert batch.LOW == LOW == 2
