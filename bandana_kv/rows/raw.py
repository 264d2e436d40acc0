"""Rows of files that are numbers and nothing else, whose shape the user says."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from bandana_kv.errors import InputError
from bandana_kv.rows.positioned import PositionedFile, RunRows
from bandana_kv.rows.table import BFLOAT16

__all__ = ["RawRows", "is_raw"]

_SAID = re.compile(r"([^:]+):([0-9]{1,18})x([0-9]{1,18})")


def is_raw(member: str) -> bool:
    """Return whether what is said of a file is a dtype and a shape, ``float32:1000x64``."""
    return _SAID.fullmatch(member) is not None


class RawRows(RunRows):
    """Rows of a file of numbers, row by row, read by position.

    Parameters
    ----------
    path
    said
        Dtype and shape, ``float32:1000x64``; the dtype as numpy spells it (``<f4``, ``>f4``), or
        bfloat16.

    Raises
    ------
    InputError
        Missing, longer or shorter than that, or no such dtype.
    """

    def __init__(self, path: Path, said: str) -> None:
        found = _SAID.fullmatch(said)
        if found is None:
            raise InputError(f"{path}:{said}: say dtype and shape, as in {path}:float32:1000x64")
        try:
            dtype = BFLOAT16 if found[1] == "bfloat16" else np.dtype(found[1])
        except (TypeError, ValueError, SyntaxError) as error:
            raise InputError(
                f"{path}: {found[1]!r} is no dtype; say one as float32, <f4 or bfloat16"
            ) from error
        shape = int(found[2]), int(found[3])
        file = PositionedFile(path)
        with file.closed_on_error():
            need = shape[0] * shape[1] * dtype.itemsize
            of_shape = f"{shape[0]}x{shape[1]}"
            if file.size_bytes != need:
                raise InputError(
                    f"{path}: is {file.size_bytes} bytes long, and {of_shape} of {found[1]} "
                    f"are {need}; say the dtype and the shape that it has, or copy it again"
                )
        super().__init__(str(path), file, 0, shape, dtype)
