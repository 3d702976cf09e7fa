"""Relevance maps of a named network for images in [0, 1]."""

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
    """Return the relevance of each activation of some layers for a unit, for each image.

    Args:
        model: a name, or a network wrapped by :func:`vital_exp.load_model`.
        images: (N, C, H, W) in [0, 1], RGB or grey, not clamped. float64 is normalised before it is cast to the
            network's dtype.
        target: ``"layer4.2:1935"`` for a channel, ``"layer4.2:1935@7,7"`` for a neuron, ``"class:207"`` for a logit.
        layers: names of modules: the target's layer or layers below it.
        method: ``"lrp"``, ``"lrp_restricted"``, ``"attn_lrp"``, ``"guided_backprop"`` or ``"gradient_x_activation"``.

    Returns:
        By layer the relevance, (N, C, H, W), or (N, C, T) for T tokens, on the network's device.

    Raises:
        UsageError: images of another shape or range; an unknown method, layer or unit; a layer above the target; an
            operation that no rule covers.
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
