"""The request for an atlas: a configuration made into a network, images, layers and units."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from vital_exp.atlases.places import check_method
from vital_exp.concepts.concepts import Concepts
from vital_exp.config import options_of, plain
from vital_exp.configuration import Configuration
from vital_exp.errors import UsageError
from vital_exp.mining.counts import check_counts
from vital_exp.mining.drawn import drawn_folder
from vital_exp.mining.images import ImageFolder
from vital_exp.mining.units import Units, select_units
from vital_exp.models.identity import begin_call
from vital_exp.models.layers import default_layers, unit_shape, unit_shapes
from vital_exp.models.loading import build_network
from vital_exp.models.named import model_config
from vital_exp.models.network import VisionNetwork
from vital_exp.references.arrays import Loader
from vital_exp.references.facets import check_facets
from vital_exp.setup.image_root import image_root
from vital_exp.setup.mined import MOST_CANDIDATES
from vital_exp.setup.parts import device_of
from vital_exp.targets.autoencoder import SparseAutoencoder
from vital_exp.targets.autoencoder_files import load_autoencoder
from vital_exp.targets.selection import unit_targets
from vital_exp.targets.unit import OUTPUT, Target
from vital_exp.values import one_of, whole_number

NONE = "none"
AUTO = "auto"
EMBEDDED, EMBEDDED_JUDGE = "embedded", "embedded_judge"
# Units that are made together and then written: an interruption loses the work of these at most.
UNITS_AT_ONCE = 8


@dataclass(frozen=True)
class Part:
    """The units of one layer.

    Attributes:
        layer: its name.
        kind: of its targets: ``"class"``, ``"channel"``, ``"sae"`` or ``"concept"``.
        count: how many units the layer has.
        units: the numbers of the units that are asked for, ascending.
        refresh: the numbers of the units that are made again.
        directions: (K, C), one row per unit, or the autoencoder whose features are the units; None for channels and
            classes.
        overrides: keys of vital-visualize that name the directions.
    """

    layer: str
    kind: str
    count: int
    units: tuple[int, ...]
    refresh: tuple[int, ...] = ()
    directions: Tensor | SparseAutoencoder | None = None
    overrides: tuple[str, ...] = ()

    def target(self, unit: int) -> Target:
        """Return the target of a unit."""
        return Target(self.kind, unit, None if self.kind == "class" else self.layer)


@dataclass(frozen=True)
class AtlasRequest:
    """A configuration with its network on the device, images and units.

    Attributes:
        config: the composed configuration of vital-atlas.
        network: frozen.
        folder: the images.
        parts: by layer, in the order of the network.
        local_rank: of this process.
    """

    config: Configuration
    network: VisionNetwork
    folder: ImageFolder
    parts: Mapping[str, Part]
    local_rank: int = 0

    @classmethod
    def of(cls, config: Configuration, local_rank: int = 0) -> AtlasRequest:
        """Make the objects that a composed configuration names.

        Raises:
            UsageError: the first mistake in it.
        """
        check_settings(config)
        cache = config.cache
        network = build_network(model_config(config), cache).to(device_of(config, local_rank=local_rank))
        begin_call(network, cache)
        loader = None if config.loader is None else Loader.named(str(config.loader), "loader")
        folder = ImageFolder(_image_folder(config, cache), network.preprocessing, loader=loader)
        parts = _parts(config, network)
        return cls(config, network, folder, parts, local_rank)

    @property
    def makes_pictures(self) -> bool:
        """Whether pictures are made."""
        return str(self.config.pictures) != NONE

    @cached_property
    def judge(self) -> Any:
        """Name or keys of the network that measures correspondence; None for none."""
        if not self.makes_pictures:
            return None
        given = plain(self.config)["judge"]
        if given == AUTO:
            own = str(self.config.model.name)
            return EMBEDDED_JUDGE if self.config.model.source == EMBEDDED and own != EMBEDDED_JUDGE else None
        return given

    @property
    def k(self) -> int:
        """How many of each unit's strongest images are ranked, and as many of the weakest."""
        return min(len(self.folder.paths), max(MOST_CANDIDATES, int(self.config.shown)))

    def all_units(self, layers: Iterable[str]) -> Units:
        """Return all units of some layers."""
        return self.units({layer: range(self.parts[layer].count) for layer in layers})

    def units(self, units: Mapping[str, Sequence[int]]) -> Units:
        """Return units of some layers, to be mined."""
        given = {layer: self.parts[layer].directions for layer in units}
        directions = {layer: vectors for layer, vectors in given.items() if vectors is not None}
        return select_units(
            self.network, list(units), {layer: list(own) for layer, own in units.items()}, directions=directions
        )


def check_settings(config: Configuration) -> None:
    """Check the keys that need no network.

    Raises:
        UsageError: the first that is not allowed.
    """
    one_of("pictures", config.pictures, [*options_of("method"), NONE])
    whole_number("shown", config.shown, 1)
    check_counts({"k": config.shown, **{key: config[key] for key in ("batch_size", "workers", "save_every")}})
    try:
        check_facets(config.facets)
    except UsageError as error:
        raise UsageError("facets", error.value, error.problem, error.options) from None
    check_method(config.map)
    whole_number("seed", config.seed, 0)
    if config.steps is not None:
        whole_number("steps", config.steps, 1)
    if config.sae is not None and config.concept_folder is not None:
        raise UsageError("sae", config.sae, "either sae or concepts")


def _image_folder(config: Configuration, cache: Path) -> Path:
    if config.images:
        return image_root(config.images, cache, "images")
    if config.model.source != EMBEDDED:
        raise UsageError("images", config.images, "a folder of images is needed, any tree")
    return drawn_folder(cache)


def _parts(config: Configuration, network: VisionNetwork) -> dict[str, Part]:
    """Return the units that are asked for, by layer in the order of the network."""
    if config.concept_folder is not None:
        concepts = Concepts.open(config.concept_folder, "concepts")
        vectors = concepts.factors.directions
        own = {"target.concepts": str(config.concept_folder)}
        layer = _only(_layers(config, network, (concepts.layer,)), "concepts")
        if layer != concepts.layer:
            raise UsageError("layers", [layer], f"the concepts of {config.concept_folder} are of {concepts.layer}")
        return {layer: _part(config, layer, "concept", len(vectors), vectors, own)}
    if config.sae is not None:
        layer = _only(_layers(config, network), "sae")
        channels = unit_shape(network, layer, "layers")[0]
        keys = {**plain(config)["autoencoder"], "checkpoint": str(config.sae)}
        try:
            autoencoder = load_autoencoder({**keys, "layer": layer}, channels)
        except UsageError as error:
            own_key = "sae" if error.key == "target.checkpoint" else error.key.replace("target.", "autoencoder.")
            raise UsageError(own_key, error.value, error.problem, error.options) from None
        named = {f"target.{key}": value for key, value in keys.items() if value is not None}
        return {layer: _part(config, layer, "sae", len(autoencoder), autoencoder, named)}
    return {layer: _plain_part(config, network, layer) for layer in _layers(config, network)}


def _plain_part(config: Configuration, network: VisionNetwork, layer: str) -> Part:
    count = unit_shape(network, layer, "layers")[0]
    kind = "class" if layer == OUTPUT and network.class_names is not None else "channel"
    return _part(config, layer, kind, count)


def _layers(config: Configuration, network: VisionNetwork, default: Sequence[str] = ()) -> list[str]:
    """Return the layers that are asked for, in the order of the network."""
    if config.layers is None:
        own = (OUTPUT,) if config.model.source == EMBEDDED else ()
        chosen = list(default) or [*default_layers(network), *own]
    else:
        given = config.layers
        chosen = list(map(str, [given] if isinstance(given, (str, int)) else given))
    if not chosen or len(set(chosen)) < len(chosen):
        raise UsageError("layers", chosen, "different layers, at least one")
    for layer in chosen:
        unit_shape(network, layer, "layers")
    order = list(unit_shapes(network))
    return sorted(chosen, key=order.index)


def _only(layers: Sequence[str], key: str) -> str:
    if len(layers) != 1:
        raise UsageError("layers", list(layers), f"{key} are of one layer")
    return layers[0]


def _part(
    config: Configuration,
    layer: str,
    kind: str,
    count: int,
    directions: Tensor | SparseAutoencoder | None = None,
    named: Mapping[str, object] | None = None,
) -> Part:
    units = _numbers("units", config.units, layer, kind, count)
    refresh = () if config.refresh is None else _numbers("refresh", config.refresh, layer, kind, count)
    quoted = tuple(f"{key}={_quoted(value)}" for key, value in (named or {}).items())
    return Part(layer, kind, count, tuple(sorted({*units, *refresh})), refresh, directions, quoted)


def _quoted(value: object) -> str:
    return f"'{value}'" if isinstance(value, str) else str(value)


def _numbers(key: str, given: Any, layer: str, kind: str, count: int) -> tuple[int, ...]:
    try:
        targets = unit_targets("channel" if kind == "class" else kind, layer, given, count)
    except UsageError as error:
        raise UsageError(key, error.value, error.problem) from None
    return tuple(sorted(target.index for target in targets))
