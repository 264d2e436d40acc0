"""Arrays as kernels take them, and what callers give that must not become one."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bandana_kv.errors import InputError

__all__ = ["is_masked", "readable", "refuse_masked"]


def readable(array: NDArray[Any]) -> NDArray[Any]:
    """Return a read-only view as a plain array, so that kernels see one type whatever came in."""
    view = np.ascontiguousarray(np.asarray(array)).view()
    view.flags.writeable = False
    return view


def is_masked(given: object) -> bool:
    """Return whether something is a masked array, or a list or tuple with one in it.

    ``np.asarray`` would take what lies under the mask, which nobody meant.
    """
    if isinstance(given, np.ma.MaskedArray):
        return True
    if not isinstance(given, (list, tuple)):
        return False
    kinds = set(map(type, given))
    if any(issubclass(kind, np.ma.MaskedArray) for kind in kinds):
        return True
    return any(issubclass(kind, (list, tuple)) for kind in kinds) and any(map(is_masked, given))


def refuse_masked(name: str, given: object, error: type[Exception] = InputError) -> None:
    """Raise `error` if something is a masked array, or has one in it; `name` begins the message."""
    if is_masked(given):
        raise error(
            f"{name}: a masked array, and what lies under its mask is not meant; give "
            "its .filled(value), or leave masked ones out with .compressed()"
        )
