"""Pictures that grow: the same coefficients at two sizes, references as small, one schedule after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.tiny import command, tiny_net
from vital_exp import load_model, visualize
from vital_exp.engine.batch import Batch
from vital_exp.engine.module import VisualizationModule
from vital_exp.errors import UsageError
from vital_exp.images.fourier import Fourier, low_frequencies
from vital_exp.images.output import resized
from vital_exp.images.randomness import RandomStreams
from vital_exp.models.network import Preprocessing
from vital_exp.objectives.alignment_terms import channel_precision, layer_precision
from vital_exp.setup.request import Request
from vital_exp.visualization.step_time import seconds_per_step

REFERENCES = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
GROWN = ("image.grow_from=0.5", "image.grow_until=0.75")


class Wrapped(nn.Module):
    """A network of another kind inside a dict, with channels last in memory."""

    def __init__(self, inner: nn.Module, channels: int = 3) -> None:
        super().__init__()
        self.inner, self.channels = inner.to(memory_format=torch.channels_last), channels

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        """Return the logits by name."""
        return {"logits": self.inner(pictures.expand(-1, 3, -1, -1))}


def requested(*overrides: str, steps: int = 8, network: Any = None) -> Request:
    own = network or load_model(tiny_net(), size=32)
    asked = [*GROWN, *overrides]
    return Request.of(own, ["class:1"], method="vital_fourier", references=REFERENCES, steps=steps, overrides=asked)


def test_the_smaller_picture_is_that_of_the_low_frequencies() -> None:
    """Twin: numpy's transform of the small spectrum, entry by entry from the large one."""
    preprocessing = Preprocessing(mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.3), size=(12, 9))
    pictures = Fourier(preprocessing, (12, 9), RandomStreams(0, ["class-0"]), colours=torch.eye(3))
    torch.testing.assert_close(pictures.smaller((12, 9)), pictures.network_input())
    whole = (torch.view_as_complex(pictures.coefficients) * pictures.frequency_scale)[0].detach().numpy()
    for height, width in ((7, 5), (8, 6)):
        rows = [row % 12 for row in np.fft.fftfreq(height, 1 / height).astype(int)]
        middles = [(12 / height - 1) / 2, (9 / width - 1) / 2]  # of the first pixel, from that of the whole picture
        turns = np.fft.fftfreq(12)[rows, None] * middles[0] + np.fft.rfftfreq(9)[None, : width // 2 + 1] * middles[1]
        small = whole[:, rows, : width // 2 + 1] * (height * width / (12 * 9)) * np.exp(2j * np.pi * turns)
        decorrelated = np.fft.irfft2(small, s=(height, width)) / 4
        rgb = 1 / (1 + np.exp(-decorrelated))
        found = preprocessing.denormalise(pictures.smaller((height, width)))[0].detach().numpy()
        np.testing.assert_allclose(found, rgb, atol=1e-5)


def test_a_smooth_picture_looks_the_same_when_it_is_small() -> None:
    preprocessing = Preprocessing(mean=(0.5,) * 3, std=(0.5,) * 3, size=(64, 64))

    def wave(places: Tensor) -> Tensor:
        """Values at rows and columns of the whole picture, (1, 3, h, w)."""
        shown = 0.5 + 0.3 * torch.sin(2 * torch.pi * (places[:, None] + 2 * places) / 64)
        return shown.expand(1, 3, *shown.shape)

    smooth = wave(torch.arange(64.0))
    pictures = Fourier(preprocessing, (64, 64), RandomStreams(0, ["class-0"]), preprocessing.normalise(smooth))
    small = preprocessing.denormalise(pictures.smaller((32, 32)))
    centres = 2 * torch.arange(32.0) + 0.5  # between two pixels of the whole picture
    torch.testing.assert_close(small, wave(centres), atol=1e-3, rtol=0)


def test_frequencies_that_the_small_picture_cannot_show_stay_as_they_are() -> None:
    preprocessing = Preprocessing(mean=(0.5,) * 3, std=(0.5,) * 3, size=(16, 16))
    pictures = Fourier(preprocessing, (16, 16), RandomStreams(0, ["class-0"]))
    pictures.smaller((8, 8)).square().sum().backward()
    moved = pictures.coefficients.grad.abs().sum(dim=(0, 1, 4)) > 0  # type: ignore[union-attr]
    shown = torch.zeros_like(moved)
    shown[[0, 1, 2, 3, 12, 13, 14, 15], :5] = True
    assert not (moved & ~shown).any()
    assert moved[1:4, 1:4].all()
    assert low_frequencies(torch.ones(2, 16, 9), (8, 8)).shape == (2, 8, 5)


def test_the_first_steps_see_small_pictures_and_small_references() -> None:
    request = requested()
    batch = Batch(request.setup, request.targets)
    small, whole = batch.stages
    assert (small.until, whole.until) == (6, 8)
    assert small.network_input().shape[-2:] == (16, 16)
    assert whole.network_input().shape[-2:] == (32, 32)
    alignment = small.objective.objective.terms["alignment"]
    seen = request.network.preprocessing.normalise(resized(REFERENCES, (16, 16)))
    expected = seen.flatten(2).sort(dim=-1).values.mean(dim=0)
    torch.testing.assert_close(alignment.quantiles["input"][0], expected, atol=1e-5, rtol=1e-5)
    rates = [request.setup.rate(step) for step in range(8)]
    assert rates[6:] == [rates[0], rates[1]]  # the warm-up begins again
    assert seconds_per_step(batch, 1) > 0


def test_the_map_of_small_steps_has_the_sum_of_their_gradients() -> None:
    request = requested()
    batch = Batch(request.setup, request.targets)
    module = batch.module()
    found = batch.stages[0].objective(batch.stages[0].network_input(), 0)
    module.surrogate(0)
    noted = module._sensitivity
    assert noted.shape[-2:] == (32, 32)
    own = batch.pictures.followed(batch.stages[0].network_input().detach(), found.gradient).abs()
    assert float(noted.sum()) == pytest.approx(float(own.sum()), rel=1e-4)


def test_a_picture_that_grows_is_finished_and_of_its_own_size(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    surrogate = VisualizationModule.surrogate

    def watched(module: VisualizationModule, step: int) -> Tensor:
        stage = next(one for one in module.stages if step < one.until)
        sizes.append(stage.network_input().shape[-1])
        return surrogate(module, step)

    monkeypatch.setattr(VisualizationModule, "surrogate", watched)
    for network in (tiny_net(), Wrapped(tiny_net())):
        sizes.clear()
        own = load_model(network, size=32)
        made = visualize(own, ["class:1"], method="vital_fourier", references=REFERENCES, steps=8, overrides=GROWN)
        assert sizes == [16] * 6 + [32] * 2
        assert made.images.shape == (1, 3, 32, 32)
        assert made.images.isfinite().all()
        assert made.masks.isfinite().all()


def test_a_single_step_is_at_the_own_size() -> None:
    assert requested(steps=1).setup.growth is None
    growth = requested(steps=2).setup.growth
    assert growth is not None
    assert growth.until == 1


def test_hidden_units_grow_too() -> None:
    own = load_model(tiny_net(), size=32)
    asked = [*GROWN, "references.facets=1"]
    for relevance in ("none", "guided_backprop"):
        asked = [*GROWN, "references.facets=1", f"relevance={relevance}"]
        made = visualize(own, ["layer1:3"], method="vital_fourier", references=REFERENCES, steps=4, overrides=asked)
        assert made.images.isfinite().all()
    with pytest.raises(UsageError, match="a neuron's position"):
        visualize(own, ["layer1:3@0,0"], method="vital_fourier", references=REFERENCES, overrides=asked)


def ordinary() -> Any:
    return load_model(tiny_net(), size=32)


class Even(nn.Module):
    """Takes pictures whose sides are multiples of 8 px."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = tiny_net()

    def forward(self, pictures: Tensor) -> Tensor:
        """Return (N, 4) logits."""
        logits: Tensor = self.inner(pictures.unfold(2, 8, 8).permute(0, 1, 2, 4, 3).reshape_as(pictures))
        return logits


class Fixed(nn.Module):
    """Takes pictures of 32 px alone."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Linear(4 * 16 * 16, 4)

    def forward(self, pictures: Tensor) -> Tensor:
        """Return (N, 4) logits."""
        logits: Tensor = self.fc(self.conv(pictures).relu().flatten(1))
        return logits


@pytest.mark.parametrize(
    ("overrides", "network", "words"),
    [
        (["image.grow_from=1"], ordinary, "image.grow_from=1: above 0 and below 1"),
        (["image.grow_from=small"], ordinary, "image.grow_from=small"),
        (["image.grow_from=-1"], ordinary, "image.grow_from=-1: above 0 and below 1"),
        (["image.grow_from=0.99"], ordinary, "this share of (32, 32) px is the whole side"),
        (["image.grow_until=2"], ordinary, "image.grow_until=2"),
        (["image.grow_until=0"], ordinary, "image.grow_until=0: above 0 and at most 1"),
        (["transforms=maco"], ordinary, "the transforms bring pictures of any size to"),
        ([], lambda: load_model(Fixed(), size=32), "does not take pictures of 16x16 px"),
    ],
)
def test_what_cannot_grow_is_refused(overrides: list[str], network: Callable[[], Any], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        requested(*overrides, network=network())
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_layers_of_one_position_do_not_freeze_the_picture() -> None:
    """A layer of one position has no variance: its squares are not divided by next to nothing."""
    own = load_model(tiny_net(), size=8)  # layer1 has one position in a picture of 4 px
    asked = [*GROWN, "model.layers=[layer1]"]
    images = resized(REFERENCES, (8, 8))
    request = Request.of(own, ["class:1"], method="vital_fourier", references=images, steps=8, overrides=asked)
    batch = Batch(request.setup, request.targets)
    small = batch.stages[0]
    assert small.objective(small.network_input(), 0).gradient.abs().max() < 1e3
    assert channel_precision(torch.ones(1, 2, 5)).tolist() == layer_precision(torch.ones(1, 2, 1)).tolist() == [[1, 1]]


def test_a_start_of_another_size_is_checked_at_both_sizes() -> None:
    """The network takes the start, but not the start at half its side."""
    own = load_model(Even(), size=32)
    start = torch.rand(1, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    given = {"references": REFERENCES, "steps": 4, "init": start, "method": "vital_fourier"}
    assert visualize(own, ["class:1"], **given).images.shape[-1] == 24
    with pytest.raises(UsageError, match=r"image\.size"):
        visualize(own, ["class:1"], **given, overrides=[*GROWN])


def test_pixels_cannot_grow(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("method=vital", "steps=2", "target.index=0", "+image.grow_from=0.5", "logger=none") == 2
    assert "image.grow_from" in capsys.readouterr().err
