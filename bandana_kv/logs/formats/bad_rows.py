"""Rows of a log that are not as they should be: the first is an error, or all are counted."""

from __future__ import annotations

from bandana_kv.errors import InputError

__all__ = ["BadRows"]


class BadRows:
    """Ends the reading at the first bad row, or counts them.

    Parameters
    ----------
    skip
        Count them.

    Attributes
    ----------
    skip : bool
    count : int
        Of the rows so far.
    first : str
        What was wrong with the first, and where.
    """

    def __init__(self, skip: bool) -> None:
        self.skip = skip
        self.count = 0
        self.first = ""

    def add(self, message: str, rows: int = 1) -> None:
        """Take `rows` bad ones, of which `message` tells of the first.

        Raises
        ------
        InputError
            They are not to be skipped.
        """
        if not self.skip:
            raise InputError(f"{message}; bad_rows='skip' leaves out such rows, and counts them")
        self.first = self.first or message
        self.count += rows
