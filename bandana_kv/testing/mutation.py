"""Seeded damage to files: bytes anywhere, or numbers of a JSON document."""

from __future__ import annotations

import json
import random
from typing import Any

__all__ = ["mutated_bytes", "mutated_json"]

_WORDS = (0, 1, 2, 255, 4095, 4096, 1 << 16, (1 << 31) - 1, 1 << 31, (1 << 32) - 1)
_LONG_WORDS = (*_WORDS, 1 << 32, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
_NUMBERS = (*_LONG_WORDS, -1, -(1 << 63), 1 << 64, 10**30, 0.5, -0.0, 1e-308, 1e308)
_TEXTS = ("", "..", "../../etc", "/etc/passwd", "a/b", "\0", "O", "V8", "<f8", ">i2", "x" * 2000)
_OTHERS: tuple[Any, ...] = (None, True, [], {}, [[[]]], {"a": {}})


def mutated_bytes(raw: bytes, rng: random.Random) -> bytes:
    """Return `raw` with one to three kinds of damage."""
    changed = bytearray(raw)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        rng.choice(_DAMAGES)(changed, rng)
    return bytes(changed)


def _flip(raw: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice((1, 1, 2, 8))):
        if raw:
            raw[_place(raw, rng)] ^= 1 << rng.randrange(8)


def _place(raw: bytearray, rng: random.Random) -> int:
    # Headers and the ends of files decide most.
    where = rng.random()
    if where < 0.4:
        return rng.randrange(min(len(raw), 160))
    if where < 0.6:
        return len(raw) - 1 - rng.randrange(min(len(raw), 160))
    return rng.randrange(len(raw))


def _word(raw: bytearray, rng: random.Random) -> None:
    width = rng.choice((1, 2, 4, 8))
    if len(raw) < width:
        return
    at = min(_place(raw, rng), len(raw) - width)
    if rng.random() < 0.7:
        at -= at % width
    value = rng.choice(_LONG_WORDS) & ((1 << 8 * width) - 1)
    raw[at : at + width] = value.to_bytes(width, rng.choice(("little", "big")))


def _cut(raw: bytearray, rng: random.Random) -> None:
    if raw:
        del raw[_place(raw, rng) :]


def _extend(raw: bytearray, rng: random.Random) -> None:
    raw += rng.randbytes(rng.choice((1, 8, 64, 4096))) if rng.random() < 0.7 else bytes(raw[:512])


def _remove(raw: bytearray, rng: random.Random) -> None:
    if raw:
        at = _place(raw, rng)
        del raw[at : at + rng.choice((1, 4, 8, 64))]


def _swap(raw: bytearray, rng: random.Random) -> None:
    width = rng.choice((1, 4, 8, 64, 256))
    if len(raw) >= 2 * width:
        a, b = (rng.randrange(len(raw) - width + 1) for _ in range(2))
        raw[a : a + width], raw[b : b + width] = raw[b : b + width], raw[a : a + width]


def _noise(raw: bytearray, rng: random.Random) -> None:
    if raw:
        at = _place(raw, rng)
        piece = raw[at : at + rng.choice((1, 4, 32))]
        raw[at : at + len(piece)] = rng.randbytes(len(piece))


_DAMAGES = (_flip, _flip, _word, _word, _word, _cut, _extend, _remove, _swap, _noise)


def mutated_json(text: bytes, rng: random.Random) -> bytes:
    """Return a JSON document with one to three values replaced, removed or added."""
    document = json.loads(text)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        holder, key = _somewhere(document, rng)
        if holder is None:
            continue
        how = rng.random()
        if how < 0.1:
            del holder[key]
        elif how < 0.15 and isinstance(holder, dict):
            holder[rng.choice(_TEXTS)] = holder[key]
        else:
            holder[key] = _other(holder[key], rng)
    return json.dumps(document).encode()


def _somewhere(document: Any, rng: random.Random) -> tuple[Any, Any]:
    """Return a container in the document, and a key or index in it."""
    holder, key = None, None
    node = document
    while isinstance(node, (dict, list)) and node:
        holder = node
        key = rng.choice(list(node)) if isinstance(node, dict) else rng.randrange(len(node))
        node = node[key]
        if rng.random() < 0.15:
            break
    return holder, key


def _other(value: Any, rng: random.Random) -> Any:
    if isinstance(value, bool) or rng.random() < 0.15:
        return rng.choice((*_NUMBERS, *_TEXTS, *_OTHERS))
    if isinstance(value, int):
        near = (value + 1, value - 1, value * 2, value + (1 << rng.randrange(40)))
        return rng.choice((*_NUMBERS, *near))
    if isinstance(value, float):
        return rng.choice(_NUMBERS)
    if isinstance(value, str):
        return rng.choice((*_TEXTS, value + "x", value[:-1], value.upper()))
    return rng.choice((*_NUMBERS, *_TEXTS, *_OTHERS))
