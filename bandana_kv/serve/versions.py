"""Which version of a store is the one to serve, and what keeps it while it is served."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from bandana_kv.disk import manifest
from bandana_kv.disk.retention import hold_current, hold_version

__all__ = ["InDirectory", "Versions"]


class Versions(Protocol):
    """What a store that is open asks about its versions."""

    def current(self) -> int:
        """Return the number of the version to serve. A look is small.

        Raises
        ------
        BandanaError
            It cannot be told.
        """

    def hold(self, number: int | None, resources: contextlib.ExitStack) -> manifest.Manifest:
        """Return the manifest of a version, which stays until `resources` closes.

        Parameters
        ----------
        number
            None: of the one to serve.
        resources
            What keeps it is put here.

        Raises
        ------
        BandanaError
            It is not there, or is damaged.
        """

    def coming(self) -> int | None:
        """Return the version that is about to be the one to serve; None: none is."""

    def prepared(self, number: int) -> None:
        """Take notice that the version that is coming is open here, and warm."""

    def after_fork_in_child(self) -> None:
        """Begin anew without threads: those of the parent do not exist here."""

    def close(self) -> None:
        """Let go of all that is open; the store is closed."""


@dataclass(frozen=True)
class InDirectory:
    """The versions of a store directory."""

    root: Path

    def current(self) -> int:
        """Return what ``CURRENT`` says."""
        return manifest.current_number(self.root)

    def hold(self, number: int | None, resources: contextlib.ExitStack) -> manifest.Manifest:
        """Lock a version's manifest; one that is not current only with the writer's lock held."""
        if number is None:
            return hold_current(self.root, resources)
        return hold_version(self.root, number, resources)

    def coming(self) -> None:
        """Return None: a version in a directory is current, or nobody waits for it."""

    def prepared(self, number: int) -> None:
        """Do nothing; nobody waits."""

    def after_fork_in_child(self) -> None:
        """Do nothing: locks are inherited."""

    def close(self) -> None:
        """Do nothing: versions hold their locks themselves."""
