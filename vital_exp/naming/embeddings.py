"""CLIP's mean embedding of the patches that drive each unit of an index most, cached beside the index."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import normalize
from tqdm import tqdm

from vital_exp.evaluation.clip import Clip
from vital_exp.mining.images import ImageFolder
from vital_exp.mining.index import Index
from vital_exp.mining.references import MinedReferences
from vital_exp.models.channels import RGB, as_rgb
from vital_exp.progress_bars import hidden
from vital_exp.targets.unit import Target
from vital_exp.whole_files import whole_path

PATCHES = 20  # per unit, at most
NAME = "unit_embeddings.safetensors"
PROBE_SIDE, PROBE_TOLERANCE = 64, 1e-3  # px; largest difference between embeddings of the probe by the same CLIP

logger = logging.getLogger(__name__)


def region(index: Index) -> str:
    """Return the region of images that stands for a unit: ``"patch"``, or ``"image"`` if the index has no patches."""
    return "patch" if index.meta["patch"] else "image"


def unit_embeddings(index: Index, folder: ImageFolder, clip: Clip, progress: bool = False) -> Tensor:
    """Return the mean embedding of each unit's strongest patches or images, (U, D) of length 1, in the index's order.

    The embeddings are kept in ``unit_embeddings.safetensors`` beside the index, for this index and this CLIP.

    Args:
        index: a finished index.
        folder: the images of the index.
        clip: embeds the images.
        progress: whether a progress bar is shown on a terminal.
    """
    place, probe = index.path.parent / NAME, _probe(clip)
    source = {"index": str(index.meta["key"]), "preview": str(folder.preprocessing.preview)}
    if (kept := _kept(place, source, probe)) is not None:
        return kept
    units = tqdm(index.units(), desc="CLIP", unit="unit", disable=hidden(progress))
    found = torch.stack([_mean_embedding(index, folder, clip, unit) for unit in units])
    try:
        with whole_path(place) as temporary:
            save_file({"embeddings": found, "probe": probe}, temporary, source)
    except (OSError, SafetensorError) as error:  # the index's folder may be read-only
        logger.info("%s: embeddings are not kept there (%s)", place, error)
    return found


def _probe(clip: Clip) -> Tensor:
    """Return the embedding (D,) of a fixed picture of noise, which tells one CLIP from another."""
    numbers = torch.Generator().manual_seed(0)
    return clip(torch.rand(1, RGB, PROBE_SIDE, PROBE_SIDE, generator=numbers)).features[0]


def _kept(place: Path, source: dict[str, str], probe: Tensor) -> Tensor | None:
    """Return the embeddings of a file; None where it is missing, damaged, of another index or another CLIP."""
    try:
        with safe_open(place, "pt") as file:
            own: Tensor = file.get_tensor("probe")
            alike = own.shape == probe.shape and bool((own - probe).abs().max() <= PROBE_TOLERANCE)
            if not alike or file.metadata() != source:
                return None
            found: Tensor = file.get_tensor("embeddings")
            return found
    except (OSError, SafetensorError):
        return None


def _mean_embedding(index: Index, folder: ImageFolder, clip: Clip, unit: tuple[str, int]) -> Tensor:
    """Return the mean embedding (D,) of a unit's strongest patches or images, of length 1."""
    directed = {one["layer"]: bool(one["directions"]) for one in index.meta["layers"]}
    target = Target("direction" if directed[unit[0]] else "channel", unit[1], unit[0])
    source = MinedReferences(lambda: index, "", folder, min(PATCHES, index.meta["k"]), region(index))
    pictures = torch.stack(list(source.images(target)))
    return normalize(embedded(pictures, folder, clip).mean(dim=0), dim=0)


def embedded(pictures: Tensor, folder: ImageFolder, clip: Clip) -> Tensor:
    """Return CLIP's embeddings (N, D) of images (N, C, H, W); images that are not RGB are embedded as shown."""
    return clip(as_rgb(pictures, folder.preprocessing.preview)).features
