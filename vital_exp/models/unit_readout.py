"""What targets read of a network: a class's logit, or a channel or direction of a layer, at all or some positions."""

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
    """Return what targets of one layer, or classes, read.

    Args:
        network: the frozen network.
        targets: all of one layer, and of the same tokens, or all classes.
        vectors: (K, C) directions, or the autoencoder that has them, for direction targets.
        key: the configuration key to blame for the layer.

    Raises:
        UsageError: no classes, an unknown layer, or tokens that it does not have.
    """
    layer, tokens = targets[0].layer, targets[0].tokens
    if layer is None:
        return readout(targets, len(network.classes))
    span: Span | None = None if tokens is None else token_span(network, layer, tokens)
    if span is not None and tokens == PATCH_TOKENS:
        span = (span[0], None)  # pictures of another size than the input have more patches, or fewer
    return readout(targets, unit_shape(network, layer, key)[0], vectors, span)
