"""What a store must hold, kept outside of it, and how its answers are judged.

Every row says which table it is of, which load wrote it, which id it has and which update was
its last one; the rest of it is a hash of these. So a wrong row shows, and so does an answer with
rows of two versions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["ROWS", "TABLES", "Candidate", "Event", "Expected", "Floors", "rows_of"]

TABLES = ("item", "user")
ROWS, DIM = 400, 64
_STAMP, _TABLE, _ID, _SEQUENCE, _HASHES = range(5)
_REMEMBERED = 8

Event: TypeAlias = dict[str, Any]
Rows: TypeAlias = NDArray[np.int32]
Stamps: TypeAlias = dict[str, int]
Floors: TypeAlias = dict[tuple[str, int], Rows]


def rows_of(table: str, stamp: int | Rows, ids: NDArray[Any], sequences: Rows) -> Rows:
    """Return rows (n, DIM) of a table as load `stamp` and updates `sequences` made them."""
    rows = np.empty((ids.size, DIM), np.int32)
    rows[:, _STAMP] = stamp
    rows[:, _TABLE] = TABLES.index(table)
    rows[:, _ID] = ids
    rows[:, _SEQUENCE] = sequences
    words = rows[:, :_HASHES].astype(np.uint64)
    words *= np.array([0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F], np.uint64)
    seeds = np.bitwise_xor.reduce(words, axis=1)[:, None]
    steps = np.arange(1, 1 + DIM - _HASHES, dtype=np.uint64)
    rows[:, _HASHES:] = (seeds * steps & np.uint64(0x7FFFFFFF)).astype(np.int32)
    return rows


def wrong_among(table: str, ids: NDArray[Any], rows: Rows) -> NDArray[np.bool_]:
    """Return which rows (n, DIM) are no state that a row of these ids ever had."""
    sound = rows_of(table, rows[:, _STAMP], ids, rows[:, _SEQUENCE])
    wrong: NDArray[np.bool_] = (rows != sound).any(axis=1)
    return wrong


def _loaded(stamps: Stamps, event: Event) -> Stamps:
    """Return the stamps of a version that a load makes on top of another."""
    return stamps | {str(table): int(event["stamp"]) for table in event["tables"]}


@dataclass(frozen=True)
class Candidate:
    """A state that the store may be in.

    Attributes
    ----------
    happened : bool
        Whether what was begun, and not acknowledged, took place.
    version : int or None
        The current one; None where it is a number not used before.
    stamps : dict of str to int
        By table, which load its rows are of.
    """

    happened: bool
    version: int | None
    stamps: Stamps


@dataclass
class Expected:
    """The state of a store, as those who changed it said.

    Attributes
    ----------
    versions : dict of int to dict
        Stamps by version; some old ones too.
    current : int
        0: there is no store yet.
    held : set of int
        Versions that must be there.
    sequences : dict
        By table and stamp, the last update of each id.
    pending : dict or None
        What was begun and neither acknowledged nor refused.
    """

    versions: dict[int, Stamps] = field(default_factory=dict)
    current: int = 0
    held: set[int] = field(default_factory=set)
    sequences: Floors = field(default_factory=dict)
    pending: Event | None = None
    stamp: int = 0
    sequence: int = 0

    @property
    def stamps(self) -> Stamps:
        """The stamps of the current version."""
        return self.versions.get(self.current, {})

    def hear(self, event: Event) -> None:
        """Follow one event: something begins (``begin``), is ``done``, or ``failed``."""
        if "begin" in event:
            self.pending = event
            if event["begin"] == "load":
                self._begin_load(event)
            elif event["begin"] == "update":
                self.sequence = event["sequence"]
            elif event["begin"] == "place":
                self.held = {number for number in self.held if number <= self.current}
        elif "done" in event:
            self._apply(event["done"])
        elif "failed" in event:
            self.pending = None

    def _begin_load(self, event: Event) -> None:
        self.stamp = event["stamp"]
        # A load forgets what was rolled back from, and with keep=1 all but the current version.
        oldest = self.current if event["keep"] == 1 else 0
        self.held = {number for number in self.held if oldest <= number <= self.current}

    def _apply(self, version: int) -> None:
        """Take what is pending as done; `version` is the one that is current then."""
        event = self.pending
        if event is None:
            return
        kind = event["begin"]
        if kind == "update":
            self.of(event["table"], event["stamp"])[event["ids"]] = event["sequence"]
        elif kind == "rollback":
            self.current = version
        elif kind == "load":
            self.held = {version, *({self.current} if event["keep"] > 1 else ())} - {0}
            self._add(version, _loaded(self.stamps, event))
        elif kind == "place":
            self.held = self.held_after(event) | {version}
            self._add(version, self.stamps)
        # At the end: threads that judge answers meanwhile must find it here or there.
        self.pending = None

    def _add(self, version: int, stamps: Stamps) -> None:
        """Take a new version as the current one."""
        self.versions[version] = stamps
        # The one before is served until the next refresh, however old it is by now; and
        # the new one has not always the highest number, see `_fits` in torture.py.
        before, self.current = self.current, version
        for number in sorted(self.versions.keys() - {before, version})[:-_REMEMBERED]:
            del self.versions[number]
        used = {each for of_one in self.versions.values() for each in of_one.items()}
        self.sequences = {key: held for key, held in self.sequences.items() if key in used}

    def held_after(self, event: Event) -> set[int]:
        """Return the versions before it that a re-placement leaves: without the rows it moves.

        One that moves none leaves the version before as well, which a load that keeps two may
        then keep instead of an older one.
        """
        if not event["moves"]:
            return {self.current}
        table = event["table"]
        mine = self.stamps.get(table)
        return {number for number in self.held if self.versions[number].get(table) != mine}

    def of(self, table: str, stamp: int) -> Rows:
        """Return the last update of each id (ROWS,), to be changed in place."""
        return self.sequences.setdefault((table, stamp), np.zeros(ROWS, np.int32))

    # -- after a kill -----------------------------------------------------------------------

    def candidates(self) -> list[Candidate]:
        """Return the states that the store may be in."""
        found = [Candidate(False, self.current, self.stamps)]
        event = self.pending
        if event is None:
            return found
        if event["begin"] == "rollback":
            wanted = event["version"]
            found.append(Candidate(True, wanted, self.versions[wanted]))
        elif event["begin"] == "load":
            new = _loaded(self.stamps, event)
            found.append(Candidate(True, None, new))
        elif event["begin"] == "place":
            found.append(Candidate(True, None, self.stamps))
        elif event["begin"] == "update":
            found.append(Candidate(True, self.current, self.stamps))
        return found

    def tables_of(self, candidate: Candidate) -> dict[str, Rows]:
        """Return every row of a state, by table."""
        ids = np.arange(ROWS)
        event = self.pending if candidate.happened else None
        found = {}
        for table, stamp in candidate.stamps.items():
            sequences = self.of(table, stamp).copy()
            if event is not None and event["begin"] == "update":
                mine = (event["table"], event["stamp"]) == (table, stamp)
                sequences[event["ids"] if mine else []] = event["sequence"]
            found[table] = rows_of(table, stamp, ids, sequences)
        return found

    # -- while it changes -------------------------------------------------------------------

    def floors(self) -> Floors:
        """Return the updates that a call beginning now must show; costs a copy of them."""
        return {key: held.copy() for key, held in list(self.sequences.items())}

    def judge(
        self, asked: Mapping[str, NDArray[Any]], answers: Mapping[str, Rows], floors: Floors
    ) -> tuple[int, int]:
        """Return how many rows of one call are wrong, and whether versions are mixed in it."""
        wrong = 0
        stamps: dict[str, set[int]] = {}
        for table, rows in answers.items():
            wrong += int(self.wrong_rows(table, asked[table], rows, floors).sum())
            sound = ~wrong_among(table, asked[table], rows)
            stamps[table] = set(rows[sound, _STAMP].tolist())
        mixed = not any(self._are_of(stamps, version) for version in self._known())
        return wrong, int(mixed)

    def wrong_rows(
        self, table: str, ids: NDArray[Any], rows: Rows, floors: Floors
    ) -> NDArray[np.bool_]:
        """Return which rows (n, DIM) of these ids are wrong, or older than `floors`."""
        bad = wrong_among(table, ids, rows)
        for stamp in set(rows[~bad, _STAMP].tolist()):
            mine = ~bad & (rows[:, _STAMP] == stamp)
            bad[mine] |= rows[mine, _SEQUENCE] > self.sequence
            floor = floors.get((table, stamp))
            if floor is not None:
                bad[mine] |= rows[mine, _SEQUENCE] < floor[ids[mine]]
        return bad

    def _are_of(self, stamps: Mapping[str, set[int]], version: Stamps) -> bool:
        return all(found <= {version.get(table, -1)} for table, found in stamps.items())

    def _known(self) -> Iterator[Stamps]:
        event = self.pending
        yield from list(self.versions.values())
        if event is not None and event["begin"] == "load":
            yield _loaded(self.stamps, event)
