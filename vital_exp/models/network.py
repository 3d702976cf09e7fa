"""A frozen vision network together with its preprocessing, class names and head."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vital_exp.errors import UsageError
from vital_exp.models.channels import in_channels
from vital_exp.models.heads import Head, head_of
from vital_exp.models.outputs import Output
from vital_exp.models.precision import entrance_of, precisions_of, set_entrance
from vital_exp.models.taps import Taps
from vital_exp.models.tracing import Trace, trace
from vital_exp.targets.class_names import ClassNames

# ImageNet's mean and std for RGB in [0, 1], with which most classifiers were trained.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
IMAGENET_SIZE = 224

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Preprocessing:
    """How a natural image becomes the network's input.

    Attributes:
        mean, std: per channel, for pictures in [0, 1]; their length is the number of channels.
        size: (height, width) of the input in px.
        resize: the shorter side before the centre crop, in px; None: the smallest image that covers the crop.
        interpolation: ``"bilinear"``, ``"bicubic"`` or ``"nearest"``.
        value_range: the values of arrays that become 0 and 1; None: 0 and 1, for integers the limits of their type.
        preview: which channels are shown as red, green and blue; None: all, for grey and RGB pictures.
    """

    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    size: tuple[int, int] = (IMAGENET_SIZE, IMAGENET_SIZE)
    resize: int | None = None
    interpolation: str = "bilinear"
    value_range: tuple[float, float] | None = None
    preview: tuple[int, int, int] | None = None

    @property
    def channels(self) -> int:
        """How many channels the network's pictures have: 1 for grey, 3 for RGB."""
        return len(self.mean)

    def normalise(self, rgb: Tensor) -> Tensor:
        """Map pictures (..., C, H, W) in [0, 1] to the network's space, in the precision of ``rgb``."""
        return (rgb - _per_channel(self.mean, rgb)) / _per_channel(self.std, rgb)

    def denormalise(self, normalised: Tensor) -> Tensor:
        """Map the network's space (..., C, H, W) back to [0, 1]; values are not clamped."""
        return normalised * _per_channel(self.std, normalised) + _per_channel(self.mean, normalised)

    def valid_range(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return the normalised values of 0 and of 1, each (C, 1, 1)."""
        zero, one = torch.zeros_like(_per_channel(self.mean, like)), torch.ones_like(_per_channel(self.mean, like))
        return self.normalise(zero), self.normalise(one)


def _per_channel(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device).view(-1, 1, 1)


@dataclass(frozen=True)
class Recipe:
    """The layers, weights and priors of a network for VITAL; None: the default rule."""

    layers: tuple[str, ...] | None = None
    layer_weights: tuple[float, ...] | None = None
    total_variation: float | None = None
    l2: float | None = None


class VisionNetwork(nn.Module):
    """A frozen network that takes pictures: RGB, grey, or of any number of channels.

    Its parameters need no gradients and it stays in evaluation mode, so no running statistic ever changes. A network in
    half precision computes in half precision; pictures are float32 and are cast where they enter the network.

    Attributes:
        module: the network itself; takes normalised (N, C, H, W).
        name: what the user called it.
        preprocessing: see :class:`Preprocessing`.
        class_names: one name per output class; None when the network has no class outputs.
        recipe: layers, weights and priors that belong to this network.
        output: which of the tensors that the module returns is its output.
        head: how its outputs become probabilities.
    """

    def __init__(
        self,
        module: nn.Module,
        name: str,
        preprocessing: Preprocessing,
        class_names: ClassNames | None,
        recipe: Recipe | None = None,
        output: Output | None = None,
        head: Head | None = None,
    ) -> None:
        super().__init__()
        self.module = module.eval().requires_grad_(False)
        self.name = name
        self.preprocessing = preprocessing
        self.class_names = class_names
        self.recipe = recipe or Recipe()
        self.output = output or Output()
        self._head = head
        self.identity: Any = None  # an Identity (vital_exp.models.identity), found once in a call
        self.registry: Path | None = None  # folder of the networks that identities are compared with
        # True: of all layers; False: of the output alone. The network's state when it was traced, and the trace.
        self._traces: dict[bool, tuple[tuple[object, ...], Trace]] = {}
        self._told: set[str] = set()
        self._entrance_of: tuple[tuple[torch.dtype, ...], tuple[int, ...]] | None = None
        self._entrance = self.entrance

    def train(self, mode: bool = True) -> VisionNetwork:
        """Stay in evaluation mode, whatever ``mode`` is: the network is frozen."""
        return super().train(False)

    def forward(self, rgb: Tensor) -> Tensor:
        """Return the network's output for pictures (N, C, H, W) in [0, 1]: logits (N, classes), or another tensor.

        An RGB network takes grey pictures too, and a grey network RGB ones; see :func:`in_channels`.

        Raises:
            UsageError: the network returns no tensor, or takes other channels.
        """
        pictures = self.preprocessing.normalise(in_channels(rgb, self.preprocessing.channels)).to(self.dtype)
        if len(pictures) > 1 and self.one_by_one:
            return torch.cat([self.output.tensor(self.module(one[None]), 1) for one in pictures])
        return self.output.tensor(self.module(pictures), len(pictures))

    def returned(self, rgb: Tensor) -> object:
        """Return all that the module returns for pictures (N, C, H, W) in [0, 1]."""
        return self.module(self.preprocessing.normalise(rgb).to(self.dtype))

    def blank(self, count: int = 1, size: Sequence[int] | None = None) -> Tensor:
        """Return blank pictures (count, C, H, W), zeros, on the network's device; by default of its input size."""
        return torch.zeros(count, self.preprocessing.channels, *(size or self.preprocessing.size), device=self.device)

    def taps(self, layers: Sequence[str], key: str = "model.layers") -> Taps:
        """Return taps on layers of this network, which may include ``"output"``; see :class:`Taps`."""
        return Taps(self.module, layers, key, self.output, self.trace)

    @property
    def head(self) -> Head:
        """How its outputs become probabilities; by default a sigmoid for one output, a softmax for several."""
        return self._head or head_of(None, None if self.class_names is None else len(self.class_names))

    @head.setter
    def head(self, head: Head) -> None:
        self._head = head

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next((p.device for p in self.module.parameters()), torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        """The precision of pictures, gradients and statistics: float64 for a network in float64, else float32."""
        return torch.float64 if self.entrance == torch.float64 else torch.float32

    @property
    def entrance(self) -> torch.dtype:
        """The precision in which the module takes its pictures; looked up anew when weights or input change."""
        shape = (self.preprocessing.channels, *self.preprocessing.size)
        if self._entrance_of != (found := (precisions_of(self.module), shape)):
            self._entrance = entrance_of(self.module, shape)
            set_entrance(self.module, self._entrance)
            self._entrance_of = found
        return self._entrance

    @property
    def precision(self) -> torch.dtype:
        """The coarsest precision of its weights, to which activations are rounded."""
        return max(precisions_of(self.module), key=lambda own: torch.finfo(own).eps, default=torch.float32)

    @property
    def classes(self) -> ClassNames:
        """The class names.

        Raises:
            UsageError: the network has no class outputs; the message says what it returns.
        """
        if self.class_names is None:
            problem = f"the network {self.name} has no class outputs{self.output.without_classes}: choose a hidden unit"
            raise UsageError("target", "class", problem)
        return self.class_names

    @property
    def trace(self) -> Trace:
        """The trace of every layer in a forward pass at the input size; made once, and anew if the network changes."""
        return self._traced(layers=True)

    @property
    def one_by_one(self) -> bool:
        """Whether pictures must pass one by one; where no layer was read so far, the output alone decides."""
        return self._traced(layers=True in self._traces).one_by_one

    def _traced(self, layers: bool) -> Trace:
        """Return the trace of all layers, or of the output alone; it is made anew when the network has changed."""
        parts = ((name, id(part)) for name, part in self.module.named_modules())
        state = (self.preprocessing, self.output, self.device, self.dtype, *parts)
        if layers not in self._traces or self._traces[layers][0] != state:
            found = trace(self.module, self._test_pictures(), self.output, layers=layers)
            self._traces[layers] = state, found
            if found.company:
                depends = "for a picture depends on the other pictures of a batch (or on chance)"
                self.tell(f"{self.name}: the output of {found.company} {depends}: pictures pass one by one")
        return self._traces[layers][1]

    def tell(self, message: str) -> None:
        """Warn of something about the network in the log, once."""
        if message not in self._told:
            self._told.add(message)
            logger.warning(message)

    def _test_pictures(self) -> Tensor:
        """Return three normalised pictures that differ much: noise, dark, bright, (3, C, H, W)."""
        generator = torch.Generator().manual_seed(0)
        noise = torch.rand(3, self.preprocessing.channels, *self.preprocessing.size, generator=generator)
        rgb = torch.stack([noise[0], noise[1] / 8, 1 - noise[2] / 8])
        return self.preprocessing.normalise(rgb.to(self.device)).to(self.dtype)

    def weights_hash(self) -> str:
        """Return 16 hexadecimal digits of the sha256 of all weights and buffers: names, shapes, precisions, values.

        Non-persistent buffers, which a checkpoint does not hold, are included.
        """
        digest = hashlib.sha256()
        module = self.module
        named = (*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False))
        for name, value in sorted(named, key=lambda one: one[0]):
            digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()[:16]


def model_space(rgb: Tensor, network: VisionNetwork) -> Tensor:
    """Return pictures (N, C, H, W) in [0, 1] as the network's normalised input, on its device and in its precision.

    An RGB network takes grey pictures too, and a grey network RGB ones; see :func:`in_channels`.

    float64 pictures are normalised before they are cast: a round trip through RGB in float32 would change the first
    gradient of a ResNet-18 by 5e-3.
    """
    own = network.preprocessing
    return own.normalise(in_channels(rgb, own.channels)).to(network.dtype).to(network.device)
