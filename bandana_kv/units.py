"""Bytes as people write and read them."""

from __future__ import annotations

import re

from bandana_kv.errors import InputError

__all__ = ["parse_size", "size_text"]

_UNITS = {"": 1, "b": 1}
for _power, _letter in enumerate("kmgt", 1):
    # A letter alone is taken as most tools take it (dd, systemd, ulimit): in powers of 1,024.
    _UNITS |= dict.fromkeys((_letter, f"{_letter}i", f"{_letter}ib"), 1024**_power)
    _UNITS[f"{_letter}b"] = 1000**_power


def parse_size(text: str) -> int:
    """Return the bytes that `text` means: a number, and a unit behind it or none.

    KiB, Ki and K, in any case, are 1,024 bytes, and so on to TiB; kB, MB, GB and TB are powers of
    1,000.

    Raises
    ------
    InputError
        It means none.
    """
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?([a-z]*)", text.strip().lower())
    unit = None if found is None else _UNITS.get(found[2])
    if found is None or unit is None:
        raise InputError(
            f"{text!r} is not a size; give bytes, or a number with KiB, MiB, GiB or TiB behind it, "
            "or KB, MB, GB or TB for powers of 1,000"
        )
    return int(float(found[1]) * unit)


def size_text(size_bytes: float) -> str:
    """Return `size_bytes` in the largest unit that leaves a number from 1 up."""
    for unit, name in ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if abs(size_bytes) >= unit:
            return f"{size_bytes / unit:,.2f} {name}"
    return f"{size_bytes:,.0f} bytes"
