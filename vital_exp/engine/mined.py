"""References of hidden units by mining: the images, or patches of them, that drive each unit most."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import Tensor

from vital_exp.errors import UsageError
from vital_exp.mining.drawn import drawn_folder
from vital_exp.mining.images import ImageFolder
from vital_exp.mining.index import Index
from vital_exp.mining.mine import Mining
from vital_exp.mining.patches import PatchSettings
from vital_exp.mining.references import REGIONS, MinedReferences
from vital_exp.mining.units import select_units
from vital_exp.models.network import VisionNetwork
from vital_exp.targets.autoencoder import SparseAutoencoder
from vital_exp.targets.unit import Target


def mined_references(
    config: DictConfig,
    network: VisionNetwork,
    targets: Sequence[Target],
    directions: Tensor | SparseAutoencoder | None,
    cache: Path,
) -> MinedReferences:
    """Return the mined references of hidden units; they are mined when the first is looked at.

    Args:
        config: the composed configuration.
        network: the frozen network.
        targets: the hidden units.
        directions: (K, C) of direction targets, or their autoencoder.
        cache: the folder of mining results, where no index is given.

    Raises:
        UsageError: class targets, no folder, an unknown region, an index of another network or folder.
    """
    keys = config.references
    if any(target.layer is None for target in targets):
        raise UsageError("references", "mined", "hidden units only: classes take references=folder")
    if keys.region not in REGIONS:
        raise UsageError("references.region", keys.region, f"one of {', '.join(REGIONS)}", REGIONS)
    candidates = keys.get("candidates", keys.count)
    if isinstance(candidates, bool) or not isinstance(candidates, int) or candidates < 1:
        raise UsageError("references.candidates", candidates, "a whole number of at least 1")
    folder = ImageFolder(image_folder(config, cache), network.preprocessing, "references.root")
    if keys.index:
        index = Index.open(keys.index)
        index.check(network, folder)
        return MinedReferences(lambda: index, str(index.meta["key"]), folder, keys.count, keys.region)
    mining = _mining(config, network, targets, directions, folder)
    mining.check()
    out = cache / "mining" / mining.key
    return MinedReferences(partial(_run, mining, out), mining.key, folder, keys.count, keys.region)


def image_folder(config: DictConfig, cache: Path) -> Path:
    """Return the folder of images to mine; without one it is the embedded networks' drawn images."""
    if config.references.root:
        return Path(config.references.root).expanduser()
    return drawn_folder(cache)


def _mining(
    config: DictConfig,
    network: VisionNetwork,
    targets: Sequence[Target],
    directions: Tensor | SparseAutoencoder | None,
    folder: ImageFolder,
) -> Mining:
    keys = config.references
    channels: dict[str, list[int]] = {}
    for target in targets:
        found = channels.setdefault(str(target.layer), [])
        if target.index not in found:
            found.append(target.index)
    given = {} if directions is None else dict.fromkeys(channels, directions)
    units = select_units(
        network, list(channels), {layer: sorted(found) for layer, found in channels.items()}, "max", given
    )
    patch, count = None, keys.count
    if keys.region == "patch":
        patch = PatchSettings(keys.patch.size, keys.patch.overlap, keys.patch.search)
        count = max(count, keys.get("candidates", count))  # the strongest windows need not be of the strongest images
    return Mining(units, folder, min(count, len(folder.paths)), patch, progress=config.progress)


def _run(mining: Mining, out: Path) -> Index:
    with torch.no_grad():
        return mining.run(out)
