"""Swaps of rows between the blocks of a group, downhill or with a falling temperature.

In a swap at least one of the two rows gains by itself, so it is enough to look, from each
row, into the blocks to which it would like to go. That leaves few blocks to look into, which
is why groups can be large. The temperature (simulated annealing: Kirkpatrick et al., Science
1983) lets swaps through that lose a little, so that the search leaves poor local minima.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bandana_kv.kernels.compile import kernel
from bandana_kv.placement.groups import Group, cross, group_of, regain
from bandana_kv.placement.randomness import scramble

__all__ = ["refine_members"]

_NEVER = np.int32(-(1 << 30))
_PARTNERS = 2  # partners tried in one block
_SETTLED = 200  # a sweep that moves less than one row in so many is the last
_FRACTION = 1.0 / (1 << 53)


@kernel
def _best_partner(
    near: NDArray[np.int32],
    stay: NDArray[np.int32],
    rows: NDArray[np.int32],
    source: int,
    below: int,
    last: int,
) -> tuple[int, int]:
    """Return which of a block's `rows` gains most by going to block `source`, and its gain.

    Rows that gain more than `below`, or as much and are not above row `last`, have been tried.
    """
    best = int(_NEVER)
    partner = -1
    for row in rows:
        gain = int(near[row, source]) - int(stay[row])
        if gain > best and (gain < below or (gain == below and row > last)):
            best = gain
            partner = row
    return partner, best


@kernel
def _shared_loss(group: Group, partner: int, source: int, target: int) -> int:
    """Return what the requests that look up both rows do not gain; they are marked."""
    weight = group.weight
    loss = 0
    for at in range(group.row_ends[partner], group.row_ends[partner + 1]):
        request = group.of_row[at]
        if group.mark[request]:
            here = group.counts[request, source]
            there = group.counts[request, target]
            loss += weight[here - 1] - weight[here] + weight[there - 1] - weight[there]
    return loss


@kernel
def _swap(group: Group, row: int, partner: int) -> None:
    """Let the two rows change places; the requests of `row` are marked."""
    source, target = group.block_of_row[row], group.block_of_row[partner]
    weight, counts, near, stay = group.weight, group.counts, group.near, group.stay
    block_of_row, mark = group.block_of_row, group.mark
    ends, rows = group.request_ends, group.of_request
    for at in range(group.row_ends[partner], group.row_ends[partner + 1]):
        q = group.of_row[at]
        if mark[q]:
            mark[q] = 2
        else:
            own = rows[ends[q] : ends[q + 1]]
            cross(weight, counts[q], near, stay, block_of_row, own, target, source)
    for at in range(group.row_ends[row], group.row_ends[row + 1]):
        q = group.of_row[at]
        if mark[q] == 1:
            own = rows[ends[q] : ends[q + 1]]
            cross(weight, counts[q], near, stay, block_of_row, own, source, target)
    group.block_of_row[row], group.block_of_row[partner] = target, source
    slot, other = group.slot_of_row[row], group.slot_of_row[partner]
    group.slot_of_row[row], group.slot_of_row[partner] = other, slot
    group.row_at_slot[slot], group.row_at_slot[other] = partner, row
    regain(group, row)
    regain(group, partner)


@kernel
def _try_block(group: Group, row: int, target: int, gain: int, floor: int) -> bool:
    """Swap the row, which gains `gain`, into a block if both together gain more than `floor`."""
    source = group.block_of_row[row]
    below = -int(_NEVER)
    partner = -1
    begin = target * group.rows_per_block
    rows = group.row_at_slot[begin : begin + group.rows_per_block]
    for _ in range(_PARTNERS):
        partner, below = _best_partner(group.near, group.stay, rows, source, below, partner)
        if partner < 0 or gain + below <= floor:
            return False
        if gain + below - _shared_loss(group, partner, source, target) > floor:
            _swap(group, row, partner)
            return True
    return False


@kernel
def _try_row(group: Group, row: int, floor: int, wish: NDArray[np.int32]) -> bool:
    """Swap the row into the block it likes best of those that will have it."""
    blocks = wish.size
    stay = group.stay[row]
    least = np.int32(floor // 2)  # of two gains that sum to more, one is above half
    most = _NEVER
    near = group.near[row]
    for block in range(blocks):
        wish[block] = near[block] - stay
    wish[group.block_of_row[row]] = _NEVER
    for block in range(blocks):
        most = max(most, wish[block])
    if most <= least:
        return False
    requests = group.of_row[group.row_ends[row] : group.row_ends[row + 1]]
    for request in requests:
        group.mark[request] = 1
    swapped = False
    while not swapped:
        target = -1
        most = least
        for block in range(blocks):
            if wish[block] > most:
                most = wish[block]
                target = block
        if target < 0:
            break
        wish[target] = _NEVER
        swapped = _try_block(group, row, target, int(most), floor)
    for request in requests:
        group.mark[request] = 0
    return swapped


@kernel
def _sweep(
    group: Group, sequence: NDArray[np.int32], heat: float, salt: np.uint64, stop: NDArray[np.uint8]
) -> int:
    """Try every row once; a swap may lose an exponentially distributed bit of mean `heat`."""
    wish = np.empty(group.near.shape[1], np.int32)
    swaps = 0
    for row in sequence:
        if stop[0]:
            break
        floor = 0
        if heat > 0.0:
            salt = scramble(salt + np.uint64(1))
            uniform = (np.float64(salt >> np.uint64(11)) + 1.0) * _FRACTION
            floor = int(heat * np.log(uniform))
        swaps += _try_row(group, row, floor, wish)
    return swaps


@kernel
def _shuffle(sequence: NDArray[np.int32], salt: np.uint64) -> None:
    for i in range(sequence.size - 1, 0, -1):
        salt = scramble(salt + np.uint64(1))
        j = np.int64(salt % np.uint64(i + 1))
        sequence[i], sequence[j] = sequence[j], sequence[i]


@kernel
def refine_members(
    offsets: NDArray[np.int64],
    pins: NDArray[np.int32],
    members: NDArray[np.int32],
    rows_per_block: int,
    rate: float,
    sweeps: int,
    heat: float,
    seed: np.uint64,
    number: NDArray[np.int32],
    stop: NDArray[np.uint8],
) -> NDArray[np.int32]:
    """Return the vertices `members`, listed by block, after swaps between these blocks.

    `heat` falls to nothing over the sweeps, in blocks of one request; `number` is room for
    one int32 a request, all zeros.
    """
    group = group_of(offsets, pins, members, rows_per_block, rate, number)
    sequence = np.arange(members.size).astype(np.int32)
    for sweep in range(sweeps):
        salt = scramble(seed + np.uint64(sweep))
        _shuffle(sequence, salt)
        now = heat * group.weight[0] * (sweeps - 1 - sweep) / sweeps
        swaps = _sweep(group, sequence, now, ~salt, stop)
        if stop[0] or (now <= 0.0 and swaps * _SETTLED < members.size):
            break
    return members[group.row_at_slot]
