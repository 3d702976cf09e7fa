"""The benchmarks of speed measure what they say, and what makes a step fast changes no loss."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import machine_rates
import step_profile


def test_operations_and_bytes_of_a_product() -> None:
    a, b = torch.ones(8, 16), torch.ones(16, 4)
    operations, moved = machine_rates.operations_and_bytes(lambda: (a @ b).view(-1))
    assert operations == 2 * 8 * 16 * 4
    assert moved == 4 * (8 * 16 + 16 * 4 + 8 * 4)


def test_rates_are_those_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_rates, "MATRIX_SIDE", {"cpu": 256})
    monkeypatch.setattr(machine_rates, "COPIED_BYTES", {"cpu": 2**22})
    cpu = torch.device("cpu")
    assert 1e8 < machine_rates.matrix_rate(cpu, torch.float32) < 1e14
    assert 1e8 < machine_rates.copy_rate(cpu) < 1e13


def test_time_inside_a_part_counts_there_alone() -> None:
    parts = step_profile.Parts(time.perf_counter, lambda: None)
    with parts.inside("losses"):
        with parts.inside("forward"):
            time.sleep(0.02)
        with parts.inside(step_profile.RELEVANCE), parts.inside("backward"):
            time.sleep(0.02)
    assert parts.seconds["forward"] == pytest.approx(0.02, abs=0.015)
    assert parts.seconds[step_profile.RELEVANCE] >= 0.02
    assert "backward" not in parts.seconds


def test_the_profile_of_a_hidden_unit(capsys: pytest.CaptureFixture[str]) -> None:
    step_profile.main(["--cases", "embedded_resnet hidden", "--batches=2", "--steps=2"])
    printed = capsys.readouterr().out
    rows = {line.split(" | ")[0].strip("| ") for line in printed.splitlines() if line.startswith("| embedded")}
    assert rows == {"embedded_resnet hidden, 2"}
    parts, operators, floor = (
        [cell.strip(" |") for cell in line.split(" | ")][1:] for line in printed.splitlines() if "hidden, 2" in line
    )
    shares = [float(share.rstrip("%")) for share in parts[1:]]
    assert sum(shares) == pytest.approx(100, abs=1)
    assert all(share > 0 for share in shares[:7])
    assert float(operators[1].rstrip("%")) > 0  # convolutions
    assert float(floor[0]) > 0
    with pytest.raises(SystemExit, match="no case"):
        step_profile.main(["--cases", "resnet51"])
