"""The evidence that all metrics share: pictures and natural images, passed once through each network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from vital_exp.errors import UsageError
from vital_exp.evaluation.crops import crops_of
from vital_exp.evaluation.kept_readings import KeptReading, reading_place
from vital_exp.evaluation.reading import NetworkReader, PictureReader, PixelReader, Reading, joined
from vital_exp.evaluation.recognition import PICTURES_PER_PASS
from vital_exp.evaluation.score import NotComputed
from vital_exp.evaluation.settings import MetricSettings
from vital_exp.images.output import in_unit, stored
from vital_exp.models.channels import GREY, RGB, as_rgb
from vital_exp.models.layers import alignment
from vital_exp.models.network import Recipe, VisionNetwork
from vital_exp.models.refusals import takes_size
from vital_exp.models.unit_readout import unit_readout
from vital_exp.progress_bars import hidden
from vital_exp.references.base import References
from vital_exp.targets.readout import Readout
from vital_exp.targets.unit import OUTPUT, Target

# A "view" is a reader of pictures, by name: that of a judge, or one of these for the network itself, the pixels, the
# published Inception and CLIP.
TARGET, PIXELS, INCEPTION, CLIP = "target", "pixels", "inception", "clip"
PATH_IMAGES = 10  # natural images of a unit whose layer activations are kept, for path similarity

Load = Callable[[], PictureReader]  # raises NotComputed when weights are missing


@dataclass
class Evidence:
    """Pictures of targets, natural images of the targets, and the networks that read both.

    Attributes:
        network: the network that the pictures were made for.
        targets: targets of one layer, or classes.
        pictures: (N, C, H, W), one per target, in the dtype of their files. Readers of other channels get a preview.
        references: natural images; None: there are none.
        judges: other networks of the same classes, by name.
        absent: judges that cannot be loaded, by name, with what they need.
        load: by name, functions that load further readers (``"inception"``, ``"clip"``, feature spaces) at first use.
        spaces: views whose features FID and KID compare.
        results: a line of results.jsonl per target, where the pictures are a run's.
        readout: the targets' read-out; None: made from the targets, which is possible for all but directions.
        settings: settings of single metrics.
        natural_views: views that read the natural images, all in one pass; :func:`metrics.measure` sets them.
        with_layers: whether layers of the network are read, for path similarity; set likewise.
        kept: a folder in which readings of natural images are kept; None keeps none.
        readings: the kept readings that were loaded or saved, by file; the runs of a sweep share them.
        passes: number of images passed through each view so far.
        progress: whether progress bars are shown on a terminal.
    """

    network: VisionNetwork
    targets: Sequence[Target]
    pictures: Tensor
    references: References | None = None
    judges: Mapping[str, VisionNetwork] = field(default_factory=dict)
    absent: Mapping[str, str] = field(default_factory=dict)
    load: Mapping[str, Load] = field(default_factory=dict)
    spaces: Sequence[str] = (TARGET,)
    results: Sequence[Mapping[str, object]] = ()
    readout: Readout | None = None
    settings: MetricSettings = field(default_factory=MetricSettings)
    natural_views: Sequence[str] = (TARGET,)
    with_layers: bool = False
    kept: Path | None = None
    readings: dict[Path, KeptReading] = field(default_factory=dict)
    passes: Counter[str] = field(default_factory=Counter)
    progress: bool = False
    _readers: dict[str, PictureReader] = field(default_factory=dict)
    _missing: dict[str, str] = field(default_factory=dict)
    _read: dict[str, Reading] = field(default_factory=dict)
    _crop_logits: dict[str, Tensor | None] = field(default_factory=dict)

    @cached_property
    def units(self) -> list[Target]:
        """The units of the targets without repetition. Variations are one unit; each facet of a unit counts as one."""
        return list(dict.fromkeys(replace(target, variation=1) for target in self.targets))

    @cached_property
    def unit_of(self) -> list[int]:
        """For each target the index of its unit in ``units``."""
        places = {unit: place for place, unit in enumerate(self.units)}
        return [places[replace(target, variation=1)] for target in self.targets]

    @cached_property
    def facet_of(self) -> list[int]:
        """For each of ``units`` the number, from 0, of the whole unit that it is a facet of (or that it is)."""
        numbers = {unit: number for number, unit in enumerate(dict.fromkeys(facet.unit for facet in self.units))}
        return [numbers[facet.unit] for facet in self.units]

    @cached_property
    def whole_units(self) -> list[int]:
        """For each whole unit, all facets together, the index in ``units`` of its first facet."""
        return [self.facet_of.index(number) for number in range(max(self.facet_of) + 1)]

    @cached_property
    def whole_of(self) -> list[int]:
        """For each target the number of its whole unit: an index in ``whole_units``."""
        return [self.facet_of[place] for place in self.unit_of]

    def others(self, unit: int) -> Tensor:
        """Return which natural images belong to other whole units than ``units[unit]`` does, (M,) bool.

        Images of its other facets are excluded, for they drive the unit too.
        """
        numbers = torch.tensor(self.facet_of)
        return numbers[self.natural.labels] != numbers[unit]

    @property
    def of_classes(self) -> bool:
        """Whether the targets are classes of the network."""
        return self.targets[0].layer is None

    @cached_property
    def labels(self) -> Tensor:
        """The class of each target, (N,)."""
        return torch.tensor([target.index for target in self.targets])

    def reader(self, view: str) -> PictureReader:
        """Return the reader of a view, loaded at first use.

        Raises:
            NotComputed: the reader cannot be loaded; the message says what it needs.
        """
        missing = self.absent.get(view) or self._missing.get(view)
        if missing:
            raise NotComputed(missing)
        if view not in self._readers:
            try:
                self._readers[view] = self._made(view)
            except NotComputed as error:
                self._missing[view] = str(error)  # not loaded a second time
                raise
        return self._readers[view]

    def _made(self, view: str) -> PictureReader:
        own = self.network.preprocessing
        if view == TARGET:
            layers = tuple(alignment(self.network, Recipe()).layers) if self.with_layers else ()
            return NetworkReader(self.network, layers, self._unit_readout(), own_size=self._own_size())
        if view == PIXELS:
            return PixelReader(own.size, own.channels)
        if view.partition("-")[0] in (INCEPTION, CLIP):  # inception-768: another layer than the published one
            self.check_rgb()
        reader = NetworkReader(self.judges[view]) if view in self.judges else self.load[view]()
        if reader.channels != own.channels and own.channels not in (GREY, RGB):
            raise NotComputed(f"needs pictures of {reader.channels} channels, and these have {own.channels}")
        return reader

    def _own_size(self) -> bool:
        """Whether hidden units read small pictures at their own size; enlarged ones would drive other units."""
        size, whole = self.pictures.shape[-2:], self.network.preprocessing.size
        small = size[0] <= whole[0] and size[1] <= whole[1] and tuple(size) != whole
        hidden = not self.of_classes and self.targets[0].layer != OUTPUT and self.targets[0].position is None
        return hidden and small and takes_size(self.network, size)

    def _unit_readout(self) -> Readout | None:
        if self.of_classes and self.network.class_names is None:
            return None
        if self.readout is not None:
            first = [self.unit_of.index(place) for place in range(len(self.units))]
            return self.readout.select(first)
        return unit_readout(self.network, self.units, key="targets")

    def reading(self, view: str) -> Reading:
        """Return a view's reading of the pictures, which pass through its network once.

        Raises:
            NotComputed: the view's reader cannot be loaded.
        """
        if view not in self._read:
            reader = self.reader(view)
            parts = [self._shown(reader, in_unit(part)) for part in self.pictures.split(PICTURES_PER_PASS)]
            self._read[view] = joined(parts)
            self.passes[view] += len(self.pictures)
        return self._read[view]

    def crop_logits(self, view: str) -> Tensor | None:
        """Return a view's logits of the pictures' crops, (N * crops of a picture, classes), read in one pass.

        Returns:
            The logits; None for a network without classes.

        Raises:
            NotComputed: the view's reader cannot be loaded, or the pictures are too small.
        """
        if view not in self._crop_logits:
            reader = self.reader(view)
            crops = [crops_of(in_unit(picture))[0] for picture in self.pictures.split(1)]
            read = [self._shown(reader, of_one).logits for of_one in crops]
            there = [logits for logits in read if logits is not None]
            self._crop_logits[view] = torch.cat(there) if there else None
            self.passes[view] += sum(map(len, crops))
        return self._crop_logits[view]

    def rgb(self, members: Sequence[int]) -> Tensor:
        """Return pictures by their numbers, (M, 3, H, W) RGB in [0, 1]; grey pictures get three equal channels.

        Raises:
            NotComputed: the pictures are neither grey nor RGB.
        """
        self.check_rgb()
        return as_rgb(in_unit(self.pictures[list(members)]))

    def check_rgb(self) -> None:
        """Raise NotComputed unless the pictures are RGB or grey."""
        channels = self.network.preprocessing.channels
        if channels not in (GREY, RGB):
            raise NotComputed(f"needs RGB pictures, and these have {channels} channels")

    def _shown(self, reader: PictureReader, pictures: Tensor) -> Reading:
        """A reader's reading of pictures, in their own channels if the reader takes these, or else of their preview."""
        own = self.network.preprocessing
        return reader(pictures if reader.channels == own.channels else as_rgb(pictures, own.preview))

    @cached_property
    def natural(self) -> Natural:
        """The readings of the natural images of all units, in one pass through all of ``natural_views``.

        Raises:
            NotComputed: there are no natural images.
        """
        if self.references is None:
            raise NotComputed("needs natural images of the targets: references.root=folder")
        views = self._views_there()
        places = {view: self._place(reader) for view, reader in views.items()}
        kept = {view: one for view, place in places.items() if place and (one := self._kept(place))}
        unread = {view: reader for view, reader in views.items() if view not in kept}
        if kept and not unread:
            first = next(iter(kept.values()))
            return Natural(first.labels, {view: one.reading for view, one in kept.items()}, first.path)
        found = _read_natural(self.units, self.references, unread, self._shown, self.progress)
        self.passes.update(dict.fromkeys(unread, len(found.labels)))
        for view, place in places.items():
            if place and view in unread:
                self.readings[place] = KeptReading(found.labels, found.path, found.readings[view])
                self.readings[place].save(place)
        found.readings |= {view: one.reading for view, one in kept.items()}
        return found

    def _kept(self, place: Path) -> KeptReading | None:
        if place not in self.readings and (one := KeptReading.load(place)):
            self.readings[place] = one
        return self.readings.get(place)

    def _views_there(self) -> dict[str, PictureReader]:
        views = {}
        for view in self.natural_views:
            try:
                views[view] = self.reader(view)
            except NotComputed:
                continue  # the metrics that need this view report the reason
        return views

    def _place(self, reader: PictureReader) -> Path | None:
        """The file of a reader's reading of the natural images; None where readings are not kept."""
        if self.kept is None or self.references is None:
            return None
        return reading_place(self.kept, reader, self.units, self.references)

    def natural_reading(self, view: str) -> Reading:
        """Return a view's reading of the natural images.

        Raises:
            NotComputed: there are no natural images, or the view's reader cannot be loaded.
        """
        self.reader(view)
        return self.natural.readings[view]

    def spread(self, by_unit: Mapping[int, float]) -> list[float]:
        """Return a value per target from values by unit, NaN where the unit has none."""
        return [by_unit.get(unit, float("nan")) for unit in self.unit_of]

    @property
    def activations(self) -> Tensor:
        """The activation of each picture in its own unit, (N,)."""
        units = self.reading(TARGET).units
        if units is None:
            raise NotComputed(f"needs a network with class outputs, and {self.network.name} has none")
        return units[torch.arange(len(self.targets)), torch.tensor(self.unit_of)]


@dataclass
class Natural:
    """Readings of natural images.

    Attributes:
        labels: (M,), the unit of each image, an index in ``Evidence.units``.
        readings: by view, of all M images; layers only of the images in ``path``.
        path: (P,), the numbers of the images whose layers are kept.
    """

    labels: Tensor
    readings: dict[str, Reading]
    path: Tensor

    def of(self, unit: int) -> Tensor:
        """Return which images belong to a unit, (M,) bool."""
        return self.labels == unit


def _read_natural(
    units: Sequence[Target],
    references: References,
    readers: Mapping[str, PictureReader],
    shown: Callable[[PictureReader, Tensor], Reading],
    progress: bool,
) -> Natural:
    """Read the references of all units, in batches that may hold images of several units."""
    parts: dict[str, list[Reading]] = {view: [] for view in readers}
    labels: list[int] = []
    kept: list[int] = []
    seen: Counter[int] = Counter()
    for images, owners in _watched(_batches(units, references), len(units), progress):
        few = []
        for place, owner in enumerate(owners):
            seen[owner] += 1
            if seen[owner] <= PATH_IMAGES:
                few.append(place)
        kept += [len(labels) + place for place in few]
        labels += owners
        for view, reader in readers.items():
            read = shown(reader, images)
            read.layers = {layer: values[few] for layer, values in read.layers.items()}
            parts[view].append(read)
    if not labels:
        raise NotComputed("needs natural images of the targets, and none of them has any")
    readings = {view: joined(found) for view, found in parts.items()}
    return Natural(torch.tensor(labels), readings, torch.tensor(kept))


def _watched(
    batches: Iterator[tuple[Tensor, list[int]]], units: int, progress: bool
) -> Iterator[tuple[Tensor, list[int]]]:
    """Yield the batches, and advance a progress bar by units."""
    disable = hidden(progress)
    with tqdm(total=units, desc="natural images", unit="unit", leave=False, disable=disable, dynamic_ncols=True) as bar:
        for images, owners in batches:
            yield images, owners
            bar.update(owners[-1] - bar.n)


def _batches(units: Sequence[Target], references: References) -> Iterator[tuple[Tensor, list[int]]]:
    """Yield batches of images (n, C, H, W) in [0, 1], rounded as saved pictures are, with the unit of each image."""
    images: list[Tensor] = []
    owners: list[int] = []
    for place, image in _images(units, references):
        images.append(stored(image))
        owners.append(place)
        if len(images) == PICTURES_PER_PASS:
            yield in_unit(torch.stack(images)), owners
            images, owners = [], []
    if images:
        yield in_unit(torch.stack(images)), owners


def _images(units: Sequence[Target], references: References) -> Iterator[tuple[int, Tensor]]:
    """Yield each natural image with the index of its unit; a class without images is skipped."""
    available = references.class_indices()
    try:
        for place, unit in enumerate(units):
            if unit.layer is None and available is not None and unit.index not in available:
                continue
            for image in references.images(unit):
                yield place, image
    except UsageError as error:
        raise NotComputed(f"needs natural images of the targets ({error})") from error
