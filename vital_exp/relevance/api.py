"""Relevance maps of a network by name, for images in RGB."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from vital_exp.images.ranges import checked_pictures
from vital_exp.models.layers import unit_shape
from vital_exp.models.named import load_model
from vital_exp.models.network import VisionNetwork, model_space
from vital_exp.models.preparation import check_values
from vital_exp.models.unit_readout import unit_readout
from vital_exp.modes import own_modes
from vital_exp.relevance.maps import WITH_MAPS, activations_and_relevance
from vital_exp.targets.readout import check_unit
from vital_exp.targets.selection import parse_target
from vital_exp.targets.unit import Target
from vital_exp.values import one_of


@own_modes()
def relevance_maps(
    model: str | nn.Module | VisionNetwork,
    images: Tensor,
    target: str | Target,
    layers: Sequence[str],
    method: str = "lrp",
) -> dict[str, Tensor]:
    """Return how relevant each activation of the layers is for a unit, image by image.

    Args:
        model: a name, or a network wrapped by :func:`vital_exp.load_model`.
        images: (N, 3, H, W) RGB in [0, 1], never clamped; float64 is normalised before it is cast.
        target: ``"layer4.2:1935"``, with ``@7,7`` at one position; ``"class:207"`` is the logit.
        layers: module names, the target's layer or layers below it.
        method: ``"lrp"``, ``"lrp_restricted"``, ``"attn_lrp"``, ``"guided_backprop"`` or ``"gradient_x_activation"``.

    Returns:
        For each layer (N, C, H, W), or (N, C, T) of tokens, on the network's device.

    Raises:
        UsageError: images that are not RGB in [0, 1], an unknown method, layer or unit, a layer above the target, an
            operation no rule covers.
    """
    one_of("method", method, WITH_MAPS)
    network = model if isinstance(model, VisionNetwork) else load_model(model)
    images = checked_pictures(images, "images", network.preprocessing.channels)
    check_values(network.module)
    unit = parse_target(target, network.class_names)
    if unit.layer is not None:
        check_unit(unit, unit_shape(network, unit.layer, "target"), "target")
    read = unit_readout(network, [unit], key="target").select([0] * len(images))
    _, maps, _ = activations_and_relevance(network, model_space(images, network), layers, read, method)
    return maps
