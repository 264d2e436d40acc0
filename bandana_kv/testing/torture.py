"""Processes killed at random moments, and engines that fail: rows must stay right.

What the store must hold is kept outside of it. Children load, switch, roll back, update, flush,
place anew and collect garbage, and say through a pipe what they begin and what was acknowledged;
they are killed after a random time, at a random change of a file, or inside a random operation of
the engine. After every kill another process looks: the current version is the one before or the
new one, whole, every acknowledged update is there, and ``bandana_kv.verify`` finds nothing bad.
Between kills threads read, and loads, updates and re-placements go on, over engines with injected
faults: each answer is right, or a BandanaError.

Run it as ``python -m bandana_kv.testing.torture --dir DIR --seconds 60 --seed 0 --adapter lmdb
--json``. Children are forks of a process that has imported and compiled everything and holds no
engine, so that a kill costs a fraction of a second.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np

import bandana_kv
from bandana_kv.errors import BandanaError
from bandana_kv.testing.faults import Faults, injecting
from bandana_kv.testing.hushed import hushed
from bandana_kv.testing.oracle import Event, rows_of
from bandana_kv.testing.torture_actor import Actor
from bandana_kv.testing.torture_checks import check, everything, tidy
from bandana_kv.testing.torture_readers import Readers
from bandana_kv.testing.tortured import BAD, COUNTS, Tell, Tortured

__all__ = ["BAD", "Torture", "command", "die_at_change", "main", "run", "run_each"]

_PATIENCE_S = 120.0
_CHANGES = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "fcntl.flock")
_MOST_CHANGES, _MOST_ENGINE_OPERATIONS, _MOST_SECONDS = 120, 30, 0.25
_FAULTY_EVERY, _TIDY_EVERY = 3, 8
_READ_SECONDS, _WRITES = 0.25, 4


class Torture(Tortured):
    """One run: children that change the store and are killed, and others that look at it."""

    def run_for(self, seconds: float) -> None:
        """Kill and inject, round after round."""
        until = time.monotonic() + seconds
        number = 0
        while time.monotonic() < until:
            self.round_of_kill()
            self.look()
            if number % _FAULTY_EVERY == 0 and self.expected.current:
                self.child(self.round_of_faults)
                self.look()
            if number % _TIDY_EVERY == 0:
                self.child(lambda tell: tidy(self, tell))
            number += 1

    def round_of_kill(self) -> None:
        """Let a child change the store until it is killed."""
        how = self.rng.choice(("time", "time", "change", "engine"))
        seconds = self.rng.uniform(0, _MOST_SECONDS) if how == "time" else None
        kill_at = self.rng.randrange(_MOST_CHANGES if how == "change" else _MOST_ENGINE_OPERATIONS)

        def work(tell: Tell) -> None:
            with contextlib.ExitStack() as stack:
                if how == "change":
                    die_at_change(kill_at)
                elif how == "engine":
                    faults = Faults(0, scheduled={kill_at: "kill"})
                    stack.enter_context(injecting(faults))
                Actor(self, tell).go_on()

        if self.child(work, kill_after_s=seconds) == -signal.SIGKILL:
            self.counters.add("kills")

    def child(self, work: Callable[[Tell], None], kill_after_s: float | None = None) -> int:
        """Run `work` in a child, heed what it tells, and return how it ended.

        `kill_after_s` counts from the moment that it is ready.
        """
        out, into = os.pipe()
        seed = self.rng.randrange(1 << 32)
        pid = os.fork()
        if pid == 0:
            os.close(out)
            self.rng = random.Random(seed)
            self._be_child(into, work)
        os.close(into)
        self._heed(out, pid, kill_after_s)
        os.close(out)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if status not in (0, -signal.SIGKILL):
            self.bad("unexpected_exceptions", f"a child ended with {status}")
        return status

    def _be_child(self, into: int, work: Callable[[Tell], None]) -> None:
        lock = threading.Lock()

        def tell(event: Event) -> None:
            with lock:
                os.write(into, json.dumps(event).encode() + b"\n")

        self.tell = tell
        try:
            work(tell)
        except BaseException:
            self.bad("unexpected_exceptions", traceback.format_exc())
        finally:
            os._exit(0)

    def _heed(self, out: int, pid: int, kill_after_s: float | None) -> None:
        """Follow what the child tells until it has ended."""
        held = b""
        until = time.monotonic() + _PATIENCE_S
        killing = False
        while True:
            left = max(0.0, until - time.monotonic())
            if not select.select([out], [], [], left)[0]:
                os.kill(pid, signal.SIGKILL)
                if not killing:
                    self.bad("unexpected_exceptions", "a child hung")
                until, killing = time.monotonic() + _PATIENCE_S, True
            part = os.read(out, 1 << 16) if select.select([out], [], [], 0)[0] else None
            if part == b"":
                return
            *lines, held = (held + (part or b"")).split(b"\n")
            for line in lines:
                event = json.loads(line)
                if "ready" in event and kill_after_s is not None:
                    until, killing = time.monotonic() + kill_after_s, True
                self._hear(event)

    def _hear(self, event: Event) -> None:
        if "bad" in event:
            self.bad(event["bad"], event["why"], event["count"])
        if "done" in event and self.expected.pending is not None:
            self.acknowledged[self.expected.pending["begin"]] += 1
        self.expected.hear(event)

    def look(self) -> None:
        """Look at the store in a process of its own, and take what it holds as what happened."""
        self.child(lambda tell: check(self, tell))

    # -- children ---------------------------------------------------------------------------

    def round_of_faults(self, tell: Tell) -> None:
        """Read with many threads, then change the store, over engines that fail."""
        faults = Faults(self.rng.randrange(1 << 32))
        with injecting(faults):
            self._read_faulty(faults)
            faults.probability = self.rng.choice((0.02, 0.1, 0.3))
            actor = Actor(self, tell, readers=4, failing=True)
            with contextlib.suppress(BandanaError), actor.opened():
                for _ in range(_WRITES):
                    if not actor.step():
                        break
        self.counters.add("faults", faults.injected.total())

    def _read_faulty(self, faults: Faults) -> None:
        """Ask two stores, one of them with a fallback, with eight threads."""
        deadline_ms = self.rng.choice((None, None, 20.0))
        with contextlib.ExitStack() as stack:
            for fallback, deadline in ((None, None), (self._source, deadline_ms)):
                cache_bytes = self.rng.choice((0, 30_000))
                store = bandana_kv.open(
                    self.root, cache_bytes, readers=8, fallback=fallback, deadline_ms=deadline
                )
                stack.enter_context(store)
                stack.enter_context(Readers(self, store, 4, failing=True))
            faults.probability = self.rng.choice((0.1, 0.3, 0.6))
            time.sleep(_READ_SECONDS)
            faults.probability = 0.0

    def _source(self, table: str, ids: np.ndarray) -> np.ndarray:
        """Answer as the store must."""
        stamp = self.expected.stamps[table]
        return rows_of(table, stamp, ids, self.expected.of(table, stamp)[ids])


def die_at_change(number: int) -> None:
    """Kill this process just before its `number`-th change of a file or directory."""
    seen = 0

    def watch(event: str, _: tuple[Any, ...]) -> None:
        nonlocal seen
        if event in _CHANGES:
            seen += 1
            if seen > number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


def _warm_up(adapter: str) -> None:
    """Import and compile all that children need, without an engine that has threads."""
    bandana_kv.adapters.adapter_class(adapter)
    with tempfile.TemporaryDirectory(prefix="bandana-kv-torture-") as directory:
        if adapter != "blockfile":
            adapter = "memory"
        torture = Torture(Path(directory), 0, adapter)
        Actor(torture, lambda _: None, readers=1).do_each()
        everything(torture.root)
        bandana_kv.verify(torture.root)


def run(directory: Path, seconds: float, seed: int, adapter: str) -> dict[str, Any]:
    """Torture a store for some time.

    Parameters
    ----------
    directory
        Where to put it; what is in there is removed at the end if nothing was wrong.
    seconds
        How long, without the time to get ready.
    seed
        Of what is done and injected; when a child dies also depends on the machine.
    adapter
        The engine.

    Returns
    -------
    dict
        ``kills``, ``faults``, ``operations``, and what must be 0, see :data:`BAD`;
        ``acknowledged`` by kind; up to 20 ``reasons``.
    """
    return run_each(Torture, _warm_up, directory, seconds, seed, adapter)


@hushed()
def run_each(
    kind: type[Torture],
    warm_up: Callable[[str], None],
    directory: Path,
    seconds: float,
    seed: int,
    adapter: str,
) -> dict[str, Any]:
    """Do what :func:`run` does, of any kind of torture."""
    warm_up(adapter)
    directory.mkdir(parents=True, exist_ok=True)
    root = Path(tempfile.mkdtemp(prefix=f"{kind.__name__.lower()}-{adapter}-", dir=directory))
    torture = kind(root, seed, adapter)
    begun = time.monotonic()
    torture.run_for(seconds)
    found = torture.counters.as_dict()
    if not any(found[name] for name in BAD):
        shutil.rmtree(root)
    return {
        "adapter": adapter,
        "seed": seed,
        "seconds": round(time.monotonic() - begun, 1),
        **found,
        "acknowledged": dict(torture.acknowledged),
        "reasons": torture.reasons,
    }


def command(run: Callable[[Path, float, int, str], dict[str, Any]], says: str) -> click.Command:
    """Return the command line of a torture; the status is 1 if anything was wrong."""

    def main(directory: Path, seconds: float, seed: int, adapter: str, as_json: bool) -> None:
        found = run(directory, seconds, seed, adapter)
        if as_json:
            click.echo(json.dumps(found, indent=1))
        else:
            for reason in found["reasons"]:
                click.echo(reason)
            click.echo(", ".join(f"{found[name]} {name.replace('_', ' ')}" for name in COUNTS))
        sys.exit(1 if any(found[name] for name in BAD) else 0)

    path, positive = click.Path(path_type=Path), click.FloatRange(0, min_open=True)
    as_json = click.Option(["--json", "as_json"], is_flag=True, help="Print it as JSON.")
    options = [
        click.Option(["--dir", "directory"], required=True, type=path),
        click.Option(["--seconds"], default=60.0, show_default=True, type=positive),
        click.Option(["--seed"], default=0, show_default=True),
        click.Option(["--adapter"], default="lmdb", show_default=True),
        as_json,
    ]
    return click.Command(None, callback=main, params=[*options], help=says)


main = command(run, "Kill and damage a store for some time; the status is 1 if anything was wrong.")

if __name__ == "__main__":
    main()
