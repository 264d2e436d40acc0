"""Slots: a cluster's servers share 16,384 of them, and a key's hash says in which one it lies."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["CRC_TABLE", "SLOTS", "crc16", "slot_of"]

SLOTS = 1 << 14


def _table() -> NDArray[np.uint16]:
    table = np.zeros(256, np.uint16)
    for byte in range(256):
        crc = byte << 8
        for _ in range(8):
            crc = (crc << 1) ^ 0x1021 if crc & 0x8000 else crc << 1
        table[byte] = crc & 0xFFFF
    return table


CRC_TABLE = _table()
"""Of CRC-16/XMODEM, by which the protocol hashes keys: uint16 (256,)."""


def crc16(data: bytes, crc: int = 0) -> int:
    """Return the CRC-16/XMODEM of bytes behind those of `crc`."""
    for byte in data:
        crc = ((crc << 8) & 0xFFFF) ^ int(CRC_TABLE[(crc >> 8) ^ byte])
    return crc


def slot_of(key: bytes) -> int:
    """Return the slot of a key: of what its first braces hold, if that is something."""
    begin = key.find(b"{")
    end = key.find(b"}", begin + 1) if begin >= 0 else -1
    return crc16(key[begin + 1 : end] if end > begin + 1 else key) % SLOTS
