"""The published optimisation of hidden units (VITAL, arXiv 2503.22399), transcribed plainly from its description.

At each step it does two more things than the loop of classes that the library does not: it builds the network of the
relevance pass again, and backpropagates through the references too, whose graph it keeps. Relevance itself is computed
by the library, which is no slower than other implementations.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

from published_loop import PublishedLoop, tapped
from torch import Tensor, nn

from vital_exp.relevance.maps import activations_and_relevance
from vital_exp.relevance.weights import channel_importance, spatial_masks
from vital_exp.targets.readout import Readout


class PublishedUnitLoop(PublishedLoop):
    """One picture of a hidden unit, without the image priors.

    Args:
        network: the network, whose parameters require gradients but do not change.
        weights: the weight in the loss of each tapped layer below the unit's.
        readout: the unit's read-out, for one picture.
        references: normalised images (B, 3, H, W).
        start: a normalised picture (1, 3, H, W).
        valid: the normalised values of RGB 0 and 1, each (3, 1, 1).
    """

    def __init__(
        self,
        network: nn.Module,
        weights: Mapping[str, float],
        readout: Readout,
        references: Tensor,
        start: Tensor,
        valid: tuple[Tensor, Tensor],
    ) -> None:
        layers = list(weights)
        network = network.eval().requires_grad_(True)
        activations = tapped(network, layers, references)  # with their graph
        super().__init__(network, weights, activations, start, valid)
        self.readout = readout
        maps = self._relevance(references)
        self.reference_masks = {layer: spatial_masks(maps[layer]) for layer in layers}
        self.channels = {layer: channel_importance(maps[layer]).mean(dim=0) for layer in layers}

    def _relevance(self, pictures: Tensor) -> dict[str, Tensor]:
        """Return the relevance of normalised pictures at each layer, by a network that is built for the purpose."""
        network = copy.deepcopy(self.network)
        readout = self.readout.of(0, len(pictures))
        return activations_and_relevance(network, pictures.detach(), list(self.weights), readout, "lrp")[1]

    def losses(self, pictures: Tensor) -> Tensor:
        """Return the loss of a normalised picture (1, 3, H, W), (1,)."""
        features = tapped(self.network, list(self.weights), pictures)
        maps = self._relevance(pictures)
        total = pictures.new_zeros(len(pictures))
        for layer, weight in self.weights.items():
            masked = features[layer] * spatial_masks(maps[layer])  # (1, C, P)
            sorted_references = (self.activations[layer] * self.reference_masks[layer]).sort(dim=-1).values
            ranks = masked.detach().sort(dim=-1).indices.argsort(dim=-1)
            matched = sorted_references.mean(dim=0).expand_as(masked).gather(-1, ranks)
            squared = (masked - matched).square() * self.channels[layer][:, None]
            total = total + weight * squared.mean(dim=(1, 2))
        return total

    def descend(self, losses: Tensor) -> None:
        """Backpropagate through the picture and the references, whose graph is kept."""
        losses.sum().backward(retain_graph=True)
