"""Every method preset makes pictures, for classes and for hidden units; what each needs and what it looks at."""

from __future__ import annotations

import pytest
import torch

from vital_exp import visualize
from vital_exp.config import compose_config
from vital_exp.config_tree import options_of
from vital_exp.engine.schedule import learning_rate
from vital_exp.errors import UsageError

METHODS = options_of("method")
QUICK = ["evaluation=none", "references.count=2", "batch_size=2"]
CLASS_ONLY = {"deep_inversion"}  # its objective is the cross-entropy of a class


@pytest.mark.parametrize("kind", ["class", "channel"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_makes_pictures(method: str, kind: str) -> None:
    targets = ["class:3", "class:5"] if kind == "class" else ["layer3.0:1", "layer3.0:2"]
    references = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    if method in CLASS_ONLY and kind == "channel":
        with pytest.raises(UsageError):
            visualize("embedded_resnet", targets, method=method, steps=2, references=references, overrides=QUICK)
        return
    made = visualize("embedded_resnet", targets, method=method, steps=2, references=references, overrides=QUICK)
    assert [result["status"] for result in made.results] == ["done", "done"]
    assert made.images.min() >= 0
    assert made.images.max() <= 1
    assert (made.images[0] != made.images[1]).any()


@pytest.mark.parametrize("method", ["fourier", "maco", "activation_max"])
def test_methods_that_look_at_no_references_need_none(method: str) -> None:
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    made = visualize(
        module, ["class:1", "class:2"], method=method, steps=2, overrides=["evaluation=none", "model.size=32"]
    )
    assert [result["status"] for result in made.results] == ["done", "done"]


def test_a_method_that_looks_at_references_asks_for_a_folder() -> None:
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    with pytest.raises(UsageError, match=r"references.root=None: a folder of real images is needed"):
        visualize(module, "class:1", steps=2, overrides=["evaluation=none"])


def test_lucids_rate_is_constant() -> None:
    optimizer = compose_config(["method=fourier"]).optimizer
    assert optimizer.schedule == "constant"
    assert {learning_rate(i, 9, peak=0.05, warmup=0, schedule="constant") for i in range(9)} == {0.05}


def test_variations_of_a_unit_differ() -> None:
    made = visualize(
        "embedded_resnet", ["class:3", "class-3_v2"], method="fourier", steps=3,
        overrides=["evaluation=none", "objective=[activation,diversity]", "batch_size=2"],
    )  # fmt: skip
    assert [result["variation"] for result in made.results] == [1, 2]
    assert (made.images[0] != made.images[1]).any()
