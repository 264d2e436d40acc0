"""A store is found by what names it: a path, or by its scheme an address."""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib import import_module
from typing import Any, TypeVar, cast

from bandana_kv.errors import InputError

__all__ = ["by_address", "is_address"]

F = TypeVar("F", bound=Callable[..., Any])

# Scheme -> the room of stores there, as adapters are found by name: nothing below it knows it.
_ROOMS = dict.fromkeys(("redis://", "rediss://"), "bandana_kv.cluster")


def is_address(path: object) -> bool:
    """Return whether a store is said to lie elsewhere than at a path."""
    return isinstance(path, str) and path.startswith(tuple(_ROOMS))


def by_address() -> Callable[[F], F]:
    """Have a function's namesake in the room of an address called instead, for addresses.

    The function takes the path of a store first; its namesake takes the address, and arguments of
    its own.
    """

    def decorated(local: F) -> F:
        @functools.wraps(local)
        def chosen(path: Any, *arguments: Any, **options: Any) -> Any:
            if is_address(path):
                room = next(room for scheme, room in _ROOMS.items() if path.startswith(scheme))
                there = getattr(import_module(room), local.__name__, None)
                if there is None:
                    raise InputError(
                        f"{local.__name__} takes the path of a store's directory; for a store in a "
                        "cluster there is no such thing"
                    )
                return there(path, *arguments, **options)
            return local(path, *arguments, **options)

        return cast(F, chosen)

    return decorated
