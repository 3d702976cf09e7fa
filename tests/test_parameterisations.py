"""What is optimised: properties of all parameterisations from one table, formulas against numpy, mistakes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from vital_exp.errors import UsageError
from vital_exp.images import parameterisation
from vital_exp.images.colours import AREAS, colour_matrix, decorrelated_logits, mixed
from vital_exp.images.fourier import Fourier, frequencies, frequency_scale
from vital_exp.images.maco import Maco
from vital_exp.images.pixels import Pixels
from vital_exp.images.randomness import RandomStreams
from vital_exp.images.spectrum import (
    EMBEDDED_FILE,
    SpectrumWarning,
    load_magnitude,
    magnitude_for,
    magnitudes,
    resampled,
)
from vital_exp.images.standardisation import EPSILON
from vital_exp.models.network import Preprocessing
from vital_exp.references.drawn import draw_set

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

from drawn_spectrum import drawn_magnitude

NAMES = ("class-0", "class-1", "class-2")
GREY = Preprocessing(mean=(0.3,), std=(0.2,))
FIVE = Preprocessing(mean=(0.1, 0.2, 0.3, 0.4, 0.5), std=(0.2,) * 5)
MATRIX = np.array([[0.26, 0.09, 0.02], [0.27, 0, -0.05], [0.27, -0.09, 0.03]])
MATRIX = MATRIX / np.linalg.norm(MATRIX, axis=0).max()


@dataclass
class Kind:
    """A parameterisation with options, and what it can do."""

    build: Callable[..., Any]
    options: Mapping[str, Any] = field(default_factory=dict)
    keeps_pictures: bool = True  # a picture to start from is what it shows; else only its phases are
    valid_start: bool = True  # in [0, 1] before the first project()
    rate: float = 0.05  # at which twenty steps of Adam get somewhere

    def __call__(self, *args: Any, **keys: Any) -> Any:
        return self.build(*args, **self.options, **keys)


KINDS = {
    "pixels": Kind(Pixels, valid_start=False),
    "fourier": Kind(Fourier),
    "fourier-decay": Kind(Fourier, {"decay": 0.7}),
    "maco": Kind(Maco, keeps_pictures=False, rate=0.5),
    "maco-bilinear": Kind(Maco, {"resample": "bilinear"}, keeps_pictures=False, rate=0.5),
    "maco-range": Kind(Maco, {"values_range": [-2.5, 2.5]}, keeps_pictures=False, rate=0.5),
}
all_kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


@all_kinds
@pytest.mark.parametrize("size", [(16, 16), (15, 22), (64, 33)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("preprocessing", [Preprocessing(), GREY, FIVE], ids=["rgb", "grey", "five"])
def test_pictures_are_in_range(
    kind: Kind, size: tuple[int, int], dtype: torch.dtype, preprocessing: Preprocessing
) -> None:
    pictures = kind(preprocessing, size, RandomStreams(0, NAMES)).to(dtype)
    if not kind.valid_start:
        pictures.project()
    shown, seen = pictures(), pictures.network_input()
    assert shown.shape == seen.shape == (3, len(preprocessing.mean), *size)
    assert shown.dtype == seen.dtype == dtype
    assert shown.min() >= -1e-6
    assert shown.max() <= 1 + 1e-6
    torch.testing.assert_close(preprocessing.denormalise(seen).clamp(0, 1), shown.clamp(0, 1))


@all_kinds
def test_a_picture_starts_the_same_in_any_company(kind: Kind) -> None:
    together = kind(Preprocessing(), (8, 8), RandomStreams(3, NAMES))()
    changed = kind(Preprocessing(), (8, 8), RandomStreams(3, ("class-7", "class-1", "class-8")))()
    assert torch.equal(together[1], changed[1])
    assert not torch.equal(together[0], changed[0])
    alone = kind(Preprocessing(), (8, 8), RandomStreams(3, NAMES[1:2]))()
    torch.testing.assert_close(together[1:2], alone, rtol=1e-6, atol=1e-6)
    assert not torch.equal(kind(Preprocessing(), (8, 8), RandomStreams(4, NAMES))(), together)


@all_kinds
@pytest.mark.parametrize("preprocessing", [Preprocessing(), GREY], ids=["rgb", "grey"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_given_picture_is_where_it_starts(kind: Kind, preprocessing: Preprocessing, dtype: torch.dtype) -> None:
    channels = len(preprocessing.mean)
    given = torch.rand(2, channels, 9, 12, generator=torch.Generator().manual_seed(0)).to(dtype) * 0.9 + 0.05
    pictures = kind(preprocessing, (9, 12), RandomStreams(0, NAMES[:2]), init=preprocessing.normalise(given))
    assert pictures.network_input().dtype == dtype
    if kind.keeps_pictures:
        torch.testing.assert_close(pictures(), given, rtol=1e-4, atol=1e-5)
    else:
        matrix = colour_matrix(channels).to(dtype)
        wanted, got = (torch.fft.rfft2(decorrelated_logits(p, matrix)) for p in (given, pictures._unit()))
        cosine = torch.cos(wanted.angle() - got.angle())[:, :, 1:4, 1:6]  # away from self-conjugate entries
        assert cosine.min() > 0.999


@all_kinds
@pytest.mark.parametrize("preprocessing", [Preprocessing(), GREY], ids=["rgb", "grey"])
def test_gradients_match_finite_differences(kind: Kind, preprocessing: Preprocessing) -> None:
    pictures = kind(preprocessing, (4, 5), RandomStreams(0, NAMES[:1])).double()
    (name, parameter) = next(iter(pictures.named_parameters()))
    weights = torch.randn(4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    channels = len(preprocessing.mean)

    def value(parameters: Tensor) -> Tensor:
        # functional_call takes the module's forward; the network's input is what is optimised
        shown = torch.func.functional_call(_Input(pictures), {f"pictures.{name}": parameters}, ())
        return (shown * weights).sum((0, 2, 3))

    assert value(parameter).shape == (channels,)
    assert torch.autograd.gradcheck(value, parameter.detach().clone().requires_grad_(), atol=1e-6)


class _Input(torch.nn.Module):
    def __init__(self, pictures: torch.nn.Module) -> None:
        super().__init__()
        self.pictures = pictures

    def forward(self) -> Tensor:
        shown: Tensor = self.pictures.network_input()  # type: ignore[operator]
        return shown


@all_kinds
def test_no_picture_changes_another(kind: Kind) -> None:
    pictures = kind(Preprocessing(), (8, 8), RandomStreams(0, NAMES))
    (parameter,) = pictures.parameters()
    (gradient,) = torch.autograd.grad(pictures.network_input()[1].square().sum(), parameter)
    assert gradient[1].abs().max() > 0
    assert gradient[[0, 2]].abs().max() == 0


@all_kinds
def test_twenty_steps_bring_a_picture_nearer_to_another(kind: Kind) -> None:
    pictures = kind(Preprocessing(), (16, 16), RandomStreams(0, NAMES[:1]))
    wanted = kind(Preprocessing(), (16, 16), RandomStreams(1, NAMES[:1]))().detach().clamp(0, 1)
    optimizer = torch.optim.Adam(pictures.parameters(), lr=kind.rate)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = (pictures() - wanted).square().mean()
        loss.backward()
        optimizer.step()
        pictures.project()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


@all_kinds
@pytest.mark.parametrize("preprocessing", [Preprocessing(), GREY, FIVE], ids=["rgb", "grey", "five"])
def test_pictures_follow_what_a_step_moves(kind: Kind, preprocessing: Preprocessing) -> None:
    pictures = kind(preprocessing, (12, 9), RandomStreams(0, NAMES)).double()
    if kind.build is not Maco:
        next(pictures.parameters()).data *= 30 if kind.build is Fourier else 3  # away from grey, and to the bounds
    pictures.project()
    shown = pictures.network_input().detach().clone()
    gradient = torch.randn(shown.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    if kind.build is Pixels:  # a small step, and back into range
        with torch.no_grad():
            pictures.pixels -= 1e-6 * gradient
        pictures.project()
        wanted = (shown - pictures.pixels.detach()) / 1e-6
        assert 0.02 < (wanted == 0).double().mean() < 0.9
    else:  # the slope of the sigmoid, from autograd
        unit = pictures._unit() if kind.build is Maco else pictures()
        logits = unit.detach().logit().requires_grad_()
        (slope,) = torch.autograd.grad(logits.sigmoid().sum(), logits)
        around = functional.adaptive_avg_pool2d((4 * slope).mean(1, keepdim=True), AREAS)
        around = functional.interpolate(around, shown.shape[-2:], mode="bilinear", align_corners=False)
        wanted = around.sqrt() * gradient
        assert around.min() < 0.99
    torch.testing.assert_close(pictures.followed(shown, gradient), wanted, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("kind", [Fourier, Maco])
@pytest.mark.parametrize("value", [0.0, 1.0, 1e-4])
def test_a_squashed_area_follows_nothing(kind: Any, value: float) -> None:
    pictures = kind(Preprocessing(), (48, 48), RandomStreams(0, NAMES[:1]))
    shown = torch.full((1, 3, 48, 48), 0.5)
    shown[..., :24] = value
    followed = pictures.followed(Preprocessing().normalise(shown), torch.ones(1, 3, 48, 48))
    assert followed[..., :20].max() < 0.03
    assert followed[..., 28:].min() == pytest.approx(1)


@all_kinds
def test_large_pictures_are_computed_one_by_one(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = kind(Preprocessing(), (12, 9), RandomStreams(0, NAMES))
    (parameter,) = pictures.parameters()
    found = []
    for block in (parameterisation.LARGEST_BLOCK, 1):
        monkeypatch.setattr(parameterisation, "LARGEST_BLOCK", block)
        seen = pictures.network_input()
        (gradient,) = torch.autograd.grad(seen.square().sum(), parameter)
        found.append((seen, pictures(), gradient))
    for together, single in zip(*found, strict=True):
        torch.testing.assert_close(together, single, rtol=1e-4, atol=1e-5)


# Fourier.


@pytest.mark.parametrize("size", [(6, 8), (7, 9), (9, 4)])
def test_fourier_equals_numpy_twins_of_lucids_and_lucents_formulas(size: tuple[int, int]) -> None:
    pictures = Fourier(Preprocessing(), size, RandomStreams(0, NAMES[:1]))
    real, imaginary = pictures.coefficients.detach().double().numpy()[0].transpose(3, 0, 1, 2)
    height, width = size
    f = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    spectrum = (real + 1j * imaginary) / np.maximum(f, 1 / max(size))
    lucid = np.fft.irfft2(spectrum * np.sqrt(height * width), s=size) / 4
    lucent = np.fft.irfft2(spectrum, s=size, norm="ortho") / 4
    np.testing.assert_allclose(lucid, lucent, atol=1e-12)  # one and the same
    rgb = 1 / (1 + np.exp(-np.einsum("chw,dc->dhw", lucid, MATRIX)))
    np.testing.assert_allclose(pictures().detach().numpy()[0], rgb, atol=1e-6)


def test_the_start_of_fourier_has_lucids_spread() -> None:
    pictures = Fourier(Preprocessing(), (32, 32), RandomStreams(0, NAMES))
    assert pictures.coefficients.std().item() == pytest.approx(0.01, rel=0.03)


def test_frequency_decay_keeps_the_lowest_frequency() -> None:
    flat, lucid = frequency_scale((16, 16), 0.5), frequency_scale((16, 16), 1.0)
    assert flat[0, 0] == lucid[0, 0]
    assert flat[8, 8] > lucid[8, 8]
    assert colour_matrix().norm(dim=0).max().item() == pytest.approx(1)
    assert torch.equal(colour_matrix(1), torch.ones(1, 1))


# MACO.


def standardised(values: np.ndarray) -> np.ndarray:
    return (values - values.mean()) / (values.std(ddof=1) + EPSILON)


@pytest.mark.parametrize("size", [(64, 64), (12, 17)])
def test_maco_equals_a_numpy_twin(size: tuple[int, int]) -> None:
    pictures = Maco(Preprocessing(), size, RandomStreams(0, NAMES))
    rgb = pictures().detach().numpy()
    magnitude = magnitude_for("embedded", 3, size).double().numpy()
    for phase, shown in zip(pictures.phase.detach().double().numpy(), rgb, strict=True):
        spatial = standardised(np.fft.irfft2(magnitude * np.exp(1j * standardised(phase)), s=size))
        np.testing.assert_allclose(1 / (1 + np.exp(-np.einsum("chw,dc->dhw", spatial, MATRIX))), shown, atol=1e-5)


def test_the_phases_scale_is_without_effect() -> None:
    pictures = Maco(Preprocessing(), (16, 16), RandomStreams(0, NAMES)).double()
    before = pictures()
    with torch.no_grad():
        pictures.phase.mul_(7).add_(3)
    torch.testing.assert_close(pictures(), before, rtol=0, atol=1e-3)


# Spectra.


def test_magnitudes_equal_a_numpy_twin() -> None:
    images, _ = draw_set(1, 5)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    for image, found in zip(images[:2].numpy().astype(np.float64), magnitudes(images[:2].double()), strict=True):
        colours = np.linalg.inv(MATRIX) @ ((image.reshape(3, -1).T - mean) / std).T
        twin = np.abs(np.fft.fft2(colours.reshape(image.shape)))[:, :, :33]
        np.testing.assert_allclose(found.numpy(), twin, rtol=1e-4, atol=1e-4)


def test_the_shipped_spectrum_is_that_of_the_drawn_images() -> None:
    shipped, fresh = load_magnitude("embedded", 3), drawn_magnitude(12, seed=77)
    assert shipped.shape == (3, 64, 33)
    assert EMBEDDED_FILE.stat().st_size < 30_000
    bands = (frequencies((64, 64)) * 16).long()
    for band in range(int(bands.max())):
        there = bands == band
        torch.testing.assert_close(fresh[:, there].mean(1), shipped[:, there].mean(1), rtol=0.15, atol=0)


@pytest.mark.parametrize("size", [(24, 24), (64, 64), (150, 96), (33, 47)])
def test_a_power_law_is_resampled_exactly(size: tuple[int, int]) -> None:
    law = (1 / frequencies((64, 64)).clamp(min=1 / 64)).float()[None].repeat(3, 1, 1)
    law[:, 0, 0] = 1000
    wanted = 1 / frequencies(size).clamp(min=1 / max(size)).float()
    new = resampled(law, size, "frequency")
    assert new.shape == (3, size[0], size[1] // 2 + 1)
    torch.testing.assert_close(new[0].flatten()[1:], wanted.flatten()[1:])
    assert new[0, 0, 0].item() == pytest.approx(1000 * (size[0] * size[1]) ** 0.5 / 64)


@pytest.mark.parametrize("how", ["frequency", "bilinear"])
def test_resampled_spectra_stay_those_of_real_pictures(how: str) -> None:
    new = resampled(load_magnitude("embedded", 3), (48, 48), how)
    assert new.min() >= 0
    if how == "frequency":  # the two halves of the first column mirror each other
        torch.testing.assert_close(new[:, 1:24, 0], new[:, 25:, 0].flip(1), rtol=1e-4, atol=0)
    assert torch.equal(resampled(new, (48, 48), how), new)


def test_the_published_spectrum_is_of_our_kind(data: Path) -> None:
    from vital_exp.references.decoding import fit, load_rgb

    published = load_magnitude(str(data / "data/maco_imagenet_spectrum.npy"), 3)
    paths = sorted((data / "data/imagenet-sample").rglob("*.[jJ][pP]*"))[::25]
    ours = torch.stack([magnitudes(fit(load_rgb(path), (512, 512))[None])[0] for path in paths]).mean(dim=0)
    radius = (frequencies((512, 512)) * 512).long()
    for low, high in ((1, 3), (3, 6), (6, 12)):
        band = (radius >= low) & (radius < high)
        torch.testing.assert_close(ours[:, band].mean(1), published[:, band].mean(1), rtol=0.25, atol=0)


def test_a_spectrum_comes_from_a_file_and_its_resizing_is_said(tmp_path: Path) -> None:
    magnitude = torch.rand(3, 16, 9, generator=torch.Generator().manual_seed(0)) + 0.1
    np.save(tmp_path / "r.npy", magnitude.double().numpy())
    save_file({"magnitude": magnitude, "other": torch.zeros(1)}, tmp_path / "r.safetensors")
    for name in ("r.npy", "r.safetensors"):
        path = str(tmp_path / name)
        torch.testing.assert_close(magnitude_for(path, 3, (16, 16)), magnitude)
        with pytest.warns(SpectrumWarning, match="16x16 px: resampled"):
            assert magnitude_for(path, 3, (32, 32)).shape == (3, 32, 17)


def test_grey_spectra_come_from_files_and_from_the_embedded_brightness(tmp_path: Path) -> None:
    np.save(tmp_path / "grey.npy", np.ones((1, 8, 5), np.float32))
    pictures = Maco(GREY, (8, 8), RandomStreams(0, NAMES), magnitude=str(tmp_path / "grey.npy"))
    assert pictures().shape == (3, 1, 8, 8)
    torch.testing.assert_close(load_magnitude("embedded", 1), load_magnitude("embedded", 3)[:1])


# Mistakes.


@pytest.mark.parametrize(
    ("kind", "options", "key"),
    [
        (Fourier, {"decay": -1}, "image.decay"),
        (Fourier, {"decay": "steep"}, "image.decay"),
        (Maco, {"magnitude": "nowhere.npy"}, "image.magnitude"),
        (Maco, {"resample": "cubic"}, "image.resample"),
        (Maco, {"values_range": [1]}, "image.values_range"),
        (Maco, {"values_range": [1, -1]}, "image.values_range"),
    ],
)
def test_a_mistake_names_its_key(kind: Any, options: Mapping[str, Any], key: str) -> None:
    with pytest.raises(UsageError, match=f"^{key}=") as caught:
        kind(Preprocessing(), (8, 8), RandomStreams(0, NAMES), **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("array", "problem"),
    [
        (np.ones((8, 5)), "channels, H, W"),
        (np.ones((1, 8, 5)), "1 channels"),
        (np.zeros((3, 8, 5)), "not all 0"),
        (-np.ones((3, 8, 5)), "at least 0"),
        (np.full((3, 8, 5), np.nan), "finite"),
        (np.array(["a"]), "not a readable file of numbers"),
        (np.ones((3, 8, 5), complex), "real numbers"),
    ],
)
def test_what_is_no_magnitude_is_refused(array: np.ndarray, problem: str, tmp_path: Path) -> None:
    np.save(tmp_path / "r.npy", array)
    with pytest.raises(UsageError, match=problem) as caught:
        load_magnitude(str(tmp_path / "r.npy"), 3)
    assert "\n" not in str(caught.value)


def test_broken_and_nameless_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.safetensors").write_bytes(b"no tensors")
    (tmp_path / "broken.npy").write_bytes(b"")
    save_file({"magnitud": torch.ones(3, 8, 5), "b": torch.ones(1)}, tmp_path / "two.safetensors")
    for name, problem in (
        ("broken.safetensors", "readable"),
        ("broken.npy", "readable"),
        ("two.safetensors", "no tensor magnitude"),
    ):
        with pytest.raises(UsageError, match=problem):
            load_magnitude(str(tmp_path / name), 3)


def test_mixing_colours_is_undone_by_the_inverse() -> None:
    pictures = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    matrix = colour_matrix()
    torch.testing.assert_close(mixed(mixed(pictures, matrix), torch.linalg.inv(matrix)), pictures)
