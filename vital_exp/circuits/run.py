"""Make a circuit: its tree, the ablation results, and a run folder of pictures for each level."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vital_exp.circuits.causal import causal
from vital_exp.circuits.tree import Node, grow
from vital_exp.config import plain
from vital_exp.config_tree import option_content
from vital_exp.configuration import Configuration
from vital_exp.errors import UsageError
from vital_exp.mining.images import ImageFolder
from vital_exp.models.identity import begin_call
from vital_exp.models.loading import build_network
from vital_exp.models.named import model_config
from vital_exp.models.network import VisionNetwork
from vital_exp.no_effect import keys_of
from vital_exp.references.base import References
from vital_exp.references.decoding import printable
from vital_exp.references.faceted import main_facet
from vital_exp.relevance.maps import WITH_MAPS
from vital_exp.runs.folder import RunFolder
from vital_exp.setup import parts
from vital_exp.setup.checks import check_numbers, check_tree
from vital_exp.setup.facets import facet_targets
from vital_exp.setup.mined import image_folder, settle_index
from vital_exp.setup.problem import alignment_of, check_references, references_of
from vital_exp.setup.request import Request
from vital_exp.setup.window_size import settle_windows
from vital_exp.targets.selection import parse_target
from vital_exp.targets.unit import Target
from vital_exp.visualization.run import Visualization
from vital_exp.whole_files import whole_file

logger = logging.getLogger(__name__)

TREE, CAUSAL = "circuit.json", "causal.json"
# Keys of references whose values a method sets for hidden units; a class has other values.
BY_KIND = ("count", "facets", "candidates")


@dataclass
class CircuitRun:
    """The circuit of a configuration.

    Attributes:
        config: the composed configuration, with ``target=circuit``.
        network: the network, on its device.
        overrides: the user's overrides, recorded in the run folders.
    """

    config: Configuration
    network: VisionNetwork
    overrides: Sequence[str] = ()
    _levels: dict[tuple[Target, ...], Request] = field(default_factory=dict)

    @classmethod
    def from_config(cls, config: Configuration, overrides: Sequence[str] = ()) -> CircuitRun:
        """Build the network, and check the configuration.

        Raises:
            UsageError: the first mistake.
        """
        check_numbers(config)
        parts.device_count(config)
        check_tree(config)
        config = settle_index(config)
        if config.relevance.method not in WITH_MAPS:
            allowed = f"a circuit needs relevance with maps: {', '.join(WITH_MAPS)}"
            raise UsageError("relevance.method", config.relevance.method, allowed, WITH_MAPS)
        network = build_network(model_config(config), config.cache).to(parts.device_of(config))
        begin_call(network, config.cache if config.references.cache else None)
        parts.check_optimisation(config, network)
        circuit = cls(config, network, overrides)
        network.taps(circuit.layers, "target.layers")
        return circuit

    @cached_property
    def root(self) -> Target:
        """The unit at the top."""
        spelling = self.config.target.unit
        try:
            names = self.network.classes if str(spelling).startswith("class") else None
            target = parse_target(str(spelling), names)
        except UsageError as error:
            raise UsageError("target.unit", error.value, error.problem, error.options) from None
        if target.kind not in ("class", "channel"):
            raise UsageError("target.unit", spelling, "a class or a channel is needed")
        return target

    @cached_property
    def layers(self) -> list[str]:
        """The layers below the root, from the top down, one for each level below the root."""
        given, below = self.config.target.layers, int(self.config.target.levels) - 1
        if given is not None:
            return list(map(str, [given] if isinstance(given, str) else given))[:below]
        aligned = list(alignment_of(self.config, self.network, self.root.layer).layers)
        if not aligned:
            raise UsageError("target.unit", self.config.target.unit, "there is no layer below it to look at")
        return aligned[::-1][:below]

    def run(self, path: Path) -> tuple[Node, int]:
        """Grow the tree and make the pictures of each level in ``path/level0``, ``level1``, ...

        Returns:
            The tree, and the number of failed pictures.
        """
        method = self.config.relevance.method
        tree = grow(self.network, self.root, self.layers, self.config.target.width, self.references, method)
        path.mkdir(parents=True, exist_ok=True)
        with whole_file(path / TREE) as file:
            json.dump(as_json(tree), file, indent=2)
        self._ablate(tree, path / CAUSAL)
        failed = 0
        for number, level in enumerate(tree.levels()):
            targets = list(dict.fromkeys(node.target for node in level))
            failed += self._pictures(targets, path / f"level{number}")
        return tree, failed

    def _ablate(self, tree: Node, place: Path) -> None:
        """Write the ablation results of the tree, unless the file exists or ``target.ablation_images`` is 0."""
        count = int(self.config.target.ablation_images)
        if count == 0 or place.is_file():
            return
        others = self._other_images(count)
        method, seed = self.config.relevance.method, int(self.config.seed)
        try:
            found = causal(self.network, tree, self.references, others, method, count, seed)
        except UsageError as error:  # pictures are possible without ablation
            logger.warning("no ablation: %s", error)
            return
        with whole_file(place) as file:
            json.dump(found, file, indent=2)

    def _other_images(self, count: int) -> Tensor:
        """Return up to ``count`` images (N, C, H, W) in [0, 1], evenly spaced in the mined folder's list of paths."""
        own = self.network.preprocessing
        place = image_folder(self.config.references.root, self.config.cache)
        folder = ImageFolder(place, own, "references.root", parts.loader_of(self.config))
        every = max(1, len(folder.paths) // count)
        read = [
            batch.rgb(torch.device("cpu"))
            for batch in folder.batches(range(len(folder.paths))[::every][:count], count)
            if batch.pixels is not None
        ]
        if not read:
            raise UsageError("references.root", printable(place), "none of its images can be read")
        return torch.cat(read)

    def _pictures(self, targets: list[Target], path: Path) -> int:
        from vital_exp.reporting.gallery import write_gallery

        level = self.level(targets)
        shown = [main_facet(level.references, target) for target in targets]
        request = replace(level, targets=facet_targets(level.config, level.references, shown))
        made = Visualization(request, folder=RunFolder(path, level.config, self.overrides)).run()
        write_gallery(path)
        return sum(result["status"] == "failed" for result in made.results)

    def references(self, targets: list[Target]) -> References:
        """Return the references of the units of one level."""
        return self.level(targets).references

    def level(self, targets: list[Target]) -> Request:
        """Return the request of the units of one level, cached.

        Relevance and pictures thus share the same windows, of the same size, and the same facets.
        """
        key = tuple(targets)
        if key not in self._levels:
            config = self.config_of(targets)
            references = references_of(config, self.network, targets)
            check_references(targets, references)
            config = settle_windows(config, self.network, references, targets)
            self._levels[key] = Request(config, self.network, targets, references)
        return self._levels[key]

    def config_of(self, targets: Sequence[Target]) -> Configuration:
        """Return the configuration of an ordinary run for the units of one level."""
        content: dict[str, Any] = plain(self.config)
        first = targets[0]
        numbers = [target.index for target in targets]
        content["target"] = {"kind": first.kind, "layer": first.layer, "index": numbers, "variations": 1}
        if first.kind == "class":
            content["references"] = self._class_references(content["references"], content["model"]["source"])
        # The key relevance chooses the tree's channels; the pictures use the method's own relevance.
        own = content["method"].get("units", {}).get("relevance", "none")
        content["relevance"]["method"] = "none" if first.kind == "class" else own
        return Configuration(content)

    def _class_references(self, mined: dict[str, object], model: str) -> dict[str, object]:
        """Return the keys of the references of a class at the root: a class's defaults, and the user's values."""
        source = "folder" if mined["root"] or model != "embedded" else "embedded"
        usual = {**option_content("references", "_keys"), **option_content("references", source)}
        asked = keys_of(self.overrides)
        own = {key: mined[key] for key in BY_KIND if key in mined and f"references.{key}" in asked}
        kept = {str(key): mined[key] for key in ("seed", "size", "embedding", "cache") if key in mined}
        return {**{key: usual[key] for key in BY_KIND}, **kept, **own, "source": source, "root": mined["root"]}


def as_json(node: Node) -> dict[str, object]:
    """Return a tree as values for JSON."""
    own = {"target": node.target.name, "label": node.target.label, "layer": node.target.layer}
    return {**own, "index": node.target.index, "share": node.share, "children": [as_json(c) for c in node.children]}
