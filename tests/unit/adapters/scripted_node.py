"""Nodes of a cluster that say what a test has them say: what real ones say too rarely."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable
from typing import Self

from bandana_kv.adapters.resp_protocol import reply_at

__all__ = ["ScriptedCluster", "Words", "bulk", "values"]

Words = list[bytes]


def bulk(value: bytes | None) -> bytes:
    """Return a value as it is sent."""
    return b"$-1\r\n" if value is None else b"$%d\r\n%s\r\n" % (len(value), value)


def values(*found: bytes | None) -> bytes:
    """Return the reply to an MGET."""
    return b"*%d\r\n" % len(found) + b"".join(map(bulk, found))


class ScriptedCluster:
    """Nodes on loopback that all have all slots, the first as their primary.

    Parameters
    ----------
    answers
        For each node, what it says to a command that has nothing to do with the topology: pieces
        that it sends one after the other; None: it says nothing.
    tls
        What it speaks TLS with, if it does.
    """

    def __init__(
        self,
        *answers: Callable[[Words], list[bytes] | None],
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._tls = tls
        self.asked: list[list[Words]] = [[] for _ in answers]
        self._answers = answers
        self._listening = [socket.create_server(("127.0.0.1", 0)) for _ in answers]
        self.ports = [each.getsockname()[1] for each in self._listening]
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []

    @property
    def address(self) -> str:
        """Of the first."""
        return f"{'rediss' if self._tls else 'redis'}://127.0.0.1:{self.ports[0]}"

    def __enter__(self) -> Self:
        for number in range(len(self._answers)):
            self._start(self._accept, number)
        return self

    def __exit__(self, *_: object) -> None:
        for each in self._listening:
            each.shutdown(socket.SHUT_RDWR)
            each.close()
        for each in list(self._open):
            with contextlib.suppress(OSError):  # the other side was first
                each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)
            assert not thread.is_alive()

    def _start(self, work: Callable[..., None], *given: object) -> None:
        thread = threading.Thread(target=work, args=given, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self, number: int) -> None:
        while True:
            try:
                peer = self._listening[number].accept()[0]
            except OSError:
                return
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._open.append(peer)
            self._start(self._serve, number, peer)

    def _serve(self, number: int, peer: socket.socket) -> None:
        raw = bytearray()
        try:
            speaker = self._tls.wrap_socket(peer, server_side=True) if self._tls else peer
        except OSError:  # whoever asks does not trust it
            peer.close()
            return
        self._open.append(speaker)
        with speaker as peer:
            while True:
                try:
                    raw += (taken := peer.recv(1 << 16))
                    if not taken:
                        return
                    while (found := reply_at(raw, 0)) is not None:
                        del raw[: found[1]]
                        assert isinstance(found[0], list)
                        for piece in self._say(number, found[0]):
                            peer.sendall(piece)
                except OSError:
                    return

    def _say(self, number: int, words: Words) -> list[bytes]:
        if words[0] == b"CLUSTER":
            nodes = b"".join(b"*2\r\n" + bulk(b"127.0.0.1") + b":%d\r\n" % p for p in self.ports)
            return [b"*1\r\n*%d\r\n:0\r\n:16383\r\n" % (2 + len(self.ports)) + nodes]
        if words[0] == b"READONLY":
            return [b"+OK\r\n"]
        if words[0] == b"GET":
            return [bulk(b"0")]
        self.asked[number].append(words)
        return self._answers[number](words) or []
