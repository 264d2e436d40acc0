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
import contextlib
import gzip
import json
import logging
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
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import xxhash

import bandana_kv
from bandana_kv import adapters
from bandana_kv.device import DeviceProfile
from bandana_kv.device.mount import Mount
from bandana_kv.device.record import BlockSize, Cell
from bandana_kv.disk import manifest
from bandana_kv.disk.blocks import HEADER_BYTES
from bandana_kv.disk.plan import PLAN_FORMAT
from bandana_kv.errors import BandanaError
from bandana_kv.kernels.checksum import xxh64
from bandana_kv.placement import Placement, fanout
from bandana_kv.plan import Plan
from bandana_kv.rows.files import open_rows
from bandana_kv.testing.mutation import mutated_bytes, mutated_json

__all__ = ["Kind", "kinds", "main", "run"]

_ROWS, _DIM = 200, 64
_MORE_BYTES = 2 << 30
_SECONDS = 10
_WARM_UP_SECONDS = 300  # kernels may have to be compiled
_SHOWN = 20
_READY = b"ready"


class WrongAnswerError(Exception):
    """Rows are not those that were loaded."""


@dataclass(frozen=True)
class Kind:
    """One kind of file.

    Attributes
    ----------
    name : str
    path : Path
        The sound file, damaged in place and put back.
    mutate : callable
        Of the sound bytes and a generator; returns damaged ones, and whether they are forged.
    use : callable
        Reads the damaged file, told whether it is forged; raises when an answer is wrong.
    """

    name: str
    path: Path
    mutate: Callable[[bytes, random.Random], tuple[bytes, bool]]
    use: Callable[[bool], None]


def _raw(raw: bytes, rng: random.Random) -> tuple[bytes, bool]:
    return mutated_bytes(raw, rng), False


def _plain_json(raw: bytes, rng: random.Random) -> tuple[bytes, bool]:
    return (mutated_bytes if rng.random() < 0.3 else mutated_json)(raw, rng), True


def _manifest(raw: bytes, rng: random.Random) -> tuple[bytes, bool]:
    if rng.random() < 0.3:
        return mutated_bytes(raw, rng), False
    body = mutated_json(json.dumps(json.loads(raw)["manifest"]).encode(), rng)
    checksum = xxhash.xxh3_64_hexdigest(body).encode()
    return b'{"checksum":"%s","manifest":%s}' % (checksum, body), True


def _array(raw: bytes, rng: random.Random) -> tuple[bytes, bool]:
    """Damage a file of :mod:`bandana_kv.disk.arrays`."""
    changed = mutated_bytes(raw, rng)
    if len(changed) < 64 or rng.random() < 0.4:
        return changed, False
    data = xxhash.xxh3_64_intdigest(changed[64:])
    header = changed[:40] + struct.pack("<QQ", data, 0) + bytes(8)
    digest = xxhash.xxh3_64_intdigest(header)
    return header[:48] + struct.pack("<Q", digest) + bytes(8) + changed[64:], True


def _placement(raw: bytes, rng: random.Random) -> tuple[bytes, bool]:
    """Damage a file of :mod:`bandana_kv.disk.placement_file`."""
    changed = mutated_bytes(raw, rng)
    if len(changed) < 128 or rng.random() < 0.4:
        return changed, False
    fields = changed[:96] + struct.pack("<Q16x", xxhash.xxh3_64_intdigest(changed[128:]))
    digest = struct.pack("<Q", xxhash.xxh3_64_intdigest(fields))
    return fields + digest + changed[128:], True


def _block_index(raw: bytes, rng: random.Random) -> tuple[bytes, bool]:
    if rng.random() < 0.4:
        return mutated_bytes(raw, rng), False
    changed = mutated_bytes(raw[:-8], rng)
    return changed + struct.pack("<Q", xxhash.xxh3_64_intdigest(changed)), True


def _blocks(raw: bytes, rng: random.Random) -> tuple[bytes, bool]:
    """Damage one block, or all of the file; forge headers only, since rows have no other guard."""
    if rng.random() < 0.5:
        return mutated_bytes(raw, rng), False
    at = 4096 * rng.randrange(len(raw) // 4096)
    block = bytearray(raw[at : at + 4096])
    header = mutated_bytes(bytes(block[8:HEADER_BYTES]), rng)[: HEADER_BYTES - 8]
    block[8 : 8 + len(header)] = header
    block[:8] = struct.pack("<Q", xxh64(np.frombuffer(block, np.uint8)[8:]))
    return raw[:at] + bytes(block) + raw[at + 4096 :], False


def _gzipped(raw: bytes, rng: random.Random) -> tuple[bytes, bool]:
    if rng.random() < 0.5:
        return mutated_bytes(raw, rng), False
    return gzip.compress(mutated_bytes(gzip.decompress(raw), rng), mtime=0), False


def kinds(root: Path) -> list[Kind]:
    """Make sound files of every kind in `root`; return how to damage and use each."""
    rng = np.random.default_rng(0)
    rows = rng.random((_ROWS, _DIM), np.float32)
    log = bandana_kv.AccessLog.from_requests(rng.integers(0, _ROWS, (150, 5)))
    store = root / "store"
    with _quiet():
        bandana_kv.load(store, {"user": rows}, {"user": log}, adapter="blockfile", replicate=0.5)
    current = manifest.read_current(store)
    table = current.tables["user"]
    engine = manifest.engine_path(store, table.segment, table.pages)
    with adapters.open_existing("blockfile", engine):
        pass

    def serve(forged: bool) -> None:
        with bandana_kv.open(store, cache_bytes=20_000, readers=1) as opened:
            for name in opened.tables:
                found = opened.multi_get(name, np.arange(_ROWS))
                if not forged and not np.array_equal(found, rows):
                    raise WrongAnswerError("rows are not those that were loaded")

    def checked(forged: bool) -> None:
        serve(forged)
        bandana_kv.verify(store, readers=1)

    def of_table(kind: str) -> Path:
        return manifest.table_file(store, table.segment, table.space, kind)

    served = [
        Kind("manifest", store / "manifests" / "000001.json", _manifest, checked),
        Kind("current", store / "CURRENT", _raw, serve),
        *(
            Kind(kind, of_table(kind), _array, checked)
            for kind in ("positions", "heat", "original-of", "by-position")
        ),
        Kind("block-index", engine / "index", _block_index, serve),
        Kind("blocks", engine / f"space-{table.space}.blocks", _blocks, serve),
    ]
    return [*served, *_kinds_beside(root, rows, log)]


def _kinds_beside(root: Path, rows: Any, log: bandana_kv.AccessLog) -> list[Kind]:
    """Make the files that are not part of a store."""
    plan, placement = root / "plan.json", root / "placement"
    profile, table = root / "device.json", root / "rows.npy"
    held = manifest.read_current(root / "store").tables["user"].plan
    Plan(PLAN_FORMAT, 1 << 20, 0, {"user": held}).write(plan)
    Placement(np.arange(_ROWS, dtype=np.uint32)[::-1].copy(), 15, "shp", None, 0.7).save(placement)
    _profile().write(profile)
    np.save(table, rows)

    def use_plan(_: bool) -> None:
        for of_table in Plan.read(plan).tables.values():
            of_table.policy_for(10_000, 256, _ROWS)
            of_table.curve(256, _ROWS)

    def use_placement(_: bool) -> None:
        loaded = Placement.load(placement)
        if not np.array_equal(loaded.position_of_id[loaded.id_of_position()], range(loaded.rows)):
            raise WrongAnswerError("a placement that is no permutation")
        with contextlib.suppress(BandanaError):
            fanout(log, loaded)

    def use_profile(_: bool) -> None:
        loaded = DeviceProfile.read(profile)
        loaded.reads_per_second(4096, 3)
        loaded.matches(root)

    def use_rows(_: bool) -> None:
        with open_rows("user", table) as source:
            source.gather(np.array([0, source.rows - 1]), np.empty((2, source.row_bytes), np.uint8))

    def use_log(path: Path) -> Callable[[bool], None]:
        def use(_: bool) -> None:
            read = bandana_kv.AccessLog.read(path)
            read.validate()
            read.select([0, read.requests - 1])

        return use

    return [
        Kind("plan", plan, _plain_json, use_plan),
        Kind("placement", placement, _placement, use_placement),
        Kind("device-profile", profile, _plain_json, use_profile),
        Kind("npy", table, _raw, use_rows),
        *(Kind(path.name, path, how, use_log(path)) for path, how in _logs(root, log)),
    ]


def _logs(root: Path, log: bandana_kv.AccessLog) -> Iterator[tuple[Path, Any]]:
    """Write the log in every format that can be written here."""
    log.write(root / "log.npz")
    yield root / "log.npz", _raw
    np.savez_compressed(root / "packed.npz", offsets=log.offsets, ids=log.ids)
    yield root / "packed.npz", _raw
    requests = [log.ids[a:b].tolist() for a, b in zip(log.offsets, log.offsets[1:], strict=False)]
    lines = "".join(" ".join(map(str, request)) + "\n" for request in requests)
    (root / "log.txt").write_text(lines)
    yield root / "log.txt", _raw
    (root / "log.txt.gz").write_bytes(gzip.compress(lines.encode(), mtime=0))
    yield root / "log.txt.gz", _gzipped
    pairs = [f"{at},{row_id},{at}.5\n" for at, ids in enumerate(requests) for row_id in ids]
    (root / "log.csv").write_text("request,id,time\n" + "".join(pairs))
    yield root / "log.csv", _raw
    with contextlib.suppress(bandana_kv.errors.MissingExtraError):
        log.write(root / "log.parquet")
        yield root / "log.parquet", _raw


def _profile() -> DeviceProfile:
    cells = tuple(
        Cell(size, depth, depth, 1e4 * depth, 100.0, 90.0, 200.0)
        for size in (4096, 8192)
        for depth in (1, 4, 16)
    )
    sizes = (BlockSize(4096, 16, 1.6e5, 200.0, True), BlockSize(8192, 16, 1.6e5, 200.0, True))
    return DeviceProfile(
        1,
        "2026-01-01T00:00:00+00:00",
        "6.1",
        Mount.of(Path.cwd()),
        "python",
        None,
        True,
        1 << 30,
        cells,
        (),
        sizes,
        4096,
        16,
        16,
        1000.0,
        True,
        0.1,
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    with warnings.catch_warnings(action="ignore"):
        yield
    logging.disable(logging.NOTSET)


def _outcome(kind: Kind, seed: int, number: int) -> tuple[str, str]:
    """Damage and use one file; return the outcome, and of an unexpected one the reason."""
    rng = random.Random(f"{seed} {number}")
    sound = kind.path.read_bytes()
    damaged, forged = kind.mutate(sound, rng)
    try:
        kind.path.write_bytes(damaged)
        with _quiet():
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
