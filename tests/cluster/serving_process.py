"""Serves a store in a cluster, and looks at all of its rows again and again.

    python serving_process.py ADDRESS USER PASSWORD LOCAL_DIR LEASE_SECONDS

Prints a JSON object a line: ``marker`` and ``version`` whenever another load is seen, ``wrong``
where an answer is of two loads or of none, ``error`` where there was none. Ends when its input
does, with ``calls``.
"""

from __future__ import annotations

import json
import logging
import sys
import threading

import numpy as np

import bandana_kv
from bandana_kv.errors import BandanaError

PAUSE_S = 0.02


def say(**what: object) -> None:
    print(json.dumps(what), flush=True)


def look(store: bandana_kv.EmbeddingStore) -> int | None:
    """Return the marker of the load that all rows of both tables are of; None: they are of none."""
    ids = np.random.default_rng().permutation(300)
    rows = store.multi_get({"a": ids, "b": ids})
    marker = int(rows["a"][0, 0] // 1000)
    for table, first in (("a", 0), ("b", 500)):
        if not (rows[table] == (marker * 1000 + first + ids)[:, None]).all():
            return None
    return marker


def main() -> None:
    logging.basicConfig(stream=sys.stderr)
    address, user, password, local_dir, lease = sys.argv[1:]
    ended = threading.Event()

    def wait() -> None:
        sys.stdin.read()
        ended.set()

    threading.Thread(target=wait, daemon=True).start()
    calls, before = 0, -1
    with bandana_kv.open(
        address,
        0,  # every row comes from the cluster
        local_dir=local_dir,
        user=user,
        password=password,
        watch_seconds=0.1,
        lease_seconds=float(lease),
    ) as store:
        while not ended.wait(PAUSE_S):
            try:
                version, marker = store.version, look(store)
            except BandanaError as error:
                say(error=str(error))
                continue
            calls += 1
            if marker is None:
                say(wrong=version)
            elif marker != before:
                say(marker=marker, version=version)
                before = marker
    say(calls=calls)


if __name__ == "__main__":
    main()
