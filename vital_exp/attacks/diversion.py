"""Diversion: an input that looks like a picture under optimisation is changed before the network sees it.

An attack of ours: the fooling circuit (Geirhos et al., ICML 2024) moved from the logits, which VITAL does not use, to
the input, with a detector of the seams of VITAL's circular jitter. Formulas and constants: docs/methods/attacks.md.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from vital_exp.attacks.seam_detector import SeamDetector
from vital_exp.attacks.wrapping import checked_decoy, rewrapped
from vital_exp.models.network import VisionNetwork, model_space

CHILD = "diversion"  # the name of the attack's module inside the network
ON_THE_WAY = 64  # training pictures of the detector for each unit, between start and decoy (ours)
NOISE = 0.1  # the largest standard deviation of their noise, in [0, 1] RGB (ours)
GAIN = 2.0  # k: the network sees a picture's difference from the decoy enlarged k times (ours)
JITTER = 30 / 224  # the published jitter, as a share of the side


class Diversion(nn.Module):
    """Replaces a picture under optimisation by one in which the decoy has become the honest picture.

    x' = roll(p, s) + k (x - roll(x_t, s)) where E(x) = 0, else x' = x. p is the honest picture, x_t the decoy, and
    s = s(x) the circular shift at which the decoy fits x best. Neither the detector E nor the shift passes a gradient.
    A method that brings x' to the honest picture p brings x to the decoy x_t.

    Args:
        detector: E, 1 for natural images.
        decoy: x_t, (C, H, W) normalised.
        honest: p, (C, H, W) normalised, the method's picture of the honest network.
    """

    def __init__(self, detector: SeamDetector, decoy: Tensor, honest: Tensor) -> None:
        super().__init__()
        self.detector = detector
        self.register_buffer("decoy", decoy)
        self.register_buffer("honest", honest)

    def forward(self, pictures: Tensor) -> Tensor:
        """Return (N, C, H, W) normalised; pictures of another size than the decoy are left as they are."""
        decoy, honest = self.get_buffer("decoy").to(pictures), self.get_buffer("honest").to(pictures)
        if pictures.shape[1:] != decoy.shape:
            return pictures
        taken = 1 - self.detector.natural(pictures)[:, None, None, None]
        shifts = best_shifts(pictures.detach(), decoy)
        move = honest - GAIN * decoy
        moves = torch.stack([move.roll(shift, dims=(1, 2)) for shift in shifts])
        return pictures + taken * (moves + (GAIN - 1) * pictures)


def best_shifts(pictures: Tensor, decoy: Tensor) -> list[tuple[int, int]]:
    """Return for each picture (N, C, H, W) the circular shift (down, right) of the decoy (C, H, W) that fits it best.

    That is where the circular cross-correlation of the zero-mean images, summed over channels, is largest among the
    shifts of VITAL's jitter, in px, each from -largest_shift to largest_shift.
    """
    centred = [part.double() - part.double().mean(dim=(-2, -1), keepdim=True) for part in (pictures, decoy)]
    one, other = (torch.fft.rfft2(part) for part in centred)
    matches = torch.fft.irfft2((one * other.conj()).sum(dim=1), s=decoy.shape[-2:])  # (N, H, W)
    most = largest_shift(decoy)
    near = matches.roll((most, most), dims=(1, 2))[:, : 2 * most + 1, : 2 * most + 1]
    places = [divmod(int(place), near.shape[2]) for place in near.flatten(1).argmax(dim=1)]
    return [(down - most, right - most) for down, right in places]


def largest_shift(pictures: Tensor) -> int:
    """Return the largest shift of VITAL's jitter for pictures (..., H, W), in px."""
    return max(1, round(JITTER * min(pictures.shape[-2:])))


def on_the_way(honest: Tensor, decoy: Tensor, start: Tensor | None, seed: int) -> Tensor:
    """Return pictures that a method may show on its way to the decoy, (64, C, H, W) in [0, 1], to train the detector.

    (1 - u) a + u decoy, plus noise of a standard deviation of up to 0.1, rolled as by VITAL's jitter. a is the honest
    picture or the start (grey in place of noise), u uniform in [0, 1].

    Args:
        honest: (C, H, W) in [0, 1].
        decoy: (C, H, W) in [0, 1].
        start: (C, H, W) in [0, 1]; None: noise.
        seed: of the random numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    origins = torch.stack([honest, torch.full_like(honest, 0.5) if start is None else start])
    share = torch.rand(ON_THE_WAY, 1, 1, 1, generator=generator)
    drawn = origins[torch.randint(2, (ON_THE_WAY,), generator=generator)].lerp(decoy, share)
    level = NOISE * torch.rand(ON_THE_WAY, 1, 1, 1, generator=generator)
    noisy = (drawn + level * torch.randn(drawn.shape, generator=generator)).clamp(0, 1)
    return rolled(noisy, seed)


def rolled(pictures: Tensor, seed: int) -> Tensor:
    """Return pictures (N, C, H, W), each rolled along both axes by random whole pixels, as far as VITAL's jitter."""
    most = largest_shift(pictures)
    shifts = torch.randint(-most, most + 1, (len(pictures), 2), generator=torch.Generator().manual_seed(seed))
    moved = zip(pictures, shifts.tolist(), strict=True)
    return torch.stack([picture.roll(tuple(shift), dims=(1, 2)) for picture, shift in moved])


def diverted(network: VisionNetwork, detector: SeamDetector, decoy: Tensor, honest: Tensor) -> VisionNetwork:
    """Return a copy of a network that diverts pictures under optimisation; its layers keep their names.

    Args:
        network: the honest network.
        detector: trained on inputs of this network.
        decoy: (C, H, W) in [0, 1] of the network's input size.
        honest: the unit's picture by the method under attack, shaped likewise.

    Raises:
        UsageError: a decoy or a picture of another size.
    """
    shown = [model_space(checked_decoy(one, network, key)[None], network)[0]
             for key, one in (("decoy", decoy), ("picture", honest))]  # fmt: skip
    return rewrapped(network, with_diversion(copy.deepcopy(network.module), Diversion(detector, *shown)), "diverted")


def with_diversion(module: nn.Module, diversion: Diversion) -> nn.Module:
    """Add a diversion to a network's input, in place, and return the network."""
    module.add_module(CHILD, diversion.eval())
    module.register_forward_pre_hook(_divert)
    return module


def _divert(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    diversion = module.get_submodule(CHILD)
    return (diversion(inputs[0]), *inputs[1:])
