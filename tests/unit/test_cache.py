"""The LRU kernels against a plain model, and admission against the rule it follows."""

from collections import OrderedDict

import numpy as np
import pytest

from bandana_kv.cache import lru
from bandana_kv.cache.batch import COUNTERS, admit, blocks_of, look_up, missing, new_counters

ROWS, PER_BLOCK = 300, 7


class Model:
    """LRU over an OrderedDict: position -> whether it is an unasked neighbour."""

    def __init__(self, capacity: int, heat: np.ndarray, least_heat: int) -> None:
        self.capacity, self.heat, self.least_heat = capacity, heat, least_heat
        self.rows: OrderedDict[int, bool] = OrderedDict()
        self.counts = dict.fromkeys(COUNTERS, 0)

    def insert(self, position: int, unasked: bool) -> None:
        if self.capacity == 0:
            return
        if len(self.rows) == self.capacity:
            self.rows.popitem(last=False)
        self.rows[position] = unasked

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
        for block in sorted({position // PER_BLOCK for position in asked}):
            for position in range(block * PER_BLOCK, min(ROWS, (block + 1) * PER_BLOCK)):
                wanted = self.heat[position] >= self.least_heat
                if wanted and position not in asked and position not in self.rows:
                    self.insert(position, True)
                    self.counts["neighbours_admitted"] += self.capacity > 0
        for position in asked:
            if position in self.rows:
                self.rows.move_to_end(position)
            else:
                self.insert(position, False)


@pytest.mark.parametrize("frugal", [True, False])
@pytest.mark.parametrize("capacity", [0, 1, 2, 13, 100, ROWS])
@pytest.mark.parametrize("least_heat", [0, 3, 256])
def test_kernels_do_what_the_model_does(capacity: int, least_heat: int, frugal: bool) -> None:
    rng = np.random.default_rng(capacity)
    heat = rng.integers(0, 6, ROWS).astype(np.uint8)
    model = Model(capacity, heat, least_heat)
    state = lru.make_state(capacity, ROWS, frugal=frugal)
    counters = new_counters()
    for _ in range(400):
        size = int(rng.integers(1, 12))
        positions = np.minimum(rng.geometric(0.02, size), ROWS) - 1
        slots = np.empty(size, np.int64)
        missed = look_up(state, positions, slots, counters)
        asked, ordered = missing(positions, slots, missed)
        blocks = blocks_of(ordered, PER_BLOCK)
        fills = np.empty((blocks.size * PER_BLOCK + asked.size, 2), np.int64)
        filled = admit(state, asked, ordered, blocks, PER_BLOCK, heat, least_heat, fills, counters)
        model.request(positions.tolist())
        held = dict(enumerate(lru.positions(state).tolist()))
        assert set(held.values()) == set(model.rows)
        last_fill = dict(fills[:filled].tolist())
        assert all(held[slot] == position for slot, position in last_fill.items())
    lru.check(state)
    counted = dict(zip(COUNTERS, counters.tolist(), strict=True))
    assert counted | {"block_reads": 0} == model.counts | {"block_reads": 0}
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
