"""Shared by all tests: fixed seeds, said in the header of every run."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from pathlib import Path

import lmdb
import numpy as np
import pytest
import rocksdict
from hypothesis import HealthCheck, settings

SEED = 0

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


def pytest_report_header() -> list[str]:
    return [f"seeds: numpy {SEED}, hypothesis derandomized (profile 'bandana')"]


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
