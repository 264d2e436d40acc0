"""What kinds of keys there are, and as how many words a key is looked up.

Integers are looked up as they are, so that two keys are the same only if all 64 bits are. Text and
bytes are looked up by 128 bits of XXH3, of the UTF-8 in the case of text. Among a billion keys two
have the same 128 bits with a probability of 1e-21, and an index is not built of keys that do. A key
that is not in the table is taken for one that is with a probability of 3e-30. XXH3 is no
cryptographic hash: who may choose keys, and works at it, can make two that are taken for one.
"""

from __future__ import annotations

from typing import Literal, get_args

from bandana_kv.errors import InputError

__all__ = ["KINDS", "Kind", "checked_kind", "words_of_kind"]

Kind = Literal["int64", "uint64", "str", "bytes"]
"""Text and bytes are kinds of their own: ``"a"`` is no key of a table that has ``b"a"``."""

KINDS: tuple[Kind, ...] = get_args(Kind)
"""All of them."""


def checked_kind(kind: str) -> Kind:
    """Return `kind` if it is one.

    Raises
    ------
    InputError
        It is not; names those there are.
    """
    for each in KINDS:
        if kind == each:
            return each
    raise InputError(f"no kind of keys is called {kind!r}; there are {', '.join(KINDS)}")


def words_of_kind(kind: Kind) -> int:
    """Return as how many 64-bit words a key is looked up."""
    return 1 if kind in ("int64", "uint64") else 2
