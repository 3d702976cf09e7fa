"""The correlation of channels of Fourier and MACO pictures: of ImageNet's colours, or of the references' channels."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from vital_exp.configuration import Configuration
from vital_exp.errors import UsageError
from vital_exp.images.colours import covariance_root
from vital_exp.images.output import in_unit
from vital_exp.mining.drawn import drawn_folder
from vital_exp.mining.images import ImageFolder
from vital_exp.models.channels import GREY, RGB
from vital_exp.models.network import VisionNetwork
from vital_exp.references.base import References
from vital_exp.references.decoding import printable
from vital_exp.references.faceted import FacetedReferences
from vital_exp.references.tensors import TensorReferences
from vital_exp.setup.image_root import image_root
from vital_exp.setup.parts import loader_of
from vital_exp.values import one_of
from vital_exp.whole_files import whole_path

KEY = "image.colours"
AUTO, IMAGENET, REFERENCES = "auto", "imagenet", "references"
# Images of a folder, evenly over its paths, that the covariance is measured on; this takes seconds.
IMAGES_READ = 300
IMAGES_AT_ONCE = 8
TENSOR = "covariance"


def colours_of(config: Configuration, network: VisionNetwork, references: References) -> Tensor | None:
    """Return the (C, C) matrix from decorrelated to natural channels that ``image.colours`` selects.

    None stands for ImageNet's matrix (RGB), for independent channels (other networks without references), and for no
    matrix (grey networks, and parameterisations that do not mix channels).

    Raises:
        UsageError: an unknown option, ``imagenet`` for pictures that are not RGB, or a folder that cannot be read.
    """
    asked = config.image.get("colours")
    if asked is None:  # the parameterisation does not mix channels
        return None
    channels = network.preprocessing.channels
    options = (AUTO, IMAGENET, REFERENCES) if channels == RGB else (AUTO, REFERENCES)
    one_of(KEY, asked, options)
    if channels == GREY or asked == IMAGENET or (asked == AUTO and channels == RGB):
        return None
    covariance = _covariance(config, network, references)
    if covariance is None:
        instead = "ImageNet's covariance is used" if channels == RGB else "the channels of its pictures are independent"
        network.tell(f"{network.name}: no references to measure the covariance of its channels on; {instead}")
        return None
    return covariance_root(covariance)


def _covariance(config: Configuration, network: VisionNetwork, references: References) -> Tensor | None:
    """Return the channel covariance of all references, the same for every target; None without references."""
    source = references.source if isinstance(references, FacetedReferences) else references
    if isinstance(source, TensorReferences):
        return channel_covariance(picture for tensor in source.tensors() for picture in tensor)
    keys = config.references
    root = keys.root or (drawn_folder(config.cache) if config.model.source == "embedded" else None)
    if root is None:
        return None
    place = image_root(root, config.cache)
    folder = ImageFolder(place, network.preprocessing, "references.root", loader_of(config))
    return _of_folder(folder, config.cache)


def channel_covariance(pictures: Iterable[Tensor]) -> Tensor:
    """Return the covariance of channels over all pixels of pictures (C, H, W), at least one: (C, C) float64."""
    count, total, products = 0, torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for picture in pictures:
        values = picture.detach().cpu().double().flatten(1)  # (C, P)
        total, products = total + values.sum(dim=1), products + values @ values.T
        count += values.shape[1]
    mean = total / count
    return products / count - torch.outer(mean, mean)


def _of_folder(folder: ImageFolder, cache: Path) -> Tensor:
    size = (folder.preprocessing.size, folder.preprocessing.resize)
    own = sha256(f"{folder.fingerprint} {size} {IMAGES_READ}".encode()).hexdigest()
    path = cache / "channels" / f"{own}.safetensors"
    if not path.is_file():
        numbers = range(0, len(folder.paths), max(1, len(folder.paths) // IMAGES_READ))
        read = [batch.pixels for batch in folder.batches(numbers, IMAGES_AT_ONCE) if batch.pixels is not None]
        if not read:
            problem = f"none of the {len(numbers)} images that were tried can be read"
            raise UsageError(folder.key, printable(folder.root), problem)
        found = channel_covariance(in_unit(picture) for pixels in read for picture in pixels)
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_path(path) as temporary:
            save_file({TENSOR: found}, temporary)
    return load_file(path)[TENSOR]
