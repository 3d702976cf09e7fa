"""How well a sparse autoencoder reconstructs the activations of real images: a wrong convention shows there."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import torch
from torch import Tensor

from vital_exp.models.network import VisionNetwork, model_space
from vital_exp.targets.autoencoder import SparseAutoencoder

logger = logging.getLogger(__name__)

# A trained autoencoder leaves less of the variance; with a wrong convention most is left, or more than there was.
POOR = 0.5
MOST_IMAGES = 16


@torch.no_grad()
def unexplained(network: VisionNetwork, layer: str, autoencoder: SparseAutoencoder, images: Iterable[Tensor]) -> float:
    """Return the share of the activations' variance that the reconstruction leaves: |a - a'|^2 / |a - mean|^2.

    Args:
        network: the frozen network.
        layer: what the autoencoder reads.
        autoencoder: with its decoder.
        images: (3, H, W) RGB in [0, 1]; sums and the mean are over all positions of all.

    Returns:
        0 is perfect; 1 is as good as the mean activation. Infinity where all activations are alike.
    """
    taps, left, maps = network.taps([layer]), 0.0, []
    for image in images:
        activations, _ = taps(model_space(image[None].to(network.device), network))
        values = activations[layer].flatten(2).float()
        left += float((values - autoencoder.reconstruct(values)).double().square().sum())
        maps.append(values[0].double())
    every = torch.cat(maps, dim=1)
    variance = float((every - every.mean(dim=1, keepdim=True)).square().sum())
    return left / variance if variance > 0 else float("inf")


def tell_reconstruction(
    network: VisionNetwork, layer: str, autoencoder: SparseAutoencoder, images: Iterable[Tensor]
) -> None:
    """Say what the autoencoder is and how much of the images' activations it explains; warn where that is little."""
    kept = "" if autoencoder.k is None else f" of k={autoencoder.k}"
    told = f"autoencoder of {layer}: {len(autoencoder)} features, {autoencoder.activation}{kept}"
    if autoencoder.decoder is None or autoencoder.decoder_bias is None:
        logger.info("%s; its reconstruction is not measured without target.decoder and target.decoder_bias", told)
        return
    share = unexplained(network, layer, autoencoder, images)
    logger.info("%s; its reconstruction leaves %.1f %% of the variance of real activations", told, 100 * share)
    if not share <= POOR:
        logger.warning(
            "the autoencoder does not fit the activations of %s (%.0f %% of their variance is left): another layer, "
            "another target.scale or target.mean, or another convention?",
            layer,
            100 * share,
        )
