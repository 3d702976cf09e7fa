"""Faceted feature visualisation: the picture of a target shows a theme, which a linear probe recognises.

Goh et al., Multimodal Neurons in Artificial Neural Networks, Distill 2021; formulas: docs/methods/objectives.md.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

from vital_exp.errors import UsageError
from vital_exp.models.layers import layer_shapes
from vital_exp.models.network import model_space
from vital_exp.models.precision import exact
from vital_exp.objectives.activation import read_activation
from vital_exp.objectives.probe import fit_probe
from vital_exp.objectives.terms import Problem, Term
from vital_exp.references.decoding import CorruptImageError
from vital_exp.references.files import PictureFiles
from vital_exp.references.folder import image_paths
from vital_exp.targets.directions import load_directions
from vital_exp.targets.unit import OUTPUT, Target
from vital_exp.values import flag

logger = logging.getLogger(__name__)

KEY = "objective.facet"
IMAGES, LEAST_IMAGES, IMAGES_PER_PASS = 200, 4, 16  # most and fewest images with the theme, and without it; per pass
SEPARATES = 0.7  # a smaller separation of a probe causes a warning (ours)


class FacetProbe(Term):
    """Minus w . (g(x) * df/dg), summed over positions: the attribution of the target's activation to the theme.

    f is the target's mean read-out, g the activation of a lower layer, w the unit vector of the probe. The gradient
    df/dg is a constant of the step, as in the published code.

    Args:
        problem: what the pictures are made for.
        weight: factor of the term.
        theme: a class of the references by name or number, or a folder of images.
        others: a folder of images without the theme; None for the other classes, or the targets' references where
            there are no classes.
        probe: a file with the weights (C,) of a probe, instead of ``theme``.
        layer: layer of the probe; None for the middle one of the aligned layers.
        rectified: whether negative gradients df/dg count as 0.

    Raises:
        UsageError: no theme and no probe, or both; a layer that is not below the target's layer; too few images.
    """

    def __init__(
        self,
        problem: Problem,
        weight: float = 5.0,
        theme: str | int | None = None,
        others: str | None = None,
        probe: str | None = None,
        layer: str | None = None,
        rectified: bool = True,
    ) -> None:
        super().__init__(problem, weight)
        self.problem, self.readout = problem, problem.readout
        self.rectified = flag(f"{KEY}.rectified", rectified)
        self.layer = self._lower(layer)
        self.layers = (self.layer, self.readout.layer)
        self.taps = problem.network.taps([self.layer], f"{KEY}.layer")
        self._seen: list[Tensor] = []  # the layer's outputs in this forward pass, with their graph
        self.weights = torch.zeros(0)
        if weight:
            self.weights = self._weights(theme, others, probe).to(problem.network.device)

    def _lower(self, layer: str | None) -> str:
        """Return the probe's layer; it must lie below the target's layer."""
        aligned = list(self.problem.alignment.layers)
        if layer is None and aligned:
            layer = aligned[len(aligned) // 2]
        if layer is None:
            raise UsageError(f"{KEY}.layer", layer, "the name of a layer is needed; list=layers prints them")
        self.problem.network.taps([layer], f"{KEY}.layer")
        order = [*layer_shapes(self.problem.network), OUTPUT]
        if layer not in order or order.index(layer) >= order.index(self.readout.layer):
            raise UsageError(f"{KEY}.layer", layer, f"must be below the target's layer {self.readout.layer}")
        if self.problem.network.trace.layers[layer].runs > 1:
            raise UsageError(f"{KEY}.layer", layer, "runs several times in a pass; a layer that runs once is needed")
        return layer

    def _weights(self, theme: str | int | None, others: str | None, probe: str | None) -> Tensor:
        if (theme is None) == (probe is None):
            wanted = f"either a theme, a class or a folder of images, or {KEY}.probe is needed, and not both"
            raise UsageError(f"{KEY}.theme", theme, wanted)
        if probe is None:
            return self._fitted(str(theme), others)
        found = load_directions(str(probe), f"{KEY}.probe")
        channels = layer_shapes(self.problem.network)[self.layer][0]
        if found.shape != (1, channels):
            wanted = f"one direction of the {channels} channels of {self.layer} is needed"
            raise UsageError(f"{KEY}.probe", probe, f"holds directions of shape {tuple(found.shape)}; {wanted}")
        unit: Tensor = found[0] / found[0].norm()
        return unit

    def _fitted(self, theme: str, others: str | None) -> Tensor:
        folder = Path(theme).expanduser()
        of = None if folder.is_dir() else self._class(theme)
        shown = self._read(self._folder(folder, "theme") if of is None else self._of_class(of))
        rest = self._read(self._others(of) if others is None else self._folder(Path(others).expanduser(), "others"))
        for name, value, count in (("theme", theme, len(shown)), ("others", others, len(rest))):
            if count < LEAST_IMAGES:
                raise UsageError(f"{KEY}.{name}", value, f"{count} images; at least {LEAST_IMAGES} are needed")
        found = fit_probe(shown, rest)
        told = f"{KEY}.theme={theme}: in {self.layer} a probe separates {found.separation:.0%} of held-out image pairs"
        if found.separation < SEPARATES:
            logger.warning("%s; 50%% is chance: try another layer or theme", told)
        else:
            logger.info("%s", told)
        return found.weights

    def _class(self, theme: str) -> int:
        """Return the number of a class of the references."""
        references = self.problem.statistics.references
        present = references.class_indices()
        names = references.class_names or self.problem.network.class_names
        if present is None or names is None:
            wanted = "no such folder, and the references have no classes; a folder of images is needed"
            raise UsageError(f"{KEY}.theme", theme, wanted)
        number = names.find(theme, f"{KEY}.theme")
        if number not in present:
            raise UsageError(f"{KEY}.theme", theme, "no reference images of this class")
        return number

    def _of_class(self, number: int) -> Iterator[Tensor]:
        yield from islice(self.problem.statistics.references.images(Target("class", number)), IMAGES)

    def _others(self, of: int | None) -> Iterator[Tensor]:
        """Yield equally many images of each other class; without classes, of each target's references."""
        references = self.problem.statistics.references
        classes = [number for number in references.class_indices() or () if number != of]
        targets = [Target("class", number) for number in classes] or list(dict.fromkeys(self.problem.targets))
        for target in targets:
            yield from islice(references.images(target), max(1, IMAGES // len(targets)))

    def _folder(self, folder: Path, name: str) -> Iterator[Tensor]:
        if not folder.is_dir():
            raise UsageError(f"{KEY}.{name}", str(folder), "no such folder; a folder of images is needed")
        files = PictureFiles.of(self.problem.network.preprocessing)
        paths = sorted(image_paths(folder, ".", files.suffixes))
        for path in paths[:: -(-len(paths) // IMAGES) or 1]:  # evenly over sub-folders
            try:
                yield files.load(folder / path)
            except CorruptImageError as error:
                logger.warning("%s.%s: %s", KEY, name, error)

    @torch.no_grad()
    def _read(self, images: Iterator[Tensor]) -> Tensor:
        """Return the means over positions of the layer's activations for n images, (n, C)."""
        found = [torch.zeros(0, layer_shapes(self.problem.network)[self.layer][0])]
        while chunk := list(islice(images, IMAGES_PER_PASS)):
            activation = exact(self.taps(model_space(torch.stack(chunk), self.problem.network))[0][self.layer])
            found.append(activation.flatten(2).mean(dim=2).float().cpu())
        return torch.cat(found)

    def __call__(self, pictures: Tensor, activations: Mapping[str, Tensor]) -> Tensor:
        """Return minus the (N,) attributions to the theme."""
        values = read_activation(activations[self.readout.layer], self.readout)
        gradients = torch.autograd.grad(values.sum(), self._seen, retain_graph=True, allow_unused=True)
        if any(gradient is None for gradient in gradients):
            raise UsageError(f"{KEY}.layer", self.layer, f"{self.readout.layer} does not depend on this layer")
        first, slope = (self._joined(outputs) for outputs in (self._seen, gradients))
        slope = slope.clamp(min=0) if self.rectified else slope
        return -torch.einsum("ncp,ncp,c->n", first, slope, self.weights.to(first))

    def _joined(self, outputs: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
        """Return the layer's outputs as (N, C, P): one output for all pictures, or one for each picture."""
        layout = self.taps.layout(self.layer)
        each = [one.shape[layout.pictures] if len(outputs) == 1 else 1 for one in outputs]
        parts = [layout.channels_first(one, count) for one, count in zip(outputs, each, strict=True)]
        return exact(torch.cat(parts)).flatten(2)

    @contextmanager
    def during(self, step: int) -> Iterator[None]:
        """Keep the layer's outputs, with their graph, while the network runs."""
        self._seen = []
        with ExitStack() as hooks:
            for layer in self.taps.layers.values():
                hooks.callback(layer.register_forward_hook(self._hook()).remove)
            yield

    def _hook(self) -> Callable[[nn.Module, object, object], Tensor | None]:
        def hook(_module: nn.Module, _inputs: object, output: object) -> Tensor:
            if self.taps.layout(self.layer).windowed:
                raise UsageError(f"{KEY}.layer", self.layer, "the layer holds windows of pictures; another is needed")
            if not isinstance(output, Tensor):
                problem = f"the layer returns {type(output).__name__}, not a tensor; another layer is needed"
                raise UsageError(f"{KEY}.layer", self.layer, problem)
            if not output.requires_grad and torch.is_grad_enabled():
                output = output.detach().requires_grad_()
            self._seen.append(output.clone())
            return self._seen[-1].clone()  # the next module may change its input in place

        return hook
