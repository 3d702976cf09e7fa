"""Relevance of activations below a target's layer for the target's read-out (docs/methods/relevance.md)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress

import torch
from torch import Tensor, nn

from vital_exp.errors import UsageError
from vital_exp.models.layers import is_transformer
from vital_exp.models.network import VisionNetwork
from vital_exp.models.precision import in_float32
from vital_exp.models.refusals import check_gradients
from vital_exp.models.taps import Taps, first_tensor
from vital_exp.relevance.out_of_place import GuidedPass, OutOfPlacePass, Uncovered
from vital_exp.relevance.rule_pass import RelevancePass, check_ruled
from vital_exp.targets.readout import Readout
from vital_exp.targets.unit import OUTPUT

LRP = ("lrp", "lrp_restricted", "attn_lrp")
WITH_MAPS = (*LRP, "guided_backprop", "gradient_x_activation")
# These methods weigh channels only, by statistics of the references, and give no map for each picture.
WITHOUT_MAPS = ("correlation", "none")
METHODS = (*WITH_MAPS, *WITHOUT_MAPS)


class _TargetReached(Exception):
    """Ends the forward pass after the target's layer."""


Found = tuple[dict[str, Tensor], dict[str, Tensor], Tensor]


def activations_and_relevance(
    network: VisionNetwork | nn.Module, pictures: Tensor, layers: Sequence[str], readout: Readout, method: str
) -> Found:
    """Return activations, their relevance for the targets' read-outs, and the read-outs.

    Args:
        network: the network, or a bare module.
        pictures: (N, 3, H, W) normalised.
        layers: the target's layer, or layers below it, at which relevance is returned.
        readout: one target per picture; the forward pass ends at its layer.
        method: ``"lrp"`` (on networks with attention the same as ``"attn_lrp"``), ``"lrp_restricted"``,
            ``"attn_lrp"``, ``"guided_backprop"`` or ``"gradient_x_activation"``.

    Returns:
        Activations and relevance at each layer, (N, C, ...) channels first, the activations with those of the target's
        layer; and the read-out (N, P) of the target's layer. All without a graph.

    Raises:
        UsageError: a layer that does not come before the target, or an operation that no rule covers.
    """
    tapped = [*layers, readout.layer]
    taps = network.taps(tapped) if isinstance(network, VisionNetwork) else Taps(network, tapped)
    if len(pictures) > 1 and taps.trace(pictures).one_by_one:
        each = range(len(pictures))
        return _joined([_of_pass(taps, pictures[[i]], layers, readout.select([i]), method) for i in each])
    return _of_pass(taps, pictures, layers, readout, method)


def _joined(passes: Sequence[Found]) -> Found:
    """Concatenate the results of single pictures."""

    def together(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        return {layer: torch.cat([one[layer] for one in parts]) for layer in parts[0]}

    activations, maps, read = zip(*passes, strict=True)
    return together(activations), together(maps), torch.cat(read)


def _of_pass(taps: Taps, pictures: Tensor, layers: Sequence[str], readout: Readout, method: str) -> Found:
    mode = _pass(taps.module, method)
    with torch.enable_grad(), in_float32(taps.module):
        try:
            try:
                outputs = _ruled(taps, pictures, readout.layer, mode)
            except Uncovered:  # operations on the picture alone, such as a detector's padding, need no rule
                mode = _pass(taps.module, method)
                outputs = _ruled(taps, pictures, readout.layer, mode, from_weights=True)
        except Uncovered as operation:
            raise _uncovered(taps, pictures, readout.layer, method, str(operation).splitlines()[0]) from None
        target = taps.channels_first(readout.layer, outputs[readout.layer], pictures)
        relevance = start(target.detach(), readout, method)
        below = [layer for layer in layers if layer != readout.layer]
        tapped = [outputs[layer] for layer in below]
        flow = torch.autograd.grad(target, tapped, relevance, allow_unused=True) if below else ()
    for layer, arrived in zip(below, flow, strict=True):
        if arrived is None:
            raise UsageError("model.layers", layer, f"does not influence the target's layer {readout.layer}")
    maps = {layer: taps.channels_first(layer, one, pictures) for layer, one in zip(below, flow, strict=True)}
    activations = {layer: taps.channels_first(layer, outputs[layer].detach(), pictures) for layer in below}
    activations[readout.layer] = target.detach()
    found = _maps({readout.layer: relevance, **maps}, activations, method)
    return activations, {layer: found[layer] for layer in layers}, readout.map(activations[readout.layer])


def _maps(flow: dict[str, Tensor], activations: dict[str, Tensor], method: str) -> dict[str, Tensor]:
    """Return relevance at each layer from the backward signal at the layer."""
    if method == "guided_backprop":
        return {layer: flow[layer].clamp(min=0) for layer in activations}
    if method == "gradient_x_activation":
        return {layer: flow[layer] * activations[layer] for layer in activations}
    return {layer: flow[layer] for layer in activations}


def start(activation: Tensor, readout: Readout, method: str) -> Tensor:
    """Return the initial relevance at the target's layer, in the shape of the layer's activation (N, C, ...).

    With the target's vector v, the activation A and channels c, at the target's positions p:

    - LRP: v_c A_c(p) where the read-out is positive; for an autoencoder's feature, whose encoder is a linear layer,
      where the feature is active.
    - ``"lrp_restricted"``: v_c, at the position where the read-out is the largest share of the norm of all channels.
    - Methods by gradients: the gradient of the mean read-out.
    """
    values, vectors = activation.flatten(2), readout.vectors.to(activation)[:, :, None]  # (N, C, P), (N, C, 1)
    read, mask = readout.map(activation), readout.mask(activation)  # (N, P)
    if method == "lrp_restricted":
        share = (read / values.norm(dim=1).clamp(min=torch.finfo(values.dtype).tiny)).masked_fill(mask == 0, -torch.inf)
        place = nn.functional.one_hot(share.argmax(dim=1), share.shape[1]).to(values)
        begun = vectors * place[:, None]
    elif method in LRP:
        begun = readout.shares(activation) * (mask * readout.active(activation))[:, None]
    else:
        begun = vectors * (mask / mask.sum(dim=1, keepdim=True))[:, None]
    return torch.empty_like(activation).copy_(begun.view_as(activation))  # keeps the activation's memory format


def _pass(module: nn.Module, method: str) -> OutOfPlacePass:
    if method == "guided_backprop":
        return GuidedPass()
    if method == "gradient_x_activation":
        return OutOfPlacePass()
    return RelevancePass(epsilon_rules=method == "attn_lrp" or is_transformer(module))


def _ruled(
    taps: Taps, pictures: Tensor, target: str, mode: OutOfPlacePass, from_weights: bool = False
) -> dict[str, Tensor]:
    """Return :func:`_outputs`; raise Uncovered if an operation on the way has no rule."""
    outputs = _outputs(taps, pictures, target, mode, from_weights)
    check_gradients(outputs)
    if isinstance(mode, RelevancePass):
        check_ruled(list(outputs.values()))
    return outputs


def _outputs(
    taps: Taps, pictures: Tensor, target: str, mode: OutOfPlacePass, from_weights: bool = False
) -> dict[str, Tensor]:
    """Run the network up to the target's layer under a mode; return the layers' outputs with their autograd graph.

    The graph begins at the pictures, or (``from_weights``) at the inputs of modules with weights.
    """
    found: dict[str, Tensor] = {}

    def note(name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(_module: nn.Module, _inputs: object, output: object) -> None:
            found.setdefault(name, mode.current(first_tensor(output, name)))
            if from_weights:
                found[name].requires_grad_()
            if name == target:
                raise _TargetReached

        return hook

    def begin(_module: nn.Module, inputs: tuple[object, ...]) -> None:
        for value in map(mode.current, inputs):
            if isinstance(value, Tensor) and value.is_floating_point():
                value.requires_grad_()

    with ExitStack() as hooks:
        for name, layer in taps.layers.items():
            hooks.callback(layer.register_forward_hook(note(name)).remove)
        if from_weights:
            for part in taps.module.modules():
                if next(part.parameters(recurse=False), None) is not None:
                    hooks.callback(part.register_forward_pre_hook(begin).remove)
        try:
            with mode:
                returned = taps.module(pictures.detach().requires_grad_(not from_weights))
                if taps.reads_output:
                    entry = mode.current(taps.output.entry(returned, len(pictures)))
                    found[OUTPUT] = taps.output.shaped(entry, len(pictures))
        except _TargetReached:
            pass
    missing = [name for name in taps.layers if name not in found]
    if missing:
        raise UsageError("model.layers", missing[0], f"not below the target's layer {target}")
    return found


def _uncovered(taps: Taps, pictures: Tensor, target: str, method: str, operation: str) -> UsageError:
    """Return the error for an operation without a rule; another pass finds the module that the operation is in."""
    running: list[str] = []

    def leave(_module: nn.Module, _inputs: object, output: object) -> None:
        check_ruled(output)
        running.pop()

    with ExitStack() as hooks:
        for name, part in taps.module.named_modules():
            hooks.callback(part.register_forward_pre_hook(lambda *_, name=name: running.append(name)).remove)
            hooks.callback(part.register_forward_hook(leave).remove)
        with suppress(Uncovered):
            _outputs(taps, pictures, target, _pass(taps.module, method), from_weights=True)
    place = next((name for name in reversed(running) if name), type(taps.module).__name__)
    problem = f"no rule for the operation {operation} in {place}; relevance=gradient_x_activation works on any network"
    return UsageError("relevance", method, problem)
