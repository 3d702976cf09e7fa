"""Fixtures shared by all tests."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if "PYTEST_XDIST_WORKER" in os.environ:  # read when torch is imported; a worker per core, a thread each
    os.environ.update(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE")

import pytest
import torch
from hydra._internal.hydra import Hydra
from safetensors.torch import save_file

# A transformer of one layer, 16 wide, for pictures of 32 px; the vocabulary is open_clip's own.
TINY_CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the slow tests last: of each worker, which begins with its share of the list in one piece."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    quick: list[pytest.Item] = []
    slow: list[pytest.Item] = []
    for item in items:
        (slow if item.get_closest_marker("slow") else quick).append(item)
    shares = [[len(part) * number // workers for number in range(workers + 1)] for part in (quick, slow)]
    items[:] = [
        item
        for worker in range(workers)
        for part, ends in zip((quick, slow), shares, strict=True)
        for item in part[ends[worker] : ends[worker + 1]]
    ]


@pytest.fixture
def data() -> Path:
    """The folder of real networks, images and published numbers; the test is skipped without it."""
    folder = os.environ.get("VITAL_TEST_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("needs real networks and images: set VITAL_TEST_DATA")
    return Path(folder).resolve()


@pytest.fixture(autouse=True, scope="session")
def _interruptible() -> None:
    """Ctrl-C interrupts, here and in what tests start; a shell starts its background jobs with it ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing of a test outlives it, and none sees another's cache or seed."""
    monkeypatch.setenv("VITAL_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    state = torch.random.get_rng_state()
    yield
    torch.random.set_rng_state(state)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, of somebody without a GPU, for commands that run in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", sys.argv)  # Hydra changes it
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    # It composes everything a first time, to learn what tests/test_configs.py says that nobody sets.
    monkeypatch.setattr(Hydra, "get_mode", lambda *_, **__: None)
    return tmp_path


@pytest.fixture
def tiny_clip(tmp_path: Path) -> dict[str, Any]:
    """A tiny random CLIP: its configuration and weights on disk."""
    open_clip = pytest.importorskip("open_clip")
    config = tmp_path / "tiny-clip.json"
    config.write_text(json.dumps(TINY_CLIP))
    open_clip.add_model_config(config)
    torch.manual_seed(0)
    model = open_clip.create_model("tiny-clip", pretrained=None)
    checkpoint = tmp_path / "tiny.safetensors"
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, checkpoint)
    return {"model": str(config), "checkpoint": str(checkpoint)}
