"""Ctrl-C at any moment: it comes out as itself, hangs nothing, and no row is wrong afterwards."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import bandana_kv

ROWS = np.random.default_rng(0).random((3000, 16), np.float32)
ENGINES = ["blockfile", "lmdb", "rocksdb"]

# Works in the main thread, where signals come, for some seconds or so many interrupts; another
# process sends them. Rows hold their id and which update they are of, so that a torn one shows.
WORKER = """
import os, random, signal, sys, threading, time
import numpy as np
import bandana_kv
from bandana_kv.placement import Placement

path, what, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
rng = np.random.default_rng(0)
store = bandana_kv.open(path, cache_bytes=30_000)
per_block = store._tables["t"].stored.rows_per_block
done = {"calls": 0, "interrupts": 0}
armed = False

def interrupted(number, frame):
    # Once a step, so that what counts them is not interrupted itself.
    global armed
    if armed:
        armed = False
        raise KeyboardInterrupt

signal.signal(signal.SIGINT, interrupted)

def rows_of(ids, update):
    return (ids[:, None] * 8.0 + update).astype(np.float32).repeat(16, 1)

def check(ids, rows):
    assert (rows == rows[:, :1]).all(), "torn"
    assert ((rows[:, 0] - rows[:, 0] % 8) == ids * 8.0).all(), "rows of others"

def step(number):
    ids = rng.choice(3000, rng.choice([1, 7, 200]), replace=False)
    kind = number % 4 if what == "all" else 0
    if kind == 1:
        store.update("t", ids[:20], rows_of(ids[:20], number % 8))
    elif kind == 2 and number % 40 == 2:
        store.flush()
    elif kind == 3 and number % 400 == 3:
        order = rng.permutation(3000).astype(np.uint32)
        store.place_anew("t", Placement(order, per_block, "given"))
        store.refresh()
    else:
        check(ids, store.multi_get("t", ids))

parent = os.getpid()
sender = os.fork()
if not sender:
    wait = random.Random(1)
    end = time.monotonic() + seconds
    time.sleep(0.1)
    while time.monotonic() < end:
        time.sleep(wait.uniform(0.0002, 0.003))
        os.kill(parent, signal.SIGINT)
    os._exit(0)

end = time.monotonic() + seconds + 0.5
number = 0
while time.monotonic() < end:
    number += 1
    try:
        armed = True
        step(number)
        armed = False
        done["calls"] += 1
    except KeyboardInterrupt:
        done["interrupts"] += 1
        store.refresh()  # a re-placement may have switched before it was interrupted
signal.signal(signal.SIGINT, signal.SIG_IGN)
os.waitpid(sender, 0)
ids = np.arange(3000)
check(ids, store.multi_get("t", ids))
store.check()
store.close()
assert bandana_kv.verify(path).sound
with bandana_kv.open(path) as store:
    check(ids, store.multi_get("t", ids))
print(done["calls"], done["interrupts"])
"""


@pytest.mark.parametrize("what", ["lookups", "all"])
@pytest.mark.parametrize("adapter", ENGINES)
def test_a_storm_of_interrupts(tmp_path: Path, adapter: str, what: str) -> None:
    rows = (np.arange(3000)[:, None] * 8.0).astype(np.float32).repeat(16, 1)
    bandana_kv.load(tmp_path / "s", {"t": rows}, adapter=adapter)
    command = [sys.executable, "-c", WORKER, str(tmp_path / "s"), what, "2"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=40)
    assert done.returncode == 0, done.stderr
    # One that falls into a finalizer the interpreter prints and forgets, as in any program.
    assert "SystemError" not in done.stderr
    calls, interrupts = map(int, done.stdout.split())
    assert calls > 20
    assert interrupts > 20


def test_a_load_that_is_interrupted_leaves_what_was_served(tmp_path: Path) -> None:
    code = """
import os, random, signal, sys, threading, time
import numpy as np
import bandana_kv

rows = np.load(sys.argv[2])
wait = random.Random(2)
for _ in range(25):
    timer = threading.Timer(wait.uniform(0.001, 0.03), os.kill, (os.getpid(), signal.SIGINT))
    try:
        timer.start()
        bandana_kv.load(sys.argv[1], {"t": rows + 1}, adapter="blockfile")
    except KeyboardInterrupt:
        pass
    try:
        timer.join()
        time.sleep(0.01)
    except KeyboardInterrupt:
        pass
    with bandana_kv.open(sys.argv[1], cache_bytes=0) as store:
        found = store.multi_get("t", np.arange(len(rows)))
    assert np.array_equal(found, rows) or np.array_equal(found, rows + 1)
    assert bandana_kv.verify(sys.argv[1]).sound
"""
    np.save(tmp_path / "rows.npy", ROWS)
    bandana_kv.load(tmp_path / "s", {"t": ROWS}, adapter="blockfile")
    command = [sys.executable, "-c", code, str(tmp_path / "s"), str(tmp_path / "rows.npy")]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    # One that falls into a finalizer the interpreter prints and forgets, as in any program.
    assert "SystemError" not in done.stderr
