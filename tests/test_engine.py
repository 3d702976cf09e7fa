"""The optimisation: what a picture may depend on, batches, resuming, failures."""

from __future__ import annotations

import json
import math
import signal
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.tiny import tiny_net
from vital_exp import evaluate, load_model, visualize
from vital_exp.engine import learning_rate, objective_and_gradient
from vital_exp.engine.module import Stage, VisualizationModule
from vital_exp.engine.step import ObjectiveValues
from vital_exp.errors import UsageError
from vital_exp.images.masks import MASKS
from vital_exp.images.output import smoothed_transparency, transparency
from vital_exp.images.pixels import Pixels
from vital_exp.images.randomness import RandomStreams
from vital_exp.models.network import Preprocessing
from vital_exp.references.mean_image import mean_image
from vital_exp.references.tensors import TensorReferences
from vital_exp.setup.run_setup import RunSetup
from vital_exp.targets.class_names import ClassNames
from vital_exp.targets.unit import Target
from vital_exp.visualization import run as engine
from vital_exp.visualization.scores import Evaluator, Row

FAST = ["evaluation=none", "references.count=4"]
BATCHED = [*FAST, "batch_size=3"]


class TinyNetwork(nn.Module):
    """Two convolutions with batch norm, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = nn.Sequential(nn.Conv2d(8, 12, 3, stride=2, padding=1), nn.ReLU(inplace=True))
        self.fc = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        features = self.layer1(self.relu(self.bn1(self.conv1(x))))
        return self.fc(features.mean(dim=(2, 3)))


@pytest.fixture
def network():  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    return load_model(TinyNetwork(), size=16)


@pytest.fixture
def references() -> Tensor:
    return torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def names(*numbers: int) -> list[str]:
    return [f"class:{number}" for number in numbers]


@pytest.mark.parametrize("method", ["vital", "vital_fourier"])
def test_a_picture_does_not_depend_on_order_or_company(network, references: Tensor, method: str) -> None:  # type: ignore[no-untyped-def]
    def run(*numbers: int):  # type: ignore[no-untyped-def]
        made = visualize(network, names(*numbers), method=method, references=references, steps=8, overrides=BATCHED)
        return dict(zip(numbers, made.images, strict=True)), made.history

    first, history = run(1, 2, 3, 4)
    for other in ((4, 3, 2, 1), (2, 7), (3,), (4, 1)):
        again, history_again = run(*other)
        for number in set(other) & set(first):
            assert torch.equal(again[number], first[number])
            assert history_again[f"class-{number}"] == history[f"class-{number}"]


def test_first_losses_agree_across_batch_sizes(network, references: Tensor) -> None:  # type: ignore[no-untyped-def]
    together = visualize(network, names(*range(10)), references=references, steps=3, overrides=FAST)
    for number in (0, 9):
        alone = visualize(network, names(number), references=references, steps=3, overrides=FAST)
        ours, theirs = (h.history[f"class-{number}"]["total"] for h in (together, alone))
        np.testing.assert_allclose(ours, theirs, rtol=1e-4)


def test_every_method_lowers_its_loss_in_twenty_steps(network, references: Tensor) -> None:  # type: ignore[no-untyped-def]
    for method in ("vital", "vital_fourier"):
        made = visualize(network, "class:3", method=method, references=references, steps=20, overrides=FAST)
        losses = made.history["class-3"]["total"]
        assert losses[-1] < losses[0]
        assert made.images.min() >= 0
        assert made.images.max() <= 1
        assert made.masks.max() == 1


METHODS = {
    **dict.fromkeys(("vital", "vital_fourier", "fourier", "activation_max", "deep_inversion"), 98),
    **dict.fromkeys(("accentuation", "prototype"), 98),
    **dict.fromkeys(("maco", "maco_horama", "maco_xplique"), 80),
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("method", METHODS)
def test_masks_are_of_the_gradients_the_optimiser_gets(
    references: Tensor, method: str, mask: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gradients: list[Tensor] = []
    shown: list[Tensor] = []
    made_by: list[VisualizationModule] = []
    surrogate = VisualizationModule.surrogate

    def watched(module: VisualizationModule, step: int) -> Tensor:
        given = type(module.pictures).network_input

        def noted() -> Tensor:
            pictures = given(module.pictures).clone()  # of a step alone
            pictures.register_hook(gradients.append)
            shown.append(pictures.detach().clone())
            return pictures

        made_by.append(module)

        monkeypatch.setattr(module, "stages", [replace(module.stages[0], network_input=noted)])
        return surrogate(module, step)

    monkeypatch.setattr(VisualizationModule, "surrogate", watched)
    start = ["image.init=reference"] if method == "accentuation" else []
    network = load_model(tiny_net(), size=32)  # norms with statistics, for DeepInversion
    keys = [*FAST, *start, f"mask={mask}"]
    made = visualize(network, "class:3", method=method, references=references, steps=3, overrides=keys)
    assert len(gradients) == len(shown) == 3
    if mask == "published":
        total = sum(one.abs() for one in gradients)
        assert torch.equal(made.masks, transparency(total, METHODS[method])[:1])  # type: ignore[arg-type]
    else:
        follow = made_by[0].pictures.followed
        total = sum(follow(*pair).abs() for pair in zip(shown, gradients, strict=True))
        wanted = smoothed_transparency(total, METHODS[method])[:1]  # type: ignore[arg-type]
        np.testing.assert_allclose(made.masks.numpy(), wanted.numpy(), rtol=1e-4, atol=1e-5)
        assert (made.masks - transparency(total, METHODS[method])[:1]).abs().max() > 0.1  # type: ignore[arg-type]


@pytest.mark.parametrize("bound", [0, 1])
def test_what_stays_clamped_is_transparent(bound: int) -> None:
    """All of a picture is pushed one way; its left half is at the bound there already."""
    preprocessing = Preprocessing(size=(32, 32))
    start = torch.full((1, 3, 32, 32), 0.5)
    start[..., :16] = bound
    streams = RandomStreams(0, ["class-0"])
    pictures = Pixels(preprocessing, (32, 32), streams, preprocessing.normalise(start))
    pictures.project()
    gradient = torch.full_like(start, 1.0 if bound == 0 else -1.0)

    def pushed(*_: object, **__: object) -> ObjectiveValues:
        return ObjectiveValues(torch.zeros(1), {}, gradient, None)

    objective = SimpleNamespace(streams=streams, objective=SimpleNamespace(terms={}, settled=0))
    found = {}
    for mask in MASKS:
        stage = Stage(3, _Stub(objective, pushed), pictures.network_input)  # type: ignore[arg-type]
        module = VisualizationModule(pictures, [stage], torch.optim.SGD, lambda _: 0.0, mask)
        for step in range(3):
            module.surrogate(step)
        found[mask] = module.masks(98)[0, 0]
    assert (found["published"] == 1).all()
    assert found["followed"][:, :8].max() < 1e-6
    assert found["followed"][:, 24:].min() > 0.99


class _Stub:
    """A step objective of a gradient that is given."""

    def __init__(self, parts: SimpleNamespace, evaluate: Callable[..., ObjectiveValues]) -> None:
        self.streams, self.objective = parts.streams, parts.objective
        self.evaluate = evaluate

    def __call__(self, *arguments: object, **keys: object) -> ObjectiveValues:
        return self.evaluate(*arguments, **keys)


def test_terms_sum_to_the_total_and_zero_terms_are_left_out(network, references: Tensor) -> None:  # type: ignore[no-untyped-def]
    overrides = [*FAST, "objective.total_variation.weight=0.01"]
    history = visualize(network, "class:0", references=references, steps=3, overrides=overrides).history["class-0"]
    assert set(history) == {"alignment", "total_variation", "total"}
    for a, b, total in zip(history["alignment"], history["total_variation"], history["total"], strict=True):
        assert a + b == pytest.approx(total, rel=1e-6)


def test_the_network_is_left_as_it_was(network, references: Tensor) -> None:  # type: ignore[no-untyped-def]
    before = {name: value.clone() for name, value in network.module.state_dict().items()}
    visualize(network, names(0, 1), references=references, steps=3, overrides=FAST)
    assert all(torch.equal(value, before[name]) for name, value in network.module.state_dict().items())
    assert all(not p.requires_grad and p.grad is None for p in network.module.parameters())
    assert all(not m._forward_hooks for m in network.module.modules())
    assert not network.module.training


class _Interrupt(Callback):
    """Ends a run abruptly after some steps."""

    def __init__(self, after: int) -> None:
        self.after = after

    def on_train_batch_end(self, trainer, *_: object) -> None:  # type: ignore[no-untyped-def]
        if trainer.global_step == self.after:
            raise RuntimeError("killed")


@pytest.mark.parametrize(
    ("method", "mask"), [("vital", "followed"), ("vital", "published"), ("vital_fourier", "followed")]
)
def test_a_resumed_run_makes_the_same_bits(  # type: ignore[no-untyped-def]
    network, references: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, mask: str
) -> None:
    def run(out: Path):  # type: ignore[no-untyped-def]
        overrides = [*FAST, "batch_size=2", "checkpoint_every=4", f"mask={mask}"]
        return visualize(
            network, names(0, 1, 2), method=method, references=references, steps=10, overrides=overrides, out=out
        )

    whole = run(tmp_path / "whole")
    real = RunSetup.trainer
    batches = []

    def interrupted(self: RunSetup, callbacks: list[Callback]) -> Trainer:
        batches.append(1)
        return real(self, [*callbacks, _Interrupt(7)] if len(batches) == 2 else callbacks)

    monkeypatch.setattr(RunSetup, "trainer", interrupted)
    with pytest.raises(RuntimeError, match="killed"):
        run(tmp_path / "killed")
    assert len((tmp_path / "killed" / "results.jsonl").read_text().splitlines()) == 2
    assert (tmp_path / "killed" / "checkpoints" / "class-2.ckpt").stat().st_size < 200_000  # no network in it
    monkeypatch.setattr(RunSetup, "trainer", real)
    steps = []
    record = VisualizationModule.training_step
    monkeypatch.setattr(
        VisualizationModule,
        "training_step",
        lambda self, *a: (steps.append(self.global_step), record(self, *a))[1],
    )
    resumed = run(tmp_path / "killed")
    assert steps == list(range(4, 10))  # from the checkpoint on, and the finished batch not at all
    for target in ("class-0", "class-1", "class-2"):
        for suffix in ("", "_masked"):
            file = f"images/{target}{suffix}.png"
            assert (tmp_path / "killed" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
        np.testing.assert_allclose(resumed.history[target]["total"], whole.history[target]["total"], rtol=1e-6)
    assert [r["target"] for r in resumed.results] == ["class-0", "class-1", "class-2"]
    assert not list((tmp_path / "killed" / "checkpoints").glob("*.ckpt"))


def test_a_finished_run_is_not_made_again(network, references: Tensor, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    def run():  # type: ignore[no-untyped-def]
        return visualize(network, names(5, 6), references=references, steps=4, overrides=FAST, out=tmp_path / "run")

    first = run()
    monkeypatch.setattr(RunSetup, "trainer", None)
    second = run()
    torch.testing.assert_close(second.images, first.images, rtol=0, atol=0.5 / 255 + 1e-6)
    assert second.results == first.results
    np.testing.assert_allclose(second.history["class-5"]["total"], first.history["class-5"]["total"], rtol=1e-6)


def test_a_finished_run_is_not_judged_again(  # type: ignore[no-untyped-def]
    network, references: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged = []
    rows = Evaluator._rows

    def counted(self: Evaluator, targets: list[Target], results: Any, pixels: Any) -> list[Row]:
        judged.append(len(targets))
        return rows(self, targets, results, pixels)

    monkeypatch.setattr(Evaluator, "_rows", counted)

    def run(*further: str):  # type: ignore[no-untyped-def]
        overrides = ["references.count=4", "logger=none", *further]
        out = tmp_path / "run"
        return visualize(network, names(5, 6), references=references, steps=2, overrides=overrides, out=out)

    assert run().metrics == run().metrics
    assert judged == [2]
    assert run("evaluation.judges=[embedded_judge]").metrics.keys() > run().metrics.keys()
    assert judged == [2, 2, 2]
    (tmp_path / "run" / "metrics.json").unlink()
    run()
    assert judged == [2, 2, 2, 2]
    assert (tmp_path / "run" / "metrics.json").is_file()
    (tmp_path / "run" / ".hydra" / "evaluation.json").write_text("{half")
    run()
    assert judged == [2, 2, 2, 2, 2]


def test_another_configuration_in_the_same_folder_is_refused(network, references: Tensor, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    visualize(network, "class:0", references=references, steps=2, overrides=FAST, out=tmp_path / "run")
    with pytest.raises(UsageError, match=r"optimizer\.lr"):
        visualize(
            network,
            "class:0",
            references=references,
            steps=2,
            overrides=[*FAST, "optimizer.lr=0.5"],
            out=tmp_path / "run",
        )
    with pytest.raises(UsageError, match=r"references\.fingerprint"):
        visualize(network, "class:0", references=references / 2, steps=2, overrides=FAST, out=tmp_path / "run")


def test_torn_lines_of_a_killed_run_are_mended(network, references: Tensor, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    run = tmp_path / "run"
    visualize(network, "class:0", references=references, steps=2, overrides=FAST, out=run)
    with (run / "results.jsonl").open("a") as file:
        file.write('{"target": "class-1", "sta')
    with (run / "history.csv").open("a") as file:
        file.write("class-1,0,0.5,0.5\ncla")
    visualize(network, "class:0", references=references, steps=2, overrides=FAST, out=run)
    lines = (run / "results.jsonl").read_text().splitlines()
    assert [json.loads(line)["target"] for line in lines] == ["class-0"]
    assert {line.split(",")[0] for line in (run / "history.csv").read_text().splitlines()} == {"target", "class-0"}


def test_a_target_with_nan_fails_alone(network, references: Tensor, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    broken = references.clone()
    broken[:, :, 3, 3] = math.nan
    given = {"class:0": references, "class:1": broken, "class:2": references}
    made = visualize(network, names(0, 1, 2), references=given, steps=3, overrides=FAST, out=tmp_path / "run")
    assert [result["status"] for result in made.results] == ["done", "failed", "done"]
    assert "step 0" in made.results[1]["error"]
    assert made.images[1].isnan().all()
    alone = visualize(network, "class:0", references=references, steps=3, overrides=[*FAST, "batch_size=3"])
    assert torch.equal(made.images[0], alone.images[0])
    assert not (tmp_path / "run" / "images" / "class-1.png").exists()
    assert "class-1" in (tmp_path / "run" / "report.html").read_text()


def test_the_run_folder_holds_what_design_promises(network, references: Tensor, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    run = tmp_path / "run"
    made = visualize(network, names(7, 8), references=references, steps=3, overrides=["references.count=4"], out=run)
    for file in ("results.jsonl", "history.csv", "metrics.json", "metrics.csv", "report.html", "provenance.json"):
        assert (run / file).is_file(), file
    assert (run / ".hydra" / "config.yaml").is_file()
    with Image.open(run / "images" / "class-7.png") as image:
        assert image.mode == "RGB"
        saved = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
    torch.testing.assert_close(saved, made.images[0], rtol=0, atol=0.5 / 255 + 1e-6)
    with Image.open(run / "images" / "class-7_masked.png") as image:
        assert image.mode == "RGBA"
    result = json.loads((run / "results.jsonl").read_text().splitlines()[0])
    assert set(result) == {
        *("target", "kind", "layer", "index", "label", "position", "variation"),
        *("status", "image", "error", "seed", "steps", "loss", "activation", "seconds", "memory", "config_hash"),
        *("facet", "share", "coherence", "members", "facets"),
    }
    metrics = json.loads((run / "metrics.json").read_text())
    assert set(metrics["accuracy_top1"]) == {"value", "low", "high", "n"}
    provenance = json.loads((run / "provenance.json").read_text())
    assert provenance["batch_size"] == 2
    assert provenance["versions"]["torch"] == torch.__version__.split("+")[0] or provenance["versions"]["torch"]
    assert (run / "history.csv").read_text().splitlines()[0] == "target,step,alignment,total"


def test_saved_activation_is_the_logit_of_the_saved_picture(network, references: Tensor, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    made = visualize(network, "class:4", references=references, steps=3, out=tmp_path / "run")
    with Image.open(tmp_path / "run" / "images" / "class-4.png") as image:
        saved = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        assert network(saved)[0, 4].item() == pytest.approx(made.results[0]["activation"], abs=1e-5)


def test_objective_and_gradient_is_what_the_optimisation_uses(network, references: Tensor) -> None:  # type: ignore[no-untyped-def]
    start = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    overrides = [*FAST, "transforms=none", "optimizer.lr=0.01"]
    losses, gradient = objective_and_gradient(network, names(0, 1), start, references=references, overrides=overrides)
    made = visualize(network, names(0, 1), references=references, init=start, steps=1, overrides=overrides)
    assert losses.tolist() == pytest.approx([made.history[f"class-{i}"]["total"][0] for i in range(2)])
    step = (made.images - start) / torch.tensor(network.preprocessing.std).view(3, 1, 1)
    moved = (gradient.abs() > 1e-6) & (made.images > 0.001) & (made.images < 0.999)
    assert torch.equal(step[moved].sign(), -gradient[moved].sign())  # Adam's first step is the sign of the gradient


@pytest.mark.parametrize("size", ["[17,23]", "24", "9"])
def test_any_picture_size_against_references_of_another(network, references: Tensor, size: str) -> None:  # type: ignore[no-untyped-def]
    overrides = [*FAST, f"image.size={size}"]
    made = visualize(network, "class:0", references=references, steps=20, overrides=overrides)
    losses = made.history["class-0"]["total"]
    assert losses[-1] < losses[0]
    expected = (17, 23) if size.startswith("[") else (int(size),) * 2
    assert made.images.shape[-2:] == expected


def test_double_precision_runs_in_double(network, references: Tensor) -> None:  # type: ignore[no-untyped-def]
    overrides = [*FAST, "trainer.precision=64-true"]
    torch.manual_seed(0)
    made = visualize(load_model(TinyNetwork(), size=16), "class:0", references=references, steps=3, overrides=overrides)
    torch.manual_seed(0)
    single = visualize(load_model(TinyNetwork(), size=16), "class:0", references=references, steps=3, overrides=FAST)
    np.testing.assert_allclose(made.history["class-0"]["total"], single.history["class-0"]["total"], rtol=1e-4)


def test_bfloat16_lowers_the_loss_too(network, references: Tensor) -> None:  # type: ignore[no-untyped-def]
    overrides = [*FAST, "trainer.precision=bf16-mixed"]
    losses = visualize(network, "class:0", references=references, steps=20, overrides=overrides).history["class-0"][
        "total"
    ]
    assert losses[-1] < losses[0]


def test_image_init_starts_from_a_file(network, references: Tensor, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    Image.new("RGB", (30, 20), (200, 100, 50)).save(tmp_path / "start.png")
    overrides = [*FAST, f"image.init={tmp_path / 'start.png'}", "optimizer.lr=1e-6"]
    made = visualize(network, "class:0", references=references, steps=1, overrides=overrides)
    colour = torch.tensor([200, 100, 50]).view(3, 1, 1) / 255
    torch.testing.assert_close(made.images[0], colour.expand(3, 16, 16), rtol=0, atol=1e-4)


@pytest.mark.parametrize("cache", ["true", "false"])
def test_image_init_starts_from_the_mean_of_each_targets_references(  # type: ignore[no-untyped-def]
    network, references: Tensor, tmp_path: Path, cache: str
) -> None:
    given = {"class:0": references, "class:1": references.flip(-1) / 2}
    keep = [f"references.cache={cache}", f"cache_dir={tmp_path}"]
    overrides = [*(option for option in FAST if "cache" not in option), *keep, "image.init=mean", "optimizer.lr=1e-6"]
    for _again in range(2):  # the second time from the cache, if there is one
        made = visualize(network, names(0, 1), references=given, steps=1, overrides=overrides)
        for picture, images in zip(made.images, given.values(), strict=True):
            torch.testing.assert_close(picture, images.mean(dim=0), rtol=0, atol=2e-3)
    assert len(list(tmp_path.glob("means/*.safetensors"))) == (2 if cache == "true" else 0)


def test_a_damaged_mean_is_made_again(references: Tensor, tmp_path: Path) -> None:
    target = Target("class", 0, "zero")
    given = TensorReferences(references, ClassNames.numbered(1))
    first = mean_image(given, target, tmp_path)
    (kept,) = tmp_path.glob("means/*.safetensors")
    kept.write_bytes(b"torn")
    torch.testing.assert_close(mean_image(given, target, tmp_path), first, rtol=0, atol=0)
    assert len(kept.read_bytes()) > 4


def test_learning_rate_warms_up_then_falls_to_zero() -> None:
    assert [learning_rate(step, 12) for step in range(3)] == pytest.approx([0.01, 0.02, 0.03])
    assert learning_rate(100, 2000) == pytest.approx(1.0)
    assert learning_rate(1050, 2000) == pytest.approx(0.5)
    assert learning_rate(1999, 2000) < 1e-5
    assert learning_rate(0, 10, peak=0.05, warmup=0) == pytest.approx(0.05)


def test_batches_do_not_pile_up_in_memory(network, references: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    """Lightning's trainers hold themselves, and Python by itself looks for such rings after a hundred of them."""
    alive: list[int] = []
    trainers: weakref.WeakSet[Trainer] = weakref.WeakSet()
    make = RunSetup.trainer

    def counted(self: RunSetup, callbacks: list[Callback]) -> Trainer:
        alive.append(len(trainers))
        trainers.add(trainer := make(self, callbacks))
        return trainer

    monkeypatch.setattr(RunSetup, "trainer", counted)
    monkeypatch.setattr(engine, "SECONDS_BETWEEN_COLLECTIONS", 0.0)
    visualize(network, names(0, 1, 2, 3), references=references, steps=1, overrides=[*FAST, "batch_size=1"])
    assert alive == [0, 0, 0, 0]


def test_repeated_targets_are_made_once(network, references: Tensor) -> None:  # type: ignore[no-untyped-def]
    made = visualize(network, ["class:1", "class-1"], references=references, steps=1, overrides=FAST)
    assert len(made.images) == 1


def test_every_spelling_finds_a_targets_history(network, references: Tensor) -> None:  # type: ignore[no-untyped-def]
    history = visualize(network, "class:1", references=references, steps=1, overrides=FAST).history
    assert history["class:1"] == history["class-1"] == history["class:class 1"]
    for wrong in ("class-2", "class:nonsense", "nonsense"):
        with pytest.raises(KeyError):
            history[wrong]


def test_references_of_one_run_may_differ_in_size(network, references: Tensor) -> None:  # type: ignore[no-untyped-def]
    given = {"class:0": references, "class:1": references[:, :, :12, :10]}
    made = visualize(network, names(0, 1), references=given, steps=20, overrides=FAST)
    for target in ("class-0", "class-1"):
        assert made.history[target]["total"][-1] < made.history[target]["total"][0]


def test_ctrl_c_is_told_as_one(network, references: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    """Lightning answers Ctrl-C with exit code 1 and takes its effect away; a later one must still work."""
    step = VisualizationModule.training_step

    def interrupted(self, *arguments: object):  # type: ignore[no-untyped-def]
        if self.global_step == 2:
            raise KeyboardInterrupt
        return step(self, *arguments)

    monkeypatch.setattr(VisualizationModule, "training_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        visualize(network, "class:0", references=references, steps=5, overrides=FAST, out=tmp_path / "run")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert (tmp_path / "run" / "results.jsonl").read_text() == ""


def test_a_run_can_be_scored_by_every_metric(tmp_path: Path) -> None:
    made = visualize(
        "embedded_resnet", ["class:3", "class:5"], steps=2, out=tmp_path / "run",
        overrides=["evaluation=full", "evaluation.judges=[embedded_judge]", "references.count=4", "logger=none"],
    )  # fmt: skip
    assert {"accuracy_top1", "fid[target]", "kid[embedded_judge]", "high_frequency"} <= set(made.metrics)
    assert "not computed: needs" in str(made.metrics["clip"]["reason"])
    written = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert written == made.metrics
    again = evaluate(tmp_path / "run", judges=["embedded_judge"], metrics=["accuracy", "transfer"])
    for name, entry in again.metrics.items():
        assert entry["value"] == pytest.approx(written[name]["value"]), name


@pytest.mark.parametrize("kind", ["class", "channel", "direction"])
def test_a_run_passes_the_network_for_its_shapes_once(kind: str, tmp_path: Path) -> None:
    """What else passes: eight references at a time, each step, and the finished pictures, whose activation is noted."""
    own = load_model(tiny_net(), size=32)
    passes: list[int] = []
    own.module.register_forward_pre_hook(lambda _module, given: passes.append(len(given[0])))
    directions = []
    if kind == "direction":
        save_file({"vectors": torch.eye(16)[:2]}, tmp_path / "v.safetensors")
        directions = [f"target.vectors={tmp_path}/v.safetensors"]
    targets = {"class": ["class:0", "class:1"], "channel": ["layer1:0", "layer1:1"]}.get(
        kind, ["direction-layer1-0", "direction-layer1-1"]
    )
    overrides = ["evaluation=none", "relevance=none", "references.cache=false", "batch_size=1", *directions]
    visualize(own, targets, references=torch.rand(8, 3, 32, 32), steps=2, overrides=overrides)
    traced = [3, 2]  # two passes of empty pictures: how many there are says which axis is theirs
    assert passes == [*traced, *([8, 1, 1, 1] * len(targets))]
