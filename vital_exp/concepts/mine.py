"""Find the concepts of a layer in the images of a class or a folder, and the images that drive each concept most."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vital_exp.concepts.concepts import FORMAT, NAME, Concepts, by_importance
from vital_exp.concepts.factors import METHODS, Factors, factorise
from vital_exp.concepts.importance import DESIGNS, GRADIENT, KINDS, NONE, Explained
from vital_exp.concepts.layers import without_negatives
from vital_exp.concepts.patches import PatchActivations
from vital_exp.concepts.rest import Rest
from vital_exp.errors import UsageError
from vital_exp.mining.counts import IMAGES_PER_UNIT
from vital_exp.mining.images import ImageFolder
from vital_exp.mining.index import Index
from vital_exp.mining.meta import describe_images, images_difference, network_difference
from vital_exp.mining.mine import FOLDER_KEY, Mining
from vital_exp.mining.patches import PUBLISHED, PatchSettings
from vital_exp.mining.plan import duration, images_line, measured, told
from vital_exp.mining.units import map_shapes, select_units
from vital_exp.models.identity import identity_of
from vital_exp.models.network import VisionNetwork, model_space
from vital_exp.references.arrays import Loader
from vital_exp.references.decoding import CorruptImageError, printable
from vital_exp.references.folder import FolderReferences
from vital_exp.targets.unit import OUTPUT
from vital_exp.values import one_of, whole_number

SETTINGS = ("layer", "method", "count", "seed", "class", "importance", "explained", "patches", "patch")


@dataclass(frozen=True)
class ConceptSettings:
    """The settings of a search for concepts.

    Attributes:
        method: ``"nmf"``, ``"kmeans"`` or ``"pca"``.
        count: number of concepts.
        of_class: the class that importance is computed for; None: no importance.
        importance: ``"sobol"`` (total Sobol index), ``"gradient"`` (times coefficient) or ``"none"``.
        seed: of the factorisation, the choice of patches and images, and the Sobol sequence.
        patches: the most patches that are factorised; of more, a random choice.
        explained: the most images that importance is averaged over.
    """

    method: str = "nmf"
    count: int = 10
    of_class: int | None = None
    importance: str = "sobol"
    seed: int = 0
    patches: int = 20_000
    explained: int = 20

    def check(self) -> None:
        """Check the settings.

        Raises:
            UsageError: a setting is not allowed; the message names the first such setting.
        """
        one_of("concepts", self.method, METHODS)
        one_of("concepts.importance", self.importance, KINDS)
        for key, least in (("count", 1), ("seed", 0), ("patches", 1), ("explained", 1)):
            whole_number(f"concepts.{key}", getattr(self, key), least)


@dataclass
class ConceptMining:
    """Concepts of one layer: factorised from patches, ranked by importance, then mined like any directions.

    Attributes:
        network: the frozen network, on its device.
        layer: module name.
        folder: the images; those of the class, where one is named.
        settings: the settings of the search.
        k: images and patches per concept in the index.
        patch: the windows that are factorised and mined.
        batch_size, workers, progress, save_every: see :class:`vital_exp.mining.mine.Mining`.
    """

    network: VisionNetwork
    layer: str
    folder: ImageFolder
    settings: ConceptSettings = field(default_factory=ConceptSettings)
    k: int = IMAGES_PER_UNIT
    patch: PatchSettings = PUBLISHED
    batch_size: int = 32
    workers: int = 0
    progress: bool = False
    save_every: int = 2000

    def run(self, out: Path) -> tuple[Concepts, Index]:
        """Find the concepts and write them to the folder ``out``; return them and their index.

        Concepts and an index that ``out`` holds already, with the same description, are read instead.

        Raises:
            UsageError: a setting, layer or folder that is not allowed; ``out`` holds concepts with another description.
        """
        concepts = self.find(out)
        mining = self.mining(concepts)
        mining.check()
        return concepts, mining.run(out)

    def find(self, out: Path) -> Concepts:
        """Find the concepts and write them to ``out``, or read them there; no index is made; see :meth:`run`."""
        self.settings.check()
        self.patch.check(self.network.preprocessing.size)
        if self.settings.of_class is not None:
            check_classifier(self.network, self.settings.of_class)
        return self._found(out)

    def plan(self) -> str:
        """Return what would be done and how long it would take, as text; a few batches are timed.

        Raises:
            UsageError: see :meth:`run`.
        """
        self.settings.check()
        self.patch.check(self.network.preprocessing.size)
        own, images = self.settings, len(self.folder.paths)
        taps = self.network.taps([self.layer], "layers")

        def show(rgb: Tensor) -> None:
            with torch.no_grad():
                taps(model_space(rgb, self.network))

        cost = measured(self.folder, show, self.batch_size, self.workers, self.network.device)
        windows = len(self.patch.windows(*self.network.preprocessing.size))
        ranked = min(images, own.count * min(self.k, images))
        found, mined = cost.seconds(images, images * windows), cost.seconds(images, images)
        described = self.described()
        importance = own.importance if own.of_class is not None else NONE
        lines = {
            **described,
            "concepts": f"{described['concepts']}, about {duration(found)}, and importance {importance}",
            "1st pass": f"{images} images, about {duration(mined)}",
            "2nd pass": f"at most {ranked} images, about {duration(cost.seconds(ranked, ranked * windows))}",
        }
        return told(lines)

    def described(self) -> dict[str, str]:
        """Return the lines on network, images and layer of a plan, by the line's name."""
        own, windows = self.settings, len(self.patch.windows(*self.network.preprocessing.size))
        return {
            "model": f"{self.network.name} on {self.network.device}",
            "images": images_line(self.folder),
            "concepts": f"{own.count} of {self.layer} by {own.method}, of {windows} windows of each image",
        }

    def mining(self, concepts: Concepts) -> Mining:
        """Return the mining of the images and patches that drive the concepts, by projection on their directions."""
        units = select_units(self.network, [self.layer], directions={self.layer: concepts.factors.directions})
        k = min(self.k, len(self.folder.paths))
        options = (self.batch_size, self.workers, self.progress, self.save_every)
        return Mining(units, self.folder, k, self.patch, *options)

    @cached_property
    def meta(self) -> dict[str, object]:
        """The description of the concepts: network, images and settings, ready for JSON."""
        own = self.settings
        names = self.network.class_names
        label = names.label(own.of_class) if names and own.of_class is not None else None
        patch = {**vars(self.patch), "size": self.patch.side(*self.network.preprocessing.size)}
        kind = NONE if own.of_class is None else own.importance
        return {
            "format": FORMAT,
            **identity_of(self.network).describe([self.layer, OUTPUT]),
            **describe_images(self.folder),
            **{"layer": self.layer, "method": own.method, "count": own.count, "seed": own.seed},
            **{"class": own.of_class, "label": label, "importance": kind, "explained": own.explained},
            **{"patches": own.patches, "patch": patch},
        }

    @property
    def key(self) -> str:
        """A hash of everything that the concepts depend on."""
        content = {key: self.meta[key] for key in self.meta if key != "activations"}  # the variant stands for them
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]

    def _found(self, out: Path) -> Concepts:
        if (out / NAME).is_file():
            concepts = Concepts.open(out / NAME, FOLDER_KEY)
            self._check_same(out, concepts.meta)
            return concepts
        concepts = self._find()
        concepts.save(out)
        return concepts

    def _check_same(self, out: Path, old: dict[str, object]) -> None:
        if text := network_difference(old, identity_of(self.network)) or images_difference(old, self.meta):
            raise UsageError(FOLDER_KEY, out, f"holds concepts of {text}; choose another folder")
        differing = [
            f"{key} ({old.get(key)} there, {self.meta[key]} now)" for key in SETTINGS if old.get(key) != self.meta[key]
        ]
        if differing:
            raise UsageError(FOLDER_KEY, out, f"holds other concepts, {', '.join(differing)}; choose another folder")

    def _find(self) -> Concepts:
        map_shapes(self.network, [self.layer])  # names a layer that does not exist or never runs
        own = self.settings
        read = PatchActivations(
            *(self.network, self.layer, self.folder, self.patch, own.patches, own.seed),
            *(self.batch_size, self.workers, self.progress, self._check_sign),
        )
        factors = factorise(read(), own.count, own.method, own.seed)
        if own.of_class is None or own.importance == NONE:
            return Concepts(factors, None, self.meta)
        return Concepts(*by_importance(factors, self.importance(factors)), self.meta)

    def _check_sign(self, activations: Tensor) -> None:
        """Refuse negative activations for NMF."""
        if self.settings.method == "nmf" and activations.min() < 0:
            raise self._negative(float(activations.min()))

    def _negative(self, smallest: float) -> UsageError:
        near = without_negatives(self.network, self.layer, next(self._images()))
        choice = f", such as {' or '.join(near)}" if near else ""
        advice = f"take a layer after the ReLU{choice}; or concepts=pca"
        problem = f"needs activations of at least 0, and {self.layer} has {smallest:.3g}: {advice}"
        return UsageError("concepts", "nmf", problem)

    def importance(self, factors: Factors) -> Tensor:
        """Return the mean importance of each concept for the class, (K,), over images."""
        own = self.settings
        assert own.of_class is not None
        found = []
        for image in self._images():
            explained = Explained(Rest(self.network, self.layer, image), factors, own.of_class)
            gradient = own.importance == GRADIENT
            found.append(explained.gradient() if gradient else explained.sobol(DESIGNS, own.seed))
        return torch.stack(found).mean(dim=0)

    def _images(self) -> Iterator[Tensor]:
        """Yield up to ``explained`` images of the folder, chosen at random."""
        count = len(self.folder.paths)
        given = 0
        for number in np.random.default_rng(self.settings.seed).permutation(count):
            if given == self.settings.explained:
                return
            try:
                image = self.folder.load(self.folder.paths[number])
            except CorruptImageError:
                continue  # the index lists corrupt images
            given += 1
            yield image.to(self.network.device)


def check_classifier(network: VisionNetwork, given: object, key: str = "concepts.class") -> None:
    """Make sure that a network has classes, so that concepts can have importance for one.

    Raises:
        UsageError: the network has no class outputs.
    """
    if network.class_names is None:
        problem = (
            f"{network.name} has no class outputs: leave it out, and give the images of the class as images=folder"
        )
        raise UsageError(key, given, problem)


def class_folder(
    root: str | Path, network: VisionNetwork, of_class: int, key: str = "images", loader: Loader | None = None
) -> Path:
    """Return the folder of a class's images: a sub-folder by name, WordNet id or index, or a root of images alone.

    Raises:
        UsageError: no folder, or several, of this class.
    """
    place = Path(root).expanduser()
    own = network.preprocessing
    kind = {"channels": own.channels, "value_range": own.value_range, "loader": loader}
    folders = FolderReferences(place, network.classes, **kind).class_folders(of_class)  # type: ignore[arg-type]
    if len(folders) != 1:
        raise UsageError(
            key, printable(place), f"has {len(folders)} folders of class {of_class}; give the folder of its images"
        )
    return place / folders[0]
