"""Rows of .npy files."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from bandana_kv.errors import InputError
from bandana_kv.rows.positioned import PositionedFile, RunRows

__all__ = ["Header", "NpyRows", "read_header"]


class Header(NamedTuple):
    """What a .npy file says of the array that follows."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]


def read_header(name: str, file: IO[bytes]) -> Header:
    """Read the header of an array, and leave `file` at its first number.

    Raises
    ------
    InputError
        It cannot be read, or the array lies column by column; begins with `name`.
    """
    try:
        version = np.lib.format.read_magic(file)
        read = (
            np.lib.format.read_array_header_1_0
            if version == (1, 0)
            else np.lib.format.read_array_header_2_0
        )
        # A file of Python 2 makes it warn of the time that reading the header takes.
        with warnings.catch_warnings(action="ignore"):
            shape, fortran, dtype = read(file)
    except Exception as error:
        # Parsing a damaged header ends in errors of many types, some of the tokenizer.
        raise InputError(f"{name}: not a readable .npy file ({error})") from error
    if fortran:
        raise InputError(
            f"{name}: stored column by column (Fortran order); "
            "save np.ascontiguousarray(table) instead"
        )
    return Header(shape, dtype)


class NpyRows(RunRows):
    """Rows of a .npy file, read by position; resident memory does not grow with the file.

    Raises
    ------
    InputError
        Missing, truncated, in Fortran order, not two-dimensional, or not numeric.
    """

    def __init__(self, path: Path) -> None:
        file = PositionedFile(path)
        with file.closed_on_error():
            header = read_header(str(path), file.file)
        super().__init__(str(path), file, file.file.tell(), header.shape, header.dtype)
