"""What a training log says of later traffic, and how far that may be off."""

from __future__ import annotations

import math

import msgspec
import numpy as np

from bandana_kv.disk.plan import Choice
from bandana_kv.errors import InputError
from bandana_kv.plan.choose import Subject
from bandana_kv.plan.points import LEAST_REQUESTS, judged, scaled
from bandana_kv.simulate.replay import Replayed, run_parts

__all__ = ["Outlook", "outlook"]

# The log in fifths: two are learnt from, the next one judges, and so on to the end.
_FIFTHS, _LEARNT = 5, 2
_PARTS = 5
# Student's t for 95 % on both sides, with 3 x 5 parts.
_STUDENT = 2.145


class Outlook(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Block reads per lookup to be expected of later traffic.

    Attributes
    ----------
    reads_per_lookup
        Of the last fifth of the log, learnt from all before it.
    low, high
        Between which later traffic as a whole is expected with 95 % confidence.
    by_time
        Of consecutive parts of the log, each learnt from as much before it: what varies here
        is the traffic.
    learning
        Reads where twice as much was learnt from, over those where once: 1, more log does not
        help.
    """

    reads_per_lookup: float
    low: float
    high: float
    by_time: tuple[float, ...]
    learning: float


def outlook(subject: Subject, choice: Choice) -> Outlook:
    """Say what later traffic will cost under a choice, from the training log alone.

    Parameters
    ----------
    subject
        The table, and its log.
    choice
        What :func:`bandana_kv.plan.choose.choose` made of them.

    Raises
    ------
    InputError
        The log is too short.

    Notes
    -----
    Three times the choice is made anew from two fifths of the log and judged by the
    next fifth, in five parts. Learnt from as much each time, the fifteen parts differ as traffic
    does: by chance, by season, by the age of what was learnt. Later traffic as a whole is taken
    for one more such part; so were parts independent, it would be too wide, and as they drift
    together, it is not. The interval begins at the lower and ends at the higher of two levels, the
    last one and the mean one (scaled to as much learning), since nothing says to which one
    drifting traffic goes. Below, it also leaves room for what the last fifth of
    the log may still teach, as much as doubling it did before.

    Traffic that does what it never did in the log is not covered. Cost: about two placements of the
    whole log, and a replay.
    """
    log = subject.log
    if log.requests < LEAST_REQUESTS:
        raise InputError(
            f"table {subject.name!r}: a log of {log.requests} requests is too short to look "
            f"ahead; {LEAST_REQUESTS} are the least"
        )
    edges = np.linspace(0, log.requests, _FIFTHS + 1).astype(int).tolist()
    windows = [
        _judged(subject, choice, edges[at], edges[at + _LEARNT], edges[at + _LEARNT + 1])
        for at in range(_FIFTHS - _LEARNT)
    ]
    last = _mean(_judged(subject, choice, 0, edges[-2], edges[-1]))
    by_time = [each.reads_per_lookup for window in windows for each in window if each.lookups]
    learning = last / max(1e-12, _mean(windows[-1]))
    if not last or not all(by_time):
        # Nothing is read where everything fits: then there is no ratio to speak of.
        return Outlook(last, min([last, *by_time]), max([last, *by_time]), tuple(by_time), 1.0)
    logs = np.log(by_time)
    usual = learning * math.exp(float(logs.mean()))
    aside = _STUDENT * float(logs.std(ddof=1)) * math.sqrt(1 + 1 / logs.size)
    more = math.log(_FIFTHS / (_FIFTHS - 1)) / math.log((_FIFTHS - 1) / _LEARNT)
    return Outlook(
        last,
        min(last, usual) * math.exp(-aside) * min(1.0, learning) ** more,
        max(last, usual) * math.exp(aside),
        tuple(by_time),
        learning,
    )


def _judged(subject: Subject, choice: Choice, first: int, middle: int, last: int) -> list[Replayed]:
    """Learn from requests `first` to `middle`, and count what those up to `last` cost."""
    learn = subject.log.select(np.arange(first, middle))
    judge = subject.log.select(np.arange(middle, last))
    placement = subject.placed(learn, choice.placement, choice.resident_rows)
    stream, layout = judged(learn, judge, placement)
    policy = scaled(choice.policy, learn.requests / subject.log.requests)
    return run_parts(stream, layout, policy, choice.capacity_rows, _PARTS)


def _mean(parts: list[Replayed]) -> float:
    return sum(part.block_reads for part in parts) / max(1, sum(part.lookups for part in parts))
