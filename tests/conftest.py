"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # read when torch is imported; a worker per core, a thread each
    os.environ.update(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE")

import pytest
import torch


@pytest.fixture
def data() -> Path:
    """The folder of real networks, images and published numbers; the test is skipped without it."""
    folder = os.environ.get("VITAL_TEST_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("needs real networks and images: set VITAL_TEST_DATA")
    return Path(folder).resolve()


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing of a test outlives it, and none sees another's cache or seed."""
    monkeypatch.setenv("VITAL_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    state = torch.random.get_rng_state()
    yield
    torch.random.set_rng_state(state)
