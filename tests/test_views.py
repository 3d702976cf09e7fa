"""Several random views of each picture in a step: their mean, in any grouping, in any company."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tiny import command, tiny_net
from vital_exp import load_model, visualize
from vital_exp.config import compose_config
from vital_exp.engine.step import StepObjective, step_objective
from vital_exp.errors import UsageError
from vital_exp.models.network import VisionNetwork, model_space
from vital_exp.runs.folder import RunFolder
from vital_exp.setup import batching
from vital_exp.setup.request import Request
from vital_exp.visualization.plan import describe_plan
from vital_exp.visualization.run import Visualization

SIZE = 32
CROPS = ["transforms=maco", "transforms.crop.mean=0.5"]
OBJECTIVES = {
    "activation": ["method=fourier", "objective=[activation]", *CROPS],
    "alignment": ["method=vital", "objective.total_variation.weight=0.1", *CROPS],
    "comparison": ["method=fourier", "objective=[activation,feature_inversion]", *CROPS],
    "diversity": ["method=fourier", "objective=[diversity]", *CROPS],
}


def network() -> VisionNetwork:
    return load_model(tiny_net().double(), size=SIZE)


def pictures(count: int) -> Tensor:
    return torch.rand(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def objective(options: list[str], views_per_pass: int, views: int = 4) -> StepObjective:
    """Of two variations of a class, the second once more to pad the batch."""
    references = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    overrides = [f"views={views}", f"views_per_pass={views_per_pass}", "references.cache=false", *options]
    request = Request.of(network(), ["class-1", "class-1_v2"], references=references, overrides=overrides)
    padded = [*request.targets, request.targets[-1]]
    return step_objective(request.setup, padded, views_per_pass, (SIZE, SIZE))


@pytest.mark.parametrize("options", OBJECTIVES.values(), ids=OBJECTIVES)
def test_losses_and_gradients_are_means_over_the_views(options: list[str]) -> None:
    x = model_space(pictures(3), network())
    single = objective(options, 1, views=1)
    streams = single.streams
    found = []
    for view in range(4):
        single.streams = streams.views([view])
        found.append(single(x, 2))
    gradient = torch.stack([one.gradient for one in found]).mean(dim=0)
    losses = torch.stack([one.losses for one in found]).mean(dim=0)
    assert not torch.allclose(found[0].gradient, found[1].gradient)
    for views_per_pass in (1, 2, 4):
        together = objective(options, views_per_pass)(x, 2, ask_reached=True)
        torch.testing.assert_close(together.gradient, gradient)
        torch.testing.assert_close(together.losses, losses)
        torch.testing.assert_close(sum(together.shares.values()), losses)
        assert together.reached is not None
        assert together.reached.tolist() == [True, True, "diversity" not in together.shares]


def test_a_pass_holds_no_more_images_than_it_says() -> None:
    seen: list[int] = []
    request = Request.of(network(), ["class:0", "class:1"], method="fourier", overrides=["views=6", *CROPS])
    objective = step_objective(request.setup, request.targets, 3, (SIZE, SIZE))
    request.network.module.register_forward_hook(lambda _module, inputs, _output: seen.append(len(inputs[0])))
    objective(model_space(pictures(2), request.network), 0)
    assert seen == [6, 6]


def test_a_picture_is_the_same_bits_in_any_company() -> None:
    def made(targets: list[str]) -> dict[str, Tensor]:
        overrides = ["views=4", "views_per_pass=2", "batch_size=2", "evaluation=none", *CROPS]
        result = visualize(network(), targets, method="fourier", steps=3, overrides=overrides)
        return {target.name: image for target, image in zip(result.targets, result.images, strict=True)}

    first, second = made(["class:0", "class:1"]), made(["class:1", "class:2", "class:0"])
    for name, image in first.items():
        assert torch.equal(image, second[name])


def test_automatic_passes_divide_the_views_and_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    for batch_size, wanted in ((1, 6), (2, 3), (4, 2), (8, 1), (50, 1)):
        assert batching.views_per_pass(6, network(), (SIZE, SIZE), batch_size) == wanted
    monkeypatch.setattr(batching, "_fitting", lambda *_: 2)
    assert batching.views_per_pass(6, network(), (SIZE, SIZE), 1) == 2


def test_a_resumed_run_keeps_its_passes(tmp_path: Path) -> None:
    keys = ["model=embedded_resnet", "method=fourier", "views=4", "steps=1", "target.index=[0]", "batch_size=1"]
    arguments = [*keys, "evaluation=none", "progress=false", "logger=none", f"hydra.run.dir={tmp_path}"]
    assert command(*arguments) == 0
    assert json.loads((tmp_path / "provenance.json").read_text())["views_per_pass"] == 4
    request = Request.from_config(compose_config(keys))
    assert request.setup.together((SIZE, SIZE), batch_size=100) == 1
    assert Visualization(request, folder=RunFolder(tmp_path, request.config))._sizes(100)[1] == 4
    assert command(*arguments, "views=2") == 2  # another picture


def test_the_plan_tells_of_the_views() -> None:
    config = compose_config(["method=maco_horama", "target.index=[0]", "batch_size=1", "image.size=96"])
    plan = describe_plan(Request.from_config(config))
    assert "6 views a step, 6 at a time" in plan
    assert "pictures of 96 x 96 px" in plan


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["views=0"], "views=0"),
        (["views=many"], "views=many"),
        (["views=6", "views_per_pass=4"], "views_per_pass=4.*divides views=6"),
        (["views_per_pass=0"], "views_per_pass=0"),
    ],
)
def test_mistakes(overrides: list[str], key: Any) -> None:
    with pytest.raises(UsageError, match=key):
        visualize(network(), "class:0", method="fourier", steps=1, overrides=overrides)


def test_a_picture_larger_than_the_input_is_made_by_a_network_of_one_size() -> None:
    made = visualize(
        "embedded_vit", "class:3", method="maco", steps=2, overrides=["image.size=100", "views=2", "evaluation=basic"]
    )
    assert made.images.shape == (1, 3, 100, 100)
    assert made.results[0]["activation"] is not None
