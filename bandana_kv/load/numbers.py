"""Numbers of versions and key spaces, each given out once."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from bandana_kv.disk import manifest, retention
from bandana_kv.disk.journal_files import journal_files, read_records
from bandana_kv.errors import FormatError
from bandana_kv.load.jobs import Job

if TYPE_CHECKING:
    from bandana_kv.adapters.contract import Adapter

__all__ = ["Numbers", "first_free_space", "first_of_store", "with_spaces"]

_FIRST_SPACES = 1 << 23


@dataclass(frozen=True)
class Numbers:
    """What a load is given by whoever knows more than the directory it writes to.

    Attributes
    ----------
    version : int
        Of the version; no other one ever had it, nor litter.
    next_space : callable
        Returns a key space that nobody ever used, one after the other.
    """

    version: int
    next_space: Callable[[], int]


def first_free_space(root: Path) -> int:
    """Return a key space above all that a version, or the litter of a load, has used.

    After a rollback the current version does not know of later ones, and their blocks may
    still lie in an engine that the user holds, and their updates in the journal.
    """
    first = 1
    for version in manifest.numbers_in(root / "manifests"):
        with contextlib.suppress(FormatError):
            first = max(first, manifest.read_version(root, version).next_space)
    for segment in manifest.numbers_in(root / "segments"):
        first = max([first, *(1 + space for _, space in retention.held_spaces(root, segment))])
    for path in journal_files(root):
        with contextlib.suppress(FormatError, FileNotFoundError):
            first = max([first, *(1 + record.space for record, _ in read_records(path))])
    return first


def first_of_store(old: manifest.Manifest | None, held: Adapter | None, first: int) -> int:
    """Return where a store's spaces begin: in an engine that the user holds, drawn by lot.

    A user may hold several engines and mistake one for another: so the blocks of another store
    are neither served nor deleted then.
    """
    if held is not None and (old is None or all(each.owned for each in old.segments.values())):
        first = max(first, 1 + secrets.randbelow(_FIRST_SPACES))
    return first


def with_spaces(jobs: list[Job], held: Adapter | None, next_space: Callable[[], int]) -> list[Job]:
    """Give each table a key space of its own: never used before, and empty."""
    spaced = []
    for job in jobs:
        space = next_space()
        while held is not None and not held.space_is_empty(space):
            space = next_space()
        spaced.append(replace(job, space=space))
    return spaced
