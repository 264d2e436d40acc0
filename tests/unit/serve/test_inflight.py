"""The table of blocks that are being read does what a dict does, whatever comes and goes."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bandana_kv.kernels.compile import kernel
from bandana_kv.serve.inflight import (
    _GOLDEN,
    InFlight,
    claim_entry,
    leave_entry,
    lock_entries,
    unlock_entries,
)

ENTRIES = 8
# Of sixteen homes these keys have three, side by side, one of them the last.
KEYS = [key for key in range(60) if (key * int(_GOLDEN) >> 32) & 15 in (14, 15, 0)]


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


STEPS = st.lists(
    st.tuples(st.sampled_from(["claim", "claim", "leave", "forget"]), st.sampled_from(KEYS)),
    max_size=120,
)


@given(steps=STEPS)
def test_equals_a_dict(steps: list[tuple[str, int]]) -> None:
    """Keys collide, and gaps close over each other's homes."""
    table = InFlight(64, ENTRIES)
    entry_of: dict[int, int] = {}
    forgotten: list[int] = []
    users: Counter[int] = Counter()
    for what, key in steps:
        if what == "claim":
            found = claim(table.words, np.uint64(key))
            if key in entry_of:
                assert found == -2 - entry_of[key]
                users[entry_of[key]] += 1
            elif len(users) == ENTRIES:
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
