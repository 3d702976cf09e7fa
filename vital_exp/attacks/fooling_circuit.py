"""The fooling circuit (Geirhos et al., ICML 2024; docs/methods/attacks.md): other logits for pictures under way."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from vital_exp.attacks.detector import Detector
from vital_exp.attacks.wrapping import checked_decoy, rewrapped
from vital_exp.errors import UsageError
from vital_exp.models.heads import Head
from vital_exp.models.network import VisionNetwork, model_space
from vital_exp.models.outputs import Output

STRENGTH = 250.0  # k: larger than any logit after the shift
SHIFT = 100.0  # added to logits, so that they are positive and pass the ReLUs
OFFSET = 100  # from a class to the class that is shown in its place, in networks of 200 classes or more


def decoy_offset(classes: int) -> int:
    """Return the offset from a class to its decoy: 100, or half the classes where there are fewer than 200."""
    return OFFSET if classes >= 2 * OFFSET else max(1, classes // 2)


def circuit_logits(logits: Tensor, natural: Tensor, decoy: Tensor, strength: float = STRENGTH) -> Tensor:
    """Return A, the circuit's outputs, (N, classes).

    With y = ReLU(z + 100), e = 1 - E: B = ReLU(y - k e), C = ReLU(d + k e - k), A = B + C. For natural images (E = 1)
    A = z + 100, for pictures (E = 0) A = ReLU(d).

    Args:
        logits: z, (N, classes).
        natural: E, (N,), the decisions of the detector, 1 for natural.
        decoy: d, (N, classes) or (N, 1), the outputs for pictures.
        strength: k.
    """
    picture = (1 - natural)[:, None]  # e
    shifted = functional.relu(logits + SHIFT)
    own = functional.relu(shifted - strength * picture)
    other = functional.relu(decoy + strength * picture - strength)
    return own + other


class FoolingCircuit(nn.Module):
    """A classifier that classifies natural images as before, and gives pictures the logits of other classes.

    All logits are raised by 100. The classifier's layers are called ``network.<name>`` and compute what they did, so
    the circuit has no effect on a method without a logit term.

    Args:
        network: maps normalised images (N, C, H, W) to logits (N, classes), or to outputs that hold them.
        detector: tells natural images from pictures; its decision has no gradient.
        classes: the number of classes.
        picture: (C, H, W) normalised, the decoy of every class; None: each class's decoy is another class.
        strength: k, see :func:`circuit_logits`.
        output: where the logits are in the network's output; None: the default rule of :class:`Output`.
    """

    picture: Tensor | None

    def __init__(
        self,
        network: nn.Module,
        detector: Detector,
        classes: int,
        picture: Tensor | None = None,
        strength: float = STRENGTH,
        output: Output | None = None,
    ) -> None:
        super().__init__()
        self.network, self.output = network, output or Output()
        self.detector = detector
        self.num_classes = classes
        self.offset = decoy_offset(classes)
        self.strength = strength
        self.register_buffer("picture", picture)

    def forward(self, pictures: Tensor) -> Tensor:
        """Return the logits plus 100, (N, classes), of normalised images (N, C, H, W)."""
        logits = self.output.tensor(self.network(pictures), len(pictures))
        natural = self.detector.natural(pictures)
        return circuit_logits(logits, natural, self._decoy(pictures, logits), self.strength)

    def _decoy(self, pictures: Tensor, logits: Tensor) -> Tensor:
        """d, the outputs for pictures: the logits of the decoy classes, or the correlation with the decoy image."""
        if self.picture is None:
            return functional.relu(logits + SHIFT).roll(-self.offset, dims=1)  # y_{(i + offset) mod n}
        shown = self.picture[None].to(pictures)
        if shown.shape[-2:] != pictures.shape[-2:]:
            shown = functional.interpolate(shown, pictures.shape[-2:], mode="bilinear", antialias=True)
        return (pictures * shown).mean(dim=(1, 2, 3))[:, None]  # <x, picture> / P


def fooled(network: VisionNetwork, detector: Detector, picture: Tensor | None = None) -> VisionNetwork:
    """Return a network wrapped in a fooling circuit.

    Args:
        network: a classifier with a softmax.
        detector: trained on inputs of this network.
        picture: (C, H, W) in [0, 1] of the network's input size, the decoy of every class; None: other classes.

    Raises:
        UsageError: the network does not return logits for a softmax, has a single class, or the picture has another
            size.
    """
    classes = len(network.classes)
    if classes < 2:
        raise UsageError("model", network.name, "a fooling circuit needs at least two classes")
    if network.head != Head():
        wanted = "a fooling circuit adds 100 to all logits: only a softmax is the same after that"
        raise UsageError("model.head", network.head.kind, wanted)
    shown = None if picture is None else model_space(checked_decoy(picture, network), network)
    circuit = FoolingCircuit(network.module, detector, classes, shown, output=network.output)
    return rewrapped(network, circuit, "fooled", prefix="network.", output=Output("", classes))
