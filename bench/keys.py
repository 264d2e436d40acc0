"""From keys to ids: the index of `bandana_kv/keys/` against other ways to lay one out.

    python bench/keys.py --dir DIR --json [--keys 1000000 --keys 10000000] [--keep]

Keys are 64-bit numbers drawn at random. All look up exactly: a key that is not there is never taken
for one that is, so that each holds all keys in full.

slots
    What is used: whole keys and ids together, in the order of ranks, 7/8 of the slots filled.
tags
    Open addressing over 16 bits of the rank and the id, 7/8 filled; keys beside, by id.
sorted
    Ranks in order, ids beside; looked for by interpolation.
perfect
    A perfect hash (`pip install phobic`; left out where it is not), keys and ids by its numbers
    beside. Half of the numbers are used, its default: of four fifths it failed for 100,000 keys.
    Threads of its own are not used.

`bytes_per_key` is of the files. `hot_ns` is of a key that is there, `absent_ns` of one that is not,
in requests of 1,024 keys drawn at random, files in the page cache: the median of rounds in which
the designs take turns. `cold_us` is of the first such request, after the page cache has forgotten
the files. Each is built in a process of its own, from keys that are mapped from a file:
`build_seconds`, files written and synced, and `build_bytes`, what it added to the memory of the
process at its highest, what it mapped of the keys left out.

`hashed_us` is of a request of 1,024 keys of text, hashed before, of `slots` alone.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import shutil
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
from common import report, surroundings
from numpy.typing import NDArray

from bandana_kv.device.page_cache import drop_page_cache
from bandana_kv.kernels.addresses import prefetch
from bandana_kv.kernels.compile import inlined, kernel, signed
from bandana_kv.keys import KeyIndex, build_index
from bandana_kv.keys.slots import home, rank

try:
    import phobic  # type: ignore[import-not-found]
except ImportError:
    phobic = None

BATCH, ROUNDS, SECONDS = 1024, 7, 0.2
AHEAD = 24
ZERO = np.uint64(0)
FILLED = 7 / 8

Words = NDArray[np.uint64]
Ids = NDArray[np.int64]
Ask = Callable[[Words], Ids]


def written(path: Path, array: NDArray[Any]) -> None:
    with path.open("wb") as file:
        file.write(np.ascontiguousarray(array).data)
        file.flush()
        os.fsync(file.fileno())


def mapped(path: Path, dtype: Any) -> Any:
    return np.asarray(np.memmap(path, dtype, "r"))


@inlined
def rank_of(word: np.uint64) -> np.uint64:
    return rank(word, word, False, ZERO)


@kernel
def ranks_of(words: np.ndarray, ranks: np.ndarray) -> None:
    for i in range(words.size):
        ranks[i] = rank_of(words[i])


# -- slots ----------------------------------------------------------------------------------


def build_slots(words: Words, directory: Path) -> None:
    build_index(directory / "keys", "uint64", words)


def open_slots(directory: Path) -> Ask:
    return KeyIndex.open(directory / "keys").ids_of


# -- tags -----------------------------------------------------------------------------------


@inlined
def tag_of(rank: np.uint64) -> np.uint16:
    tag = np.uint16(rank & np.uint64(0xFFFF))
    return tag if tag != np.uint16(0) else np.uint16(1)


@kernel
def fill_tags(words: np.ndarray, homes: int, entries: np.ndarray) -> None:
    for i in range(words.size):
        found = rank_of(words[i])
        at = 3 * home(found, homes)
        while entries[at] != 0:
            at += 3
            if at == entries.size:
                at = 0
        entries[at] = tag_of(found)
        entries[at + 1] = np.uint16(i & 0xFFFF)
        entries[at + 2] = np.uint16(i >> 16)


@kernel
def ask_tags(entries: np.ndarray, keys: np.ndarray, words: np.ndarray, ids: np.ndarray) -> None:
    homes = entries.size // 3
    for i in range(-AHEAD, words.size):
        if i + AHEAD < words.size:
            coming = 6 * home(rank_of(words[i + AHEAD]), homes)
            prefetch(entries.ctypes.data + coming)
            prefetch(entries.ctypes.data + coming + 64)
        if i < 0:
            continue
        wanted = rank_of(words[i])
        tag = tag_of(wanted)
        at = 3 * home(wanted, homes)
        ids[i] = -1
        while entries[at] != 0:
            if entries[at] == tag:
                found = signed(entries[at + 1]) | (signed(entries[at + 2]) << 16)
                if keys[found] == words[i]:
                    ids[i] = found
                    break
            at += 3
            if at == entries.size:
                at = 0


def build_tags(words: Words, directory: Path) -> None:
    entries = np.zeros(3 * (int(words.size / FILLED) + 1), np.uint16)
    fill_tags(words, entries.size // 3, entries)
    written(directory / "entries", entries)
    written(directory / "by-id", words)


def open_tags(directory: Path) -> Ask:
    entries, keys = mapped(directory / "entries", np.uint16), mapped(directory / "by-id", np.uint64)

    def ask(words: Words) -> Ids:
        ids = np.empty(words.size, np.int64)
        ask_tags(entries, keys, words, ids)
        return ids

    return ask


# -- sorted ---------------------------------------------------------------------------------


@inlined
def place_in(ranks: np.ndarray, wanted: np.uint64) -> int:
    """Return the first place whose rank is not less, by interpolation, at its end by halves."""
    low, high = 0, ranks.size  # the place is one of low..high
    least, most = np.float64(0.0), np.float64(18446744073709551616.0)
    steps = 0
    while high - low > 8:
        span = most - least
        guess = (low + high) // 2
        if steps < 8 and span > 0.0:
            share = (np.float64(wanted) - least) / span
            guess = low + np.int64(share * np.float64(high - low))
            guess = min(max(guess, low), high - 1)
        found = ranks[guess]
        if found < wanted:
            low = guess + 1
            least = np.float64(found)
        else:
            high = guess
            most = np.float64(found)
        steps += 1
    while low < high and ranks[low] < wanted:
        low += 1
    return low


@kernel
def ask_sorted(ranks: np.ndarray, by_place: np.ndarray, words: np.ndarray, ids: np.ndarray) -> None:
    for i in range(-AHEAD, words.size):
        if i + AHEAD < words.size:
            prefetch(ranks.ctypes.data + 8 * home(rank_of(words[i + AHEAD]), ranks.size))
        if i < 0:
            continue
        wanted = rank_of(words[i])
        at = place_in(ranks, wanted)
        ids[i] = signed(by_place[at]) if at < ranks.size and ranks[at] == wanted else -1


def build_sorted(words: Words, directory: Path) -> None:
    ranks = np.empty(words.size, np.uint64)
    ranks_of(words, ranks)
    order = np.argsort(ranks)
    written(directory / "ids", order.astype(np.uint32))
    written(directory / "ranks", ranks[order])


def open_sorted(directory: Path) -> Ask:
    ranks, by_place = mapped(directory / "ranks", np.uint64), mapped(directory / "ids", np.uint32)

    def ask(words: Words) -> Ids:
        ids = np.empty(words.size, np.int64)
        ask_sorted(ranks, by_place, words, ids)
        return ids

    return ask


# -- perfect --------------------------------------------------------------------------------


@kernel
def keep_own(
    keys: np.ndarray, by_place: np.ndarray, words: np.ndarray, places: np.ndarray, ids: np.ndarray
) -> None:
    for i in range(-AHEAD, words.size):
        if i + AHEAD < words.size:
            prefetch(keys.ctypes.data + 8 * signed(places[i + AHEAD]))
            prefetch(by_place.ctypes.data + 4 * signed(places[i + AHEAD]))
        if i >= 0:
            ids[i] = by_place[places[i]] if keys[places[i]] == words[i] else -1


def build_perfect(words: Words, directory: Path) -> None:
    raw = words.tobytes()
    given = [raw[at : at + 8] for at in range(0, len(raw), 8)]
    perfect = phobic.build(given, load_factor=0.5, seed=1, num_threads=1)
    del given
    places = perfect.lookup_fixed(words.view(np.uint8).reshape(-1, 8), num_threads=1)
    keys, ids = np.zeros(perfect.range_size, np.uint64), np.zeros(perfect.range_size, np.uint32)
    keys[places] = words
    ids[places] = np.arange(words.size, dtype=np.uint32)
    written(directory / "perfect", np.frombuffer(perfect.to_bytes(), np.uint8))
    written(directory / "by-place", keys)
    written(directory / "ids", ids)


def open_perfect(directory: Path) -> Ask:
    perfect = phobic.from_bytes((directory / "perfect").read_bytes())
    keys, by_place = mapped(directory / "by-place", np.uint64), mapped(directory / "ids", np.uint32)

    def ask(words: Words) -> Ids:
        places = perfect.lookup_fixed(words.view(np.uint8).reshape(-1, 8), num_threads=1)
        ids = np.empty(words.size, np.int64)
        keep_own(keys, by_place, words, places, ids)
        return ids

    return ask


# -- all of them ----------------------------------------------------------------------------

DESIGNS: dict[str, tuple[Callable[[Words, Path], None], Callable[[Path], Ask]]] = {
    "slots": (build_slots, open_slots),
    "tags": (build_tags, open_tags),
    "sorted": (build_sorted, open_sorted),
}
if phobic is not None:
    DESIGNS["perfect"] = (build_perfect, open_perfect)


def memory(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))


def build(design: str, keys: Path, directory: Path, told: Any) -> None:
    """Build, in a process of its own; tells seconds and the memory that was added."""
    make = DESIGNS[design][0]
    words = np.load(keys, mmap_mode="r")
    make(np.ascontiguousarray(words[:1000]), directory)  # which loads the kernels
    make(np.asarray(words[:1000]), directory)
    before, most, ended = memory("RssAnon"), [0], threading.Event()

    def watch() -> None:
        while not ended.wait(0.01):
            most[0] = max(most[0], memory("RssAnon"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    begun = time.perf_counter()
    make(np.asarray(words), directory)
    seconds = time.perf_counter() - begun
    ended.set()
    watcher.join()
    told.send((seconds, most[0] - before))


def built(design: str, keys: Path, directory: Path) -> dict[str, float]:
    directory.mkdir()
    spawned = multiprocessing.get_context("spawn")
    told, tells = spawned.Pipe(duplex=False)
    process = spawned.Process(target=build, args=(design, keys, directory, tells))
    process.start()
    tells.close()  # so that a process that failed ends the waiting
    seconds, added = told.recv()
    process.join()
    return {"build_seconds": round(seconds, 2), "build_bytes": added}


def ns_per_key(ask: Ask, words: Words) -> float:
    """Return ns a key of requests (requests, BATCH), for a while."""
    done, begun = 0, time.perf_counter()
    while (seconds := time.perf_counter() - begun) < SECONDS:
        for one in words[done % len(words) :][:64]:
            ask(one)
            done += 1
    return 1e9 * seconds / (done * BATCH)


def check(ask: Ask, words: Words, rng: np.random.Generator) -> None:
    for first in range(0, words.size, max(BATCH, words.size // 64)):
        here = np.asarray(words[first : first + BATCH])
        assert np.array_equal(ask(here), np.arange(first, first + here.size)), "a wrong id"
    assert (ask(rng.integers(0, 1 << 64, 100_000, np.uint64)) == -1).all(), "a false match"


def measured(directory: Path, count: int, rng: np.random.Generator) -> dict[str, Any]:
    keys = directory / "keys.npy"
    np.save(keys, rng.integers(0, 1 << 64, count, np.uint64))
    results: dict[str, dict[str, Any]] = {}
    for design in DESIGNS:
        results[design] = built(design, keys, directory / design)
        files = sum(path.stat().st_size for path in (directory / design).iterdir())
        results[design]["bytes_per_key"] = round(files / count, 2)
    words = np.load(keys, mmap_mode="r")
    cold: dict[str, list[float]] = {design: [] for design in DESIGNS}
    for _ in range(ROUNDS):
        batch = words[rng.integers(0, count, BATCH)]
        for design, (_, opened) in DESIGNS.items():
            gc.collect()  # nothing may be mapped still
            drop_page_cache(directory / design)
            ask = opened(directory / design)
            begun = time.perf_counter()
            ask(batch)
            cold[design].append(1e6 * (time.perf_counter() - begun))
            del ask
    asks = {design: opened(directory / design) for design, (_, opened) in DESIGNS.items()}
    hot: dict[str, list[float]] = {design: [] for design in DESIGNS}
    absent: dict[str, list[float]] = {design: [] for design in DESIGNS}
    for ask in asks.values():
        check(ask, words, rng)
    for _ in range(ROUNDS):
        there = words[rng.integers(0, count, (512, BATCH))]
        others = rng.integers(0, 1 << 64, (512, BATCH), np.uint64)
        for design, ask in asks.items():
            hot[design].append(ns_per_key(ask, there))
            absent[design].append(ns_per_key(ask, others))
    for design, result in results.items():
        result["hot_ns"] = round(statistics.median(hot[design]), 2)
        result["absent_ns"] = round(statistics.median(absent[design]), 2)
        result["cold_us"] = round(statistics.median(cold[design][1:]))
    return {"keys": count, "designs": results, "hashed": hashed(directory, count, rng)}


def hashed(directory: Path, count: int, rng: np.random.Generator) -> dict[str, float]:
    words = rng.integers(0, 1 << 64, (count, 2), np.uint64)
    begun = time.perf_counter()
    build_index(directory / "hashed", "str", words)
    seconds = time.perf_counter() - begun
    index = KeyIndex.open(directory / "hashed")
    index.verify()
    us = []
    for _ in range(ROUNDS):
        there = words[rng.integers(0, count, (512, BATCH))]
        us.append(BATCH * ns_per_key(index.ids_of, there) / 1e3)
    return {
        "us": round(statistics.median(us), 2),
        "bytes_per_key": round(index.bytes_on_disk / count, 2),
        "build_seconds": round(seconds, 2),
    }


@click.command()
@click.option("--dir", "directory", type=Path, required=True, help="On the device to measure.")
@click.option("--keys", "counts", type=int, multiple=True, default=(1_000_000, 10_000_000))
@click.option("--seed", default=0, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON alone, which it does anyway.")
@click.option("--keep", is_flag=True, help="Keep the result under bench/results/.")
def main(
    directory: Path,
    counts: tuple[int, ...],
    seed: int,
    as_json: bool,  # noqa: ARG001  # JSON is all it prints
    keep: bool,
) -> None:
    rng = np.random.default_rng(seed)
    work = directory / "keys-bench"
    sizes = []
    for count in counts:
        work.mkdir(parents=True)
        try:
            sizes.append(measured(work, count, rng))
        finally:
            shutil.rmtree(work)
        click.echo(json.dumps(sizes[-1]), err=True)
    result = {
        "batch": BATCH,
        "sizes": sizes,
        "surroundings": surroundings(seed),
    }
    report(result, "keys" if keep else None)


if __name__ == "__main__":
    main()
