"""The benchmarks of speed measure what they say, and what makes a step fast changes no loss."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.tiny import TinyNet, tiny_net
from vital_exp import load_model, visualize
from vital_exp.config import compose_config
from vital_exp.engine import memory, objective_and_gradient
from vital_exp.errors import UsageError
from vital_exp.models.memory_order import arrange

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import compiled
import gpu
import machine_rates
import sort_matching
import speed
import step_profile
import step_time
import unit_step_time


@pytest.fixture(autouse=True)
def _small_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_rates, "MATRIX_SIDE", {"cpu": 256})
    monkeypatch.setattr(machine_rates, "COPIED_BYTES", {"cpu": 2**22})


def test_operations_and_bytes_of_a_product() -> None:
    a, b = torch.ones(8, 16), torch.ones(16, 4)
    operations, moved = machine_rates.operations_and_bytes(lambda: (a @ b).view(-1))
    assert operations == 2 * 8 * 16 * 4
    assert moved == 4 * (8 * 16 + 16 * 4 + 8 * 4)


def test_rates_are_those_of_this_machine() -> None:
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


@pytest.mark.slow
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


class Flattening(TinyNet):
    """A network whose code relies on the order (N, C, H, W) in memory."""

    def forward(self, pictures: Tensor) -> Tensor:
        """Return (N, 4) logits."""
        flat = self.layer1(self.conv1(pictures)).view(len(pictures), -1)
        logits: Tensor = self.fc(flat[:, :16])
        return logits


def first_step(network: nn.Module, *overrides: str, target: str = "class:0") -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    references = torch.rand(2, 3, 32, 32, generator=generator)
    start = torch.rand(2, 3, 32, 32, generator=generator)
    targets = [target, target.replace("0", "1")]
    asked = ["transforms=none", "references.cache=false", "model.layers=[conv1]", *overrides]
    return objective_and_gradient(network, targets, start, references=references, overrides=asked)


@pytest.mark.parametrize("target", ["class:0", "layer1:0"])
def test_the_order_in_memory_changes_no_value(target: str) -> None:
    network = load_model(tiny_net(), size=32)
    hash_before = network.weights_hash()
    losses, gradient = first_step(network, "channels_last=false", target=target)
    ours, ours_gradient = first_step(network, "channels_last=true", target=target)
    assert network.module.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(ours, losses, rtol=1e-5, atol=0)
    torch.testing.assert_close(ours_gradient, gradient, rtol=1e-3, atol=1e-5 * float(gradient.abs().max()))
    network._hash = None
    assert network.weights_hash() == hash_before
    again, again_gradient = first_step(network, "channels_last=false", target=target)
    assert network.module.conv1.weight.is_contiguous()
    assert torch.equal(again, losses)
    assert torch.equal(again_gradient, gradient)


def test_a_network_that_relies_on_the_order_keeps_it(caplog: pytest.LogCaptureFixture) -> None:
    network = load_model(Flattening(), size=32)
    with caplog.at_level(logging.INFO):
        arrange(network, channels_last=True)
    assert "keeps its maps as (N, C, H, W): view size is not compatible" in caplog.text
    assert network.module.conv1.weight.is_contiguous()
    network(torch.rand(2, 3, 32, 32))


def test_channels_last_is_a_flag() -> None:
    with pytest.raises(UsageError, match="channels_last=maybe: true or false"):
        compose_config(["channels_last=maybe"])


def test_pictures_with_the_channels_last_do_not_depend_on_order_or_company() -> None:
    network = load_model(tiny_net(), size=32)
    references = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))

    def run(*numbers: int) -> dict[int, Tensor]:
        overrides = ["channels_last=true", "batch_size=2", "evaluation=none"]
        names = [f"class:{number}" for number in numbers]
        made = visualize(network, names, references=references, steps=4, overrides=overrides)
        return dict(zip(numbers, made.images, strict=True))

    pictures, others = run(0, 1, 2), run(2, 0)
    assert torch.equal(pictures[0], others[0])
    assert torch.equal(pictures[2], others[2])


@pytest.mark.slow
def test_the_gpu_s_table_on_a_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = [
        "--accelerator=cpu",
        "--precision=32",
        "--size=32",
        "--seconds-per-case=0.1",
        f"--out={tmp_path / 'page.md'}",
    ]
    gpu.main([*asked, "--networks=resnet18", "--layers=layer3.0", "--batches", "2"])
    page = (tmp_path / "page.md").read_text()
    assert page.strip() in capsys.readouterr().out
    lines = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| resnet18")]
    assert [line[0] for line in lines] == ["resnet18 class, 2", "resnet18 hidden, 2"]
    for _, milliseconds, hourly, share, taken, extrapolated in lines:
        assert float(hourly) == pytest.approx(2 * 3600e3 / 2000 / float(milliseconds), rel=1e-2)
        assert float(extrapolated) == pytest.approx(60 * 1000 / float(hourly), rel=1e-2)
        assert 0 <= float(share.rstrip("%")) <= 100
        assert float(taken) > 0


def test_a_case_that_fails_is_a_row_and_time_that_is_over_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--accelerator=cpu", "--networks=resnet18", "--size=32", "--layers=layer9", "--batches", "1"]
    rows, left_out, _ = gpu.run(gpu.parse([*asked, "--seconds-per-case=0.1", "--precision=32"]))
    assert "UsageError: " in rows["resnet18 hidden, 1"]["step, ms"]
    assert not left_out
    rows, left_out, _ = gpu.run(gpu.parse([*asked, "--seconds=0"]))
    assert not rows
    assert left_out == ["resnet18 class, 1", "resnet18 hidden, 1"]
    if not torch.cuda.is_available():
        with pytest.raises(SystemExit):
            gpu.main([])
        assert "there is no GPU here" in capsys.readouterr().err


@pytest.mark.slow
def test_the_published_loop_of_hidden_units_has_the_library_s_loss(capsys: pytest.CaptureFixture[str]) -> None:
    assert unit_step_time.main(["--published", "--size=64", "--references=2", "--rounds=1"]) == 0
    assert "times the library's" in capsys.readouterr().out


@pytest.mark.slow
def test_a_step_of_a_unit_is_compared_with_one_of_a_class(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--size=64", "--rounds=1", "--relevance", "none", "--with", "channels_last=true"]
    assert unit_step_time.main(asked) == 0
    assert "none: a unit's step takes" in capsys.readouterr().out


def test_what_is_compiled_is_what_the_library_runs() -> None:
    contest = compiled.Contest(64, step_time.CLOCKS["cpu"])
    plain, folded = contest.gradient(compiled.PLAIN), contest.gradient(compiled.FOLDED)
    assert float((folded - plain).norm() / plain.norm()) < 1e-4


@pytest.mark.slow
def test_sorts_in_blocks_are_compared_with_torch_s(capsys: pytest.CaptureFixture[str]) -> None:
    sort_matching.main(["--clock=cpu", "--rounds=1"])
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines() if line.startswith(("| 32", "| bf16"))]
    assert len(rows) == 4
    assert all(float(row[-2]) < 1e-4 for row in rows)


@pytest.mark.slow
def test_the_page_of_speed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--network=resnet18", "--size=32", "--references=2", "--clock=cpu"]
    parts = ["A class, against the published loop", "Pictures made together", "Number of references"]
    parts += ["Number of targets"]
    page = tmp_path / "speed.md"
    speed.main([*small, "--parts", *parts, "--batches", "1", "2", "--counts", "2", "--targets", "1", f"--out={page}"])
    text = page.read_text()
    assert [line[3:] for line in text.splitlines() if line.startswith("## ")] == parts
    rows = [line for line in text.splitlines() if line.startswith("|")]
    names = {row.split(" | ")[0].strip("| ") for row in rows}
    assert {"batch 1", "batch 2", "2 references", "1 targets", "library", "published"} <= names
    contest = rows[:6] if step_time.bfloat16_support() != "none" else rows[:5]
    assert len({row.count("|") for row in contest}) == 1
    speed.main([*small, "--seconds=0"])
    assert "Left out, time was over: A class" in capsys.readouterr().out
    speed.main([*small, "--memory=published"])
    assert float(capsys.readouterr().out) > 0


@pytest.mark.slow
def test_the_peak_of_memory_is_the_process_s_own() -> None:
    ballast = torch.ones(2**27)  # 512 MiB
    own = memory.peak(torch.device("cpu"))
    command = "import torch; from vital_exp.engine import memory; print(memory.peak(torch.device('cpu')))"
    child = subprocess.run([sys.executable, "-c", command], check=True, capture_output=True, text=True, timeout=300)
    assert ballast[-1] == 1
    assert float(child.stdout) < own - 256


@pytest.mark.slow
def test_a_small_job_does_not_report_the_memory_of_a_large_one_before_it(tmp_path: Path) -> None:
    def memory_of(size: int, name: str) -> float:
        network = load_model(tiny_net(width=64), size=size)
        references = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
        pictures = visualize(network, ["class:0", "class:1"], references=references, steps=1, out=tmp_path / name)
        (line, _) = (tmp_path / name / "results.jsonl").read_text().splitlines()
        assert json.loads(line)["memory"] == pictures.results[0]["memory"]
        return float(pictures.results[0]["memory"])

    large, small = memory_of(640, "large"), memory_of(16, "small")
    assert 0 < small < large - 100


def test_a_peak_that_cannot_be_told_from_an_earlier_one_is_not_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(memory, "PROCESS", tmp_path)  # where writing resets nothing
    assert memory.forget_peak(cpu) == 0
    assert memory.peak(cpu) is None
    (tmp_path / "status").write_text("VmHWM:\t512000 kB\nVmRSS:\t102400 kB\n")
    before = memory.forget_peak(cpu)
    assert (before, memory.peak(cpu, before)) == (500, None)
    (tmp_path / "status").write_text("VmHWM:\t614400 kB\nVmRSS:\t102400 kB\n")
    assert memory.peak(cpu, before) == 600
