"""Parameterisations and objectives against Lucent's and Horama's own code on the same tensors (the extra peers)."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor

from vital_exp.images.colours import colour_matrix, mixed
from vital_exp.images.fourier import Fourier, frequency_scale
from vital_exp.images.maco import Maco
from vital_exp.images.randomness import RandomStreams
from vital_exp.images.spectrum import magnitude_for
from vital_exp.models.network import Preprocessing
from vital_exp.objectives.activation import dot_cosine, gram_cosines, read_activation
from vital_exp.targets.readout import Readout, readout
from vital_exp.targets.unit import Target

NAMES = ("class-0", "class-1")
LAYER = "layer"
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def peer(name: str) -> Any:
    """A module of a peer; the test is skipped without it, or without what it does not declare."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        pytest.skip(f"{name} cannot be imported: {error}")


def activations(count: int = 2, channels: int = 5, size: tuple[int, int] = (4, 6), seed: int = 0) -> Tensor:
    return 3 * torch.randn(count, channels, *size, generator=torch.Generator().manual_seed(seed))


def losses(objective: Any, values: Tensor) -> Tensor:
    """What an objective of Lucent's gives for each picture by itself, (N,)."""
    return torch.stack([objective(lambda _layer, one=one: one[None]) for one in values])


# Parameterisations.


def test_fourier_equals_lucent() -> None:
    spatial, colour = peer("lucent.optvis.param.spatial"), peer("lucent.optvis.param.color")
    (coefficients,), image = spatial.fft_image((2, 3, 12, 16))
    twin = colour.to_valid_rgb(image, decorrelate=True)().detach().cpu()
    pictures = Fourier(Preprocessing(), (12, 16), RandomStreams(0, NAMES))
    with torch.no_grad():
        pictures.coefficients.copy_(coefficients.detach().cpu())
    torch.testing.assert_close(pictures(), twin, **CLOSE)


def test_frequencies_and_their_scale_equal_horamas() -> None:
    theirs = peer("horama.fourier_fv").get_fft_scale(16, 16, 1.0)[0]
    torch.testing.assert_close(frequency_scale((16, 16)), theirs.real, **CLOSE)
    # Another decay: Horama rescales everything with it, ours keeps the lowest frequency.
    steep = peer("horama.fourier_fv").get_fft_scale(16, 16, 1.5)[0].real
    torch.testing.assert_close(frequency_scale((16, 16), 1.5) / steep, torch.full((16, 9), 16**-0.5), **CLOSE)


def test_colours_equal_horamas_and_lucents() -> None:
    picture = activations(1, 3)
    ours = mixed(picture, colour_matrix())
    torch.testing.assert_close(
        ours[0], peer("horama.common").recorrelate_colors(picture[0], torch.device("cpu")), **CLOSE
    )
    lucent = peer("lucent.optvis.param.color")
    torch.testing.assert_close(ours, lucent._linear_decorrelate_color(picture), **CLOSE)


def test_maco_and_its_gradient_equal_horamas() -> None:
    horama = peer("horama.maco_fv")
    magnitude = magnitude_for("embedded", 3, (64, 64))
    pictures = Maco(Preprocessing(), (64, 64), RandomStreams(0, NAMES[:1]), values_range=[-2.5, 2.5])
    phase = pictures.phase[0].detach().clone().requires_grad_()
    twin = horama.maco_preconditioner(magnitude, phase, (-2.5, 2.5), torch.device("cpu"))
    torch.testing.assert_close(pictures.network_input()[0], twin, **CLOSE)
    weights = torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(1))
    (theirs,) = torch.autograd.grad((twin * weights).sum(), phase)
    (ours,) = torch.autograd.grad((pictures.network_input()[0] * weights).sum(), pictures.phase)
    torch.testing.assert_close(ours[0], theirs, rtol=1e-3, atol=1e-5 * float(theirs.abs().max()))


def test_a_spectrum_is_resized_as_horama_does(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    horama = peer("horama.maco_fv")
    magnitude = torch.rand(3, 64, 33, generator=torch.Generator().manual_seed(2)) + 0.1
    np.save(tmp_path / horama.MACO_SPECTRUM_FILENAME, magnitude.numpy())
    monkeypatch.chdir(tmp_path)  # Horama looks there before it downloads
    twin, _ = horama.init_maco_buffer((40, 40))
    with pytest.warns(UserWarning, match="resampled"):
        ours = magnitude_for(str(tmp_path / horama.MACO_SPECTRUM_FILENAME), 3, (40, 40), "bilinear")
    torch.testing.assert_close(ours, twin, **CLOSE)


# Objectives. Lucent's are minimised like ours.


def test_channels_and_neurons_equal_lucents() -> None:
    lucent, values = peer("lucent.optvis.objectives"), activations()
    channel = readout([Target("channel", 3, LAYER)] * 2, 5)
    torch.testing.assert_close(-read_activation(values, channel), losses(lucent.channel(LAYER, 3), values), **CLOSE)
    neuron = readout([Target("neuron", 3, LAYER, (1, 4))] * 2, 5)
    torch.testing.assert_close(
        -read_activation(values, neuron), losses(lucent.neuron(LAYER, 3, x=4, y=1), values), **CLOSE
    )
    square = activations(size=(4, 4))  # in others Lucent's default mixes up height and width
    centre = readout([Target("neuron", 3, LAYER, (2, 2))] * 2, 5)
    torch.testing.assert_close(-read_activation(square, centre), losses(lucent.neuron(LAYER, 3), square), **CLOSE)


def test_weighted_channels_are_lucents_directions_without_a_cosine() -> None:
    lucent, values = peer("lucent.optvis.objectives"), activations()
    weight = torch.randn(5, generator=torch.Generator().manual_seed(3))
    ours = -read_activation(values, Readout(LAYER, weight.expand(2, 5), (None, None)))
    # Lucent's mean is over channels as well
    torch.testing.assert_close(ours, 5 * losses(lucent.channel_weight(LAYER, weight), values), **CLOSE)


def test_diversity_and_its_gradient_equal_lucents() -> None:
    lucent = peer("lucent.optvis.objectives")
    values = activations(4).requires_grad_()
    theirs = -lucent.diversity(LAYER)(lambda _layer: values)
    cosines = gram_cosines(values)
    ours = (cosines.sum() - cosines.diagonal().sum()) / 4
    torch.testing.assert_close(ours, theirs, **CLOSE)
    gradients = [torch.autograd.grad(one, values, retain_graph=True)[0] for one in (ours, theirs)]
    torch.testing.assert_close(*gradients, **CLOSE)


def test_interpolation_equals_lucents() -> None:
    lucent, values = peer("lucent.optvis.objectives"), activations(3)
    theirs = lucent.channel_interpolate(LAYER, 1, LAYER, 4)(lambda _layer: values)
    shares = torch.tensor([0.0, 0.5, 1.0])
    means = [read_activation(values, readout([Target("channel", index, LAYER)] * 3, 5)) for index in (1, 4)]
    torch.testing.assert_close(-torch.lerp(means[0], means[1], shares).sum(), theirs, **CLOSE)


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
def test_dot_times_cosine_equals_horamas_for_one_picture(power: float) -> None:
    horama = peer("horama.losses")
    ours, given = activations(1).double() * 100, activations(1, seed=4).double() * 100
    given = given + ours  # a cosine well above the least one
    torch.testing.assert_close(
        dot_cosine(ours, given, power).float(), horama.dot_cossim(ours, given, power).float(), **CLOSE
    )


def test_horamas_sum_over_the_batch_is_not_inherited() -> None:
    horama = peer("horama.losses")
    values, given = activations(2) * 100, activations(2, seed=4) * 100
    alone = torch.cat([dot_cosine(values[i : i + 1], given[i : i + 1], 1.0) for i in range(2)])
    torch.testing.assert_close(dot_cosine(values, given, 1.0), alone)
    assert not torch.allclose(horama.dot_cossim(values, given, 1.0), alone)
