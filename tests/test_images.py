"""Parameterisations, transforms and random streams."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vital_exp.images.fourier import Fourier, colour_matrix, frequency_scale
from vital_exp.images.output import masked_picture, quantised, to_uint8, transparency
from vital_exp.images.pixels import Pixels
from vital_exp.images.randomness import RandomStreams
from vital_exp.images.transforms import CircularJitter, Compose, HorizontalFlip
from vital_exp.models.network import Preprocessing

PARAMETERISATIONS = [Pixels, Fourier]
NAMES = ("class-0", "class-1", "class-2")


@pytest.mark.parametrize("kind", PARAMETERISATIONS)
@pytest.mark.parametrize("size", [(16, 16), (15, 22)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pictures_are_rgb_in_range(kind: type, size: tuple[int, int], dtype: torch.dtype) -> None:
    pictures = kind(Preprocessing(), size, RandomStreams(0, NAMES)).to(dtype)
    pictures.project()
    rgb = pictures()
    assert rgb.shape == (3, 3, *size)
    assert rgb.dtype == dtype
    assert rgb.min() >= -1e-6
    assert rgb.max() <= 1 + 1e-6
    torch.testing.assert_close(Preprocessing().denormalise(pictures.network_input()), rgb)


@pytest.mark.parametrize("kind", PARAMETERISATIONS)
def test_a_picture_starts_the_same_in_any_company(kind: type) -> None:
    together = kind(Preprocessing(), (8, 8), RandomStreams(3, NAMES))()
    alone = kind(Preprocessing(), (8, 8), RandomStreams(3, NAMES[1:2]))()
    torch.testing.assert_close(together[1:2], alone, rtol=0, atol=0)
    assert not torch.equal(kind(Preprocessing(), (8, 8), RandomStreams(4, NAMES))(), together)


@pytest.mark.parametrize("kind", PARAMETERISATIONS)
def test_a_given_picture_is_where_it_starts(kind: type) -> None:
    rgb = torch.rand(2, 3, 9, 12, generator=torch.Generator().manual_seed(0)) * 0.9 + 0.05
    pictures = kind(Preprocessing(), (9, 12), RandomStreams(0, NAMES[:2]), init=Preprocessing().normalise(rgb))
    torch.testing.assert_close(pictures(), rgb, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", PARAMETERISATIONS)
def test_gradients_match_finite_differences(kind: type) -> None:
    pictures = kind(Preprocessing(), (4, 5), RandomStreams(0, NAMES[:1])).double()
    (parameter,) = pictures.parameters()
    weights = torch.randn(1, 3, 4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (gradient,) = torch.autograd.grad((pictures.network_input() * weights).sum(), parameter)
    with torch.no_grad():
        flat = parameter.view(-1)
        for i in range(0, flat.numel(), 7):
            values = []
            for sign in (1, -1):
                flat[i] += sign * 1e-6
                values.append((pictures.network_input() * weights).sum())
                flat[i] -= sign * 1e-6
            assert gradient.view(-1)[i].item() == pytest.approx((values[0] - values[1]).item() / 2e-6, abs=1e-6)


@pytest.mark.parametrize("kind", PARAMETERISATIONS)
def test_twenty_steps_bring_a_picture_nearer_to_another(kind: type) -> None:
    pictures = kind(Preprocessing(), (16, 16), RandomStreams(0, NAMES[:1]))
    wanted = torch.full((1, 3, 16, 16), 0.25)
    optimizer = torch.optim.Adam(pictures.parameters(), lr=0.05)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = (pictures() - wanted).square().mean()
        loss.backward()
        optimizer.step()
        pictures.project()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_fourier_equals_a_numpy_twin_of_lucids_formula() -> None:
    pictures = Fourier(Preprocessing(), (6, 8), RandomStreams(0, NAMES[:1]))
    real, imaginary = pictures.coefficients.detach().double().numpy()[0].transpose(3, 0, 1, 2)
    f = np.sqrt(np.fft.fftfreq(6)[:, None] ** 2 + np.fft.rfftfreq(8)[None] ** 2)
    scale = np.sqrt(6 * 8) / np.maximum(f, 1 / 8)
    spatial = np.fft.irfft2((real + 1j * imaginary) * scale, s=(6, 8)) / 4
    matrix = np.array([[0.26, 0.09, 0.02], [0.27, 0, -0.05], [0.27, -0.09, 0.03]])
    matrix = matrix / np.linalg.norm(matrix, axis=0).max()
    rgb = 1 / (1 + np.exp(-np.einsum("chw,dc->dhw", spatial, matrix)))
    np.testing.assert_allclose(pictures().detach().numpy()[0], rgb, atol=1e-6)


def test_frequency_decay_keeps_the_lowest_frequency() -> None:
    flat, lucid = frequency_scale((16, 16), 0.5), frequency_scale((16, 16), 1.0)
    assert flat[0, 0] == lucid[0, 0]
    assert flat[8, 8] > lucid[8, 8]
    assert colour_matrix().norm(dim=0).max().item() == pytest.approx(1)


def test_random_streams_depend_on_seed_target_purpose_and_step_alone() -> None:
    streams = RandomStreams(0, NAMES)
    first = streams.normal((4,), "noise", 3)
    torch.testing.assert_close(RandomStreams(0, NAMES[::-1]).normal((4,), "noise", 3), first.flip(0), rtol=0, atol=0)
    for other in (RandomStreams(1, NAMES).normal((4,), "noise", 3), streams.normal((4,), "noise", 4)):
        assert not torch.equal(other, first)
    assert not torch.equal(streams.normal((4,), "start", 3), first)


def test_random_numbers_have_the_distributions_they_claim() -> None:
    streams = RandomStreams(0, [f"class-{i}" for i in range(400)])
    shifts = streams.integers(-3, 3, 2, "jitter", 0)
    assert set(shifts.unique().tolist()) == set(range(-3, 4))
    assert abs(shifts.float().mean()) < 0.2
    assert streams.normal((50,), "start").std().item() == pytest.approx(1, abs=0.02)
    assert streams.uniform((50,), "flip").mean().item() == pytest.approx(0.5, abs=0.01)


def test_jitter_rolls_each_picture_by_its_own_shift_and_back_in_the_gradient() -> None:
    streams, jitter = RandomStreams(0, NAMES), CircularJitter(224)
    pictures = torch.randn(
        3, 3, 8, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True
    )
    rolled = jitter(pictures, streams, 5)
    shifts = streams.integers(-8, 8, 2, "jitter", 5)
    for i, (down, right) in enumerate(shifts.tolist()):
        torch.testing.assert_close(rolled[i], pictures[i].roll((down, right), (1, 2)))
    assert len(set(map(tuple, shifts.tolist()))) > 1
    assert torch.autograd.gradcheck(lambda x: jitter(x, streams, 5), pictures)


def test_jitter_is_the_published_one_at_224_pixels() -> None:
    shifts = torch.cat([RandomStreams(0, NAMES).integers(-30, 30, 2, "jitter", step) for step in range(400)])
    assert shifts.min() == -30
    assert shifts.max() == 30


@pytest.mark.parametrize(
    "transform", [CircularJitter(30), HorizontalFlip(0.5), Compose({"a": CircularJitter(60), "b": HorizontalFlip(0.5)})]
)
def test_transforms_are_independent_of_the_batch(transform) -> None:  # type: ignore[no-untyped-def]
    pictures = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for step in range(4):
        together = transform(pictures, RandomStreams(7, NAMES), step)
        for i, name in enumerate(NAMES):
            alone = transform(pictures[i : i + 1], RandomStreams(7, [name]), step)
            torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=0)


def test_eight_bits_are_rounded_not_truncated() -> None:
    assert to_uint8(torch.tensor([0.9999, 0.0, 1.0, 0.5])).tolist() == [255, 0, 255, 128]
    values = torch.arange(256) / 255
    torch.testing.assert_close(quantised(values), values)


def test_transparency_map_follows_its_formula() -> None:
    sensitivity = torch.rand(2, 3, 20, 20, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 50.0]).view(
        2, 1, 1, 1
    )
    maps = transparency(sensitivity)
    for i in range(2):
        mean = sensitivity[i].mean(dim=0).numpy()
        clipped = np.minimum(mean, np.quantile(mean, 0.98))
        np.testing.assert_allclose(maps[i, 0].numpy(), clipped / clipped.max(), rtol=1e-5)
    assert transparency(torch.zeros(1, 3, 4, 4)).abs().max() == 0


def test_masked_picture_stretches_colours_and_carries_the_map() -> None:
    picture = torch.rand(3, 10, 10, generator=torch.Generator().manual_seed(0)) * 0.2 + 0.4
    mask = torch.rand(1, 10, 10, generator=torch.Generator().manual_seed(1))
    rgba = masked_picture(picture, mask)
    assert rgba.shape == (4, 10, 10)
    assert rgba[:3].min() == 0
    assert rgba[:3].max() == 1
    torch.testing.assert_close(rgba[3:], mask)
