"""Terms that compare a picture's activations with those of a given image, which takes the same transforms."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from vital_exp.errors import UsageError
from vital_exp.images.output import resized
from vital_exp.images.randomness import RandomStreams
from vital_exp.models.network import Preprocessing, model_space
from vital_exp.models.precision import exact, scaled_gradient, scales_of
from vital_exp.objectives.activation import dot_cosine, position_distance, read_activation, relative_distance
from vital_exp.objectives.activation_terms import layer_of
from vital_exp.objectives.terms import GIVEN, Problem, Term
from vital_exp.references.decoding import CorruptImageError
from vital_exp.references.files import PictureFiles
from vital_exp.values import number

START, REFERENCE = "start", "reference"
# Standard deviation of noise that is added to normalised pictures (ours): at the start the distance is 0 and has no
# gradient, near the start it has one.
BALANCE_NOISE = 0.02


class ImageComparison(Term):
    """A term that compares one layer's activations with a given image's.

    Args:
        problem: what the pictures are made for.
        weight: factor of the term.
        layer: name of the layer; None for the target's layer, or the last aligned layer for classes.
        image: an image file for all targets, ``"reference"`` for the first reference of each target, or ``"start"`` for
            the image that each picture starts from.
    """

    name: str  # of the term's option in the group objective

    def __init__(self, problem: Problem, weight: float, layer: str | None, image: str) -> None:
        super().__init__(problem, weight)
        self.layer = layer_of(problem, layer, f"objective.{self.name}.layer")
        self.layers = self.compared = (self.layer,)
        self.given = given_pictures(problem, image, f"objective.{self.name}") if weight else None

    def __call__(self, pictures: Tensor, activations: Mapping[str, Tensor]) -> Tensor:
        """Return the (N,) values."""
        return self.compare(activations[self.layer], activations[GIVEN + self.layer])

    @abstractmethod
    def compare(self, activation: Tensor, given: Tensor) -> Tensor:
        """Return (N,) values for activations (N, C, ...) of the pictures and of the given images."""


class FeatureInversion(ImageComparison):
    """||A(x) - A(x0)||^2 / ||A(x0)||^2 of a layer, to reconstruct an image x0 (Mahendran and Vedaldi 2015)."""

    name = "feature_inversion"

    def __init__(self, problem: Problem, weight: float = 1.0, layer: str | None = None, image: str = REFERENCE) -> None:
        super().__init__(problem, weight, layer, image)

    def compare(self, activation: Tensor, given: Tensor) -> Tensor:
        """Return the relative squared distances."""
        return relative_distance(activation, given)


class Caricature(ImageComparison):
    """Minus dot * max(0.1, cos)^p of whole activations, to exaggerate a layer's response to an image (Lucid)."""

    name = "caricature"

    def __init__(
        self,
        problem: Problem,
        weight: float = 1.0,
        layer: str | None = None,
        image: str = REFERENCE,
        cosine_power: float = 1.0,
    ) -> None:
        super().__init__(problem, weight, layer, image)
        self.cosine_power = number("objective.caricature.cosine_power", cosine_power, 0)

    def compare(self, activation: Tensor, given: Tensor) -> Tensor:
        """Return minus the cosine-weighted dot products."""
        return -dot_cosine(activation, given, self.cosine_power)


class Accentuation(ImageComparison):
    """Minus the target's activation + alpha * b * distance from the start (Hamblin et al. 2024).

    The distance is the mean over positions of ||A(x) - A(x0)||. b is the sum of the absolute gradients of the
    activation with respect to the pixels, divided by that of the distance, both at step 0; so alpha = 1 gives both the
    same influence. For b a little noise is added to the pictures, because the distance has no gradient where it is 0.

    Args:
        problem: what the pictures are made for.
        weight: factor of the term.
        alpha: weight of the distance.
        layer: layer of the distance; None for the middle one of the aligned layers.
        image: as :class:`ImageComparison`.
        cosine_power: of the activation, as for :class:`Activation`.
    """

    name = "accentuation"

    def __init__(
        self,
        problem: Problem,
        weight: float = 1.0,
        alpha: float = 1.0,
        layer: str | None = None,
        image: str = START,
        cosine_power: float = 0.0,
    ) -> None:
        aligned = list(problem.alignment.layers)
        middle = aligned[len(aligned) // 2] if aligned else None
        super().__init__(problem, weight, layer or middle, image)
        self.alpha = number("objective.accentuation.alpha", alpha, 0)
        self.cosine_power = number("objective.accentuation.cosine_power", cosine_power, 0)
        self.readout = problem.readout
        self.layers = tuple(dict.fromkeys((self.layer, self.readout.layer)))
        self.balance = self._balance(problem) if weight and self.alpha else torch.zeros(())

    def __call__(self, pictures: Tensor, activations: Mapping[str, Tensor]) -> Tensor:
        """Return the (N,) values."""
        distance = super().__call__(pictures, activations)
        return self._loss(activations) + self.alpha * self.balance.to(distance) * distance

    def compare(self, activation: Tensor, given: Tensor) -> Tensor:
        """Return the distances."""
        return position_distance(activation, given)

    def _loss(self, activations: Mapping[str, Tensor]) -> Tensor:
        return -read_activation(activations[self.readout.layer], self.readout, self.cosine_power)

    def _balance(self, problem: Problem) -> Tensor:
        """Return b of each picture, (N,): the size of the activation's gradient over that of the distance."""
        assert self.given is not None
        noise = RandomStreams(0, [target.name for target in problem.targets]).normal(self.given.shape[1:], "balance")
        taps = problem.network.taps(self.layers)
        with torch.enable_grad():
            x = (self.given + BALANCE_NOISE * noise.to(self.given)).requires_grad_()
            activations = {name: exact(values) for name, values in taps(x)[0].items()}
            with torch.no_grad():
                start = {name: exact(values) for name, values in taps(self.given)[0].items()}
            values = (self._loss(activations), self.compare(activations[self.layer], start[self.layer]))
            scales = scales_of(problem.network.module)
            gradients = [scaled_gradient(value, x, scales, keep_graph=True) for value in values]
        sizes = [gradient.abs().flatten(1).sum(dim=1) for gradient in gradients]
        return torch.where(sizes[1] > 0, sizes[0] / sizes[1], 0)


def given_pictures(problem: Problem, image: object, key: str) -> Tensor:
    """Return the pictures to compare with, (N, C, H, W) in the network's space and on its device.

    Args:
        problem: what the pictures are made for.
        image: a file, ``"reference"`` or ``"start"``.
        key: the term's configuration key, for messages.

    Raises:
        UsageError: no such file, not an image, or no picture to start from.
    """
    size = problem.size or problem.network.preprocessing.size
    if image == START:
        if problem.starts is None:
            wanted = f"{key} needs an image: image.init=photo.jpg, image.init=reference, or {key}.image=photo.jpg"
            raise UsageError("image.init", "noise", wanted)
        rgb = problem.starts
    elif image == REFERENCE:
        images = [next(iter(problem.statistics.references.images(target))) for target in problem.targets]
        rgb = resized(torch.stack(images), size)
    else:
        rgb = _file(image, size, f"{key}.image", problem.network.preprocessing).expand(len(problem.targets), -1, -1, -1)
    return model_space(rgb.detach(), problem.network)


def _file(image: object, size: tuple[int, int], key: str, own: Preprocessing) -> Tensor:
    path = Path(str(image)).expanduser()
    if not isinstance(image, str) or not path.is_file():
        raise UsageError(key, image, f"an image file that exists, {REFERENCE} or {START}")
    try:
        return PictureFiles(own.channels, size, value_range=own.value_range, made=True).load(path)[None]
    except CorruptImageError as error:
        raise UsageError(key, image, f"not a readable image ({error.reason})") from error
