"""Networks in half and mixed precision, and the modes of torch around a call: pictures and statistics in float32."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from tests.tiny import image_folder, tiny_net
from vital_exp import load_model, mine, visualize
from vital_exp.engine import objective_and_gradient
from vital_exp.engine.batch import failure
from vital_exp.errors import UsageError
from vital_exp.models.network import VisionNetwork, model_space
from vital_exp.models.precision import HALVES, EntranceCast, precisions_of, scaled_gradient
from vital_exp.models.refusals import hold_in_float32
from vital_exp.references.statistics import reference_statistics
from vital_exp.relevance import relevance_maps

SIZE = 32
UNIT = "layer1.0:3"
QUICK = ["evaluation=none", "references.cache=false", "transforms=none"]
REFERENCES = torch.rand(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


class Mixed(nn.Module):
    """Norms in float32 and convolutions in half precision; ``first`` is what the pictures meet."""

    def __init__(self, precision: torch.dtype, first: str) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, 3)  # the first parameter, whatever runs first
        self.conv1 = nn.Conv2d(3, 8, 3, 2, 1).to(precision)
        self.conv2 = nn.Conv2d(8, 16, 3, 2, 1).to(precision)
        self.fc = nn.Linear(16, 4)
        self.first = first

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, 4) logits."""
        if self.first == "norm":
            x = self.norm(x).to(self.conv1.weight.dtype)
        features = self.conv2(self.conv1(x).relu()).relu()
        logits: Tensor = self.fc(features.float().mean((2, 3)))
        return logits


class Packed(nn.Module):
    """Weights of integers and of complex numbers before those of a network."""

    def __init__(self) -> None:
        super().__init__()
        self.levels = nn.Parameter(torch.arange(81, dtype=torch.uint8).view(3, 3, 3, 3), requires_grad=False)
        self.filter = nn.Parameter(torch.ones(SIZE, SIZE // 2 + 1, dtype=torch.complex64))
        self.net = tiny_net()

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, 4) logits."""
        x = nn.functional.conv2d(x, self.levels.to(x.dtype) / 81, padding=1)
        logits: Tensor = self.net(torch.fft.irfft2(torch.fft.rfft2(x) * self.filter))
        return logits


MODULES: dict[str, Callable[[], nn.Module]] = {
    "float16": lambda: tiny_net().half(),
    "bfloat16": lambda: tiny_net().bfloat16(),
    "mixed, cast inside": lambda: Mixed(torch.bfloat16, "norm"),
    "mixed, half first": lambda: Mixed(torch.float16, "conv1"),
    "integers and complex numbers first": Packed,
}


def made(module: nn.Module | VisionNetwork, target: str = "class:1", *overrides: str, **given: object) -> Tensor:
    network = module if isinstance(module, VisionNetwork) else load_model(module, size=SIZE)
    asked = {"method": "vital_fourier", "references": REFERENCES, "steps": 1, **given}
    pictures = visualize(network, target, overrides=[*QUICK, *overrides], **asked)  # type: ignore[arg-type]
    assert pictures.results[0]["status"] == "done", pictures.results
    assert pictures.images.dtype == torch.float32
    assert pictures.images.isfinite().all()
    return pictures.images


@pytest.mark.parametrize("module", MODULES.values(), ids=MODULES)
def test_pictures_and_statistics_are_float32_and_the_network_its_own(module: Callable[[], nn.Module]) -> None:
    network = load_model(module(), size=SIZE)
    before = {name: value.clone() for name, value in network.module.state_dict().items()}
    assert network.dtype == model_space(REFERENCES, network).dtype == torch.float32
    unit = f"{[name for name, part in network.module.named_modules() if isinstance(part, nn.Conv2d)][1]}:2"
    losses, gradient = objective_and_gradient(
        network, "class:1", REFERENCES[:1], references=REFERENCES, overrides=QUICK
    )
    assert losses.dtype == gradient.dtype == torch.float32
    assert gradient.isfinite().all()
    assert gradient.abs().sum() > 0
    made(network, unit, "relevance=gradient_x_activation")
    after = network.module.state_dict()
    assert all(value.dtype == after[name].dtype and torch.equal(value, after[name]) for name, value in before.items())


@pytest.mark.parametrize("method", ["vital", "fourier", "maco", "maco_horama", "deep_inversion", "accentuation"])
def test_every_kind_of_image_and_objective_takes_half_precision(method: str) -> None:
    start = ["image.init=reference"] if method == "accentuation" else []
    made(tiny_net().half(), "class:1", *start, method=method)


@pytest.mark.parametrize("precision", HALVES)
@pytest.mark.parametrize(
    ("target", "method"), [("class:1", "vital"), ("layer1.0:3", "vital"), ("layer1.0:3", "fourier")]
)
def test_half_precision_gives_the_gradient_of_its_weights(precision: torch.dtype, target: str, method: str) -> None:
    half = tiny_net().to(precision)
    given = {"method": method, "references": REFERENCES, "overrides": QUICK}
    found = objective_and_gradient(load_model(half, size=SIZE), target, REFERENCES[:1], **given)[1]  # type: ignore[arg-type]
    wanted = objective_and_gradient(
        load_model(copy.deepcopy(half).float(), size=SIZE), target, REFERENCES[:1], **given  # type: ignore[arg-type]
    )[1]  # fmt: skip
    likeness = torch.cosine_similarity(found.flatten(), wanted.flatten(), dim=0)
    assert likeness > (0.99 if precision == torch.float16 else 0.9)


@pytest.mark.parametrize("precision", HALVES)
def test_relevance_of_half_precision_is_that_of_its_weights(precision: torch.dtype) -> None:
    half = tiny_net().to(precision)
    maps = [
        relevance_maps(load_model(module, size=SIZE), REFERENCES, "layer1.0:3", ["conv1"])["conv1"]
        for module in (half, copy.deepcopy(half).float())
    ]
    assert maps[0].dtype == torch.float32
    torch.testing.assert_close(*maps, rtol=1e-2, atol=1e-3 * float(maps[1].abs().max()))


def test_a_network_is_followed_when_its_precision_changes() -> None:
    module = tiny_net()
    network = load_model(module, size=SIZE)
    module.half()
    made(network)
    network.bfloat16()
    assert (network.entrance, network.dtype) == (torch.bfloat16, torch.float32)
    assert [type(hook) for hook in module._forward_pre_hooks.values()] == [EntranceCast]
    module.load_state_dict(tiny_net().float().state_dict())
    network.float()
    assert network.entrance == torch.float32
    assert not module._forward_pre_hooks


def test_what_leaves_the_range_of_float16_is_told() -> None:
    class Loud(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv2 = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(2))
            self.fc = nn.Linear(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.fc(self.conv2(self.conv1(x) * 1e5).mean((2, 3)))
            return logits

    network = load_model(Loud().half(), size=SIZE)
    keys = [*QUICK, "model.layers=[conv1,conv2]"]
    (result,) = visualize(network, "class:1", references=REFERENCES, steps=1, overrides=keys).results
    assert result["status"] == "failed"
    assert "float16" in result["error"]
    assert "activation" in str(failure([0.0], REFERENCES, False, float("nan")))


def test_mining_refuses_what_cannot_be_ranked(tmp_path) -> None:  # type: ignore[no-untyped-def]
    module = tiny_net().half()
    module.conv1.weight.data.fill_(6e4)
    photos = image_folder(tmp_path / "photos", ["a"], count=3)
    with pytest.raises(UsageError, match=r"layers=conv1: .*float16.*bfloat16"):
        mine(load_model(module, size=SIZE), "conv1", photos, k=2, patch=None)
    rows = mine(load_model(tiny_net().bfloat16(), size=SIZE), "conv1", photos, k=2, patch=None).top("conv1", 0)
    assert len(rows) == 2


def test_gradients_are_scaled_picture_by_picture() -> None:
    x = torch.ones(3, 2, requires_grad=True)
    # Without a scale the first underflows; by the largest the last overflows.
    factors = torch.tensor([2.0**-24, 1.0, 2.0**8])[:, None]
    losses = (x.half() * factors.half() * 2**-4).float().sum(dim=1)
    gradient = scaled_gradient(losses, x, (2.0**14, 2.0**7, 1.0), keep_graph=True)
    assert torch.equal(gradient, factors.expand(3, 2) * 2**-4)
    assert not scaled_gradient(losses, x, (1.0,))[0].any()


def test_a_precision_that_torch_has_no_kernel_for_is_told() -> None:
    class Inverse(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.eye(3))

        def forward(self, x: Tensor) -> Tensor:
            return torch.einsum("nchw,cd->nd", x, torch.linalg.inv(self.weight))

    load_model(Inverse(), size=SIZE)
    with pytest.raises(UsageError, match=r"model=Inverse: torch cannot compute it in float16 on cpu .*module\.float"):
        load_model(Inverse().half(), size=SIZE)


def test_precisions_that_do_not_meet_are_told() -> None:
    module = tiny_net()
    module.fc.double()
    with pytest.raises(UsageError, match=r"model=TinyNet: .*several precisions \(float32, float64\)"):
        load_model(module, size=SIZE)


def test_attacks_hold_half_precision_in_float32(caplog: pytest.LogCaptureFixture) -> None:
    half = load_model(tiny_net().half(), size=SIZE)
    hold_in_float32(half, "check")
    assert half.entrance == half.precision == torch.float32
    assert "held in float32" in caplog.text
    assert not half.module._forward_pre_hooks
    with pytest.raises(UsageError, match=r"check=Stubborn: weights are changed in float32"):
        hold_in_float32(load_model(Stubborn(), size=SIZE), "check")


class Stubborn(nn.Module):
    """Casts to float16 whatever its weights are."""

    def __init__(self) -> None:
        super().__init__()
        self.net = tiny_net().half()

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, 4) logits."""
        logits: Tensor = self.net(x.half())
        return logits


MODES: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "inference mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "default device": lambda: torch.device("meta"),
}


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_the_modes_around_a_call_change_no_bit(mode: Callable[[], AbstractContextManager[object]]) -> None:
    module = tiny_net()
    wanted = map_and_picture_outside()
    with mode():
        assert all(map(torch.equal, map_and_picture(module), wanted))


def map_and_picture(module: nn.Module) -> tuple[Tensor, Tensor]:
    network = load_model(module, size=SIZE)
    return relevance_maps(network, REFERENCES, UNIT, ["conv1"])["conv1"], made(network, UNIT)


@cache
def map_and_picture_outside() -> tuple[Tensor, Tensor]:
    return map_and_picture(tiny_net())


def test_what_was_made_in_inference_mode_gives_the_same_pictures(tmp_path) -> None:  # type: ignore[no-untyped-def]
    start = torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    wanted = made(tiny_net(), "layer1.0:3", init=start)
    with torch.inference_mode():
        there = {"references": REFERENCES.clone(), "init": start.clone()}
        module = tiny_net()
        photos = image_folder(tmp_path / "photos", ["a"], count=3)
        index = mine(load_model(tiny_net(), size=SIZE), "conv1", photos, k=2, patch=None)
    assert module.conv1.weight.is_inference()
    assert len(index.top("conv1", 0)) == 2
    assert torch.equal(made(module, "layer1.0:3", **there), wanted)
    assert not any(value.is_inference() for value in module.state_dict().values())


def test_the_default_precision_changes_no_bit() -> None:
    wanted, module = map_and_picture_outside(), tiny_net()
    torch.set_default_dtype(torch.float64)
    try:
        found = map_and_picture(module)
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(map(torch.equal, found, wanted))


def test_statistics_of_half_precision_are_float32() -> None:
    network = load_model(tiny_net().half(), size=SIZE)
    (values,) = reference_statistics(network, ["conv1"], iter(REFERENCES)).values()
    exact = load_model(tiny_net(), size=SIZE)
    (wanted,) = reference_statistics(exact, ["conv1"], iter(REFERENCES)).values()
    assert values.dtype == torch.float32
    torch.testing.assert_close(values, wanted, rtol=1e-2, atol=1e-2)
    assert precisions_of(network.module) == (torch.float16,)
