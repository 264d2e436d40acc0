"""Loads into a cluster in children of its own, each of which may be killed or stopped at a step.

    python loader_process.py ADDRESS USER PASSWORD

Reads a JSON object a line: ``marker`` (of the rows), ``at`` (the step before which the child is
hit; 0: none), ``how`` (``"kill"`` or ``"stop"``), and options of the load. Answers one: ``steps``
(what was done, in order), and ``version``, ``error`` and ``message``, or ``hit``. A child that is
stopped is answered as ``hit``; ``{"go_on": true}`` lets it go on, and answers how it ended.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

import bandana_kv
from bandana_kv.adapters.resp import RespAdapter
from bandana_kv.adapters.resp_catalogue import Catalogue
from bandana_kv.adapters.resp_spaces import Spaces
from bandana_kv.errors import BandanaError

ROWS, DIM = 300, 8
_CHANGES = ("SET", "DEL", "INCR", "ZADD", "ZREM")


def rows_of(marker: int, table: str) -> np.ndarray:
    """Rows that say which load they are of, and which row."""
    first = 0 if table == "a" else 500
    rows = np.empty((ROWS, DIM), np.float32)
    rows[:] = (marker * 1000 + first + np.arange(ROWS))[:, None]
    return rows


class Steps:
    """Counts what changes the cluster, or settles or checks it, and hits this process at one."""

    def __init__(self, at: int, how: str) -> None:
        self.done: list[str] = []
        self._at, self._how = at, how

    def take(self, label: str) -> None:
        self.done.append(re.sub(r"[0-9]+", "N", label))
        if len(self.done) == self._at:
            os.kill(os.getpid(), signal.SIGKILL if self._how == "kill" else signal.SIGSTOP)

    def watch(self, owner: Any, name: str, label: Callable[..., str | None]) -> None:
        plain = getattr(owner, name)

        def watched(self_: Any, *arguments: Any, **options: Any) -> Any:
            said = label(*arguments)
            if said is not None:
                self.take(said)
            return plain(self_, *arguments, **options)

        setattr(owner, name, watched)


def _command(*words: Any) -> str | None:
    if words[0] not in _CHANGES:
        return None
    return f"{words[0]} {words[1].decode().partition(':')[2]}"


def load(asked: dict[str, Any], write: Callable[[dict[str, Any]], None]) -> None:
    steps = Steps(asked.pop("at", 0), asked.pop("how", "kill"))
    steps.watch(Catalogue, "_ask", _command)
    steps.watch(Catalogue, "settle", lambda *_: "settle the catalogue")
    steps.watch(Spaces, "write", lambda *_: "write blocks")
    steps.watch(RespAdapter, "settle", lambda *_: "settle blocks")
    steps.watch(RespAdapter, "read_every_copy", lambda *_: "read every copy")
    steps.watch(RespAdapter, "delete_space", lambda *_: "delete a space")
    marker = asked.pop("marker")
    tables = {table: rows_of(marker, table) for table in ("a", "b")}
    address, user, password = sys.argv[1:]
    done: dict[str, Any] = {}
    try:
        done["version"] = bandana_kv.load(
            address, tables, placement="identity", user=user, password=password, **asked
        )
    except BandanaError as error:
        done |= {"error": type(error).__name__, "message": str(error)}
    write({**done, "steps": steps.done})


def warm() -> None:
    """Load once here: children find all modules and kernels in memory, and are quick."""
    address, user, password = sys.argv[1:]
    address = address.partition("/?")[0]
    tables = {"a": rows_of(0, "a")}
    options = {"placement": "identity", "user": user, "password": password}
    bandana_kv.load(address, tables, prefix=f"warm-{os.getpid()}", copies=0, **options)  # type: ignore[call-arg]


def main() -> None:
    warm()
    pipe, child = -1, 0
    for line in sys.stdin:
        asked = json.loads(line)
        if asked.pop("go_on", False):
            os.kill(child, signal.SIGCONT)
        else:
            pipe, end = os.pipe()
            child = os.fork()
            if not child:
                with os.fdopen(end, "w") as out:
                    load(asked, lambda done, out=out: out.write(json.dumps(done)))
                os._exit(0)
            os.close(end)
        _, status = os.waitpid(child, os.WUNTRACED)
        if os.WIFSTOPPED(status):
            said: dict[str, Any] = {"hit": True, "pid": child}
        else:
            with os.fdopen(pipe) as answer:
                text = answer.read()
            said = json.loads(text) if text else {"hit": True}
        print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main()
