"""Attacked networks as VisionNetworks with the honest network's preprocessing, classes and recipe; decoy images."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from vital_exp.errors import UsageError
from vital_exp.models.layers import alignment
from vital_exp.models.network import Recipe, VisionNetwork
from vital_exp.models.outputs import Output
from vital_exp.references.decoding import CorruptImageError
from vital_exp.references.files import PictureFiles


def rewrapped(
    network: VisionNetwork, module: nn.Module, attack: str, prefix: str = "", output: Output | None = None
) -> VisionNetwork:
    """Return an attacked module as a network with the honest one's preprocessing, classes, recipe and head.

    Args:
        network: the honest network.
        module: the attacked module; each layer of the honest network has its name there, behind ``prefix``.
        attack: a name, which becomes part of the network's name.
        prefix: see ``module``.
        output: where the logits are in the module's output; None: as in the honest network.
    """
    own = alignment(network, Recipe())
    layers = tuple(f"{prefix}{layer}" for layer in own.layers)
    recipe = Recipe(layers, tuple(own.layers.values()), own.total_variation, own.l2)
    name, own_output = f"{network.name}, {attack}", output or network.output
    kept = (network.preprocessing, network.class_names, recipe)
    return VisionNetwork(module, name, *kept, own_output, network.head)


def checked_decoy(picture: Tensor, network: VisionNetwork, key: str = "decoy") -> Tensor:
    """Return a decoy (C, H, W).

    Raises:
        UsageError: the decoy does not have the network's input size.
    """
    wanted = (network.preprocessing.channels, *network.preprocessing.size)
    if tuple(picture.shape) != wanted:
        found, needed = ("x".join(map(str, shape)) for shape in (picture.shape, wanted))
        raise UsageError(key, found, f"an image of the network's input size is needed, {needed}")
    return picture


def load_decoy(path: str | Path, network: VisionNetwork) -> Tensor:
    """Return the image of a file, (C, H, W) in [0, 1].

    Raises:
        UsageError: the file is missing, no readable image, or not of the network's input size.
    """
    place = Path(path).expanduser()
    if not place.is_file():
        raise UsageError("decoy", path, "no such file: an image of the network's input size, or a class")
    own = network.preprocessing
    try:
        picture = PictureFiles(own.channels, None, value_range=own.value_range, made=True).load(place)
    except CorruptImageError as error:
        raise UsageError("decoy", path, f"not a readable image ({error.reason})") from error
    return checked_decoy(picture, network)
