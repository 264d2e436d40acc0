"""Malformed files: each must end in a BandanaError or a correct answer.

Files of every kind that the library reads are damaged, one at a time, by a seeded generator.
Where a file carries a checksum, half of the time it is made anew over the damage, so that the
checks behind it are reached; what such a *forged* file says may be believed, as long as nothing
is read, made or written that it has no right to. Without forging, rows must be the right ones.

Run it as ``python -m bandana_kv.testing.malformed --count 100000 --seed 0 --json``. Inputs run in
a child process that may take 2 GiB of addresses more than it has at its beginning, and ten seconds
for an input: a crash, absurd memory, or no answer is *unexpected* as well, and found again by
``--first N --count 1`` with the same seed.
"""

from __future__ import annotations

import collections
import json
import mmap
import os
import random
import resource
import select
import shutil
import signal
import struct
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from bandana_kv.errors import BandanaError
from bandana_kv.testing.malformed_kinds import Kind, kinds, quiet

__all__ = ["Kind", "kinds", "main", "run"]

_MORE_BYTES = 2 << 30
_SECONDS = 10
_WARM_UP_SECONDS = 300  # kernels may have to be compiled
_SHOWN = 20
_READY = b"ready"


def _outcome(kind: Kind, seed: int, number: int) -> tuple[str, str]:
    """Damage and use one file; return the outcome, and of an unexpected one the reason."""
    rng = random.Random(f"{seed} {number}")
    sound = kind.path.read_bytes()
    damaged, forged = kind.mutate(sound, rng)
    try:
        kind.path.write_bytes(damaged)
        with quiet():
            kind.use(forged)
    except BandanaError:
        return "refused", ""
    except Exception:
        return "unexpected", traceback.format_exc(limit=-4)
    finally:
        kind.path.write_bytes(sound)
    return "believed" if forged and damaged != sound else "correct", ""


def run(count: int, seed: int, first: int = 0) -> dict[str, Any]:
    """Damage and use `count` files, in child processes.

    Parameters
    ----------
    count
        Inputs; each is determined by its number and the seed.
    seed
        Of the damage.
    first
        The first input's number.

    Returns
    -------
    dict
        ``inputs``; ``refused`` (BandanaError), ``correct`` and ``believed`` (forged, and read as
        what it says); ``unexpected``, which must be 0, with up to 20 reasons in ``failures``; and
        the outcomes ``by_kind``.
    """
    total: collections.Counter[str] = collections.Counter()
    by_kind: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    failures: list[dict[str, Any]] = []
    number, end = first, first + count
    while number < end:
        for kind, at, outcome, reason in _in_child(number, end, seed):
            total[outcome] += 1
            by_kind[kind][outcome] += 1
            if reason and len(failures) < _SHOWN:
                failures.append({"number": at, "kind": kind, "reason": reason})
            number = at + 1
    names = ("refused", "correct", "believed", "unexpected")
    return {
        "inputs": count,
        "seed": seed,
        **{name: total[name] for name in names},
        "by_kind": {name: dict(of_kind) for name, of_kind in sorted(by_kind.items())},
        "failures": failures,
    }


def _in_child(first: int, end: int, seed: int) -> Iterator[tuple[str, int, str, str]]:
    """Run inputs in a child; yield kind, number, outcome and reason, a crash being the last."""
    at = mmap.mmap(-1, 8)  # where the child is, should it not live to tell
    out, into = os.pipe()
    with tempfile.TemporaryDirectory(prefix="bandana-kv-malformed-") as directory:
        child = os.fork()
        if child == 0:
            os.close(out)
            with open(into, "w") as pipe:
                status = _child(Path(directory), first, end, seed, pipe, at)
            os._exit(status)
        os.close(into)
        done = first
        for line in _lines(out, child):
            if line == _READY:
                continue
            kind, number, outcome, reason = json.loads(line)
            done = number + 1
            yield kind, number, outcome, reason
        os.close(out)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if at[:] == bytes(8):
            raise RuntimeError("the child ended before its first input")
        if done < end:
            number = struct.unpack("<Q", at[:])[0] - 1
            reason = f"the process crashed or hung, and ended with {status}"
            yield "process", number, "unexpected", reason


def _lines(out: int, child: int) -> Iterator[bytes]:
    """Yield what the child writes, line by line; end it when it is silent for too long."""
    held = b""
    patience_s = _WARM_UP_SECONDS
    while True:
        if not select.select([out], [], [], patience_s)[0]:
            os.kill(child, signal.SIGKILL)
        part = os.read(out, 1 << 16)
        if not part:
            return
        *lines, held = (held + part).split(b"\n")
        yield from lines
        patience_s = _SECONDS


def _child(directory: Path, first: int, end: int, seed: int, pipe: Any, at: mmap.mmap) -> int:
    try:
        every = kinds(directory)
        for kind in every:
            kind.use(False)  # compiles and imports, before memory is limited
        used = int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
        resource.setrlimit(resource.RLIMIT_AS, (used + _MORE_BYTES, used + _MORE_BYTES))
        print(_READY.decode(), file=pipe, flush=True)
        for number in range(first, end):
            at[:] = struct.pack("<Q", number + 1)
            kind = every[number % len(every)]
            outcome, reason = _outcome(kind, seed, number)
            pipe.write(json.dumps([kind.name, number, outcome, reason]) + "\n")
            pipe.flush()
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    return 0


@click.command()
@click.option("--count", default=10_000, show_default=True, type=click.IntRange(1))
@click.option("--first", default=0, show_default=True, type=click.IntRange(0))
@click.option("--seed", default=0, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print the outcomes as JSON.")
def main(count: int, first: int, seed: int, as_json: bool) -> None:
    """Damage files of every kind; the status is 1 unless each was refused or read aright."""
    found = run(count, seed, first)
    if as_json:
        click.echo(json.dumps(found, indent=1))
    else:
        for failure in found["failures"]:
            click.echo(f"{failure['kind']} {failure['number']}: {failure['reason']}")
        names = ("refused", "correct", "believed", "unexpected")
        click.echo(", ".join(f"{found[name]} {name}" for name in names))
    sys.exit(1 if found["unexpected"] else 0)


if __name__ == "__main__":
    main()
