"""An access log that every machine has: identifiers in Python's standard library."""

from __future__ import annotations

import ast
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from bandana_kv.logs.access_log import AccessLog
from bandana_kv.progress import Progress

__all__ = ["stdlib_log"]

_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)


def stdlib_log(progress: Progress) -> AccessLog:
    """Return a log in which a top-level definition looks up its distinct identifiers.

    Parameters
    ----------
    progress
        Told of each source file.

    Returns
    -------
    AccessLog
        Requests in the order of files and lines. Ids number the identifiers in random
        order, seed 0, so that neither spelling nor first use makes neighbours.
    """
    numbers: dict[str, int] = {}
    requests = []
    files = _sources()
    progress.start("read the library", len(files), "files")
    for path in files:
        for definition in _definitions(path):
            names = dict.fromkeys(_identifiers(definition))
            if names:
                requests.append([numbers.setdefault(name, len(numbers)) for name in names])
        progress.advance(1)
    progress.finish()
    shuffled = np.random.default_rng(0).permutation(len(numbers))
    return AccessLog.from_requests(shuffled[request] for request in requests)


def _sources() -> list[Path]:
    root = Path(sysconfig.get_path("stdlib"))
    inside = (path.relative_to(root) for path in root.rglob("*.py"))
    installed = {"site-packages", "dist-packages"}
    return sorted(root / path for path in inside if not installed & set(path.parts))


def _definitions(path: Path) -> Iterator[ast.AST]:
    try:
        body = ast.parse(path.read_bytes()).body
    except (SyntaxError, ValueError):
        return  # the library's own tests hold broken files on purpose
    yield from (node for node in body if isinstance(node, _DEFINITIONS))


def _identifiers(definition: ast.AST) -> Iterator[str]:
    for node in ast.walk(definition):
        match node:
            case ast.Name(id=name) | ast.arg(arg=name) | ast.Attribute(attr=name):
                yield name
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                yield name
            case ast.ClassDef(name=name) | ast.keyword(arg=str(name)):
                yield name
            case ast.alias(name=name):
                yield name
