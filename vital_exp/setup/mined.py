"""Mined references of hidden units: the images, or windows of images, that drive each unit most."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from vital_exp.configuration import Configuration, ReferenceKeys
from vital_exp.errors import UsageError
from vital_exp.mining.drawn import drawn_folder
from vital_exp.mining.images import ImageFolder
from vital_exp.mining.index import KEY, NAME, Index
from vital_exp.mining.mine import Mining
from vital_exp.mining.patches import PUBLISHED, PatchSettings
from vital_exp.mining.references import REGIONS, MinedReferences
from vital_exp.mining.units import select_units
from vital_exp.mining.windows import AUTO, check_window
from vital_exp.models.network import VisionNetwork
from vital_exp.references.decoding import printable
from vital_exp.references.facets import LEAST_MEMBERS
from vital_exp.setup.image_root import image_root
from vital_exp.setup.parts import loader_of
from vital_exp.targets.autoencoder import SparseAutoencoder
from vital_exp.targets.unit import Target
from vital_exp.values import whole_number

# The maximum over positions ranks the images, and is compared with a picture's activation.
POOLING = "max"
# references.candidates=auto: one image of ten, at most 80. Of a larger share of a folder, such as 80 images of 300,
# facets would show what the folder contains, and not what drives the unit.
CANDIDATES_OF, MOST_CANDIDATES = 10, 80
# Configuration keys for the arguments that errors of an index name.
OWN_KEYS = {"layer": "target.layer", "channel": "target.index"}

logger = logging.getLogger(__name__)


def settle_index(config: Configuration) -> Configuration:
    """Return the configuration; if it names an index and no folder, with the folder that the index was mined from.

    Raises:
        UsageError: no such index, or its folder no longer exists.
    """
    keys = config.references
    if keys.source != "mined" or not keys.index or keys.root:
        return config
    folder = Index.open(keys.index).meta["folder"]
    if not Path(folder).is_dir():
        moved = "if it has moved: references.root=folder"
        raise UsageError(KEY, keys.index, f"was mined from {printable(folder)}, which is no longer there; {moved}")
    return config.with_keys(references__root=folder)


def mined_references(
    config: Configuration,
    network: VisionNetwork,
    targets: Sequence[Target],
    directions: Tensor | SparseAutoencoder | None,
    cache: Path,
) -> MinedReferences:
    """Return the mined references of hidden units; mining runs when the first reference is read.

    Args:
        config: the composed configuration.
        network: the frozen network.
        targets: the hidden units.
        directions: (K, C) of direction targets, or their autoencoder.
        cache: the cache, for the results of mining without an index.

    Raises:
        UsageError: class targets; no folder; an unknown region; an index of another network, other images or units.
    """
    keys = settle_index(config).references
    if not targets or any(target.layer is None for target in targets):  # class targets are selected later
        raise UsageError("references", "mined", "hidden units only: classes take references=folder")
    if keys.region not in REGIONS:
        raise UsageError("references.region", keys.region, f"one of {', '.join(REGIONS)}", REGIONS)
    check_window(keys.window, network.preprocessing.size)
    folder = ImageFolder(image_folder(keys.root, cache), network.preprocessing, "references.root", loader_of(config))
    candidates = _candidates(keys, len(folder.paths))
    options = (keys.count, keys.region, keys.window, candidates, keys.enlarge is not False)
    if keys.index:
        index = Index.open(keys.index)
        index.check(network, folder)
        _check_settings(index, keys)
        key = str(index.meta["key"])
        references = MinedReferences(lambda: index, key, folder, *options)
        _check_units(references, targets, directions)
        return references
    mining = _mining(keys, candidates, network, targets, directions, folder, config.progress)
    mining.check()
    out = cache / "mining" / mining.key
    plan = ((out / NAME).is_file, mining.plan_of_passes)
    return MinedReferences(partial(_run, mining, out), mining.key, folder, *options, *plan)


def image_folder(root: str | None, cache: Path) -> Path:
    """Return the folder of images to mine; the default is the drawn images for the embedded networks."""
    return image_root(root, cache) if root else drawn_folder(cache)


def _candidates(keys: ReferenceKeys, images: int) -> int:
    """Return the number of images of a folder that compete: ``references.candidates``, else ``references.count``.

    Raises:
        UsageError: neither a whole number of at least 1 nor auto.
    """
    asked = keys.count if keys.candidates is None else keys.candidates
    if asked != AUTO:
        return whole_number("references.candidates", asked, 1, allowed="a whole number of at least 1, or auto")
    return min(MOST_CANDIDATES, max(keys.count, 2 * LEAST_MEMBERS, images // CANDIDATES_OF))


def _check_settings(index: Index, keys: ReferenceKeys) -> None:
    """Raise UsageError for an index with another pooling, or with other patches than the configuration's."""
    if index.meta["pooling"] != POOLING:
        problem = f"ranks images by their {index.meta['pooling']} over positions; mine with pooling={POOLING}"
        raise UsageError(KEY, index.path, problem)
    own = index.meta["patch"]
    if keys.region == "image" or own is None:
        return
    for key, usual in vars(PUBLISHED).items():
        if keys.patch[key] not in (usual, own[key]):
            problem = f"{index.path} was mined with {own[key]}; leave the key out, or mine again"
            raise UsageError(f"references.patch.{key}", keys.patch[key], problem)
    size, overlap = "64 of 224 px" if own["size"] is None else f"{own['size']} px", own["overlap"]
    told = f"{own['search']} windows of {size}, which overlap by {overlap:.0%}"
    logger.info("references of %s: %d images per unit, %s", index.path, index.meta["k"], told)


def _check_units(
    references: MinedReferences, targets: Sequence[Target], directions: Tensor | SparseAutoencoder | None
) -> None:
    """Check, before anything is computed, that the index has the targets."""
    try:
        for target in targets:
            references.rows(target)
    except UsageError as error:
        raise UsageError(OWN_KEYS.get(error.key, error.key), error.value, error.problem, error.options) from None
    for layer in dict.fromkeys(str(target.layer) for target in targets):
        references.index.check_directions(layer, directions)


def _mining(
    keys: ReferenceKeys,
    candidates: int,
    network: VisionNetwork,
    targets: Sequence[Target],
    directions: Tensor | SparseAutoencoder | None,
    folder: ImageFolder,
    progress: bool,
) -> Mining:
    channels: dict[str, list[int]] = {}
    for target in targets:
        found = channels.setdefault(str(target.layer), [])
        if target.index not in found:
            found.append(target.index)
    given = {} if directions is None else dict.fromkeys(channels, directions)
    chosen = {layer: sorted(found) for layer, found in channels.items()}
    units = select_units(network, list(channels), chosen, "max", given, targets[0].tokens)
    patch, count = None, keys.count
    if keys.region == "patch":
        patch = PatchSettings(**keys.patch)
    if keys.region == "patch" or keys.facets != 1:
        # The strongest windows may be in other images than the strongest ones, and facets are found among more images.
        count = max(count, candidates)
    return Mining(units, folder, min(count, len(folder.paths)), patch, progress=progress)


def _run(mining: Mining, out: Path) -> Index:
    with torch.no_grad():
        return mining.run(out)
