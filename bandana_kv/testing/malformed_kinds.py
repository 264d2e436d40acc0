"""Kinds of files that the library reads: how each is made, damaged, forged and used."""

from __future__ import annotations

import contextlib
import gzip
import json
import logging
import random
import struct
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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

__all__ = ["Kind", "kinds", "quiet"]

_ROWS, _DIM = 200, 64


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
    with quiet():
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
def quiet() -> Iterator[None]:
    """Have nobody told of what is done to the files."""
    logging.disable(logging.CRITICAL)
    with warnings.catch_warnings(action="ignore"):
        yield
    logging.disable(logging.NOTSET)
