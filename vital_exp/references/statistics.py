"""Mean sorted features of reference images: constants of the optimisation, kept on disk (docs/methods/vital.md)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vital_exp.models.identity import identity_of
from vital_exp.models.network import VisionNetwork, model_space
from vital_exp.models.precision import exact
from vital_exp.references.base import References
from vital_exp.references.quantiles import resample_quantiles
from vital_exp.relevance.maps import activations_and_relevance
from vital_exp.relevance.weights import Relevance, channel_correlation, channel_importance, spatial_masks
from vital_exp.targets.readout import Readout
from vital_exp.targets.unit import INPUT, Target
from vital_exp.whole_files import whole_path

# Images passed through the network together; a constant, so that the statistics do not depend on anything else.
IMAGES_PER_PASS = 8
FORMAT = "mean sorted features, 5"  # part of the cache's key: what is stored and relevance rules
# The name under which the target's own read-out, a single channel, is matched like a layer.
READOUT = "readout"
TARGET_LAYER = "target layer"  # all channels of the layer that the target is a unit of
AROUND = (INPUT, READOUT, TARGET_LAYER)  # what has no relevance
QUANTILES, IMPORTANCE = "quantiles/", "importance/"  # prefixes of the names in a cache file


@dataclass
class LayerStatistics:
    """What the references of a batch of targets are like.

    Attributes:
        quantiles: for each layer the ascending mean sorted features, (N, C, Q); masked where relevance has maps.
        importance: for each layer the importance of its channels for the target, (N, C); empty without relevance.
    """

    quantiles: dict[str, Tensor]
    importance: dict[str, Tensor]


class ReferenceStatistics:
    """Computes the statistics of targets' reference images, once.

    Args:
        network: the frozen network.
        references: the images.
        cache_dir: a folder for the results of earlier runs; None keeps nothing.
        relevance: masks and weighs the features of hidden units; None for classes.
    """

    def __init__(
        self,
        network: VisionNetwork,
        references: References,
        cache_dir: Path | None = None,
        relevance: Relevance | None = None,
    ) -> None:
        self.network = network
        self.references = references
        self.cache_dir = cache_dir
        self.relevance = relevance

    def of(self, targets: Sequence[Target], layers: Sequence[str]) -> LayerStatistics:
        """Return the statistics of each target at each layer, on the network's device.

        Args:
            targets: one per picture, those of ``relevance`` in its order.
            layers: module names, ``"input"`` for the images themselves, ``"readout"`` for what the target reads,
                ``"target layer"`` for all channels of the layer that it reads from.
        """
        found: dict[str, dict[str, Tensor]] = {}
        keys = [self._key(number, target, tuple(layers)) for number, target in enumerate(targets)]
        for number, (target, key) in enumerate(zip(targets, keys, strict=True)):
            if key not in found:
                found[key] = self._of_target(number, target, tuple(layers), key)

        def gathered(prefix: str) -> dict[str, Tensor]:
            named = [{n.removeprefix(prefix): v for n, v in found[k].items() if n.startswith(prefix)} for k in keys]
            return {layer: _stacked([one[layer] for one in named]).to(self.network.device) for layer in named[0]}

        return LayerStatistics(gathered(QUANTILES), gathered(IMPORTANCE))

    def kept(self, targets: Sequence[Target], layers: Sequence[str]) -> int:
        """Return of how many targets the results of an earlier run are there; nothing is read or computed."""
        keys = [self._key(number, target, tuple(layers)) for number, target in enumerate(targets)]
        return sum((path := self._path(key)) is not None and path.is_file() for key in keys)

    def _path(self, key: str) -> Path | None:
        return self.cache_dir / "quantiles" / f"{key}.safetensors" if self.cache_dir else None

    def _of_target(self, number: int, target: Target, layers: tuple[str, ...], key: str) -> dict[str, Tensor]:
        path = self._path(key)
        if path and (kept := _read(path, layers)) is not None:
            return kept
        images = self.references.images(target)
        result = reference_statistics(self.network, layers, images, self.relevance, number)
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            with whole_path(path) as temporary:
                save_file(result, temporary)
        return result

    def _key(self, number: int, target: Target, layers: tuple[str, ...]) -> str:
        """What the statistics of a target depend on, as a hash: the name of its file in the cache."""
        unit = ""
        if self.relevance:
            readout = self.relevance.readout.of(number, 1)
            unit = f"{self.relevance.method} {readout.describe()}"
        network = identity_of(self.network).key if self.cache_dir else ""  # within one call it is the same anyway
        parts = (FORMAT, network, layers, self.references.fingerprint(target), unit)
        return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()


def _stacked(rows: Sequence[Tensor]) -> Tensor:
    """Stack (C, Q) of each target, at the finest resolution any of them has: references may differ in size."""
    if rows[0].ndim == 1:
        return torch.stack(list(rows))
    finest = max(one.shape[-1] for one in rows)
    return torch.stack([resample_quantiles(one, finest) for one in rows])


@torch.no_grad()
def reference_statistics(
    network: VisionNetwork,
    layers: Sequence[str],
    images: Iterator[Tensor],
    relevance: Relevance | None = None,
    number: int = 0,
) -> dict[str, Tensor]:
    """Sort each channel of each image's (masked) activations over positions and average over the images.

    Memory does not grow with the number of images: a few are in memory at a time.

    Args:
        network: the frozen network.
        layers: module names, ``"input"``, ``"readout"`` or ``"target layer"``.
        images: (3, H, W) RGB each, all of one size; float64 is normalised before it is cast.
        relevance: how relevant features are; None matches all features alike.
        number: which of the targets of ``relevance`` the images show.

    Returns:
        For each layer ``"quantiles/<layer>"``, (C, Q) ascending float32 values on the CPU, Q the number of positions;
        with relevance also ``"importance/<layer>"``, (C,).
    """
    sums = _Sums()
    while chunk := list(islice(images, IMAGES_PER_PASS)):
        pictures = model_space(torch.stack(chunk), network)
        readout = relevance.readout.of(number, len(chunk), strongest=True) if relevance else None
        sums.add(*features_of(network, layers, pictures, relevance, readout))
    return sums.result(relevance.method if relevance else "none")


def features_of(
    network: VisionNetwork,
    layers: Sequence[str],
    pictures: Tensor,
    relevance: Relevance | None,
    readout: Readout | None,
) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor | None]:
    """Return activations (B, C, P), relevance (B, C, ...) and the target's largest read-outs (B,) of some images.

    The network runs once.
    """
    hidden = [layer for layer in layers if layer not in AROUND]
    maps: dict[str, Tensor] = {}
    if relevance is None or readout is None:
        activations, _ = network.taps(layers)(pictures)
        return {layer: exact(values).flatten(2) for layer, values in activations.items()}, maps, None
    if relevance.has_maps and hidden:
        found, maps, _ = activations_and_relevance(network, pictures, hidden, readout, relevance.method)
    else:
        found, _ = network.taps([*dict.fromkeys([*hidden, readout.layer])])(pictures)
    activations = {layer: exact(values) for layer, values in found.items()}
    features = {layer: activations[layer].flatten(2) for layer in hidden}
    features |= {INPUT: pictures.flatten(2)} if INPUT in layers else {}
    features |= {READOUT: readout.map(activations[readout.layer])[:, None]} if READOUT in layers else {}
    features |= {TARGET_LAYER: activations[readout.layer].flatten(2)} if TARGET_LAYER in layers else {}
    return features, maps, readout.value(activations[readout.layer])


@dataclass
class _Sums:
    """What is accumulated over the reference images of one target, in double precision on the CPU."""

    count: int = 0
    quantiles: dict[str, Tensor] = field(default_factory=dict)  # (C, Q)
    importance: dict[str, Tensor] = field(default_factory=dict)  # (C,)
    means: dict[str, list[Tensor]] = field(default_factory=dict)  # (B, C) of each pass
    values: list[Tensor] = field(default_factory=list)  # (B,) of each pass

    def add(self, features: dict[str, Tensor], maps: dict[str, Tensor], values: Tensor | None) -> None:
        for layer, activation in features.items():
            masked = activation * spatial_masks(maps[layer]).to(activation) if layer in maps else activation
            self._sum(self.quantiles, layer, masked.float().sort(dim=-1).values)  # (B, C, Q)
            if layer in maps:
                self._sum(self.importance, layer, channel_importance(maps[layer]))  # (B, C)
            if values is not None:
                self.means.setdefault(layer, []).append(activation.mean(dim=-1).float().cpu())
        if values is not None:
            self.values.append(values.float().cpu())
        self.count += len(next(iter(features.values())))

    @staticmethod
    def _sum(sums: dict[str, Tensor], layer: str, values: Tensor) -> None:
        exact = values.sum(dim=0).cpu().double()
        sums[layer] = sums[layer] + exact if layer in sums else exact

    def result(self, method: str) -> dict[str, Tensor]:
        quantiles = {QUANTILES + layer: (total / self.count).float() for layer, total in self.quantiles.items()}
        importance = {layer: (total / self.count).float() for layer, total in self.importance.items()}
        if method == "correlation":
            hidden = [layer for layer in self.means if layer not in AROUND]
            values = torch.cat(self.values)
            importance = {layer: channel_correlation(torch.cat(self.means[layer]), values) for layer in hidden}
        return quantiles | {IMPORTANCE + layer: weights for layer, weights in importance.items()}


def _read(path: Path, layers: Sequence[str]) -> dict[str, Tensor] | None:
    """A kept result, or None when there is none or it is damaged (it is then made again)."""
    try:
        kept = load_file(path)
    except (OSError, SafetensorError):
        return None
    return kept if {f"{QUANTILES}{layer}" for layer in layers} <= set(kept) else None
