"""Shared by all tests: fixed seeds, said in the header of every run."""

from __future__ import annotations

import importlib.util
import signal
from collections.abc import Callable, Mapping
from pathlib import Path

import lmdb
import numpy as np
import pytest
import rocksdict
from hypothesis import HealthCheck, settings

from bandana_kv.device import BlockSize, Cell, DeviceProfile, Mount

SEED = 0
TORCH = importlib.util.find_spec("torch") is not None
collect_ignore = [] if TORCH else ["torch"]

# derandomized: hypothesis draws its examples from the test's own source, the same every run.
# The first call of a kernel compiles it, so a deadline would measure the compiler.
settings.register_profile(
    "bandana",
    derandomize=True,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("bandana")


def pytest_configure() -> None:
    """A suite that a shell runs in the background inherits a Ctrl-C that is ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what compiles all kernels, minutes of one core: the rest runs beside it."""
    items.sort(key=lambda each: each.path.name != "test_compile.py")


def pytest_report_header() -> list[str]:
    return [f"seeds: numpy {SEED}, hypothesis derandomized (profile 'bandana')"]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not TORCH:
        terminalreporter.write_line(
            "left out without torch: tests/torch, docs/torch.md, and what is skipped for want of "
            "torch; make test-torch runs these"
        )


@pytest.fixture
def seed() -> int:
    return SEED


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(SEED)


def _raw_options() -> rocksdict.Options:
    options = rocksdict.Options(raw_mode=True)
    options.create_if_missing(True)
    options.create_missing_column_families(True)
    return options


def _put(engine: str, path: Path, rows: Mapping[bytes, bytes], inner: str | None = None) -> None:
    if engine == "lmdb":
        with lmdb.open(str(path), map_size=1 << 26, max_dbs=4) as environment:
            database = environment.open_db(None if inner is None else inner.encode())
            with environment.begin(write=True, db=database) as txn:
                for key, value in rows.items():
                    txn.put(key, value)
        return
    names = {"default", inner or "default"}
    if path.exists():
        names |= set(rocksdict.Rdict.list_cf(str(path), _raw_options()))
    families = {name: _raw_options() for name in sorted(names)}
    opened = rocksdict.Rdict(str(path), _raw_options(), families)
    family = opened.get_column_family(inner or "default")
    for key, value in rows.items():
        family[key] = value
    family.flush()
    del family
    opened.close()


@pytest.fixture
def put_by_key() -> Callable[..., None]:
    """Return a function that puts values by key into a database of somebody else's."""
    return _put


@pytest.fixture(scope="session")
def profile_of() -> Callable[[Mapping[int, float]], DeviceProfile]:
    """Make the profile of a device that gives so many reads a second of 4 KiB, by depth."""

    def profile(rates: Mapping[int, float]) -> DeviceProfile:
        cells = tuple(
            Cell(4096, depth, 1, rate, *(each * 1e6 * depth / rate for each in (1.0, 0.9, 3.0)))
            for depth, rate in rates.items()
        )
        deepest = cells[-1]
        return DeviceProfile(
            format=1,
            created="2026-01-02T03:04:05+00:00",
            kernel="6.1.0",
            mount=Mount(2049, "/data", "ext4", None, None),
            engine="io_uring",
            fio_version="3.33",
            quick=True,
            file_bytes=1 << 29,
            cells=cells,
            skipped_block_bytes=(),
            sizes=(BlockSize(4096, deepest.depth, deepest.reads_per_second, deepest.p99_us, True),),
            block_bytes=4096,
            queue_depth=deepest.depth,
            jobs=1,
            p99_budget_us=1e4,
            budget_met=True,
            spread=0.1,
        )

    return profile
