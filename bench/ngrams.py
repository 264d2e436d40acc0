"""Lookup layers of a language model, by hashed n-grams: how long each layer waits for its rows.

    python bench/ngrams.py --dir DIR --log imdb_reviews.npz --json [--keep]

A request of the log is a text, its ids are tokens in their order. Each n-gram of `--orders` is
hashed to 64 bits (`hashes`); those of a position end there. A table has a row, by its hash as key,
for each n-gram that occurs `--least` times in the first 70 % of the texts; others are zeros. Each
of the `--lookup-layers` has a table of its own. Blocks are placed by the same texts.

The model is a clock: a step takes the next `--tokens` of `--sequences` texts (one in decoding, many
of a prompt), and `--layers` layers of `--layer-us` each, in which the host does nothing, as with an
accelerator. A layer that has a table asks for its rows when its turn comes; what it waits is its
stall.

asked
    Nothing is read ahead.
prefetched
    ``store.prefetch`` for all tables when the step's tokens are known, before the first layer.
memory
    Rows in an array in memory, found by an index of keys as the store's: what there is to wait for
    without a device.

`stall_us` is of a layer (`mean`, `p50`, `p99`), by the layer's number; `step_stall` is the share of
steps that goes by in stalls. `prefetch_us` is what the calls take, for all tables of a step.
`slack_us` is the time from the tokens to the layer: a read that takes longer cannot be hidden. The
three take turns, in rounds of `--steps`, on texts that nothing was learnt from. Rows are compared
with their source (`wrong_rows`).
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
from common import report, surroundings
from numpy.typing import NDArray

import bandana_kv
from bandana_kv import AccessLog, Rows
from bandana_kv.keys import KeyIndex, build_index

TRAIN = 0.7
ROUNDS = 3

Words = NDArray[np.uint64]


def hashes(tokens: NDArray[Any], order: int) -> Words:
    """Return the hash of each run of `order` tokens, uint64 (tokens - order + 1,)."""
    # Far from 0, which would stay 0: a run would have the hash of a shorter one.
    words = np.full(max(0, tokens.size - order + 1), 0xD6E8FEB86659FD93 ^ order, np.uint64)
    for place in range(order):
        words ^= tokens[place : place + words.size].astype(np.uint64) + np.uint64(1)
        words *= np.uint64(0x9E3779B97F4A7C15)  # odd: no two words become one
        words ^= words >> np.uint64(29)
    return words


def ngrams_of(text: NDArray[Any], orders: list[int]) -> list[Words]:
    """Return the n-grams of all positions, by order: padded, so that each position ends one."""
    padded = np.concatenate([np.full(max(orders) - 1, -1, np.int64), text])
    return [hashes(padded[max(orders) - order :], order) for order in orders]


def table_of(texts: AccessLog, orders: list[int], least: int) -> tuple[Words, AccessLog]:
    """Return the keys of n-grams that are there often enough, and the log of their ids."""
    per_text = [np.concatenate(ngrams_of(texts.request(r), orders)) for r in range(len(texts))]
    every, counts = np.unique(np.concatenate(per_text), return_counts=True)
    keys = every[counts >= least]

    def known(words: Words) -> NDArray[np.int64]:
        places = np.minimum(np.searchsorted(keys, words), keys.size - 1)
        return places[keys[places] == words]

    return keys, AccessLog.from_requests(known(words) for words in per_text)


def rows_of(keys: Words, layer: int, dim: int) -> NDArray[np.float32]:
    """Return rows that are a function of their keys, so that they can be held against them."""
    mixed = (keys[:, None] ^ np.uint64(layer)) * (
        2 * np.arange(dim, dtype=np.uint64) + np.uint64(1)
    )
    return ((mixed >> np.uint64(40)).astype(np.float32)) / np.float32(1 << 24)


class Steps:
    """What each step asks for: the n-grams of the next tokens of several texts at once."""

    def __init__(self, texts: AccessLog, orders: list[int], sequences: int, tokens: int) -> None:
        self._texts, self._orders, self._tokens = texts, orders, tokens
        self._next = 0
        self._open = [self._text() for _ in range(sequences)]

    def _text(self) -> Iterator[Words]:
        words = np.stack(
            ngrams_of(self._texts.request(self._next % len(self._texts)), self._orders)
        )
        self._next += 1
        return iter(
            [words[:, at : at + self._tokens] for at in range(0, words.shape[1], self._tokens)]
        )

    def next(self) -> Words:
        parts = []
        for place, text in enumerate(self._open):
            part = next(text, None)
            while part is None:
                self._open[place] = self._text()
                part = next(self._open[place], None)
            parts.append(part.reshape(-1))
        return np.concatenate(parts)


class Memory:
    """Rows in an array, found by an index of keys."""

    def __init__(self, path: Path, keys: Words, rows: list[NDArray[np.float32]]) -> None:
        build_index(path, "uint64", keys)
        self._index, self._rows = KeyIndex.open(path), rows

    def get(self, number: int, words: Words) -> NDArray[np.float32]:
        ids = self._index.ids_of(words)
        rows = self._rows[number][ids]
        rows[ids < 0] = 0
        return rows


def wait_until(moment: float) -> None:
    """Sleep, and spin at the end: the clock wakes up late."""
    left = moment - time.perf_counter()
    if left > 2e-4:
        time.sleep(left - 1e-4)
    while time.perf_counter() < moment:
        pass


def run(
    steps: list[Words],
    layers: int,
    layer_s: float,
    lookup_layers: list[int],
    prefetch: Callable[[Words], None],
    get: Callable[[int, Words], NDArray[np.float32]],
    check: Callable[[int, Words, NDArray[np.float32]], int],
) -> dict[str, Any]:
    """Return the stalls (steps, tables) in seconds, seconds of all steps, and wrong rows."""
    stalls = np.zeros((len(steps), len(lookup_layers)))
    ahead, whole, wrong = np.zeros(len(steps)), np.zeros(len(steps)), 0
    for number, words in enumerate(steps):
        begun = time.perf_counter()
        prefetch(words)
        answers = []
        now = time.perf_counter()
        ahead[number] = now - begun
        for layer in range(layers):
            if layer in lookup_layers:
                table = lookup_layers.index(layer)
                answers.append(get(table, words))
                later = time.perf_counter()
                stalls[number, table] = later - now
                now = later
            now += layer_s
            wait_until(now)
        whole[number] = time.perf_counter() - begun
        wrong += sum(check(table, words, rows) for table, rows in enumerate(answers))
    return {"stalls": stalls, "ahead": ahead, "whole": whole, "wrong": wrong}


def summary(rounds: list[dict[str, Any]], lookup_layers: list[int]) -> dict[str, Any]:
    stalls = 1e6 * np.concatenate([each["stalls"] for each in rounds])
    whole = 1e6 * np.concatenate([each["whole"] for each in rounds])
    return {
        "stall_us": {
            str(layer): {
                "mean": round(float(one.mean()), 1),
                "p50": round(float(np.percentile(one, 50)), 1),
                "p99": round(float(np.percentile(one, 99)), 1),
            }
            for layer, one in zip(lookup_layers, stalls.T, strict=True)
        },
        "step_stall": round(float(stalls.sum() / whole.sum()), 4),
        "step_us": round(float(np.median(whole)), 1),
        "prefetch_us": round(1e6 * float(np.median([np.median(e["ahead"]) for e in rounds])), 1),
        "wrong_rows": sum(each["wrong"] for each in rounds),
    }


@click.command()
@click.option("--dir", "directory", type=Path, required=True, help="On the device to serve from.")
@click.option("--log", "path", type=Path, required=True, help="A text's tokens a request.")
@click.option("--orders", default="2,3", show_default=True, help="n of the n-grams.")
@click.option("--least", default=3, show_default=True, help="How often an n-gram has been seen.")
@click.option("--dim", default=256, show_default=True)
@click.option("--cache", "cache_fraction", default=0.05, show_default=True, help="DRAM / rows.")
@click.option("--layers", default=24, show_default=True)
@click.option("--lookup-layers", default="1,8,15", show_default=True, help="Which have a table.")
@click.option("--layer-us", default=400.0, show_default=True)
@click.option("--sequences", default=16, show_default=True)
@click.option("--tokens", default=1, show_default=True, help="Of a sequence in a step.")
@click.option("--steps", default=500, show_default=True, help="A round.")
@click.option("--texts", default=0, help="Use so many texts alone.")
@click.option("--adapter", default="blockfile", show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON alone, which it does anyway.")
@click.option("--keep", is_flag=True, help="Keep the result under bench/results/.")
def main(
    directory: Path,
    path: Path,
    orders: str,
    least: int,
    dim: int,
    cache_fraction: float,
    layers: int,
    lookup_layers: str,
    layer_us: float,
    sequences: int,
    tokens: int,
    steps: int,
    texts: int,
    adapter: str,
    seed: int,
    as_json: bool,  # noqa: ARG001  # JSON is all it prints
    keep: bool,
) -> None:
    log = AccessLog.read(path)
    if texts:
        log = log.select(np.arange(min(texts, len(log))))
    learn, test = log.split(TRAIN, seed=seed)
    lengths = [int(each) for each in orders.split(",")]
    with_tables = sorted(int(each) for each in lookup_layers.split(","))
    keys, trained = table_of(learn, lengths, least)
    rows = [rows_of(keys, layer, dim) for layer in with_tables]
    work = directory / "ngrams"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    coming = Steps(test, lengths, sequences, tokens)
    shape = (steps, layers, layer_us / 1e6)
    try:
        measured = measure(
            work, adapter, keys, rows, trained, with_tables, cache_fraction, coming, shape
        )
    finally:
        shutil.rmtree(work, ignore_errors=True)
    result = {
        "bench": "ngrams",
        "log": path.stem,
        "orders": lengths,
        "rows_per_table": keys.size,
        "tables": len(with_tables),
        "row_bytes": 4 * dim,
        "cache": cache_fraction,
        "layers": layers,
        "layer_us": layer_us,
        "sequences": sequences,
        "tokens": tokens,
        "steps": steps * ROUNDS,
        **measured,
        "surroundings": surroundings(seed),
    }
    report(result, f"ngrams-{tokens}" if keep else None)


def measure(
    work: Path,
    adapter: str,
    keys: Words,
    rows: list[NDArray[np.float32]],
    trained: AccessLog,
    lookup_layers: list[int],
    cache_fraction: float,
    coming: Steps,
    shape: tuple[int, int, float],
) -> dict[str, Any]:
    steps, layers, layer_s = shape
    names = [f"layer{layer}" for layer in lookup_layers]
    bandana_kv.load(
        work / "store",
        {name: Rows(each, keys=keys) for name, each in zip(names, rows, strict=True)},
        dict.fromkeys(names, trained),
        adapter=adapter,
    )
    memory = Memory(work / "keys", keys, rows)
    cache_bytes = int(cache_fraction * sum(each.nbytes for each in rows))

    def check(table: int, words: Words, found: NDArray[np.float32]) -> int:
        return int((found != memory.get(table, words)).any(1).sum())

    turns: dict[str, list[dict[str, Any]]] = {"asked": [], "prefetched": [], "memory": []}
    with bandana_kv.open(work / "store", cache_bytes=cache_bytes) as store:

        def nothing(_: Words) -> None:
            pass

        def prefetch(words: Words) -> None:
            for name in names:
                store.prefetch(name, words, missing="skip")

        def get(table: int, words: Words) -> NDArray[Any]:
            return store.multi_get(names[table], words, missing="zeros")

        ways = {
            "asked": (nothing, get),
            "prefetched": (prefetch, get),
            "memory": (nothing, memory.get),
        }
        warm = [coming.next() for _ in range(steps)]
        run(warm, layers, 0.0, lookup_layers, nothing, get, check)
        before = store.stats()
        found = total = 0
        for _ in range(ROUNDS):
            for way, (ahead, ask) in ways.items():
                asked = [coming.next() for _ in range(steps)]
                for words in asked:
                    found += int(np.isin(words, keys).sum())
                    total += words.size
                turns[way].append(run(asked, layers, layer_s, lookup_layers, ahead, ask, check))
        after = store.stats()
    lookups, hits = (
        sum(after[name][what] - before[name][what] for name in names)
        for what in ("lookups", "hits")
    )
    slack = {str(layer): round(1e6 * layer * layer_s) for layer in lookup_layers}
    return {
        "keys_per_step": round(total / (3 * ROUNDS * steps), 1),
        "keys_found": round(found / total, 4),
        "hit_rate": round(hits / max(1, lookups), 4),
        "slack_us": slack,
        **{way: summary(each, lookup_layers) for way, each in turns.items()},
    }


if __name__ == "__main__":
    main()
