"""Mean sorted features of reference images: constants of the optimisation, kept on disk (METHODS 1.1)."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vital_exp.models.network import VisionNetwork, model_space
from vital_exp.models.taps import Taps
from vital_exp.references.base import References
from vital_exp.references.quantiles import resample_quantiles
from vital_exp.targets.unit import Target

# Images passed through the network together; a constant, so that the statistics do not depend on anything else.
IMAGES_PER_PASS = 8
FORMAT = "mean sorted features, 1"  # part of the cache's key: a change of what is stored needs another


class ReferenceStatistics:
    """Computes the mean sorted features of a target's reference images, once.

    Args:
        network: the frozen network.
        references: the images.
        cache_dir: a folder for the results of earlier runs; None keeps nothing.
    """

    def __init__(self, network: VisionNetwork, references: References, cache_dir: Path | None = None) -> None:
        self.network = network
        self.references = references
        self.cache_dir = cache_dir

    def quantiles(self, targets: Sequence[Target], layers: Sequence[str]) -> dict[str, Tensor]:
        """Return for each layer the ascending mean quantiles of each target, (N, C, Q) on the network's device."""
        found: dict[str, dict[str, Tensor]] = {}
        fingerprints = [self.references.fingerprint(target) for target in targets]
        for target, fingerprint in zip(targets, fingerprints, strict=True):
            if fingerprint not in found:
                found[fingerprint] = self._of_target(target, fingerprint, tuple(layers))
        device = self.network.device
        return {layer: _stacked([found[f][layer] for f in fingerprints]).to(device) for layer in layers}

    def _of_target(self, target: Target, fingerprint: str, layers: tuple[str, ...]) -> dict[str, Tensor]:
        if self.cache_dir is None:
            return mean_quantiles(self.network, layers, self.references.images(target))
        path = self._path(fingerprint, layers)
        if (kept := _read(path, layers)) is not None:
            return kept
        result = mean_quantiles(self.network, layers, self.references.images(target))
        _write_whole(path, result)
        return result

    def _path(self, fingerprint: str, layers: tuple[str, ...]) -> Path:
        assert self.cache_dir is not None
        network = self.network
        parts = (
            FORMAT,
            network.weights_hash(),
            str(network.module),
            repr(network.preprocessing),
            network.dtype,
            layers,
        )
        key = hashlib.sha256("\n".join(map(str, (*parts, fingerprint))).encode()).hexdigest()
        return self.cache_dir / "quantiles" / f"{key}.safetensors"


def _stacked(quantiles: Sequence[Tensor]) -> Tensor:
    """Stack (C, Q) of each target, at the finest resolution any of them has: references may differ in size."""
    finest = max(one.shape[-1] for one in quantiles)
    return torch.stack([resample_quantiles(one, finest) for one in quantiles])


@torch.no_grad()
def mean_quantiles(network: VisionNetwork, layers: Sequence[str], images: Iterator[Tensor]) -> dict[str, Tensor]:
    """Sort each channel of each image's activations over positions and average over the images.

    Memory does not grow with the number of images: a few are in memory at a time.

    Args:
        network: the frozen network.
        layers: module names.
        images: (3, H, W) RGB each, all of one size; float64 is normalised before it is cast.

    Returns:
        For each layer (C, Q) ascending float32 values on the CPU, Q the number of positions.
    """
    taps = Taps(network.module, layers)
    sums: dict[str, Tensor] = {}
    count = 0
    while chunk := list(islice(images, IMAGES_PER_PASS)):
        activations, _ = taps(model_space(torch.stack(chunk), network))
        count += len(chunk)
        for layer, activation in activations.items():
            ordered = activation.flatten(2).float().sort(dim=-1).values.sum(dim=0)  # (B, C, ...) -> (C, Q)
            exact = ordered.cpu().double()
            sums[layer] = sums[layer] + exact if layer in sums else exact
    return {layer: (total / count).float() for layer, total in sums.items()}


def _read(path: Path, layers: Sequence[str]) -> dict[str, Tensor] | None:
    """A kept result, or None when there is none or it is damaged (it is then made again)."""
    try:
        kept = load_file(path)
    except (OSError, SafetensorError):
        return None
    return {layer: kept[layer] for layer in layers} if set(kept) == set(layers) else None


def _write_whole(path: Path, content: dict[str, Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
    os.close(handle)
    try:
        save_file(content, temporary)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)
