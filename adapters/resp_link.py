"""A connection to one node: made by the client library, then read and written as raw bytes.

The library opens the socket, speaks TLS and logs in. Its pipelines take 17 us of CPU a block, so
what goes over the socket afterwards is ours.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bandana_kv.adapters.resp_address import Address, Node
from bandana_kv.adapters.resp_protocol import Failed, command, reply_at
from bandana_kv.errors import MissingExtraError

try:
    import redis
    from redis.backoff import NoBackoff
    from redis.connection import Connection, SSLConnection
    from redis.exceptions import AuthorizationError
    from redis.retry import Retry
except ImportError as error:
    raise MissingExtraError(
        f"blocks in a cluster need redis: pip install 'bandana-kv[cluster]' ({error})"
    ) from error

__all__ = ["Link", "LinkError", "RefusedError", "SilentError"]

_BUFFER_BYTES = 128 << 10
# A value that long is none of ours, whatever the node says.
_MOST_BYTES = 1 << 29
_READONLY = command("READONLY")


class LinkError(Exception):
    """The node cannot be talked to just now: not reached, not answering, or gone."""


class SilentError(LinkError):
    """The node did not answer in time; it may be slow, or frozen, or cut off."""


class RefusedError(Exception):
    """The node answers, and refuses who asks: another try would be refused too."""


class Link:
    """A connection to a node, of one thread of one process.

    Parameters
    ----------
    node
        Whom to talk to.
    address
        Of the cluster, which says how to log in.
    timeout_s
        How long connecting and logging in may take.

    Raises
    ------
    LinkError
        The node is not reached, or does not answer.
    RefusedError
        It refuses the user, or the certificate.

    Attributes
    ----------
    buffer : ndarray
        uint8: what has arrived is ``buffer[begin:end]``.
    fresh : bool
        Nothing has been asked yet.
    owes : bool
        A reply to something that was sent has not been read. Whoever asks next would take it for
        theirs: such a connection is to be closed.
    plain : bool
        The socket itself has the bytes, so that compiled code can read them.
    """

    __slots__ = (
        "__weakref__",
        "_buffer_at",
        "_connection",
        "_sock",
        "begin",
        "buffer",
        "end",
        "fd",
        "fresh",
        "node",
        "owes",
        "plain",
    )

    def __init__(self, node: Node, address: Address, timeout_s: float) -> None:
        self.node = node
        self._connection: Any = _connected(node, address, timeout_s)
        self._sock: Any = self._connection._sock
        self._sock.setblocking(False)
        self.fd: int = self._sock.fileno()
        self.buffer: NDArray[np.uint8] = np.empty(_BUFFER_BYTES, np.uint8)
        self._buffer_at: int = self.buffer.ctypes.data
        self.plain = not isinstance(self._sock, ssl.SSLSocket)
        self.begin = self.end = 0
        self.fresh = True
        self.owes = False

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._sock is None

    def close(self) -> None:
        """End the connection; what is still under way is lost."""
        self._sock = None
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(Exception):
                connection.disconnect()

    def send(self, data: memoryview | bytes, timeout_s: float) -> None:
        """Send all of `data`.

        Raises
        ------
        LinkError
            The node is gone, or did not take it within the time.
        """
        self.fresh = False
        self.owes = True
        try:
            sent = self._send(data)
            if sent < len(data):
                self._send_rest(memoryview(data)[sent:], time.monotonic() + timeout_s)
        except (OSError, AttributeError) as error:  # closed meanwhile: there is no socket
            raise LinkError(f"{self.node} is gone: {error}") from error

    def _send(self, data: memoryview | bytes) -> int:
        try:
            sent: int = self._sock.send(data)
        except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
            return 0
        return sent

    def _send_rest(self, data: memoryview, until: float) -> None:
        poll = select.poll()
        poll.register(self.fd, select.POLLOUT)
        while data:
            if not poll.poll(max(0.0, 1000 * (until - time.monotonic()))):
                raise SilentError(f"{self.node} takes nothing")
            data = data[self._send(data) :]

    def receive(self) -> int:
        """Take what has arrived into the buffer; return how many bytes, 0 if there are none.

        Raises
        ------
        LinkError
            The node has ended the connection.
        """
        try:
            taken: int = self._sock.recv_into(self.buffer.data[self.end :])
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return 0
        except (OSError, AttributeError) as error:
            raise LinkError(f"{self.node} is gone: {error}") from error
        if taken == 0:
            raise LinkError(f"{self.node} has ended the connection")
        self.end += taken
        return taken

    @property
    def room(self) -> tuple[int, int, int]:
        """Its socket, and where its buffer is and how long, which change for longer replies."""
        return self.fd, self._buffer_at, self.buffer.size

    @property
    def holds_more(self) -> bool:
        """Whether TLS has bytes that polling the socket does not show."""
        return not self.plain and self._sock is not None and self._sock.pending() > 0

    def make_room(self, need: int) -> None:
        """Move what has arrived to the buffer's front, and let it hold `need` bytes and more.

        Raises
        ------
        LinkError
            No value of ours is that long.
        """
        if need > _MOST_BYTES:
            raise LinkError(f"{self.node} announces {need} bytes")
        held = self.end - self.begin
        if max(need, held) + 1 > self.buffer.size:
            larger = np.empty(2 * max(need, held), np.uint8)
            larger[:held] = self.buffer[self.begin : self.end]
            self.buffer, self._buffer_at = larger, larger.ctypes.data
        elif self.begin:
            self.buffer[:held] = self.buffer[self.begin : self.end].copy()
        self.begin, self.end = 0, held

    def replies(self, count: int, timeout_s: float) -> list[object]:
        """Return the next replies, of any kind; what a node refuses is a :class:`Failed`.

        Raises
        ------
        LinkError
            They did not come in time, or are none.
        """
        until = time.monotonic() + timeout_s
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        found: list[object] = []
        try:
            while True:
                raw, at = self.buffer[self.begin : self.end].tobytes(), 0
                while len(found) < count and (each := reply_at(raw, at)) is not None:
                    found.append(each[0])
                    at = each[1]
                self.begin += at
                if len(found) == count:
                    self.owes = False
                    return found
                self.make_room(2 * (self.end - self.begin) + 1)
                while not self.receive():
                    if not poll.poll(max(0.0, 1000 * (until - time.monotonic()))):
                        raise SilentError(f"{self.node} did not answer within {timeout_s:g} s")
        except ValueError as error:
            raise LinkError(f"{self.node} does not speak the protocol: {error}") from error

    def ask(self, data: bytes, timeout_s: float) -> object:
        """Send one command and return its reply."""
        self.send(data, timeout_s)
        return self.replies(1, timeout_s)[0]

    def read_here(self, timeout_s: float) -> None:
        """Let a copy answer reads, instead of sending whoever asks to the primary."""
        said = self.ask(_READONLY, timeout_s)
        if isinstance(said, Failed):
            raise RefusedError(f"{self.node} refuses READONLY: {said}")
        self.fresh = True


def _connected(node: Node, address: Address, timeout_s: float) -> Any:
    options: dict[str, Any] = {
        "host": node.host,
        "port": node.port,
        "username": address.user,
        "password": address.password,
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        "socket_keepalive": True,
        "protocol": 2,
        "retry": Retry(NoBackoff(), 0),
        "driver_info": None,  # which would be told by a command more
    }
    make: Any = Connection if address.tls is None else SSLConnection
    try:
        connection = make(**options, **(address.tls or {}))
        connection.connect()
        connection._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except (redis.AuthenticationError, AuthorizationError) as error:
        raise RefusedError(f"{node} refuses the user: {error}") from error
    except redis.BusyLoadingError as error:
        raise LinkError(f"{node} is loading: {error}") from error
    except redis.ConnectionError as error:
        if isinstance(error.__cause__ or error.__context__, ssl.SSLCertVerificationError):
            raise RefusedError(f"{node} has no certificate that is trusted: {error}") from error
        raise LinkError(f"{node} cannot be reached: {error}") from error
    except redis.TimeoutError as error:
        raise SilentError(f"{node} cannot be reached within {timeout_s:g} s") from error
    except redis.ResponseError as error:
        raise RefusedError(f"{node} refuses the user: {error}") from error
    except (OSError, redis.RedisError) as error:
        raise LinkError(f"{node} cannot be reached: {error}") from error
    return connection
