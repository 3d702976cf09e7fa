"""Numbers of units and their pictures: what the strongest images have in common, and whether pictures look like them.

Formulas: docs/methods/metrics.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from vital_exp.atlases.profiles import Profile, make_array, profile_path, rows_at_once
from vital_exp.atlases.request import Part
from vital_exp.atlases.store import ClassRow, UnitRow
from vital_exp.atlases.turns import alone
from vital_exp.errors import UsageError
from vital_exp.evaluation.correspondence import correspondence, unit_vectors
from vital_exp.evaluation.reading import NetworkReader
from vital_exp.evaluation.score import NotComputed
from vital_exp.evaluation.semantic_lens import clarity, polysemanticity
from vital_exp.images.output import read_picture, resized
from vital_exp.mining.images import ImageFolder
from vital_exp.mining.index import Index
from vital_exp.mining.patches import enlarged
from vital_exp.models.network import VisionNetwork
from vital_exp.naming.labels import label_of, label_scores
from vital_exp.references.decoding import CorruptImageError
from vital_exp.setup.facets import OwnEmbedding

IMAGES = 16  # the strongest, from which clarity and polysemanticity are computed
OTHERS = 48  # units whose strongest image a picture is compared with
CLASSES_KEPT = 20  # of each unit, the strongest
LEAST_OF_LABEL = 8  # images of a label that can name a unit


def strongest(index: Index, folder: ImageFolder, layer: str, unit: int, count: int) -> list[Tensor]:
    """Return the windows (whole images where a layer has no map) that drive a unit most, (C, H, W) each, enlarged."""
    boxed = index.meta["fields"][layer] is not None
    pictures = []
    for row in (index.windows if boxed else index.top)(layer, unit, count):
        try:
            view = folder.load(row.image)
        except CorruptImageError:  # sound when it was mined
            continue
        pictures.append(view if row.box is None else enlarged(view, row.box))
    return pictures


class Clarities:
    """Clarity, polysemanticity and redundancy of a layer's units.

    Images are embedded by the network itself, in the unit's layer (for classes, the last aligned layer).

    Args:
        network: frozen.
        part: the layer's units.
        out: the folder of the atlas, which keeps each unit's mean embedding for the redundancy.
    """

    def __init__(self, network: VisionNetwork, part: Part, out: Path) -> None:
        self.part, self._embed = part, OwnEmbedding(network)
        self._out, self._path = out, profile_path(out, f"{part.layer}-embeddings")

    def of(self, unit: int, pictures: Sequence[Tensor]) -> dict[str, Any]:
        """Return the measures of a unit from its strongest images; None where these are too few."""
        if not pictures:
            return {"clarity": None, "polysemanticity": None}
        vectors = self._embed(self.part.target(unit), torch.stack(list(pictures)))
        self._keep(unit, normalize(vectors.double(), dim=1).mean(dim=0).float())
        return {name: _number(measure, vectors) for name, measure in MEASURES.items()}

    def _keep(self, unit: int, mean: Tensor) -> None:
        if not self._path.is_file():
            with alone(self._out, f"embeddings {self.part.layer}"):
                make_array(self._path, (self.part.count, len(mean)), np.float32)
        array = np.load(self._path, mmap_mode="r")
        with self._path.open("r+b") as file:  # not mapped: other processes write other rows
            file.seek(array.offset + unit * array.strides[0])
            file.write(mean.numpy().astype(np.float32).tobytes())

    def redundancies(self) -> dict[int, float]:
        """Return the cosine of each unit's mean embedding to that of the unit most like it."""
        if not self._path.is_file():
            return {}
        count, width = self._kept.shape
        size = rows_at_once(width)
        firsts = [np.array(self._kept[start : start + size, 0]) for start in range(0, count, size)]
        there = np.flatnonzero(np.isfinite(np.concatenate(firsts)))
        if len(there) < 2:
            return {}
        found: dict[int, float] = {}
        for start in range(0, len(there), size):
            own = self._means(there[start : start + size])
            best = torch.full((len(own),), -torch.inf)
            for place in range(0, len(there), size):
                cosines = own @ self._means(there[place : place + size]).T
                if place == start:
                    cosines.fill_diagonal_(-torch.inf)
                best = torch.maximum(best, cosines.amax(dim=1))
            found |= dict(zip(map(int, there[start : start + size]), best.tolist(), strict=True))
        return found

    def _means(self, units: NDArray[np.int64]) -> Tensor:
        """Return the mean embeddings of some units at length 1."""
        return normalize(torch.from_numpy(self._kept[units]), dim=1)

    @property
    def _kept(self) -> NDArray[np.float32]:
        """The mean embeddings of all units, mapped anew at each call: pages of a map that stays open stay in memory."""
        mapped: NDArray[np.float32] = np.load(self._path, mmap_mode="r")
        return mapped


MEASURES = {"clarity": clarity, "polysemanticity": polysemanticity}


def _number(measure: Any, vectors: Tensor) -> float | None:
    try:
        return float(measure(vectors))
    except NotComputed:
        return None


@dataclass
class Correspondence:
    """Measures whether a unit's picture looks like the images that drive the unit, to a network that took no part.

    Attributes:
        judge: that network; None: nothing is measured.
        index: the mining index of the layer.
        folder: the images of the index.
        part: the layer's units.
    """

    judge: VisionNetwork | None
    index: Index
    folder: ImageFolder
    part: Part

    @cached_property
    def _read(self) -> NetworkReader:
        assert self.judge is not None
        return NetworkReader(self.judge)

    def _embedded(self, pictures: Sequence[Tensor]) -> Tensor:
        size = self._read.network.preprocessing.size
        shown = torch.stack([resized(one[None], size)[0] for one in pictures])
        return unit_vectors(self._read(shown.to(self._read.network.device)).features)

    @cached_property
    def _others(self) -> tuple[list[int], Tensor]:
        """Units from all over the layer, and the embedding of the strongest image of each."""
        units = [int(unit) for unit in np.linspace(0, self.part.count - 1, min(OTHERS, self.part.count))]
        found = [(unit, _first(self.index, self.folder, self.part.layer, unit)) for unit in units]
        there = [(unit, picture) for unit, picture in found if picture is not None]
        return [unit for unit, _ in there], self._embedded([picture for _, picture in there])

    def of(self, unit: int, picture: Path, natural: Sequence[Tensor]) -> float | None:
        """Return the share of pairs in which an own image is more like the picture than another unit's.

        Args:
            unit: of the picture.
            picture: its file.
            natural: images of the picture's facet.
        """
        if self.judge is None or not natural:
            return None
        units, others = self._others
        kept = [place for place, other in enumerate(units) if other != unit]
        if not kept:
            return None
        value = correspondence(self._embedded([read_picture(picture)])[0], self._embedded(natural), others[kept])
        return value if math.isfinite(value) else None


def _first(index: Index, folder: ImageFolder, layer: str, unit: int) -> Tensor | None:
    try:
        return next(iter(strongest(index, folder, layer, unit, 1)), None)
    except UsageError:  # a feature that no image wakes
        return None


@dataclass(frozen=True)
class Labels:
    """Which folder each image is in, by its class's name where that is known.

    Attributes:
        owners: the label of each image.
        naming: the labels that can name a unit; none if the folders are not labels.
    """

    owners: np.ndarray[Any, np.dtype[Any]]
    naming: tuple[str, ...]

    @classmethod
    def of(cls, folder: ImageFolder, network: VisionNetwork) -> Labels:
        """Return the labels of images: the folder that each is in directly."""
        parents = [path.rpartition("/")[0].rpartition("/")[2] for path in folder.paths]
        names = {one: label_of(one, network.class_names) if one else "" for one in dict.fromkeys(parents)}
        owners = [names[one] for one in parents]
        labels = [name for name in dict.fromkeys(owners) if name]
        counts = {name: owners.count(name) for name in labels}
        naming = tuple(name for name in labels if counts[name] >= LEAST_OF_LABEL) if len(labels) > 1 else ()
        return cls(np.array(owners), naming if len(labels) > 1 else ())

    @property
    def known(self) -> list[str]:
        """The labels, in the order of the folder; none where there are fewer than two."""
        found = [str(name) for name in dict.fromkeys(self.owners.tolist()) if name]
        return found if len(found) > 1 else []


@dataclass(frozen=True)
class Statistics:
    """Statistics of the profiles of some units, by the unit's number.

    Attributes:
        rows: columns of the table units: mean, deviation, and name and name_score if a label names the unit.
        classes: the classes that drive the unit most.
    """

    rows: dict[int, dict[str, Any]]
    classes: dict[int, list[ClassRow]]


def statistics(layer: str, profile: Profile, labels: Labels, start: int, end: int, named: bool) -> Statistics:
    """Return the statistics of the units from ``start`` to ``end`` of a layer over all images that could be read.

    Args:
        layer: the units' layer.
        profile: of the layer.
        labels: of the images.
        start, end: the first unit's number, and the last one's plus 1.
        named: whether a unit is named by the label that its activation separates best from the others.
    """
    values, owners = profile.block(start, end), labels.owners[profile.rows]
    means, deviations = values.mean(axis=0, dtype=np.float64), values.std(axis=0, dtype=np.float64)
    scores = label_scores(torch.from_numpy(values), owners.tolist(), labels.naming) if named and labels.naming else None
    by_label = {name: values[owners == name].mean(axis=0, dtype=np.float64) for name in labels.known}
    rows: dict[int, dict[str, Any]] = {}
    classes = {}
    for place in range(values.shape[1]):
        rows[start + place] = {"mean": float(means[place]), "deviation": float(deviations[place])}
        if scores is not None and deviations[place] > 0:
            name, auc, _ = scores.best(place)
            rows[start + place] |= {"name": name, "name_score": auc}
        best = sorted(by_label, key=lambda name, at=place: -by_label[name][at])[:CLASSES_KEPT]  # type: ignore[misc]
        classes[start + place] = [ClassRow(layer, start + place, name, float(by_label[name][place])) for name in best]
    return Statistics(rows, classes)


def mined_row(layer: str, unit: int, index: Index, known: dict[str, Any], status: str) -> UnitRow:
    """Return the row of a unit right after mining.

    Raises:
        UsageError: a feature that no image wakes.
    """
    histogram = index.histogram(layer, unit)
    told = {"low": histogram.low, "high": histogram.high, "counts": histogram.counts}
    own: dict[str, Any] = {
        "density": histogram.awake,
        "maximum": index.largest_activation(layer, unit),
        "histogram": told,
    }
    return UnitRow(layer, unit, status, **own, **known)
