"""An address -> the cluster there: its blocks, and its catalogue."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from os import PathLike
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

from bandana_kv.adapters.resp_address import check_prefix
from bandana_kv.errors import InputError, MissingExtraError
from bandana_kv.system.addresses import is_address

if TYPE_CHECKING:
    from bandana_kv.adapters.contract import Adapter
    from bandana_kv.adapters.resp_catalogue import Catalogue

__all__ = ["DEFAULT_PREFIX", "Place", "adapter_on", "catalogue_of", "place_of"]

DEFAULT_PREFIX = "bandana"

Tls = bool | Mapping[str, str | PathLike[str]] | None


@dataclass(frozen=True)
class Place:
    """A store in a cluster, and who asks.

    Attributes
    ----------
    address : str
        With the login if the user gave it so; never shown.
    prefix : str
    user, password, tls
        As :meth:`RespAdapter.on` takes them.
    """

    address: str
    prefix: str
    user: str | None
    password: str | None
    tls: Tls

    def __repr__(self) -> str:
        return f"<store {self.prefix!r} of a cluster>"


def place_of(
    address: str, prefix: str | None, user: str | None, password: str | None, tls: Tls
) -> Place:
    """Return what ``redis://host,host/?prefix=shop`` and the options beside it name.

    Raises
    ------
    InputError
        It is no address, has other options than a prefix, or a prefix that keys cannot begin with.
    """
    if not is_address(address):
        raise InputError("the address of a store in a cluster begins with redis:// or rediss://")
    nodes, _, query = address.partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    named = options.pop("prefix", None)
    if options:
        raise InputError(f"an address has no option {min(options)!r}; it takes prefix")
    if prefix is not None and named is not None and prefix != named:
        raise InputError(f"the address says prefix {named!r}, and the argument {prefix!r}")
    wanted = prefix or named or DEFAULT_PREFIX
    check_prefix(wanted)
    return Place(nodes.rstrip("/"), wanted, user, password, tls)


@contextlib.contextmanager
def _needing_redis() -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        if isinstance(error, MissingExtraError):
            raise
        raise MissingExtraError(
            "a store in a cluster needs redis: pip install 'bandana-kv[cluster]'"
        ) from error


def catalogue_of(place: Place) -> Catalogue:
    """Return the small keys of a store; nothing is asked yet.

    Raises
    ------
    MissingExtraError
        The client library is not installed.
    InputError
        The address is wrong.
    """
    with _needing_redis():
        module = import_module("bandana_kv.adapters.resp_catalogue")
    found: Catalogue = module.Catalogue.at(
        place.address, place.prefix, user=place.user, password=place.password, tls=place.tls
    )
    return found


def adapter_on(place: Place, pages: int, *, copies: int = 0, read_only: bool = False) -> Adapter:
    """Return the blocks of a store, open; raises as :func:`catalogue_of`, and AdapterError."""
    with _needing_redis():
        module = import_module("bandana_kv.adapters.resp")
    found: Adapter = module.RespAdapter.on(
        place.address,
        prefix=place.prefix,
        user=place.user,
        password=place.password,
        tls=place.tls,
        copies=copies,
        pages=pages,
        read_only=read_only,
    )
    return found
