"""Small keys of one store in a cluster of the Redis protocol: who leads, who reads, what is whole.

All of them bear one hash tag, ``{PREFIX}``, so that they lie on one node, in one order: whoever
reads there sees what was written there before. The commands are those that every engine of the
protocol has: GET, SET, DEL, EXISTS, INCR, ZADD, ZREM, ZRANGEBYSCORE, WAIT and CLUSTER SLOTS. No
scripts, no transactions. Each command but INCR may be said twice without harm, so that one whose
answer was lost is said again; of INCR a number is lost then.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self, TypeVar

from redis import Connection, SSLConnection
from redis.crc import key_slot
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    ConnectionError,
    NoPermissionError,
    RedisError,
    ResponseError,
    TimeoutError,
)

from bandana_kv.adapters.resp_address import parse_address
from bandana_kv.errors import AdapterError

__all__ = ["Catalogue"]

Node = tuple[str, int]
Word = str | bytes | int
Link = Any  # a redis.Connection, whose methods have no types
T = TypeVar("T")

_PAUSE_S = 0.05
# Where no node of an address has ever answered, it is likely to be wrong.
_FIRST_PATIENCE_S = 2.0
_WAIT_MS = 200
# What says "not here" or "not now" rather than "no".
_ELSEWHERE = ("MOVED", "ASK", "READONLY")
_LATER = ("CLUSTERDOWN", "TRYAGAIN", "LOADING", "MASTERDOWN", "NOREPLICAS", "UNBLOCKED")


class Catalogue:
    """One connection to the node that has a store's small keys, found again after a fail-over.

    Safe to use from many threads, which take turns. A forked child makes a connection of its own.

    Parameters
    ----------
    nodes
        Some nodes of the cluster.
    prefix
        Of the store.
    login
        What ``redis.Connection`` takes beside host and port: user, password, certificates.
    tls
        Whether connections are encrypted.
    patience_s
        How long a fail-over may take before a command is an error.
    timeout_s
        How long a node may take to answer before it is asked again, or another is.
    """

    def __init__(
        self,
        nodes: Sequence[Node],
        prefix: str,
        login: Mapping[str, Any] | None = None,
        *,
        tls: bool = False,
        patience_s: float = 15.0,
        timeout_s: float = 1.0,
    ) -> None:
        self.prefix = prefix
        self._seeds = tuple(nodes)
        self._kind: Any = SSLConnection if tls else Connection
        self._login = {**(login or {}), "protocol": 2, "socket_timeout": timeout_s}
        self._login |= {"socket_connect_timeout": timeout_s, "driver_info": None}
        self._patience_s = patience_s
        self._slot = key_slot(self.key("fence"))
        self._begin()

    @classmethod
    def at(
        cls,
        address: str,
        prefix: str,
        *,
        user: str | None = None,
        password: str | None = None,
        tls: bool | Mapping[str, str | os.PathLike[str]] | None = None,
    ) -> Self:
        """Return the catalogue of a store at ``redis://host:port,...``; nothing is asked yet.

        Raises
        ------
        InputError
            The address is wrong.
        """
        said = parse_address(address, user=user, password=password, tls=tls)
        login = {"username": said.user, "password": said.password, **(said.tls or {})}
        return cls(said.nodes, prefix, login, tls=said.tls is not None)

    def _begin(self) -> None:
        self._process = os.getpid()
        self._turn = threading.Lock()
        self._known: tuple[Node, ...] = self._seeds
        self._held: Link | None = None
        self._met = False

    @property
    def where(self) -> str:
        """The cluster and the store in it, as messages name it; no password."""
        nodes = ",".join(f"{host}:{port}" for host, port in self._seeds[:3])
        more = ",..." if len(self._seeds) > 3 else ""
        return f"redis://{nodes}{more}/?prefix={self.prefix}"

    def key(self, name: str) -> bytes:
        """Return a key of this store; all lie on one node."""
        return f"{{{self.prefix}}}:{name}".encode()

    # -- commands ---------------------------------------------------------------------------

    def get(self, name: str) -> bytes | None:
        """Return a value; None: there is none."""
        found: bytes | None = self._ask("GET", self.key(name))
        return found

    def put(self, name: str, value: bytes, lasting_ms: int | None = None) -> None:
        """Set a value, which may last only for a time, by the clock of the server."""
        lasting: tuple[Word, ...] = () if lasting_ms is None else ("PX", lasting_ms)
        self._ask("SET", self.key(name), value, *lasting)

    def drop(self, name: str) -> None:
        """Remove a key, if it is there."""
        self._ask("DEL", self.key(name))

    def exists(self, name: str) -> bool:
        """Return whether a key is there."""
        return bool(self._ask("EXISTS", self.key(name)))

    def increment(self, name: str) -> int:
        """Return a number that is one more than the last one, or larger."""
        return int(self._ask("INCR", self.key(name)))

    def add(self, name: str, score: int, member: Word) -> None:
        """Put a member into a sorted set, or give it another score."""
        self._ask("ZADD", self.key(name), score, member)

    def remove(self, name: str, *members: Word) -> None:
        """Take members out of a sorted set."""
        if members:
            self._ask("ZREM", self.key(name), *members)

    def members(self, name: str, least: Word = "-inf", most: Word = "+inf") -> list[str]:
        """Return the members of a sorted set whose scores are in a range, by rising score."""
        found = self._ask("ZRANGEBYSCORE", self.key(name), least, most)
        return [member.decode() for member in found]

    def settle(self, copies: int, patience_s: float) -> None:
        """Wait until so many copies have all that was written before, by whomever.

        Raises
        ------
        AdapterError
            They have not within the time: what was written may be lost with its node.
        """
        if not copies:
            return
        until = time.monotonic() + patience_s
        # WAIT is about what its own connection wrote. This comes after all the rest.
        mark = ("SET", self.key("settled"), secrets.token_hex(4))
        while True:
            reached = self._on_the_node(lambda node: self._reached(node, mark, copies, until))
            if reached >= copies:
                return
            if time.monotonic() > until:
                raise AdapterError(
                    f"{self.where}: {reached} of {copies} copies have what was written, after "
                    f"{patience_s:g} s; bring replicas up, or ask for fewer copies"
                )

    def hurry(self) -> None:
        """Wait no longer for a fail-over: what is asked from now on matters to nobody."""
        self._patience_s = 1.0

    def close(self) -> None:
        """Let the connection go; the next command makes a new one."""
        with self._turn:
            self._let_go()

    # -- the connection -----------------------------------------------------------------------

    def _ask(self, *words: Word) -> Any:
        return self._on_the_node(lambda node: _answer(node, words))

    def _on_the_node(self, talk: Callable[[Link], T]) -> T:
        """Have `talk` speak to the node that has the keys now; again where that has changed."""
        if self._process != os.getpid():
            self._begin()
        with self._turn:
            begun = time.monotonic()
            while True:
                try:
                    return talk(self._connection())
                except (AuthenticationError, AuthorizationError, NoPermissionError) as error:
                    self._let_go()
                    raise AdapterError(f"{self.where}: {error}") from error
                except RedisError as error:
                    asked = _asked_elsewhere(error)
                    if asked is not None:
                        found = self._answered_by(asked, talk)
                        if found is not None:
                            return found[0]
                    elif not _may_pass(error):
                        raise AdapterError(f"{self.where}: {error}") from error
                    self._let_go()
                    patience_s = self._patience_s if self._met else _FIRST_PATIENCE_S
                    if time.monotonic() > begun + patience_s:
                        raise AdapterError(
                            f"{self.where}: no node answers for it ({_short(error)}); see that the "
                            "cluster is up and the address is right"
                        ) from error
                time.sleep(_PAUSE_S)

    def _answered_by(self, node: Node, talk: Callable[[Link], T]) -> tuple[T] | None:
        """Ask the node to which the keys are moving just now."""
        connection = self._connect(node)
        try:
            _answer(connection, ("ASKING",))
            return (talk(connection),)
        except RedisError:
            return None
        finally:
            connection.disconnect()

    def _reached(self, node: Link, mark: tuple[Word, ...], copies: int, until: float) -> int:
        _answer(node, mark)
        while True:
            reached = int(_answer(node, ("WAIT", copies, _WAIT_MS)))
            if reached >= copies or time.monotonic() > until:
                return reached

    def _connection(self) -> Link:
        if self._held is None:
            self._held = self._connect(self._primary())
        return self._held

    def _connect(self, node: Node) -> Link:
        connection = self._kind(host=node[0], port=node[1], **self._login)
        connection.connect()
        return connection

    def _let_go(self) -> None:
        if self._held is not None:
            self._held.disconnect()
            self._held = None

    def _primary(self) -> Node:
        """Ask whichever node answers which one has the keys."""
        failure: RedisError = ConnectionError("no node is known")
        for node in dict.fromkeys((*self._known, *self._seeds)):
            try:
                connection = self._connect(node)
                try:
                    slots = _answer(connection, ("CLUSTER", "SLOTS"))
                finally:
                    connection.disconnect()
            except (AuthenticationError, NoPermissionError):
                raise
            except RedisError as error:
                failure = error
                continue
            self._met = True
            known = _nodes_of(slots, node[0])
            # Others first the next time: this one may be what is cut off from the rest.
            self._known = tuple(each for nodes in known.values() for each in nodes if each != node)
            for (first, last), nodes in known.items():
                if first <= self._slot <= last:
                    return nodes[0]
            failure = ResponseError("CLUSTERDOWN no node has its slot")
        raise failure


def _answer(node: Link, words: Sequence[Word]) -> Any:
    try:
        node.send_command(*words)
        return node.read_response()
    except OSError as error:
        raise ConnectionError(str(error)) from error


def _nodes_of(slots: Any, asked: str) -> dict[tuple[int, int], list[Node]]:
    """Return the nodes of each range of slots, the primary first, of CLUSTER SLOTS."""
    return {
        (int(first), int(last)): [
            ((host.decode() if host else asked), int(port)) for host, port, *_ in nodes
        ]
        for first, last, *nodes in slots
    }


def _asked_elsewhere(error: RedisError) -> Node | None:
    """Return the node that an ASK names."""
    words = str(error).split()
    named = type(error).__name__ == "AskError" or words[:1] == ["ASK"]
    if not named or not words:
        return None
    host, _, port = words[-1].rpartition(":")
    return (host, int(port)) if host and port.isdigit() else None


def _may_pass(error: RedisError) -> bool:
    """Return whether it may be gone when the cluster has found its feet again."""
    if isinstance(error, (ConnectionError, TimeoutError)):
        return True
    kind = type(error).__name__.upper()
    signs = (*_ELSEWHERE, *_LATER)
    return str(error).startswith(signs) or kind.startswith(
        ("MOVED", "ASK", "READONLY", "CLUSTERDOWN", "TRYAGAIN", "BUSYLOADING", "MASTERDOWN")
    )


def _short(error: RedisError) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
