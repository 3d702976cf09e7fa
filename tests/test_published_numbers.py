"""Agreement with numbers of the published implementation, through the public API."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.published import published
from vital_exp import visualize
from vital_exp.engine import learning_rate, objective_and_gradient
from vital_exp.objectives import sort_matching, total_variation

NO_TRANSFORMS = ["transforms=none", "references.cache=false"]


def test_sort_matching_and_its_gradient(data: Path) -> None:
    units = load_file(data / "fixtures" / "units.safetensors")
    features = units["input"].flatten(2).requires_grad_()
    quantiles = units["references"].flatten(2).sort(dim=-1).values.mean(dim=0)
    loss = sort_matching(features, quantiles)
    loss.sum().backward()
    torch.testing.assert_close(loss.detach(), units["loss"], rtol=1e-6, atol=0)
    torch.testing.assert_close(features.grad, units["grad"].flatten(2), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("order", ["l1", "l2"])
def test_total_variation(data: Path, order: str) -> None:
    units = load_file(data / "fixtures" / "units.safetensors")
    torch.testing.assert_close(total_variation(units["prior_input"], order), units[f"tv_{order}"], rtol=1e-6, atol=0)


def test_learning_rate(data: Path) -> None:
    rates = load_file(data / "fixtures" / "units.safetensors")["learning_rate"]
    ours = torch.tensor([learning_rate(step, len(rates)) for step in range(len(rates))], dtype=torch.float64)
    torch.testing.assert_close(ours, rates, rtol=1e-6, atol=1e-12)


def rounds_as_published() -> bool:
    """Whether this is a processor like the one that the numbers come from: convolutions sum in the same order."""
    description = Path("/proc/cpuinfo")
    return description.is_file() and "GenuineIntel" in description.read_text()


@pytest.mark.parametrize("arch", ["resnet18", "vit_b_32"])
def test_first_gradient(data: Path, arch: str) -> None:
    """In float32 where rounding is the publisher's; elsewhere in float64, as near as the published float32 is to that.

    Rounding decides on which side of a ReLU and in which place of a sorted channel a value is, so float32 on another
    processor (5e-3 from the published gradient of the ResNet-18 on an AMD EPYC) says little.
    """
    case = published(data, arch)
    exact = [] if rounds_as_published() else ["trainer.precision=64-true"]
    losses, gradient = objective_and_gradient(
        case.network, "class:0", case.start, references=case.references, overrides=[*NO_TRANSFORMS, *exact]
    )
    expected = case.numbers["first_gradient"]
    found = gradient.flatten()[case.numbers["pixel_index"]]
    assert losses.item() == pytest.approx(case.numbers["losses"][0].item(), rel=1e-4)
    published_rounding = 5e-4  # 2.5e-4 and 3.7e-4, measured
    assert (found - expected).norm() / expected.norm() < (published_rounding if exact else 1e-5)


@pytest.mark.parametrize(("arch", "steps"), [("resnet18", 3), ("vit_b_32", 6)])
def test_losses_and_final_picture(data: Path, arch: str, steps: int) -> None:
    """Later losses of a ResNet drift apart: rounding decides Adam's first signs. Those of a ViT do not."""
    case = published(data, arch)
    overrides = [*NO_TRANSFORMS, "evaluation=none"]
    made = visualize(
        case.network, "class:0", references=case.references, init=case.start, steps=steps, overrides=overrides
    )
    expected = case.numbers["losses"]
    ours = torch.tensor(made.history["class-0"]["total"], dtype=torch.float64)
    torch.testing.assert_close(ours[:2], expected[:2], rtol=1e-4, atol=0)
    third = 1e-4 if rounds_as_published() else 1e-3  # differences grow tenfold every two steps
    torch.testing.assert_close(ours[2], expected[2], rtol=third, atol=0)
    if steps == len(expected):
        torch.testing.assert_close(ours, expected, rtol=4e-4, atol=0)
        final = made.images.flatten()[case.numbers["pixel_index"]]
        assert (final - case.numbers["final_rgb"]).abs().mean() < 1e-3
