"""Shared by all tests: fixed seeds, said in the header of every run."""

from __future__ import annotations

import signal

import numpy as np
import pytest
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
