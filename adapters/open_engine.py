"""An engine that is open: entered through its gate, failing in the library's words, closed once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self, TypeVar

from bandana_kv.adapters.gate import Gate, StaleHandleError
from bandana_kv.adapters.keys import describe_key
from bandana_kv.errors import (
    AdapterError,
    BandanaError,
    BlockCorruptError,
    BlockMissingError,
    DiskFullError,
    InputError,
)
from bandana_kv.system.ending import PATIENCE_S, end_engine_at_exit
from bandana_kv.system.permission import check_permission, denied_by_engine

__all__ = ["OpenEngine"]

_FULL = ("no space left", "file too large", "disk quota exceeded", "enospc")
T = TypeVar("T")


class OpenEngine(ABC):
    """The handle of an adapter, and who may use it: in common to all, whatever they store.

    Parameters
    ----------
    where
        The path or the handle, as messages name it.
    read_only
        Refuse every write.
    gate
        Guards the engine's handle; adapters that share a handle share its gate.
    """

    name: ClassVar[str]
    """The name under which the adapter is registered."""

    engine_errors: ClassVar[tuple[type[Exception], ...]] = ()
    """What the engine raises; translated into :class:`~bandana_kv.errors.AdapterError`."""

    def __init__(self, where: str, *, read_only: bool, gate: Gate | None) -> None:
        self._where = where
        self._read_only = read_only
        self._gate = Gate() if gate is None else gate
        end_engine_at_exit(self)
        self._closed = False

    # -- what an adapter implements -----------------------------------------------------

    @abstractmethod
    def _close(self) -> None:
        """Release what this adapter opened; called once, with no call running."""

    def _check_handle(self) -> None:
        """Raise :class:`StaleHandleError` when the handle cannot be used as it is."""
        return

    def _recover(self, error: Exception) -> bool:
        """Repair what made a call fail, if possible, and say whether to repeat it.

        Called with no gate held; take ``self._gate.alone()`` to change the handle.
        """
        del error
        return False

    # -- closing ------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._closed

    def close(self) -> None:
        """Wait for running calls and release the engine; a second call does nothing."""
        with self._gate.alone():
            if self._closed:
                return
            self._closed = True
        self._released()

    def end(self) -> None:
        """Close it at the end of the interpreter, unless a call hangs."""
        with self._gate.alone_soon(PATIENCE_S) as alone:
            if self._closed or not alone:
                return
            self._closed = True
        self._released()

    def _released(self) -> None:
        try:
            self._close()
        except self.engine_errors as error:
            raise self._translate(error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed else "read-only" if self._read_only else "open"
        return f"<{type(self).__name__} {self._where} ({state})>"

    # -- for implementations ------------------------------------------------------------

    @classmethod
    def _make_directory(cls, path: Path) -> None:
        """Make the directory of a new store; it may exist if it is empty."""
        try:
            path.mkdir(parents=True, exist_ok=True)
            taken = any(path.iterdir())
        except (FileExistsError, NotADirectoryError):
            taken = True
        except OSError as error:
            check_permission(error, path)
            raise AdapterError(f"{cls.name} cannot make the directory {path}: {error}") from error
        if taken:
            raise InputError(f"cannot create a {cls.name} store at {path}: it exists")

    @classmethod
    def _cannot_open(cls, where: str, error: Exception) -> BandanaError:
        """Return the library's error for what the engine raised at opening."""
        if (denied := denied_by_engine(f"{cls.name} at {where}", error)) is not None:
            return denied
        kind = DiskFullError if _is_full(error) else AdapterError
        return kind(f"{cls.name} at {where} cannot be opened: {error}")

    def _missing(self, key: int) -> BlockMissingError:
        return BlockMissingError(f"{self.name} at {self._where} has no {describe_key(key)}")

    def _damaged(self, key: int, error: Exception) -> BlockCorruptError:
        return BlockCorruptError(
            f"{self.name} at {self._where}: {describe_key(key)} is damaged: {error}"
        )

    def _translate(self, error: Exception) -> BandanaError:
        """Return the library's error for one of the engine's."""
        if _is_full(error):
            return DiskFullError(f"{self.name} at {self._where}: no room for more: {error}")
        if (denied := denied_by_engine(f"{self.name} at {self._where}", error)) is not None:
            return denied
        return AdapterError(f"{self.name} at {self._where} failed: {error}")

    def _call(self, work: Callable[[], T]) -> T:
        """Run `work` inside the gate, translating and if possible repairing errors."""
        while True:
            try:
                with self._gate.inside:
                    if self._closed:
                        raise AdapterError(f"{self.name} at {self._where} is closed")
                    self._check_handle()
                    return work()
            except BandanaError:
                raise
            except (StaleHandleError, *self.engine_errors) as error:  # type: ignore[misc]
                failure: Exception = error
            try:
                repaired = self._recover(failure)
            except self.engine_errors as error:
                # What it was to open again is gone or damaged since.
                raise self._translate(error) from error
            if not repaired:
                raise self._translate(failure) from failure

    def _check_writable(self) -> None:
        if self._read_only:
            raise AdapterError(f"{self.name} at {self._where} was opened read-only")


def _is_full(error: Exception) -> bool:
    """Return whether an engine's message says that the device, or a quota, is full."""
    text = str(error).lower()
    return any(sign in text for sign in _FULL)
