"""What is looked at in a tortured store: versions, rows, what ``verify`` finds, and litter."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import bandana_kv
from bandana_kv.disk import manifest
from bandana_kv.errors import BandanaError, StoreNotFoundError
from bandana_kv.testing.oracle import ROWS, TABLES, Candidate, Expected
from bandana_kv.testing.torture_actor import Actor
from bandana_kv.testing.tortured import Tell, Tortured

__all__ = ["check", "everything", "tidy"]

# What lies in a store that nobody writes to.
_OWN = {"CURRENT", "journal", "ledger.jsonl", "lock", "manifests", "segments"}


def check(tortured: Tortured, tell: Tell) -> None:
    """Compare the store with what it must hold; settle what was pending."""
    candidates = tortured.expected.candidates()
    try:
        current = manifest.current_number(tortured.root)
        fitting = [each for each in candidates if _fits(each, current, tortured.expected)]
        if not fitting:
            allowed = [each.version for each in candidates]
            tortured.bad("lost_versions", f"current is {current}, not one of {allowed}")
            fitting = candidates
        found = everything(tortured.root)
        fits = _judge(tortured, fitting, found)
        tell({"done": current} if fits.happened else {"failed": ""})
        _look_for_lost(tortured, fits, current)
        report = bandana_kv.verify(tortured.root)
        if not report.sound:
            tortured.bad("unsound_stores", str(report.findings[:3]))
    except StoreNotFoundError as error:
        if tortured.expected.current:
            tortured.bad("lost_versions", str(error))
        tell({"failed": ""})
    except BandanaError as error:
        tortured.bad("lost_versions", f"{type(error).__name__}: {error}")
        tell({"failed": ""})


def _judge(
    tortured: Tortured, candidates: list[Candidate], found: dict[str, np.ndarray]
) -> Candidate:
    """Return the state that the rows are of; count what is wrong if they are of none."""
    wrong: list[int] = []
    for each in candidates:
        sound = tortured.expected.tables_of(each)
        if found.keys() != sound.keys():
            wrong.append(ROWS * len(TABLES))
        else:
            differ = (found[table] != sound[table] for table in sound)
            wrong.append(sum(int(rows.any(axis=1).sum()) for rows in differ))
    # What is seen to have happened did.
    best = min(range(len(wrong)), key=lambda at: (wrong[at], not candidates[at].happened))
    if wrong[best]:
        asked = dict.fromkeys(found, np.arange(ROWS))
        mixed = tortured.expected.judge(asked, found, {})[1]
        tortured.bad("mixed_answers", "after a kill", mixed)
        why = f"{wrong[best]} rows after {tortured.expected.pending}"
        tortured.bad("wrong_rows", why, wrong[best])
    return candidates[best]


def _look_for_lost(tortured: Tortured, state: Candidate, current: int) -> None:
    """Check that the versions are there that a load had to leave."""
    pending = tortured.expected.pending
    wanted = set(tortured.expected.held)
    if state.happened and pending is not None:
        if pending["begin"] == "load":
            wanted = {current}
        elif pending["begin"] == "place":
            wanted = tortured.expected.held_after(pending) | {current}
    there = {version.number for version in bandana_kv.versions(tortured.root)}
    # One that was rolled back from, and stayed because it was read, takes another's place.
    others = sum(number <= current for number in there - wanted)
    for number in sorted(wanted - there)[others:]:
        tortured.bad("lost_versions", f"version {number} is gone, there are {sorted(there)}")


def tidy(tortured: Tortured, tell: Tell) -> None:
    """Load once more; what dead processes left behind must be gone."""
    if not Actor(tortured, tell, readers=0).load():
        return
    there = {path.name for path in tortured.root.iterdir()}
    # What an engine left in a segment that is in use goes when that is next written to.
    litter = [str(path) for path in tortured.root.glob("manifests/*.new")] + sorted(there - _OWN)
    kept = {f"{version.number:06d}.json" for version in bandana_kv.versions(tortured.root)}
    litter += sorted({path.name for path in (tortured.root / "manifests").iterdir()} - kept)
    used = {
        f"{segment:06d}"
        for version in bandana_kv.versions(tortured.root)
        for segment in manifest.read_version(tortured.root, version.number).directories
    }
    litter += sorted({path.name for path in (tortured.root / "segments").iterdir()} - used)
    if litter:
        tortured.bad("litter", ", ".join(litter), len(litter))


def _fits(candidate: Candidate, current: int, expected: Expected) -> bool:
    if candidate.version is None:
        # A load that died may have removed a version that was rolled back from, and with it
        # the memory of its number.
        return current > expected.current
    return candidate.version == current


def everything(root: Path) -> dict[str, np.ndarray]:
    """Return all rows of all tables, through a small cache."""
    with bandana_kv.open(root, cache_bytes=30_000) as store:
        return {table: store.multi_get(table, np.arange(ROWS)) for table in store.tables}
