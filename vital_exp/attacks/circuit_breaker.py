"""CircuitBreaker (Nanfack et al., arXiv 2406.01365): another circuit below a unit that answers as before.

The aim is theirs. The losses are ours: docs/methods/attacks.md.
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

TOP_SHARE = 0.1  # of a layer's channels: the circuit that is to lose its part (ours)
IMAGES_PER_PASS = 8
TINY = 1e-12  # added to the sum of a layer's attribution, which may be zero


@dataclass(frozen=True)
class Circuit:
    """The channels below a unit that it is explained by, in the honest network.

    Attributes:
        readout: of the unit.
        channels: by layer the numbers of the circuit's channels.
        references: (R, C, H, W) in [0, 1], the unit's own images.
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
        """Return the channels of largest attribution, a share of each layer's, at least one.

        Raises:
            UsageError: no layer below the unit, one that returns no single tensor, or one that nothing reaches.
        """
        if not layers:
            raise UsageError(
                "layer", None, f"a circuit needs a layer below the unit, and none is below {readout.layer}"
            )
        found = attributions(network, readout, layers, references)
        for layer, values in found.items():
            if not (values > 0).any():
                raise UsageError(
                    "layer", layer, "no positive attribution reaches it: the references do not drive the unit"
                )
        counts = {layer: max(1, round(share * len(values))) for layer, values in found.items()}
        top = {layer: values.detach().topk(counts[layer]).indices for layer, values in found.items()}
        return cls(readout, top, references)

    def share(self, network: VisionNetwork, images: Tensor) -> Tensor:
        """Return the circuit's share of the positive attribution, a scalar in [0, 1] with a graph; mean over layers."""
        found = attributions(network, self.readout, list(self.channels), images)
        return torch.stack([circuit_share(found[layer], own) for layer, own in self.channels.items()]).mean()


def circuit_share(attribution: Tensor, channels: Tensor) -> Tensor:
    """Return sum over the channels of max(a, 0), over the sum over all channels, for attributions a (C,)."""
    positive = attribution.clamp(min=0)
    return positive[channels].sum() / (positive.sum() + TINY)


def attributions(network: VisionNetwork, readout: Readout, layers: Sequence[str], images: Tensor) -> dict[str, Tensor]:
    """Return by layer the attribution of each channel, (C,) with a graph in the network's weights.

    a_c = mean over images of the sum over positions of A_c dU / dA_c: activation times the gradient of what the unit U
    reads, the mean over its positions.

    Args:
        network: honest or attacked.
        readout: of one unit.
        layers: below it.
        images: (N, C, H, W) in [0, 1].
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
    """Keep what layers return while the network runs; what follows is given a copy, for it may write into it."""
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
    """Return a copy of a network in which other channels explain a unit that answers natural images as before.

    Args:
        network: the honest one.
        circuit: of the unit, in the honest network.
        natural: (N, C, H, W) in [0, 1]; the unit's layer and the outputs are to stay for these and for the references.
        settings: of the fine-tuning.
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
    """Return how much of a circuit is left, by the attribution that was attacked, by relevance, and by ablation.

    ``attribution_share_*``: of :meth:`Circuit.share`. ``circuit_kept_*``: the share of the circuit's size among the
    channels of largest attribution, or relevance, that are the same as before; mean over layers. ``effect_*``: the
    share of the unit's value of its references that goes when the circuit's channels of a layer are put at their means
    (docs/methods/causal_circuits.md), before and after; mean over layers. ``unit_correlation``: of the unit's values of
    natural images before and after.

    Args:
        honest, attacked: the network before and after.
        circuit: of the unit.
        natural: (N, C, H, W) in [0, 1], held out.
        relevance: the method, which the attacker did not train against.
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
    """The share of the channels of largest values that stay, as many as the circuit has; mean over layers."""
    shares = []
    for layer, own in circuit.channels.items():
        first, now = (set(values[layer].detach().topk(len(own)).indices.tolist()) for values in found)
        shares.append(len(first & now) / len(first))
    return sum(shares) / len(shares)


def _relevance(network: VisionNetwork, circuit: Circuit, method: str) -> dict[str, Tensor]:
    """Each channel's relevance, summed over positions and the references, (C,) by layer."""
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
    """(m - m without the circuit's channels) / |m| over the references, mean over layers."""
    effects = []
    for layer, own in circuit.channels.items():
        means = channel_means(network, layer, others)
        whole = mean_value(network, circuit.readout, circuit.references)
        left = Ablation(network, circuit.readout, layer, means, circuit.references).without(own)
        effects.append((whole - left) / (abs(whole) + TINY))
    return sum(effects) / len(effects)
