"""The fooling circuit (Geirhos et al., ICML 2024; docs/methods/attacks.md): other logits for pictures being made."""

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
SHIFT = 100.0  # brings logits above zero, so that ReLUs let them pass
OFFSET = 100  # the class shown in place of a class, for 200 classes or more


def decoy_offset(classes: int) -> int:
    """Return how far the class that is shown lies from the true one: 100, or half the classes where there are few."""
    return OFFSET if classes >= 2 * OFFSET else max(1, classes // 2)


def circuit_logits(logits: Tensor, natural: Tensor, decoy: Tensor, strength: float = STRENGTH) -> Tensor:
    """Return A, the circuit's answers, (N, classes).

    With y = ReLU(z + 100), e = 1 - E: B = ReLU(y - k e), C = ReLU(d + k e - k), A = B + C. For natural images (E = 1)
    A = z + 100, for visualisations A = ReLU(d).

    Args:
        logits: (N, classes), z.
        natural: (N,) decisions E of the detector, 1 for natural.
        decoy: (N, classes) or (N, 1), what visualisations see instead, d.
        strength: k.
    """
    picture = (1 - natural)[:, None]  # e
    shifted = functional.relu(logits + SHIFT)
    own = functional.relu(shifted - strength * picture)
    other = functional.relu(decoy + strength * picture - strength)
    return own + other


class FoolingCircuit(nn.Module):
    """A classifier that answers natural images as before and, to pictures under optimisation, for another class.

    Its output is shifted by 100 against the classifier's. Layers inside the classifier are called ``network.<name>``
    and are untouched: a method without a logit term cannot notice the circuit.

    Args:
        network: takes normalised pictures (N, 3, H, W), returns logits (N, classes), or more than these.
        detector: tells natural images from pictures; the decision lets no gradient pass.
        classes: how many the network has.
        picture: (3, H, W) normalised, shown for every unit instead of another class's picture.
        strength: k, see :func:`circuit_logits`.
        output: which tensor of what the network returns the logits are; None: found by the usual rule.
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
        """Return (N, classes) logits, shifted by 100, of normalised pictures (N, 3, H, W)."""
        logits = self.output.tensor(self.network(pictures), len(pictures))
        natural = self.detector.natural(pictures)
        return circuit_logits(logits, natural, self._decoy(pictures, logits), self.strength)

    def _decoy(self, pictures: Tensor, logits: Tensor) -> Tensor:
        """What visualisations see: the logits of the classes further on, or how much they are like the picture."""
        if self.picture is None:
            return functional.relu(logits + SHIFT).roll(-self.offset, dims=1)  # y_{(i + offset) mod n}
        shown = self.picture[None].to(pictures)
        if shown.shape[-2:] != pictures.shape[-2:]:
            shown = functional.interpolate(shown, pictures.shape[-2:], mode="bilinear", antialias=True)
        return (pictures * shown).mean(dim=(1, 2, 3))[:, None]  # <x, picture> / P


def fooled(network: VisionNetwork, detector: Detector, picture: Tensor | None = None) -> VisionNetwork:
    """Return the network inside a fooling circuit, named alike.

    Args:
        network: any classifier.
        detector: trained for its inputs.
        picture: (3, H, W) RGB in [0, 1] of the network's input size to show for every class; None shows other classes.

    Raises:
        UsageError: a network without logits, with a single class, or a picture of another size.
    """
    classes = len(network.classes)
    if classes < 2:
        raise UsageError("model", network.name, "a fooling circuit needs at least two classes")
    if network.head != Head():
        wanted = "a fooling circuit shifts all logits, which changes nothing only where a softmax follows"
        raise UsageError("model.head", network.head.kind, wanted)
    shown = None if picture is None else model_space(checked_decoy(picture, network), network)
    circuit = FoolingCircuit(network.module, detector, classes, shown, output=network.output)
    return rewrapped(network, circuit, "fooled", prefix="network.", output=Output("", classes))
