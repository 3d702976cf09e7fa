"""How well a sparse autoencoder reconstructs activations of natural images, which reveals a wrong convention."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import torch
from torch import Tensor

from vital_exp.models.network import VisionNetwork, model_space
from vital_exp.targets.autoencoder import SparseAutoencoder

logger = logging.getLogger(__name__)

# Share of the variance. A trained autoencoder leaves less unexplained; with a wrong convention it leaves more, or even
# more than 1.
POOR = 0.5
MOST_IMAGES = 16


@torch.no_grad()
def unexplained(network: VisionNetwork, layer: str, autoencoder: SparseAutoencoder, images: Iterable[Tensor]) -> float:
    """Return the share of the activations' variance that the reconstruction leaves: |a - a'|^2 / |a - mean|^2.

    Args:
        network: the frozen network.
        layer: the layer that the autoencoder reads.
        autoencoder: an autoencoder with its decoder.
        images: (C, H, W) in [0, 1]; sums and the mean are over all positions of all images.

    Returns:
        0 is perfect; 1 is as good as the mean activation; infinity where all activations are equal.
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


def log_reconstruction(
    network: VisionNetwork, layer: str, autoencoder: SparseAutoencoder, images: Iterable[Tensor]
) -> None:
    """Log the autoencoder and the share of variance that its reconstruction leaves; warn where the share is large."""
    kept = "" if autoencoder.k is None else f" of k={autoencoder.k}"
    words = f"autoencoder of {layer}: {len(autoencoder)} features, {autoencoder.activation}{kept}"
    if autoencoder.decoder is None or autoencoder.decoder_bias is None:
        logger.info("%s; its reconstruction is not measured without target.decoder and target.decoder_bias", words)
        return
    share = unexplained(network, layer, autoencoder, images)
    logger.info("%s; its reconstruction leaves %.1f %% of the variance of real activations", words, 100 * share)
    if not share <= POOR:
        logger.warning(
            "the autoencoder does not fit the activations of %s (%.0f %% of their variance is left): check the layer, "
            "target.scale, target.mean and the convention",
            layer,
            100 * share,
        )
