"""A small autoencoder that travels with the package, trained on the drawn images: the prior ``image.weights=embedded``.

This module knows its architecture and where its weights are; ``tools/train_prior.py`` makes the weights. Its methods
have the form of diffusers' autoencoders, but diffusers is not needed.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

SIZE = 64  # px, the drawn images' side
# The smallest of a few that reconstruct the drawn images well.
LATENTS = 16  # channels of the latents
PATCH = 4  # px: the convolutions see patches of 4 x 4 px as positions, which saves most of the time
WIDTHS = (48, 80, 96)  # channels at 1/4, 1/8 and 1/16 of the picture's side
SMALLEST, LARGEST = -8.0, 4.0  # of the logarithm of the posterior's variance


class Decoded(NamedTuple):
    """Pictures (N, 3, H, W) in about [-1, 1]."""

    sample: Tensor


class Encoded(NamedTuple):
    """The means of the posteriors, (N, 16, H / 16, W / 16)."""

    latents: Tensor


class Residual(nn.Module):
    """x + two convolutions of 3 x 3; zero at the start, so that training begins with the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        for parameter in self.second.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, C, H, W) for (N, C, H, W)."""
        found: Tensor = x + self.second(functional.silu(self.first(functional.silu(x))))
        return found


class EmbeddedAutoencoder(nn.Module):
    """A variational autoencoder of pictures (N, 3, H, W) in [-1, 1]; H and W are multiples of 16.

    It has random weights; :func:`embedded_prior` returns the trained one.
    """

    def __init__(self) -> None:
        super().__init__()
        fine, middle, coarse = WIDTHS
        # Keys as in diffusers' configurations; five numbers of channels stand for four halvings.
        self.config = {
            "in_channels": 3,
            "out_channels": 3,
            "latent_channels": LATENTS,
            "block_out_channels": (3, fine, fine, middle, coarse),
            "sample_size": SIZE,
        }
        pixels = 3 * PATCH**2
        self.encoder = nn.Sequential(
            *(nn.PixelUnshuffle(PATCH), nn.Conv2d(pixels, fine, 3, padding=1), Residual(fine)),
            *(nn.Conv2d(fine, middle, 4, stride=2, padding=1), Residual(middle)),
            *(nn.Conv2d(middle, coarse, 4, stride=2, padding=1), Residual(coarse)),
            *(nn.SiLU(), nn.Conv2d(coarse, 2 * LATENTS, 1)),
        )
        self.decoder = nn.Sequential(
            *(nn.Conv2d(LATENTS, coarse, 3, padding=1), Residual(coarse), nn.Upsample(scale_factor=2)),
            *(nn.Conv2d(coarse, middle, 3, padding=1), Residual(middle), nn.Upsample(scale_factor=2)),
            *(nn.Conv2d(middle, fine, 3, padding=1), Residual(fine), Residual(fine)),
            *(nn.SiLU(), nn.Conv2d(fine, pixels, 3, padding=1), nn.PixelShuffle(PATCH)),
        )

    def posterior(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and logarithm of the variance of each picture's latents, (N, 16, H / 16, W / 16) each."""
        mean, log_variance = self.encoder(pictures).chunk(2, dim=1)
        return mean, log_variance.clamp(SMALLEST, LARGEST)

    def encode(self, pictures: Tensor) -> Encoded:
        """Return the latents of pictures (N, 3, H, W) in [-1, 1]."""
        return Encoded(self.posterior(pictures)[0])

    def decode(self, latents: Tensor) -> Decoded:
        """Return the pictures of latents (N, 16, h, w), which are N(0, I) over the drawn images: (N, 3, 16 h, 16 w)."""
        return Decoded(self.decoder(latents))


def weights_path() -> Path:
    """Return where the package keeps the weights, a safetensors file in half precision."""
    return Path(__file__).with_name("embedded_prior.safetensors")


def embedded_prior() -> EmbeddedAutoencoder:
    """Return the trained autoencoder in float32."""
    model = EmbeddedAutoencoder()
    model.load_state_dict({name: tensor.float() for name, tensor in load_file(weights_path()).items()})
    return model
