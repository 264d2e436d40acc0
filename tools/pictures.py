"""What the command lines that draw share."""

from __future__ import annotations

from typing import Any

from bandana_kv.errors import MissingExtraError

__all__ = ["pyplot"]


def pyplot() -> Any:
    """Return matplotlib's pyplot, which draws without a display.

    Raises
    ------
    MissingExtraError
        It is not installed.
    """
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise MissingExtraError(
            "a picture needs matplotlib: pip install 'bandana-kv[plot]'"
        ) from error
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    return plt
