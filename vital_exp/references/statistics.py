"""Mean sorted features of reference images: constants of the optimisation, cached on disk (docs/methods/vital.md)."""

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

from vital_exp.images.details import DETAILS, details
from vital_exp.images.output import resized, scaled_size
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

# Images per pass of the network; constant, because the batch size would change the last bits of the statistics.
IMAGES_PER_PASS = 8
# Part of the cache's key; raise the number when the stored content or a relevance rule changes.
FORMAT = "mean sorted features, 5"
READOUT = "readout"  # names the target's read-out, which is matched like a layer with a single channel
TARGET_LAYER = "target layer"  # names all channels of the layer that the target is a unit of
OF_PICTURES = (INPUT, *DETAILS)  # features that need no network
WITHOUT_RELEVANCE = (*OF_PICTURES, READOUT, TARGET_LAYER)
QUANTILES, IMPORTANCE = "quantiles/", "importance/"  # prefixes of the names in a cache file


@dataclass
class LayerStatistics:
    """Statistics of the references of a batch of N targets, float32.

    Attributes:
        quantiles: for each layer the mean sorted features, (N, C, Q), ascending; masked where relevance has maps.
        importance: for each layer the importance of its channels for the target, (N, C); empty without relevance.
    """

    quantiles: dict[str, Tensor]
    importance: dict[str, Tensor]


class ReferenceStatistics:
    """Computes the statistics of targets' reference images, once.

    Args:
        network: the frozen network.
        references: the source of the images.
        cache_dir: a folder for the results of earlier runs; None keeps nothing.
        relevance: masks and weighs the features of hidden units; None for classes.
        share: side at which the network sees the images, as a share of their own side.
    """

    def __init__(
        self,
        network: VisionNetwork,
        references: References,
        cache_dir: Path | None = None,
        relevance: Relevance | None = None,
        share: float = 1.0,
    ) -> None:
        self.network = network
        self.references = references
        self.cache_dir = cache_dir
        self.relevance = relevance
        self.share = share

    def of(self, targets: Sequence[Target], layers: Sequence[str]) -> LayerStatistics:
        """Return the statistics of each target at each layer, on the network's device.

        Args:
            targets: one per picture; with ``relevance``, the same targets in the same order as there.
            layers: module names, ``"input"`` for the images themselves, bands of details, ``"readout"`` for
                the target's read-out, ``"target layer"`` for all channels of the layer that the target reads from.
        """
        results: dict[str, dict[str, Tensor]] = {}
        keys = [self._key(number, target, tuple(layers)) for number, target in enumerate(targets)]
        for number, (target, key) in enumerate(zip(targets, keys, strict=True)):
            if key not in results:
                results[key] = self._of_target(number, target, tuple(layers), key)

        def gathered(prefix: str) -> dict[str, Tensor]:
            rows = [{n.removeprefix(prefix): v for n, v in results[k].items() if n.startswith(prefix)} for k in keys]
            return {layer: _stacked([row[layer] for row in rows]).to(self.network.device) for layer in rows[0]}

        return LayerStatistics(gathered(QUANTILES), gathered(IMPORTANCE))

    def kept(self, targets: Sequence[Target], layers: Sequence[str]) -> int:
        """Return the number of targets whose statistics are in the cache; nothing is read or computed."""
        keys = [self._key(number, target, tuple(layers)) for number, target in enumerate(targets)]
        return sum((path := self._path(key)) is not None and path.is_file() for key in keys)

    def _path(self, key: str) -> Path | None:
        return self.cache_dir / "quantiles" / f"{key}.safetensors" if self.cache_dir else None

    def _of_target(self, number: int, target: Target, layers: tuple[str, ...], key: str) -> dict[str, Tensor]:
        path = self._path(key)
        if path and (kept := _read(path, layers)) is not None:
            return kept
        images = map(self._seen, self.references.images(target))
        result = reference_statistics(self.network, layers, images, self.relevance, number)
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            with whole_path(path) as temporary:
                save_file(result, temporary)
        return result

    def _seen(self, image: Tensor) -> Tensor:
        """Return an image (C, H, W) at the size at which the network sees it."""
        if self.share == 1:
            return image
        return resized(image[None], scaled_size(image.shape[-2:], self.share))[0]

    def _key(self, number: int, target: Target, layers: tuple[str, ...]) -> str:
        """Return a hash of everything that the statistics of a target depend on: the name of its file in the cache."""
        unit = ""
        if self.relevance:
            readout = self.relevance.readout.of(number, 1)
            unit = f"{self.relevance.method} {readout.describe()}"
        network = identity_of(self.network).key if self.cache_dir else ""  # without a cache there is only this network
        seen = () if self.share == 1 else (f"at {self.share} of the side",)
        parts = (FORMAT, network, layers, self.references.fingerprint(target), unit, *seen)
        return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()


def _stacked(rows: Sequence[Tensor]) -> Tensor:
    """Stack the quantiles (C, Q) or importance (C,) of targets; quantiles are resampled to the largest Q.

    Q differs where the targets' references differ in size.
    """
    if rows[0].ndim == 1:
        return torch.stack(list(rows))
    finest = max(row.shape[-1] for row in rows)
    return torch.stack([resample_quantiles(row, finest) for row in rows])


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
        layers: module names, ``"input"``, bands of details, ``"readout"`` or ``"target layer"``.
        images: (3, H, W) RGB in [0, 1] each, all of one size; float64 is normalised before it is cast.
        relevance: how relevant features are; None matches all features alike.
        number: the place, among the targets of ``relevance``, of the target that the images show.

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
    """Return by layer the activations (B, C, P) and relevance (B, C, ...) of pictures, and the read-outs (B,).

    The network runs once. Without relevance there are no maps, and the read-outs are None. P is the number of
    positions.
    """
    hidden = [layer for layer in layers if layer not in WITHOUT_RELEVANCE]
    maps: dict[str, Tensor] = {}
    own = _of_pictures(layers, pictures)
    if relevance is None or readout is None:
        activations, _ = network.taps(hidden)(pictures)
        return own | {layer: exact(values).flatten(2) for layer, values in activations.items()}, maps, None
    if relevance.has_maps and hidden:
        tapped, maps, _ = activations_and_relevance(network, pictures, hidden, readout, relevance.method)
    else:
        tapped, _ = network.taps([*dict.fromkeys([*hidden, readout.layer])])(pictures)
    activations = {layer: exact(values) for layer, values in tapped.items()}
    features = own | {layer: activations[layer].flatten(2) for layer in hidden}
    features |= {READOUT: readout.map(activations[readout.layer])[:, None]} if READOUT in layers else {}
    features |= {TARGET_LAYER: activations[readout.layer].flatten(2)} if TARGET_LAYER in layers else {}
    return features, maps, readout.value(activations[readout.layer])


def _of_pictures(layers: Sequence[str], pictures: Tensor) -> dict[str, Tensor]:
    """Return those features (B, C, P) among ``layers`` that need no network."""
    features = {INPUT: exact(pictures).flatten(2)} if INPUT in layers else {}
    return features | details(pictures, [layer for layer in layers if layer in DETAILS])


@dataclass
class _Sums:
    """Sums over the reference images of one target, in double precision on the CPU."""

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
        total = values.sum(dim=0).cpu().double()
        sums[layer] = sums[layer] + total if layer in sums else total

    def result(self, method: str) -> dict[str, Tensor]:
        quantiles = {QUANTILES + layer: (total / self.count).float() for layer, total in self.quantiles.items()}
        importance = {layer: (total / self.count).float() for layer, total in self.importance.items()}
        if method == "correlation":
            hidden = [layer for layer in self.means if layer not in WITHOUT_RELEVANCE]
            values = torch.cat(self.values)
            importance = {layer: channel_correlation(torch.cat(self.means[layer]), values) for layer in hidden}
        return quantiles | {IMPORTANCE + layer: weights for layer, weights in importance.items()}


def _read(path: Path, layers: Sequence[str]) -> dict[str, Tensor] | None:
    """Return cached statistics; None where the file is missing or damaged: the statistics are then computed again."""
    try:
        cached = load_file(path)
    except (OSError, SafetensorError):
        return None
    return cached if {f"{QUANTILES}{layer}" for layer in layers} <= set(cached) else None
