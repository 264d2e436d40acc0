"""Queues of slots: linked lists over arrays, newest to oldest, with a known middle.

``links[slot]`` holds the next newer and the next older slot. ``ends[queue]`` says where a
queue begins, ends and has its middle: the newest slot of its older half. The middle is
kept only where something enters there, for it costs a step on every change.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bandana_kv.kernels.compile import inlined

__all__ = [
    "COUNT",
    "NEWEST",
    "OLDEST",
    "empty_queues",
    "link_middle",
    "link_newest",
    "slots_of",
    "unlink",
]

NEWER, OLDER = 0, 1
NEWEST, OLDEST, COUNT, MIDDLE, IN_OLDER_HALF, HALVED = 0, 1, 2, 3, 4, 5
NONE = -1


def empty_queues(queues: int, *, halved: bool) -> NDArray[np.int64]:
    """Return the ends of empty queues, int64 (queues, 6); `halved`: keep their middle."""
    ends = np.zeros((queues, 6), np.int64)
    ends[:, [NEWEST, OLDEST, MIDDLE]] = NONE
    ends[:, HALVED] = halved
    return ends


@inlined
def unlink(
    links: np.ndarray, older_half: np.ndarray, ends: np.ndarray, queue: int, slot: int
) -> None:
    """Take `slot` out of its queue."""
    newer, older = links[slot, NEWER], links[slot, OLDER]
    if newer == NONE:
        ends[queue, NEWEST] = older
    else:
        links[newer, OLDER] = older
    if older == NONE:
        ends[queue, OLDEST] = newer
    else:
        links[older, NEWER] = newer
    ends[queue, COUNT] -= 1
    if ends[queue, HALVED]:
        if older_half[slot]:
            older_half[slot] = 0
            ends[queue, IN_OLDER_HALF] -= 1
            if ends[queue, MIDDLE] == slot:
                ends[queue, MIDDLE] = older
        _find_middle(links, older_half, ends, queue)


@inlined
def _find_middle(links: np.ndarray, older_half: np.ndarray, ends: np.ndarray, queue: int) -> None:
    while ends[queue, IN_OLDER_HALF] < ends[queue, COUNT] // 2:
        slot = (
            ends[queue, OLDEST]
            if ends[queue, MIDDLE] == NONE
            else links[ends[queue, MIDDLE], NEWER]
        )
        older_half[slot] = 1
        ends[queue, MIDDLE] = slot
        ends[queue, IN_OLDER_HALF] += 1
    while ends[queue, IN_OLDER_HALF] > ends[queue, COUNT] // 2:
        slot = ends[queue, MIDDLE]
        older_half[slot] = 0
        ends[queue, MIDDLE] = links[slot, OLDER]
        ends[queue, IN_OLDER_HALF] -= 1


@inlined
def link_newest(
    links: np.ndarray, older_half: np.ndarray, ends: np.ndarray, queue: int, slot: int
) -> None:
    """Put `slot` at the newest end."""
    newest = ends[queue, NEWEST]
    links[slot, NEWER] = NONE
    links[slot, OLDER] = newest
    if newest == NONE:
        ends[queue, OLDEST] = slot
    else:
        links[newest, NEWER] = slot
    ends[queue, NEWEST] = slot
    ends[queue, COUNT] += 1
    if ends[queue, HALVED]:
        _find_middle(links, older_half, ends, queue)


@inlined
def link_middle(
    links: np.ndarray, older_half: np.ndarray, ends: np.ndarray, queue: int, slot: int
) -> None:
    """Put `slot` in the middle, so that half of the queue is evicted before it."""
    older = ends[queue, MIDDLE]
    newer = ends[queue, OLDEST] if older == NONE else links[older, NEWER]
    links[slot, NEWER] = newer
    links[slot, OLDER] = older
    if newer == NONE:
        ends[queue, NEWEST] = slot
    else:
        links[newer, OLDER] = slot
    if older == NONE:
        ends[queue, OLDEST] = slot
    else:
        links[older, NEWER] = slot
    ends[queue, COUNT] += 1
    ends[queue, MIDDLE] = slot
    older_half[slot] = 1
    ends[queue, IN_OLDER_HALF] += 1
    _find_middle(links, older_half, ends, queue)


def slots_of(
    links: NDArray[np.int32], older_half: NDArray[np.uint8], ends: NDArray[np.int64], queue: int
) -> list[int]:
    """Return the slots of a queue, newest first, after checking it.

    Raises
    ------
    AssertionError
        Says what is broken.
    """
    seen: list[int] = []
    slot, newer = int(ends[queue, NEWEST]), NONE
    while slot != NONE and len(seen) <= ends[queue, COUNT]:
        assert links[slot, NEWER] == newer, "a queue is not its own mirror image"
        seen.append(slot)
        slot, newer = int(links[slot, OLDER]), slot
    assert newer == ends[queue, OLDEST], "a queue does not end at its oldest slot"
    assert len(seen) == ends[queue, COUNT], "a queue holds more or fewer slots than it says"
    if ends[queue, HALVED]:
        half = len(seen) // 2
        older = seen[len(seen) - half :]
        assert [s for s in seen if older_half[s]] == older, "a queue's middle is elsewhere"
        assert ends[queue, MIDDLE] == (older[0] if older else NONE), "a queue's middle is elsewhere"
    return seen
