"""Every error the library raises on purpose.

One root, so that a server can catch :class:`BandanaError` and nothing else; each
subclass also derives from the built-in a Python programmer would expect. Messages
name the thing that is wrong and the way out.
"""

from __future__ import annotations

__all__ = [
    "AdapterError",
    "BandanaError",
    "BlockCorruptError",
    "BlockMissingError",
    "DeadlineError",
    "DiskFullError",
    "DurabilityError",
    "FallbackError",
    "FormatError",
    "IdError",
    "InputError",
    "LeaseLostError",
    "LoadInProgressError",
    "MigrationError",
    "MissingExtraError",
    "NoPermissionError",
    "NodeError",
    "PartitionerError",
    "RolloutError",
    "RowMissingError",
    "StoreChangedError",
    "StoreNotFoundError",
    "TableNotFoundError",
    "ThreadError",
    "UpdateInProgressError",
    "WriteBudgetError",
]


class BandanaError(Exception):
    """Root of all errors raised by bandana_kv."""


class InputError(BandanaError, ValueError):
    """An argument or an input file is not what it should be."""


class IdError(BandanaError, IndexError):
    """A row id is out of range, negative, or not an integer."""


class TableNotFoundError(BandanaError, LookupError):
    """The store has no table of that name."""


class StoreNotFoundError(BandanaError, FileNotFoundError):
    """The path holds no store."""


class StoreChangedError(BandanaError, RuntimeError):
    """Another store, or none, is at the path of one that is open."""


class NoPermissionError(BandanaError, PermissionError):
    """A file or directory that this user may not read, write or enter; the message names it."""


class FormatError(BandanaError, ValueError):
    """A file of the store is damaged, or of a format this release cannot read."""

    @classmethod
    def newer(cls, path: object, found: int, known: int) -> FormatError:
        """Return the error for a file that a later release wrote."""
        return cls(
            f"{path}: format {found} is newer than this release reads ({known}); upgrade bandana_kv"
        )


class BlockMissingError(BandanaError, LookupError):
    """The engine has no value under a block's key."""


class BlockCorruptError(BandanaError, ValueError):
    """A block's header or checksum does not match what was written."""


class DeadlineError(BandanaError, TimeoutError):
    """Blocks did not arrive within the time that a lookup may take."""


class FallbackError(BandanaError, RuntimeError):
    """A source of rows failed, or gave something else than the rows asked for."""


class RowMissingError(BandanaError, LookupError):
    """A source of rows has no row of an id."""


class DiskFullError(BandanaError, OSError):
    """The device has no room for what was to be written."""


class DurabilityError(BandanaError, OSError):
    """The device failed to make something durable; says what is known of it, and what is not."""


class LoadInProgressError(BandanaError, RuntimeError):
    """Another process is loading into the same store."""


class LeaseLostError(BandanaError, RuntimeError):
    """A process did not renew its lease in time, and another one may have taken its place."""


class UpdateInProgressError(BandanaError, RuntimeError):
    """Another process updates rows of the same store."""


class ThreadError(BandanaError, RuntimeError):
    """No thread could be started for what needs one."""


class WriteBudgetError(BandanaError, RuntimeError):
    """More would be written in 24 hours than the store's budget allows."""


class AdapterError(BandanaError, RuntimeError):
    """The engine failed, or refuses what was asked of it."""


class NodeError(AdapterError):
    """Nodes of a cluster do not answer for a block; others may be well.

    Attributes
    ----------
    node : str
        Which one, ``host:port``; empty where none is to blame alone.
    """

    def __init__(self, message: str, node: str = "") -> None:
        super().__init__(message)
        self.node = node

    def __reduce__(self) -> tuple[type[NodeError], tuple[str, str]]:
        """Keep the node where the error is sent to another process."""
        return type(self), (str(self), self.node)


class MigrationError(BandanaError, RuntimeError):
    """A source of rows is not what it was, or rows moved from it are not its own."""


class MissingExtraError(BandanaError, ImportError):
    """An optional package is not installed."""


class PartitionerError(BandanaError, RuntimeError):
    """An outside partitioner failed, or took longer than it was given."""


class RolloutError(BandanaError, RuntimeError):
    """A roll-out is not ready for its next stage, or its stage could not be written down."""
