"""Where a cluster is, and who asks: read from an address, and never shown with its password."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import unquote

from bandana_kv.errors import InputError

__all__ = ["Address", "Node", "check_prefix", "parse_address"]

_SCHEMES = {"redis": False, "rediss": True}
_PORT = 6379
_MOST_PREFIX = 64
_TLS_OPTIONS = {
    "ca": "ssl_ca_certs",
    "certificate": "ssl_certfile",
    "key": "ssl_keyfile",
}


class Node(NamedTuple):
    """One server of a cluster."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Address:
    """Some nodes of a cluster, and how to log in there; shown without the password.

    Attributes
    ----------
    nodes : tuple of Node
        At least one. The others are learnt from these.
    user, password : str or None
    tls : dict or None
        What the client library is told of TLS; None: none is used.
    """

    nodes: tuple[Node, ...]
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: Mapping[str, object] | None = field(default=None, repr=False)

    def __str__(self) -> str:
        scheme = "redis" if self.tls is None else "rediss"
        return f"{scheme}://{','.join(map(str, self.nodes))}"


def parse_address(
    address: str,
    *,
    user: str | None = None,
    password: str | None = None,
    tls: bool | Mapping[str, str | os.PathLike[str]] | None = None,
) -> Address:
    """Return what ``redis://user:password@host:port,host:port`` says.

    Parameters
    ----------
    address
        With ``rediss`` TLS is used. Ports are 6379 where none is named. User and password may be
        percent-encoded in it.
    user, password
        Instead of those in the address.
    tls
        True: use TLS, by the system's certificates. Or files, of the names ``"ca"``,
        ``"certificate"`` and ``"key"``. None: as the scheme says.

    Raises
    ------
    InputError
        Something else; the message does not repeat the password.
    """
    scheme, separator, rest = address.partition("://")
    if not separator or scheme not in _SCHEMES:
        raise InputError("the address of a cluster begins with redis:// or rediss://")
    login, _, hosts = rest.rpartition("@")
    hosts = hosts.rstrip("/")
    if "/" in hosts or "?" in hosts:
        raise InputError(
            f"the address {scheme}://{hosts} has more than hosts and ports; a cluster has one "
            "database, and options are arguments"
        )
    given_user, colon, given_password = login.partition(":")
    nodes = tuple(_node(host.strip()) for host in hosts.split(","))
    return Address(
        nodes,
        user if user is not None else unquote(given_user) or None,
        password if password is not None else unquote(given_password) if colon else None,
        _tls_options(tls, _SCHEMES[scheme]),
    )


def _node(text: str) -> Node:
    host, port = text, ""
    if text.startswith("["):
        host, _, port = text[1:].partition("]")
        port = port.removeprefix(":")
    elif ":" in text:
        host, _, port = text.rpartition(":")
    if not host or not (port.isdecimal() or port == "") or not 0 < int(port or _PORT) < 1 << 16:
        raise InputError(f"{text!r} is no host:port of a cluster; separate several by commas")
    return Node(host, int(port or _PORT))


def _tls_options(
    tls: bool | Mapping[str, str | os.PathLike[str]] | None, scheme_has: bool
) -> Mapping[str, object] | None:
    if tls is None or isinstance(tls, bool):
        if tls is False and scheme_has:
            raise InputError("the address begins with rediss://, and tls=False was given")
        return {} if tls or scheme_has else None
    unknown = sorted(set(tls) - set(_TLS_OPTIONS))
    if unknown:
        raise InputError(f"tls has no {unknown[0]!r}; it takes {', '.join(_TLS_OPTIONS)}")
    return {_TLS_OPTIONS[name]: os.fspath(path) for name, path in tls.items()}


def check_prefix(prefix: str) -> None:
    """See that keys can begin with a prefix.

    Raises
    ------
    InputError
        They cannot.
    """
    fit = 0 < len(prefix) <= _MOST_PREFIX and all(
        "!" <= character <= "~" and character not in "{}" for character in prefix
    )
    if not fit:
        raise InputError(
            f"prefix {prefix!r} cannot begin keys: use 1 to {_MOST_PREFIX} printable ASCII "
            "characters without spaces and braces"
        )
