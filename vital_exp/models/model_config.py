"""The configuration group ``model`` as values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from vital_exp.errors import UsageError
from vital_exp.models.network import Recipe
from vital_exp.values import number, numbers

FINITE = "a finite number"  # the allowed values, in messages


@dataclass
class ModelConfig:
    """The keys of the configuration group ``model``; None means the network's own value or the default rule."""

    source: str = "timm"
    name: str | None = None
    factory: str | None = None
    arguments: dict[str, object] = field(default_factory=dict)
    pretrained: bool = True
    weights: str = "DEFAULT"
    checkpoint: str | None = None
    checkpoint_key: str | int | None = None
    channels: int | None = None
    preview: Sequence[int] | None = None
    value_range: Sequence[float] | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    size: int | Sequence[int] | None = None
    resize: int | None = None
    interpolation: str | None = None
    class_names: str | Sequence[str] | None = None
    output: str | int | None = None
    head: str | None = None
    layers: Sequence[str] | None = None
    layer_weights: Sequence[float] | None = None
    total_variation: float | None = None
    l2: float | None = None
    sparsify: str | None = None
    sparsity: float | Mapping[str, float] = 0.95
    sparsify_images: int = 256

    @property
    def recipe(self) -> Recipe:
        """The layers, weights and priors that the keys ask for.

        Raises:
            UsageError: no layer, a layer named twice, or a weight that is not a number.
        """
        given = self.layer_weights
        weights = None if given is None else numbers("model.layer_weights", given, each=FINITE)
        priors = {key: getattr(self, key) for key in ("total_variation", "l2")}
        for key, value in priors.items():
            if value is not None:
                number(f"model.{key}", value, allowed=FINITE)
        return Recipe(_layers(self.layers), weights, **priors)


def _layers(given: Sequence[str] | str | None) -> tuple[str, ...] | None:
    """Return the names of layers; YAML makes numbers of an nn.Sequential's, and one name may come without brackets."""
    if given is None:
        return None
    layers = (given,) if isinstance(given, str) else tuple(map(str, given))
    if not layers or len(set(layers)) < len(layers):
        raise UsageError("model.layers", list(layers), "different layers, at least one; null: the default rule")
    return layers
