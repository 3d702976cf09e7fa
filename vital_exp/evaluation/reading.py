"""Readings: one pass of pictures through a network, with all outputs that metrics need."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from vital_exp.errors import UsageError
from vital_exp.evaluation.artefacts import high_frequency, repetition
from vital_exp.evaluation.score import NotComputed
from vital_exp.images.output import resized
from vital_exp.models.channels import RGB
from vital_exp.models.heads import NONE, Head
from vital_exp.models.identity import identity_of
from vital_exp.models.layers import layer_shapes
from vital_exp.models.network import VisionNetwork, model_space
from vital_exp.targets.readout import Readout
from vital_exp.targets.unit import OUTPUT

# Activations of a layer that path similarity compares: all of a small layer, or else a fixed random choice of so many.
# The standard error of a correlation over n values is 1 / sqrt(n), here 0.02.
PATH_UNITS = 2048


@dataclass
class Reading:
    """A network's outputs for n pictures, on the CPU in float32.

    Attributes:
        embedding: (n, D), the classifier's input, averaged over positions; without a classifier, the output; None where
            the output is no tensor.
        logits: (n, classes); None for a network without classes.
        units: (n, T), the activations of the targets' units; None where there are no units.
        layers: by layer, (n, U), its activations at up to ``PATH_UNITS`` fixed places.
    """

    embedding: Tensor | None
    logits: Tensor | None = None
    units: Tensor | None = None
    layers: dict[str, Tensor] = field(default_factory=dict)

    @property
    def features(self) -> Tensor:
        """The embedding.

        Raises:
            NotComputed: there is none.
        """
        if self.embedding is None:
            raise NotComputed("needs a classifier, or an output that is a tensor (model.output=key chooses one)")
        return self.embedding


class PictureReader(Protocol):
    """Reads pictures (n, C, H, W) in [0, 1] of any size, in one pass."""

    @property
    def identity(self) -> str | None:
        """Everything that a reading depends on beside the pictures; None where readings are not kept on disk."""
        ...

    @property
    def head(self) -> Head:
        """The head that makes probabilities of the logits."""
        ...

    @property
    def channels(self) -> int:
        """The channels of the pictures; an RGB reader takes grey pictures too."""
        ...

    def __call__(self, pictures: Tensor) -> Reading:
        """Return the reading of pictures."""
        ...


class NetworkReader:
    """Reads pictures with a network.

    Args:
        network: the network, the target network or a judge.
        layers: the layers that path similarity compares.
        readout: the read-out of the units; None: no units are read.
        own_size: whether hidden units read pictures at the pictures' own size; all else is read at the input size.
    """

    def __init__(
        self,
        network: VisionNetwork,
        layers: Sequence[str] = (),
        readout: Readout | None = None,
        own_size: bool = False,
    ) -> None:
        self.network, self.layers, self.readout, self.own_size = network, tuple(layers), readout, own_size
        self.channels = network.preprocessing.channels
        self.head = network.head
        own = [readout.layer] if readout and readout.layer != OUTPUT else []
        self.taps = network.taps(list(dict.fromkeys([*layers, *own])))
        self.classifier = classifier(network)
        shapes = layer_shapes(network) if layers else {}
        self.places = {layer: _places(shapes[layer]) for layer in layers}

    @property
    def identity(self) -> str | None:
        """Everything that a reading depends on beside the pictures; None with an autoencoder, which has no identity."""
        read = self.readout
        if read is not None and read.autoencoder is not None:
            return None
        vectors = "" if read is None else hashlib.sha256(read.vectors.cpu().numpy().tobytes()).hexdigest()
        reads = "" if read is None else f"{read.layer} {read.positions} {vectors}"
        reads += " as large as they are" if self.own_size else ""
        return f"{self.network.name} {identity_of(self.network).key} {self.layers} {reads}"

    @torch.no_grad()
    def __call__(self, pictures: Tensor) -> Reading:
        """Return the reading of pictures (n, C, H, W) in [0, 1]; hidden units at their own size take a second pass."""
        given: list[Tensor] = []
        fitted = resized(pictures, self.network.preprocessing.size)
        hook = (
            self.classifier.register_forward_pre_hook(lambda _m, inputs: given.append(inputs[0]))
            if (self.classifier is not None)
            else None
        )
        try:
            activations, returned = self.taps(model_space(fitted, self.network), to_the_end=True)
        finally:
            if hook is not None:
                hook.remove()
        own = self.network.output
        output = own.tensor(returned, len(pictures)).float().cpu() if own.is_there else None
        embedding = given[-1] if given else output
        logits = output if self.network.class_names is not None else None
        layers = {layer: activations[layer].flatten(1)[:, self.places[layer]].float().cpu() for layer in self.layers}
        if self.own_size and fitted.shape != pictures.shape:
            activations, _ = self.taps(model_space(pictures, self.network))
        return Reading(
            None if embedding is None else _pooled(embedding), logits, self._units(activations, output), layers
        )

    def _units(self, activations: Mapping[str, Tensor], output: Tensor | None) -> Tensor | None:
        if self.readout is None:
            return None
        if self.readout.layer != OUTPUT:
            activation = activations[self.readout.layer].float()
        elif output is None:
            raise UsageError("target.layer", OUTPUT, f"the network returns {self.network.output.returns}")
        elif output.ndim == 2:
            return output @ self.readout.vectors.T.to(output)
        else:
            layout = self.network.trace.layers[OUTPUT].layout
            activation = layout.channels_first(output, len(output))
        count = len(activation)
        read = [self.readout.of(number, count).value(activation) for number in range(len(self.readout.vectors))]
        return torch.stack(read, dim=1).cpu()  # (n, T)


class PixelReader:
    """Reads the pixels themselves; the two features are repetition and high-frequency energy.

    Args:
        size: (height, width) to which all pictures are resized, so that they can be compared.
        channels: the channels of the pictures.
    """

    def __init__(self, size: tuple[int, int], channels: int = RGB) -> None:
        self.size, self.channels = size, channels
        self.identity: str | None = f"pixels {size}"
        self.head = Head(NONE)

    def __call__(self, pictures: Tensor) -> Reading:
        """Return the features (n, 2) of pictures (n, C, H, W) in [0, 1]."""
        fitted = resized(pictures, self.size).clamp(0, 1)
        return Reading(torch.stack([repetition(fitted), high_frequency(fitted)], dim=1).cpu())


def joined(parts: Sequence[Reading]) -> Reading:
    """Return the readings of several batches as one."""
    first = parts[0]

    def whole(name: str) -> Tensor | None:
        return None if getattr(first, name) is None else torch.cat([getattr(part, name) for part in parts])

    layers = {layer: torch.cat([part.layers[layer] for part in parts]) for layer in first.layers}
    return Reading(whole("embedding"), whole("logits"), whole("units"), layers)


@torch.no_grad()
def classifier(network: VisionNetwork) -> nn.Module | None:
    """Return the last linear layer or convolution with one output per class; None where there is none."""
    if network.class_names is None:
        return None
    ran: list[nn.Module] = []
    modules = [m for m in network.module.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    fitting = [m for m in modules if m.weight.shape[0] == len(network.classes)]
    hooks = [module.register_forward_hook(lambda module, _i, _o: ran.append(module)) for module in fitting]
    try:
        network.returned(network.blank())
    finally:
        for hook in hooks:
            hook.remove()
    return ran[-1] if ran else None


def _pooled(features: Tensor) -> Tensor:
    """Features (N, D): maps (N, D, H, W) and tokens (N, T, D) are averaged over positions."""
    if features.ndim == 4:
        features = features.mean(dim=(2, 3))
    elif features.ndim == 3:
        features = features.mean(dim=1)
    return features.float().cpu()


def _places(shape: Sequence[int]) -> Tensor:
    """The places of a layer (C, ...) that are compared: all, or ``PATH_UNITS`` drawn with a fixed seed."""
    total = int(torch.tensor(tuple(shape)).prod())
    order = torch.randperm(total, generator=torch.Generator().manual_seed(0))
    return order[:PATH_UNITS].sort().values
