"""LPIPS (Zhang et al. 2018): the perceptual distance of two pictures; its mean over pairs measures their diversity."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vital_exp.errors import UsageError
from vital_exp.evaluation.score import NotComputed
from vital_exp.evaluation.weights import hub_file, local_file
from vital_exp.models.checkpoints import load_checkpoint
from vital_exp.values import one_of
from vital_exp.weights_files import read_tensors

if TYPE_CHECKING:
    from torchmetrics.functional.image.lpips import _LPIPS

KEY = "evaluation.lpips"
CHECKPOINT = f"{KEY}.checkpoint"
# By torchmetrics' name of a backbone: torchvision's name, and its file of ImageNet weights.
BACKBONES = {
    "alex": ("alexnet", "alexnet-owt-7be5be79.pth"),
    "vgg": ("vgg16", "vgg16-397923af.pth"),
    "squeeze": ("squeezenet1_1", "squeezenet1_1-b8a52dc0.pth"),
}
# Names of parameters in files of a complete LPIPS (of the packages lpips and torchmetrics): linear maps are ``lin0`` or
# ``lins.0``; the backbone is ``features``, or slices in ``net`` that keep torchvision's layer numbers.
LINEAR = re.compile(r"^lins?\.?(\d+)\.model\.1\.weight$")
BACKBONE = re.compile(r"^(net\.)?(features\.|slice\d+\.|slices\.\d+\.)?(?=\d+\.)")


def load_lpips(net: str, checkpoint: str | None, download: bool) -> _LPIPS:
    """Return torchmetrics' LPIPS on a backbone with ImageNet weights.

    Args:
        net: the backbone, ``"alex"``, ``"vgg"`` or ``"squeeze"``.
        checkpoint: a file with the weights of torchvision's alexnet, vgg16 or squeezenet1_1, or of a complete LPIPS,
            whose linear maps replace those of torchmetrics. None: torch.hub's cache.
        download: whether torchvision's weights may be downloaded.

    Raises:
        UsageError: an unknown net, or a file that does not exist or holds the weights of another network.
        NotComputed: there are no weights and ``download`` is false.
    """
    from torchmetrics.functional.image.lpips import _LPIPS

    one_of(f"{KEY}.net", net, BACKBONES)
    place = local_file(checkpoint, CHECKPOINT)
    cached = hub_file(BACKBONES[net][1])
    place = place or (cached if cached.is_file() else None)
    if place is None and not download:
        network = BACKBONES[net][0]
        raise NotComputed(f"needs torchvision's weights of {network}: {CHECKPOINT}=file, or download=true")
    metric = _LPIPS(net=net, pnet_rand=place is not None)  # type: ignore[arg-type]
    if place is not None:
        _load(metric, net, place)
    return metric.eval()


def _load(metric: _LPIPS, net: str, path: Path) -> None:
    tensors = read_tensors(path, CHECKPOINT)
    maps = {f"{found[1]}.model.1.weight": tensors[name] for name in tensors if (found := LINEAR.match(name))}
    if not maps:
        _load_backbone(metric.net, net, path)
        return
    features = {BACKBONE.sub("", name): value for name, value in tensors.items()}
    _fill(nn.ModuleList(metric.lins), maps, net, path)
    own = {name: BACKBONE.sub("", name) for name in metric.net.state_dict()}
    _fill(metric.net, {name: features[plain] for name, plain in own.items() if plain in features}, net, path)


def _fill(module: nn.Module, tensors: Mapping[str, Tensor], net: str, path: Path) -> None:
    """Load tensors of any precision into a module; none may be missing or have another shape."""
    wanted = module.state_dict()
    if any(name not in tensors or tensors[name].shape != value.shape for name, value in wanted.items()):
        raise UsageError(CHECKPOINT, path, f"weights are missing or of another network than {KEY}.net={net}")
    module.load_state_dict({name: tensors[name].to(value.dtype) for name, value in wanted.items()})


def _load_backbone(backbone: nn.Module, net: str, path: Path) -> None:
    """Load a classifier's weights into the backbone, which holds the classifier's ``features`` in slices."""
    from torchvision import models

    network = models.get_model(BACKBONES[net][0], weights=None)
    load_checkpoint(network, path)
    features = {name.removeprefix("features."): value for name, value in network.state_dict().items()}
    backbone.load_state_dict({name: features[BACKBONE.sub("", name)] for name in backbone.state_dict()})


@torch.no_grad()
def mean_distance(lpips: _LPIPS, pictures: Tensor) -> float:
    """Return the mean LPIPS distance over all pairs of pictures; each passes through the backbone once.

    Args:
        lpips: the result of :func:`load_lpips`.
        pictures: (N, 3, H, W) RGB in [0, 1], N at least 2.
    """
    from torchmetrics.functional.image.lpips import _normalize_tensor

    scaled = lpips.scaling_layer(2 * pictures - 1)
    layers = [_normalize_tensor(layer) for layer in lpips.net(scaled)]  # each (N, C, h, w)
    distances = []
    for i, j in combinations(range(len(pictures)), 2):
        parts = [
            weigh((layer[i] - layer[j]).square()[None]).mean() for weigh, layer in zip(lpips.lins, layers, strict=True)
        ]
        distances.append(torch.stack(parts).sum())
    return float(torch.stack(distances).mean())
