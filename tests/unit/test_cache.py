"""The LRU kernels against a plain model, and admission against the rule it follows."""

from collections import Counter, OrderedDict

import numpy as np
import pytest

from bandana_kv.cache import lru
from bandana_kv.cache.batch import COUNTERS, admit, look_up, missing, new_counters
from bandana_kv.layout import Layout, cover

ROWS, PER_BLOCK = 300, 7
FIRST_COPY = 43 * PER_BLOCK


class Model:
    """LRU over an OrderedDict: position -> whether it is an unasked neighbour."""

    def __init__(self, capacity: int, layout: Layout, least_heat: int) -> None:
        self.capacity, self.heat, self.least_heat = capacity, layout.heat, least_heat
        self.places_of = {position: [position] for position in range(ROWS)}
        self.row_at = {position: position for position in range(ROWS)}
        for copy, original in enumerate(layout.original_of.tolist()):
            self.places_of[original].append(FIRST_COPY + copy)
            self.row_at[FIRST_COPY + copy] = original
        self.rows: OrderedDict[int, bool] = OrderedDict()
        self.counts = dict.fromkeys(COUNTERS, 0)

    def insert(self, position: int, unasked: bool) -> None:
        if self.capacity == 0:
            return
        if len(self.rows) == self.capacity:
            self.rows.popitem(last=False)
        self.rows[position] = unasked

    def cover(self, asked: set[int]) -> list[int]:
        """Blocks of rows in one place first, then greedily whichever gives most."""
        blocks_of = {p: [place // PER_BLOCK for place in self.places_of[p]] for p in asked}
        chosen = {blocks[0] for blocks in blocks_of.values() if len(blocks) == 1}
        while left := [p for p in asked if not chosen & {blocks_of[p][0], *blocks_of[p][1:]}]:
            gives = Counter(block for p in left for block in blocks_of[p])
            chosen.add(min(gives, key=lambda block: (-gives[block], block)))
        return sorted(chosen)

    def request(self, positions: list[int]) -> None:
        asked = []
        for position in positions:
            self.counts["lookups"] += 1
            if position in self.rows:
                self.counts["hits"] += 1
                self.counts["neighbours_hit"] += self.rows[position]
                self.rows[position] = False
                self.rows.move_to_end(position)
            else:
                asked.append(position)
        blocks = self.cover(set(asked))
        for block in blocks:
            for place in range(block * PER_BLOCK, (block + 1) * PER_BLOCK):
                position = self.row_at.get(place)
                if position is None:
                    continue
                wanted = self.heat[position] >= self.least_heat
                if wanted and position not in asked and position not in self.rows:
                    self.insert(position, True)
                    self.counts["neighbours_admitted"] += self.capacity > 0
        for position in asked:
            if position in self.rows:
                self.rows.move_to_end(position)
            else:
                self.insert(position, False)


def layout_of(rng: np.random.Generator, copies: int) -> Layout:
    heat = rng.integers(0, 6, ROWS).astype(np.uint8)
    original_of = rng.permutation(ROWS)[:copies].astype(np.uint32)
    return Layout(PER_BLOCK, heat, original_of, np.argsort(original_of).astype(np.uint32))


@pytest.mark.parametrize("copies", [0, 60])
@pytest.mark.parametrize("frugal", [True, False])
@pytest.mark.parametrize("capacity", [0, 1, 2, 13, 100, ROWS])
@pytest.mark.parametrize("least_heat", [0, 3, 256])
def test_kernels_do_what_the_model_does(
    capacity: int, least_heat: int, frugal: bool, copies: int
) -> None:
    rng = np.random.default_rng(capacity)
    layout = layout_of(rng, copies)
    model = Model(capacity, layout, least_heat)
    state = lru.make_state(capacity, ROWS, frugal=frugal)
    counters = new_counters()
    for _ in range(400):
        size = int(rng.integers(1, 12))
        positions = np.minimum(rng.geometric(0.02, size), ROWS) - 1
        slots = np.empty(size, np.int64)
        missed = look_up(state, positions, slots, counters)
        asked, ordered = missing(positions, slots, missed)
        places = np.empty(ordered.size, np.int64)
        blocks = cover(ordered, layout, places)
        assert blocks.tolist() == model.cover(set(asked.tolist()))
        assert all(
            place in model.places_of[position] and place // PER_BLOCK in blocks
            for position, place in zip(ordered.tolist(), places.tolist(), strict=True)
        )
        fills = np.empty((blocks.size * PER_BLOCK + asked.size, 2), np.int64)
        filled = admit(state, layout, asked, ordered, places, blocks, least_heat, fills, counters)
        model.request(positions.tolist())
        held = dict(enumerate(lru.positions(state).tolist()))
        assert set(held.values()) == set(model.rows)
        last_fill = dict(fills[:filled].tolist())
        assert all(held[slot] == model.row_at[place] for slot, place in last_fill.items())
    lru.check(state)
    counted = dict(zip(COUNTERS, counters.tolist(), strict=True))
    elsewhere = {"block_reads": 0, "copies_read": 0}
    assert counted | elsewhere == model.counts | elsewhere
    if capacity < 100:  # large caches leave little to read
        assert (counted["copies_read"] > 0) == (copies > 0)
    oldest_first = []
    slot = int(state.ends[2])
    while slot >= 0:
        oldest_first.append(int(state.slots[slot, 0]))
        slot = int(state.slots[slot, 1])
    assert oldest_first == list(model.rows)


def test_check_notices_a_broken_list() -> None:
    state = lru.make_state(4, 100)
    for position in (3, 50, 99):
        lru.insert(*state, position)
    lru.check(state)
    state.slots[1, 1] = 1
    with pytest.raises(AssertionError, match="recency list"):
        lru.check(state)


def test_check_notices_a_lost_position() -> None:
    state = lru.make_state(4, 100)
    lru.insert(*state, 3)
    state.slots[0, 0] = 4
    with pytest.raises(AssertionError, match="index misses"):
        lru.check(state)


def test_bookkeeping_is_counted_to_the_byte() -> None:
    for capacity in (0, 1, 1000, 5000):
        state = lru.make_state(capacity, 6000)
        assert sum(array.nbytes for array in state) == lru.bookkeeping_bytes(capacity, 6000)
