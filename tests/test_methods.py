"""Every method preset makes pictures, for classes and for hidden units; what each needs and what it looks at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from vital_exp import report, visualize
from vital_exp.config import compose_config
from vital_exp.config_tree import options_of
from vital_exp.engine import learning_rate, objective_and_gradient
from vital_exp.errors import UsageError
from vital_exp.references.drawn import draw_set

QUICK = ["evaluation=none", "references.count=2", "batch_size=2", "references.cache=false"]
EVERY = ("class", "channel", "neuron", "direction")
# What each method makes pictures of; DeepInversion's objective is the cross-entropy of a class.
TABLE = {method: ("class",) if method == "deep_inversion" else EVERY for method in options_of("method")}
CASES = [(method, kind) for method, kinds in TABLE.items() for kind in kinds]
IMPROVED = [case for case in CASES if case[1] in ("class", "channel")]
# Where no ReLU closes a unit.
LAYERS = {"embedded_resnet": "layer3.0.bn2", "embedded_vit": "blocks.2"}


def spelled(kind: str, layer: str) -> list[str]:
    """Two targets of a kind."""
    forms = {
        "channel": "{}:{}",
        "neuron": "{}:{}@" + ("4,4" if "layer" in layer else "0,36"),
        "direction": "direction-{}-{}",
    }
    return ["class:3", "class:5"] if kind == "class" else [forms[kind].format(layer, index) for index in (1, 2)]


def keys_of(kind: str, folder: Path) -> list[str]:
    """What a kind of target needs beside its spelling."""
    if kind == "class":
        return QUICK
    keys = [*QUICK, "relevance=gradient_x_activation"]  # LRP finds nothing relevant to a single negative value
    if kind != "direction":
        return keys
    vectors = torch.randn(3, 96, generator=torch.Generator().manual_seed(0))
    save_file({"vectors": vectors}, folder / "directions.safetensors")
    return [*keys, f"target.vectors={folder / 'directions.safetensors'}"]


def check_masks(masks: Tensor) -> None:
    assert masks.isfinite().all()
    assert masks.min() >= 0
    for mask in masks:
        assert mask.max() == 1
        assert mask.std() > 0.01


def references() -> Tensor:
    return draw_set(1, 5)[0][2:5]


@pytest.mark.parametrize(("method", "kind"), IMPROVED)
def test_every_method_improves_its_own_target_in_twenty_steps(method: str, kind: str) -> None:
    targets = spelled(kind, LAYERS["embedded_resnet"])
    config = compose_config([f"method={method}"])
    keys = [*QUICK, f"views={min(config.views, 4)}", f"image.scale={min(config.image.scale, 2.0)}"]
    keys += ["relevance=none"]  # maps of relevance move with the picture, and the loss with them
    given: Any = {"method": method, "references": references()}
    made = visualize("embedded_resnet", targets, steps=20, overrides=keys, **given)
    assert [result["status"] for result in made.results] == ["done", "done"]
    assert 0 <= made.images.min() <= made.images.max() <= 1
    assert (made.images[0] != made.images[1]).any()
    check_masks(made.masks)
    first = torch.tensor([made.history[target]["total"][0] for target in targets])
    # the same random views as at the first step
    last, gradient = objective_and_gradient("embedded_resnet", targets, made.images, overrides=keys, **given)
    assert (last < first).all()
    assert (gradient.abs().amax((1, 2, 3)) > 0).all()


@pytest.mark.parametrize("model", LAYERS)
@pytest.mark.parametrize(("method", "kind"), [case for case in CASES if case not in IMPROVED or case[0] == "maco"])
def test_every_method_makes_pictures_of_every_kind_of_target(
    method: str, kind: str, model: str, tmp_path: Path
) -> None:
    targets, keys = spelled(kind, LAYERS[model]), keys_of(kind, tmp_path)
    keys = [*keys, "views=1", "image.scale=1.5"] if method.startswith("maco") else [*keys, "views=1"]
    made = visualize(model, targets, method=method, steps=1, references=references(), overrides=keys)
    assert [result["error"] for result in made.results] == [None, None]
    assert all(result["activation"] is not None for result in made.results)
    check_masks(made.masks)


def test_cross_entropy_is_of_classes() -> None:
    with pytest.raises(UsageError, match=r"target=channel: cross-entropy needs output classes: target=class"):
        visualize("embedded_resnet", "layer3.0:1", method="deep_inversion", steps=1, references=references())


@pytest.mark.parametrize("method", ["fourier", "maco", "activation_max"])
def test_methods_that_look_at_no_references_need_none(method: str) -> None:
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    made = visualize(
        module, ["class:1", "class:2"], method=method, steps=2, overrides=["evaluation=none", "model.size=32"]
    )
    assert [result["status"] for result in made.results] == ["done", "done"]


def test_a_method_that_looks_at_references_asks_for_a_folder() -> None:
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    with pytest.raises(UsageError, match=r"references.root=None: a folder of natural images is needed"):
        visualize(module, "class:1", steps=2, overrides=["evaluation=none"])


def test_lucids_rate_is_constant() -> None:
    optimizer = compose_config(["method=fourier"]).optimizer
    assert optimizer.schedule == "constant"
    assert {learning_rate(i, 9, peak=0.05, warmup=0, schedule="constant") for i in range(9)} == {0.05}


def test_a_network_without_batch_norm_is_told_what_deep_inversion_needs() -> None:
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    wanted = "not applicable: the network has no batch norm with running statistics.*method=vital needs no batch norm"
    with pytest.raises(UsageError, match=wanted):
        visualize(module, "class:1", method="deep_inversion", steps=1, overrides=[*QUICK, "model.size=32"])


def test_the_table_of_a_sweep_says_which_method_is_not_applicable(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    keys = {"steps": 1, "overrides": [*QUICK, "model.size=32"]}
    visualize(module, "class:1", method="fourier", out=tmp_path / "fourier", **keys)
    with pytest.raises(UsageError, match="not applicable"):
        visualize(module, "class:1", method="deep_inversion", out=tmp_path / "deep_inversion", **keys)
    assert "not applicable" in (tmp_path / "deep_inversion" / "mistake.txt").read_text()
    table = report(tmp_path, out=tmp_path / "report").table
    ((name, reason),) = table.unmade.items()
    assert name.startswith("deep_inversion, ")
    assert "not applicable" in reason
    for file in ("table.md", "table.json", "report.html"):
        assert "not applicable" in (tmp_path / "report" / file).read_text()


def test_variations_of_a_unit_differ() -> None:
    made = visualize(
        "embedded_resnet", ["class:3", "class-3_v2"], method="fourier", steps=3,
        overrides=["evaluation=none", "objective=[activation,diversity]", "batch_size=2"],
    )  # fmt: skip
    assert [result["variation"] for result in made.results] == [1, 2]
    assert (made.images[0] != made.images[1]).any()
