"""Codecs by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bandana_kv.codecs.halves import Bfloat16, Float16
from bandana_kv.codecs.int4_rowwise import Int4Rowwise
from bandana_kv.codecs.int8_rowwise import Int8Rowwise
from bandana_kv.codecs.plain import Float32
from bandana_kv.errors import InputError

if TYPE_CHECKING:
    from bandana_kv.codecs.contract import Codec

__all__ = ["codec_named", "codec_names"]

_CODECS: dict[str, Codec] = {
    each.name: each for each in (Float32(), Float16(), Bfloat16(), Int8Rowwise(), Int4Rowwise())
}


def codec_names() -> tuple[str, ...]:
    """Return the names of all codecs, those of longer rows first."""
    return tuple(_CODECS)


def codec_named(name: str) -> Codec:
    """Return a codec.

    Raises
    ------
    InputError
        There is none of that name; names those there are.
    """
    codec = _CODECS.get(name)
    if codec is None:
        raise InputError(f"no codec {name!r}; rows can be stored as {', '.join(_CODECS)}")
    return codec
