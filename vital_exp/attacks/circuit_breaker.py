"""CircuitBreaker (Nanfack et al., arXiv 2406.01365): other channels explain a unit whose values stay as before.

The aim is the paper's, the losses are ours: docs/methods/attacks.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vital_exp.attacks.fine_tuning import FineTuning, fine_tuned, kept_layers, unit_values
from vital_exp.circuits.ablation import Ablation, channel_means, mean_value
from vital_exp.errors import UsageError
from vital_exp.models.network import VisionNetwork, model_space
from vital_exp.models.precision import exact
from vital_exp.relevance.maps import activations_and_relevance
from vital_exp.targets.readout import Readout

TOP_SHARE = 0.1  # of a layer's channels: the circuit under attack (ours)
IMAGES_PER_PASS = 8
TINY = 1e-12  # added to a denominator that may be zero


@dataclass(frozen=True)
class Circuit:
    """The channels below a unit that explain the unit in the honest network.

    Attributes:
        readout: the unit's read-out.
        channels: for each layer the numbers of the circuit's channels.
        references: (R, C, H, W) in [0, 1], the unit's reference images.
    """

    readout: Readout
    channels: Mapping[str, Tensor]
    references: Tensor

    @classmethod
    def of(
        cls,
        network: VisionNetwork,
        readout: Readout,
        layers: Sequence[str],
        references: Tensor,
        share: float = TOP_SHARE,
    ) -> Circuit:
        """Return the circuit: of each layer the given share of channels, at least one, with the largest attribution.

        Raises:
            UsageError: there is no layer below the unit, a layer returns something other than one tensor, or a layer
                has no positive attribution.
        """
        if not layers:
            raise UsageError(
                "layer", None, f"a circuit needs a layer below the unit, and none is below {readout.layer}"
            )
        found = attributions(network, readout, layers, references)
        for layer, values in found.items():
            if not (values > 0).any():
                raise UsageError(
                    "layer", layer, "no channel has a positive attribution: the references do not drive the unit"
                )
        counts = {layer: max(1, round(share * len(values))) for layer, values in found.items()}
        top = {layer: values.detach().topk(counts[layer]).indices for layer, values in found.items()}
        return cls(readout, top, references)

    def share(self, network: VisionNetwork, images: Tensor) -> Tensor:
        """Return the circuit's share of positive attribution, mean over layers: a differentiable scalar in [0, 1]."""
        found = attributions(network, self.readout, list(self.channels), images)
        return torch.stack([circuit_share(found[layer], own) for layer, own in self.channels.items()]).mean()


def circuit_share(attribution: Tensor, channels: Tensor) -> Tensor:
    """Return the sum of max(a, 0) over the channels given, divided by its sum over all, for attributions a (C,)."""
    positive = attribution.clamp(min=0)
    return positive[channels].sum() / (positive.sum() + TINY)


def attributions(network: VisionNetwork, readout: Readout, layers: Sequence[str], images: Tensor) -> dict[str, Tensor]:
    """Return for each layer the attribution of each channel, (C,), differentiable by the network's weights.

    Activation times gradient: a_c = mean over images of the sum over positions of A_c dU / dA_c. U is the unit's
    read-out, averaged over positions.

    Args:
        network: honest or attacked.
        readout: one unit's read-out.
        layers: layers below the unit.
        images: (N, C, H, W) in [0, 1].

    Raises:
        UsageError: a layer is not below the unit, or returns something other than one tensor.
    """
    keeps_graph = any(parameter.requires_grad for parameter in network.module.parameters())
    with torch.enable_grad(), _kept(network, layers) as kept:
        inputs = model_space(images, network).requires_grad_()
        activations, _ = network.taps([readout.layer])(inputs)
        values = readout.of(0, len(images)).mean(exact(activations[readout.layer]))
        missing = [layer for layer in layers if layer not in kept]
        if missing:
            raise UsageError("layer", missing[0], f"not below the unit, whose layer is {readout.layer}", list(kept))
        slopes = torch.autograd.grad(
            values.sum(), [kept[layer] for layer in layers], create_graph=keeps_graph, allow_unused=True
        )
    found = {}
    for layer, slope in zip(layers, slopes, strict=True):
        if slope is None:
            raise UsageError("layer", layer, f"not below the unit, whose layer is {readout.layer}")
        layout = network.taps([layer], "layer").layout(layer)
        product = layout.channels_first(kept[layer] * slope, len(images))  # (N, C, ...)
        found[layer] = product.flatten(2).sum(dim=2).mean(dim=0)
    return found


@contextmanager
def _kept(network: VisionNetwork, layers: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Keep what layers return while the network runs. The next layer gets a copy, since it may write in place."""
    kept: dict[str, Tensor] = {}
    modules = dict(network.module.named_modules())

    def hook(name: str):  # type: ignore[no-untyped-def]
        def keep(_module: nn.Module, _inputs: object, output: object) -> Tensor | None:
            if name in kept:  # a layer that runs several times is read the first time
                return None
            if not isinstance(output, Tensor):
                raise UsageError("layer", name, f"returns {type(output).__name__}: its channels cannot be attributed")
            kept[name] = output
            return output.clone()

        return keep

    _ = network.taps(layers, "layer")  # refuses unknown names
    handles = [modules[layer].register_forward_hook(hook(layer)) for layer in layers]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()


def circuit_breaker(
    network: VisionNetwork, circuit: Circuit, natural: Tensor, *, settings: FineTuning | None = None
) -> VisionNetwork:
    """Return a copy of a network in which other channels explain a unit whose values on natural images stay as before.

    Args:
        network: the honest network.
        circuit: the unit's circuit in the honest network.
        natural: (N, C, H, W) in [0, 1]. For these and for the references, training preserves the unit's layer and the
            outputs.
        settings: the settings of the fine-tuning.
    """
    settings = settings or FineTuning()
    kept = torch.cat([natural, circuit.references])

    def manipulation(attacked: VisionNetwork, generator: torch.Generator) -> Tensor:
        chosen = torch.randint(len(circuit.references), (settings.batch_size,), generator=generator)
        return circuit.share(attacked, circuit.references[chosen])

    return fine_tuned(network, "circuit breaker", manipulation, kept, kept_layers(circuit.readout), settings)


def broken(
    honest: VisionNetwork, attacked: VisionNetwork, circuit: Circuit, natural: Tensor, relevance: str = "lrp"
) -> dict[str, float]:
    """Return how much of a circuit is left after the attack: by attribution, by relevance, and by ablation.

    ``attribution_share_before``, ``_after``: :meth:`Circuit.share`, which the attack lowers.
    ``circuit_kept_attribution``, ``_relevance``: of the K channels with the largest attribution (or relevance) before,
    K the circuit's size in a layer, the share that is among the K largest after; mean over layers.
    ``effect_before``, ``_after``: the share of the unit's value on its references that is lost when the circuit's
    channels of a layer are set to their means (docs/methods/causal_circuits.md); mean over layers.
    ``unit_correlation``: correlation of the unit's values before and after, over natural images.

    Args:
        honest, attacked: the network before and after.
        circuit: the unit's circuit.
        natural: (N, C, H, W) in [0, 1], held out.
        relevance: the relevance method; the attack does not train against relevance.
    """
    both = (honest, attacked)
    shares = [float(circuit.share(one, circuit.references).detach()) for one in both]
    by_attribution = [attributions(one, circuit.readout, list(circuit.channels), circuit.references) for one in both]
    by_relevance = [_relevance(one, circuit, relevance) for one in both]
    effects = [_effect(one, circuit, natural) for one in both]
    with torch.no_grad():
        before, after = (unit_values(one, circuit.readout, natural).double() for one in both)
    return {
        "attribution_share_before": shares[0],
        "attribution_share_after": shares[1],
        "circuit_kept_attribution": _kept_share(circuit, by_attribution),
        "circuit_kept_relevance": _kept_share(circuit, by_relevance),
        "effect_before": effects[0],
        "effect_after": effects[1],
        "unit_correlation": float(torch.corrcoef(torch.stack([before, after]))[0, 1].nan_to_num()),
    }


def _kept_share(circuit: Circuit, found: Sequence[Mapping[str, Tensor]]) -> float:
    """The share of the K channels of largest values that stay the same, K the circuit's size; mean over layers."""
    shares = []
    for layer, own in circuit.channels.items():
        first, now = (set(values[layer].detach().topk(len(own)).indices.tolist()) for values in found)
        shares.append(len(first & now) / len(first))
    return sum(shares) / len(shares)


def _relevance(network: VisionNetwork, circuit: Circuit, method: str) -> dict[str, Tensor]:
    """For each layer the relevance of each channel, (C,), summed over positions and references."""
    sums: dict[str, Tensor] = {}
    for part in circuit.references.split(IMAGES_PER_PASS):
        read = circuit.readout.select([0] * len(part))
        _, maps, _ = activations_and_relevance(
            network, model_space(part, network), list(circuit.channels), read, method
        )
        for layer, values in maps.items():
            total = values.flatten(2).sum(dim=(0, 2)).double().cpu()
            sums[layer] = sums[layer] + total if layer in sums else total
    return sums


def _effect(network: VisionNetwork, circuit: Circuit, others: Tensor) -> float:
    """(m - m without the circuit's channels) / |m|, m the unit's mean over the references; mean over layers."""
    effects = []
    for layer, own in circuit.channels.items():
        means = channel_means(network, layer, others)
        whole = mean_value(network, circuit.readout, circuit.references)
        left = Ablation(network, circuit.readout, layer, means, circuit.references).without(own)
        effects.append((whole - left) / (abs(whole) + TINY))
    return sum(effects) / len(effects)
