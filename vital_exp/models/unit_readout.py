"""The read-out of targets: a class's logit, or a channel or direction of a layer at all or some positions."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from vital_exp.models.layers import unit_shape
from vital_exp.models.network import VisionNetwork
from vital_exp.models.tokens import token_span
from vital_exp.targets.autoencoder import SparseAutoencoder
from vital_exp.targets.readout import Readout, Span, readout
from vital_exp.targets.unit import PATCH_TOKENS, Target


def unit_readout(
    network: VisionNetwork,
    targets: Sequence[Target],
    vectors: Tensor | SparseAutoencoder | None = None,
    key: str = "target.layer",
) -> Readout:
    """Return the read-out of targets of one layer, or of classes.

    Args:
        network: the frozen network.
        targets: all in one layer and for the same tokens, or all classes.
        vectors: for direction targets the directions (K, C), or the autoencoder of their features.
        key: the configuration key that an error about the layer names.

    Raises:
        UsageError: the network has no classes, the layer is unknown, or the layer lacks these tokens.
    """
    layer, tokens = targets[0].layer, targets[0].tokens
    if layer is None:
        return readout(targets, len(network.classes))
    span: Span | None = None if tokens is None else token_span(network, layer, tokens)
    if span is not None and tokens == PATCH_TOKENS:
        span = (span[0], None)  # pictures of another size than the input have more patches, or fewer
    return readout(targets, unit_shape(network, layer, key)[0], vectors, span)
