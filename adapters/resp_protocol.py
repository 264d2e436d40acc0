"""RESP2, the words that nodes exchange, where few are: commands, and replies of any kind."""

from __future__ import annotations

from typing import NamedTuple

from bandana_kv.adapters.resp_address import Node

__all__ = ["Failed", "Redirect", "command", "redirect_of", "reply_at"]

_END = b"\r\n"
# Nested replies are a few levels deep; what claims more is no such protocol.
_MOST_BYTES = 1 << 29


class Failed(str):
    """What a node said instead of a reply, such as ``LOADING ...``."""

    __slots__ = ()

    @property
    def kind(self) -> str:
        """Its first word."""
        return self.partition(" ")[0]


class Redirect(NamedTuple):
    """Where a node sends whoever asked: for good, or for this once."""

    node: Node
    once: bool


def command(*words: bytes | str | int) -> bytes:
    """Return a command as it is sent."""
    parts = [f"*{len(words)}".encode(), _END]
    for word in words:
        raw = word if isinstance(word, bytes) else str(word).encode()
        parts += [b"$%d" % len(raw), _END, raw, _END]
    return b"".join(parts)


def reply_at(buffer: bytes | bytearray, at: int) -> tuple[object, int] | None:
    """Return the reply that begins at `at`, and where it ends; None if it is not all there.

    Raises
    ------
    ValueError
        It is no reply.
    """
    end = buffer.find(_END, at)
    if end < 0:
        return None
    kind, line = buffer[at : at + 1], bytes(buffer[at + 1 : end])
    after = end + 2
    if kind == b"+":
        return line, after
    if kind == b"-":
        return Failed(line.decode(errors="replace")), after
    if kind == b":":
        return int(line), after
    if kind == b"$":
        return _text_at(buffer, after, int(line))
    if kind == b"*":
        return _list_at(buffer, after, int(line))
    raise ValueError(f"a reply begins with {bytes(kind)!r}")


def _text_at(buffer: bytes | bytearray, at: int, size: int) -> tuple[object, int] | None:
    if size < 0:
        return None, at
    if size > _MOST_BYTES:
        raise ValueError(f"a reply of {size} bytes")
    if len(buffer) < at + size + 2:
        return None
    return bytes(buffer[at : at + size]), at + size + 2


def _list_at(buffer: bytes | bytearray, at: int, count: int) -> tuple[object, int] | None:
    if count < 0:
        return None, at
    found: list[object] = []
    for _ in range(count):
        each = reply_at(buffer, at)
        if each is None:
            return None
        found.append(each[0])
        at = each[1]
    return found, at


def redirect_of(failed: str, asked: Node) -> Redirect | None:
    """Return where ``MOVED slot host:port`` or ``ASK slot host:port`` sends; None: it is neither.

    Without a host it is that of the node that said it.
    """
    words = failed.split(" ")
    if len(words) != 3 or words[0] not in ("MOVED", "ASK"):
        return None
    host, _, port = words[2].rpartition(":")
    if not port.isdecimal():
        return None
    return Redirect(Node(host.strip("[]") or asked.host, int(port)), words[0] == "ASK")
