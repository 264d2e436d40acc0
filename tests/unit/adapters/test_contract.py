"""Keys, the registry, and the gate that every handle sits behind."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest

from bandana_kv import adapters
from bandana_kv.adapters import block_keys, describe_key
from bandana_kv.adapters.contract import MAX_BLOCK, MAX_SPACE, key_bytes, space_bounds
from bandana_kv.adapters.gate import Gate
from bandana_kv.adapters.memory import MemoryAdapter
from bandana_kv.errors import InputError, MissingExtraError, StoreNotFoundError
from bandana_kv.testing import in_child


def test_keys_sort_by_space_then_block_as_numbers_and_as_bytes() -> None:
    pairs = [(s, b) for s in (0, 1, 256, MAX_SPACE) for b in (0, 1, 255, 256, MAX_BLOCK)]
    keys = np.array([int(block_keys(space, block)) for space, block in pairs], np.uint64)
    assert (np.diff(keys.astype(object)) > 0).all()
    stored = key_bytes(keys)
    assert stored == sorted(stored)
    assert {len(key) for key in stored} == {8}


def test_keys_keep_the_shape_of_the_blocks() -> None:
    assert block_keys(1, np.zeros((2, 3), np.int32)).shape == (2, 3)
    assert block_keys(1, []).dtype == np.uint64
    assert block_keys(1, []).shape == (0,)


def test_a_key_is_described_by_space_and_block() -> None:
    assert describe_key(int(block_keys(3, 17))) == "space 3, block 17"
    assert describe_key(block_keys(MAX_SPACE, [MAX_BLOCK])[0]) == (
        f"space {MAX_SPACE}, block {MAX_BLOCK}"
    )
    assert space_bounds(3) == (int(block_keys(3, 0)), int(block_keys(3, MAX_BLOCK)))


@pytest.mark.parametrize("blocks", [[-1], [MAX_BLOCK + 1], [1.0], [True]])
def test_block_numbers_out_of_range_are_refused(blocks: list[object]) -> None:
    with pytest.raises(InputError, match="block numbers must be"):
        block_keys(1, np.array(blocks))


@pytest.mark.parametrize("space", [-1, MAX_SPACE + 1])
def test_spaces_out_of_range_are_refused(space: int) -> None:
    with pytest.raises(InputError, match="space"):
        block_keys(space, [1])


def test_the_built_in_names() -> None:
    assert {"lmdb", "memory", "rocksdb"} <= set(adapters.names())


def test_an_unknown_name_lists_the_known(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"no adapter 'lmbd'; there are .*lmdb, memory, resp, rocksdb"
    ):
        adapters.open_existing("lmbd", tmp_path)


def test_engines_are_imported_only_when_asked_for() -> None:
    code = (
        "import sys; from bandana_kv import adapters; adapters.names(); "
        "assert not {'lmdb', 'rocksdict'} & set(sys.modules), 'an engine was imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(("name", "package"), [("lmdb", "lmdb"), ("rocksdb", "rocksdict")])
def test_an_engine_that_is_not_installed_says_what_to_install(
    name: str, package: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delitem(sys.modules, f"bandana_kv.adapters.{name}", raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=f"pip install {package}"):
        adapters.create(name, tmp_path / "store", size_hint_bytes=0)
    assert not list(tmp_path.iterdir())


def _plug_in(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    point = EntryPoint("mine", value, "bandana_kv.adapters")
    monkeypatch.setattr(adapters, "entry_points", lambda **_: [point])


def test_a_third_party_registers_by_entry_point(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _plug_in(monkeypatch, "bandana_kv.adapters.memory:MemoryAdapter")
    assert "mine" in adapters.names()
    assert isinstance(adapters.create("mine", tmp_path, size_hint_bytes=0), MemoryAdapter)
    MemoryAdapter.forget(tmp_path)


def test_a_plug_in_that_cannot_be_imported_or_is_none_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _plug_in(monkeypatch, "no_such_module_here:Thing")
    with pytest.raises(MissingExtraError, match=r"'mine'.*no_such_module_here"):
        adapters.adapter_class("mine")
    _plug_in(monkeypatch, "pathlib:Path")
    with pytest.raises(InputError, match="not a subclass of Adapter"):
        adapters.adapter_class("mine")


def test_memory_belongs_to_its_process_and_says_so(tmp_path: Path) -> None:
    with pytest.raises(StoreNotFoundError, match="in this process"):
        adapters.open_existing("memory", tmp_path)
    with MemoryAdapter() as adapter:
        assert not adapter.capabilities.persistent
        assert not adapter.capabilities.shared_by_processes


def test_pages_must_be_positive_and_those_of_the_store(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="pages"):
        MemoryAdapter(pages=0)
    adapters.create("memory", tmp_path, size_hint_bytes=0, pages=2).close()
    with pytest.raises(InputError, match="2 pages, not 1"):
        adapters.open_existing("memory", tmp_path)
    MemoryAdapter.forget(tmp_path)


def _started(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_the_gate_lets_many_in_and_one_alone() -> None:
    gate = Gate()
    all_inside = threading.Barrier(5)
    events: list[str] = []

    def use() -> None:
        with gate.inside:
            all_inside.wait(10)  # passes only if the others are inside too
            time.sleep(0.02)
            events.append("left")

    def come_late() -> None:
        with gate.inside:
            events.append("late")

    users = [_started(use) for _ in range(4)]
    all_inside.wait(10)
    with gate.alone():
        late = _started(come_late)
        time.sleep(0.02)
        events.append("alone")
    for thread in [*users, late]:
        thread.join()
    assert events == ["left"] * 4 + ["alone", "late"]


def test_a_signal_that_raises_leaves_nobody_inside() -> None:
    """Whichever step it comes between: a thread left inside would keep it from ever closing."""

    class AlarmError(Exception):
        pass

    def raises(*_: object) -> None:
        raise AlarmError

    gate, alarms = Gate(), 0
    handler = signal.signal(signal.SIGALRM, raises)
    end = time.monotonic() + 1.0
    try:
        while time.monotonic() < end:
            try:
                signal.setitimer(signal.ITIMER_REAL, 1e-5)
                for _ in range(100):
                    with gate.inside:
                        pass
            except AlarmError:
                alarms += 1
    finally:
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
    assert alarms > 100
    with gate.alone_soon(5) as alone:
        assert alone


def test_a_fork_waits_for_users_and_leaves_the_gate_usable() -> None:
    seen: list[str] = []
    gate = Gate(lambda: seen.append("before"), lambda clean: seen.append(f"child {clean}"))
    entered, leave = threading.Event(), threading.Event()

    def use() -> None:
        with gate.inside:
            entered.set()
            leave.wait()
            seen.append("user left")

    user = _started(use)
    entered.wait()
    threading.Timer(0.05, leave.set).start()

    def in_order_and_usable() -> bool:
        with gate.inside, Gate().inside:
            return seen == ["user left", "before", "child True"]

    assert in_child(in_order_and_usable)
    user.join()
    assert seen == ["user left", "before"]
    with gate.alone():
        pass


def test_a_fork_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bandana_kv.adapters.gate._FORK_PATIENCE_S", 0.05)
    told: list[bool] = []
    gate = Gate(None, told.append)
    with gate.inside:
        assert in_child(lambda: told == [False])
    with gate.alone():
        pass
