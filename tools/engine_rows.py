"""Rows in a running engine as a command line names them: ``lmdb:PATH?key=decimal&prefix=user:``."""

from __future__ import annotations

import os
from contextlib import ExitStack
from urllib.parse import parse_qsl

from bandana_kv.adapters.rows import ENGINES, open_rows
from bandana_kv.errors import InputError
from bandana_kv.load.engine_rows import EngineRows
from bandana_kv.rows.given import Rows

__all__ = ["ENGINE_FORM", "rows_named"]

ENGINE_FORM = (
    "lmdb:PATH or rocksdb:PATH with ?key=CODEC&prefix=TEXT&inner=NAME&dtype=DTYPE&keys=KIND"
)
"""How it is written, all behind the path as in a URL, and to be left out."""

_SAID = ("key", "prefix", "inner", "dtype", "keys")


def rows_named(stack: ExitStack, table: str, said: str) -> Rows:
    """Return the rows that are named: of an engine, which `stack` closes, or as a load takes them.

    Raises
    ------
    BandanaError
        As :class:`bandana_kv.load.engine_rows.EngineRows`; or something unknown is said.
    """
    engine, _, rest = said.partition(":")
    if engine not in ENGINES or not rest or os.path.lexists(said):
        return Rows(said)
    path, mark, query = rest.partition("?")
    try:
        pairs = parse_qsl(query, strict_parsing=True) if mark else []
    except ValueError as error:
        raise InputError(f"{said}: {error}; write {ENGINE_FORM}") from error
    options = dict(pairs)
    for name in options:
        if name not in _SAID:
            raise InputError(f"{said}: {name!r} is none of {', '.join(_SAID)}")
    source = open_rows(
        engine,
        path,
        key=options.get("key", "uint64-be"),
        dtype=options.get("dtype", "float32"),
        inner=options.get("inner"),
        prefix=options.get("prefix", "").encode(),
    )
    stack.enter_context(source)
    return Rows(stack.enter_context(EngineRows(table, source, options.get("keys"))))
