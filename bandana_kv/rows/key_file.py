"""Keys of rows from a file of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bandana_kv.errors import InputError

__all__ = ["read_keys"]


def read_keys(path: Path) -> NDArray[Any] | list[str]:
    """Return the keys in a file: an array of ``.npy``, mapped, or the lines of a text.

    Raises
    ------
    InputError
        It is not there, no array (n,) of integers or text, or no text.
    """
    try:
        if path.suffix == ".npy":
            keys: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
            if keys.ndim != 1 or keys.dtype.kind not in "iuUS":
                raise InputError(f"{path}: {keys.dtype} {keys.shape} are no keys; they are (n,)")
            return keys
        return path.read_text("utf-8").splitlines()
    except (OSError, ValueError, EOFError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: cannot be read as keys ({error})") from error
