"""The main job on real networks and real images, and the paper's architectures against a plain transcription."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from tests.published import as_rgb, published_network
from vital_exp import load_model
from vital_exp.commands.visualize import main
from vital_exp.config import compose_config
from vital_exp.engine import objective_and_gradient
from vital_exp.models.named import model_config
from vital_exp.models.network import model_space

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import published_loop
import time_to_quality

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
CIFAR_CLASSES = "airplane,automobile,bird,cat,deer,dog,frog,horse,ship,truck"
FACTORY = ROOT / "examples" / "my_network.py"


@pytest.mark.parametrize(("method", "steps"), [("vital", 300), ("vital_fourier", 200)])
def test_ten_cifar_classes_are_recognised_by_two_networks(data: Path, tmp_path: Path, method: str, steps: int) -> None:
    weights = data / "data" / "weights"
    judge = f"{{source: python, name: resnet56, factory: '{FACTORY}:resnet', arguments: {{depth: 56}}, size: 32, "
    judge += f"checkpoint: '{weights / 'cifar10_resnet56.safetensors'}'}}"
    with pytest.raises(SystemExit) as ending:
        main(
            [
                *("model=python", f"model.factory={FACTORY}:resnet", "model.arguments={depth: 20}", "model.size=32"),
                f"model.checkpoint={weights / 'cifar10_resnet20.safetensors'}",
                f"model.class_names=[{CIFAR_CLASSES}]",
                f"references.root={data / 'data' / 'cifar10' / 'train'}",
                f"evaluation.judges=[{judge}]",
                *("batch_size=10", f"method={method}", f"steps={steps}", f"hydra.run.dir={tmp_path / 'run'}"),
            ]
        )
    assert ending.value.code == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["accuracy_top1"]["n"] == 10
    assert metrics["accuracy_top1"]["value"] == 1
    assert metrics["transfer_top1[resnet56]"]["value"] == 1


def test_the_time_to_quality_is_measured(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    time_to_quality.main(["--networks", "cifar", "--steps", "4", "--rounds", "1", "--data", str(data)])
    cells = capsys.readouterr().out.splitlines()[-1].strip("| ").split(" | ")
    assert cells[0] == "cifar"
    assert cells[3] == "4"
    assert float(cells[5]) > 10


@pytest.mark.parametrize("arch", ["resnet50", "densenet121", "convnext_base"])
def test_first_gradient_of_the_papers_networks(arch: str) -> None:
    """Layers and weights of the named configuration; seeded random networks; held to the fixtures' tolerance."""
    module = published_network(arch)
    recipe = model_config(compose_config([f"model={arch}"]))
    assert recipe.layers is not None
    assert recipe.layer_weights is not None
    network = load_model(module)
    references, start = (
        as_rgb(torch.randn(count, 3, 224, 224, generator=torch.Generator().manual_seed(seed)))
        for count, seed in ((2, 1), (1, 2))
    )
    activations = published_loop.reference_activations(module, recipe.layers, model_space(references, network))
    x = model_space(start, network)
    weights = dict(zip(recipe.layers, recipe.layer_weights, strict=True))
    loop = published_loop.PublishedLoop(module, weights, activations, x, network.preprocessing.valid_range(x))
    expected = loop.losses(loop.pictures)
    (expected_gradient,) = torch.autograd.grad(expected.sum(), loop.pictures)
    overrides = ["transforms=none", "references.cache=false", f"model.layers=[{','.join(recipe.layers)}]"]
    overrides += [f"model.layer_weights={list(recipe.layer_weights)}"]
    losses, gradient = objective_and_gradient(
        load_model(module), "class:0", start, references=references, overrides=overrides
    )
    torch.testing.assert_close(losses, expected.detach(), rtol=1e-4, atol=0)
    assert (gradient - expected_gradient).norm() <= 1e-5 * expected_gradient.norm()
