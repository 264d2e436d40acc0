"""What fault tests share: a look at everything that lies in a directory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


def listing(directory: Path) -> dict[str, bytes]:
    """Return every path below `directory` with what it holds.

    Left out: engines' locks, and the ledger, which tells of loads that failed, too.
    """
    return {
        str(path.relative_to(directory)): path.read_bytes() if path.is_file() else b""
        for path in sorted(directory.rglob("*"))
        if path.name not in {"lock.mdb", "ledger.jsonl"}
    }


@pytest.fixture
def everything_in() -> Callable[[Path], dict[str, bytes]]:
    return listing
