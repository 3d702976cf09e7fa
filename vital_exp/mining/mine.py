"""Mining: find the images, and their patches, that drive the units of a network most and least.

Formulas and constants: docs/methods/mining.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from vital_exp.config import compose_config
from vital_exp.errors import UsageError
from vital_exp.mining import index as indices
from vital_exp.mining import state as states
from vital_exp.mining.activity import Histogram
from vital_exp.mining.counts import IMAGES_PER_UNIT, check_counts
from vital_exp.mining.images import ImageFolder
from vital_exp.mining.index import BOTTOM, TOP, Index, Row, write_index
from vital_exp.mining.meta import (
    FORMAT,
    Meta,
    describe,
    images_difference,
    network_difference,
    settings_difference,
)
from vital_exp.mining.passes import Passes, Watch
from vital_exp.mining.patches import PUBLISHED, PatchSettings
from vital_exp.mining.plan import duration, images_line, measured, told, windows_per_image
from vital_exp.mining.state import MiningState
from vital_exp.mining.top import NOTHING, TopK
from vital_exp.mining.units import Units, select_units
from vital_exp.mining.windows import layer_field
from vital_exp.models.identity import begin_call, identity_of
from vital_exp.models.network import VisionNetwork
from vital_exp.references.decoding import printable

FOLDER_KEY = "hydra.run.dir"


@dataclass
class Mining:
    """One mining: a streaming pass over all images, then a pass over windows of the images that rank.

    Memory holds k images per unit and side, whatever the number of images. An interrupted mining resumes, and a
    finished mining is not repeated.

    Attributes:
        units: the units that are mined.
        folder: the images.
        k: images per unit and side, and patches per unit.
        patch: which windows of the top images are tried; None for no patches.
        batch_size: images or windows in the network at once; except for rounding, the result does not depend on it.
        workers: processes that decode images; 0: this process decodes.
        progress: whether progress bars are shown on a terminal.
        save_every: images or windows in the network between two saves of the state.
        watch: called with the units' values in each batch of the first pass (:class:`Passes`); None: nothing is called.
    """

    units: Units
    folder: ImageFolder
    k: int = IMAGES_PER_UNIT
    patch: PatchSettings | None = PUBLISHED
    batch_size: int = 32
    workers: int = 0
    progress: bool = False
    save_every: int = 2000
    watch: Watch | None = None

    def check(self) -> None:
        """Check the settings.

        Raises:
            UsageError: a setting is not allowed; the message names the first such setting.
        """
        check_counts(vars(self))
        count = len(self.folder.paths)
        if self.k > count:
            raise UsageError("k", self.k, f"{printable(self.folder.root)} holds {count} images: k is at most {count}")
        if self.patch:
            self.patch.check(self.units.network.preprocessing.size)

    @cached_property
    def meta(self) -> dict[str, object]:
        """The description of the index, see :func:`vital_exp.mining.meta.describe`."""
        return describe(self.units, self.folder, self.k, self.patch)

    @property
    def key(self) -> str:
        """A hash of everything that the index depends on."""
        return str(self.meta["key"])

    def run(self, out: Path) -> Index:
        """Mine into the folder ``out``, or resume there; return the finished index, out/index.sqlite.

        Raises:
            UsageError: see :meth:`check`; the folder holds an index with another description; no image can be read.
        """
        self.check()
        finished, unfinished = out / indices.NAME, out / states.NAME
        if finished.is_file():
            index = Index.open(finished, FOLDER_KEY)
            self._check_same(out, "index", index.meta)
            return index
        passes = self._passes(unfinished)
        state = passes.start(self.k)
        if (old := states.read_meta(unfinished)) is not None:
            self._check_same(out, "unfinished index", old)
            state.load(unfinished)
        passes.run(state)
        corrupt = self._corrupt(state)
        meta = {**self.meta, "fields": {layer: self._field(passes, state, layer) for layer in self.units.layers}}
        index = write_index(finished, self._rows(passes, state), corrupt, meta, self._histograms(state))
        unfinished.unlink(missing_ok=True)
        self._tell_without_relevance(state)
        return index

    def _tell_without_relevance(self, state: MiningState) -> None:
        """Warn of images in which nothing is relevant for the class: their ranks mean nothing."""
        if self.units.relevance is None:
            return
        sample = torch.cat([activity.sample for activity in state.activity.values()])  # (U, S), NaN for unread images
        read, irrelevant = int((~sample.isnan()).all(dim=0).sum()), int((sample == 0).all(dim=0).sum())
        if irrelevant:
            label = f"class {self.units.relevance.index}, whose logit is not above 0 there"
            problem = f"in {irrelevant} of {read} images the units have no relevance for {label}"
            self.units.network.tell(f"{problem}: their ranks mean nothing; relevance=gradient_x_activation helps")

    def plan(self) -> str:
        """Return what would be done and how long it would take, as text; a few batches are timed.

        Raises:
            UsageError: see :meth:`check`.
        """
        self.check()
        return told(self.described() | self.plan_of_passes())

    def described(self) -> dict[str, str]:
        """Return the lines on network, images and units of a plan, by the line's name."""
        units = sum(map(len, self.units.channels.values()))
        return {
            "model": f"{self.units.network.name} on {self.units.network.device}",
            "images": images_line(self.folder),
            "units": f"{units} of {', '.join(self.units.layers)}, k={self.k} images on each side",
        }

    def plan_of_passes(self) -> dict[str, str]:
        """Return, by the pass's name, what each pass would do and how long it would take; a few batches are timed."""
        units, images = sum(map(len, self.units.channels.values())), len(self.folder.paths)
        cost = measured(self.folder, self.units.maps, self.batch_size, self.workers, self.units.network.device)
        ranked = min(images, units * self.k)
        lines = {"1st pass": f"{images} images, about {duration(cost.seconds(images, images))}"}
        if self.patch:
            boxes = self.patch.windows(*self.units.network.preprocessing.size)
            windows = windows_per_image(self.patch, boxes, units * self.k / ranked)
            about = duration(cost.seconds(ranked, ranked * windows))
            search = f"patch.search={self.patch.search}"
            lines["2nd pass"] = f"at most {ranked} images, up to {windows} windows of each ({search}), about {about}"
        return lines

    def _passes(self, unfinished: Path) -> Passes:
        def save(state: MiningState) -> None:
            state.save(unfinished, self.meta)

        settings = (self.patch, self.batch_size, self.workers, self.save_every, self.progress)
        return Passes(self.units, self.folder, *settings, save, self.watch)

    def _check_same(self, out: Path, content: str, old: Meta) -> None:
        """Refuse a folder whose index or state (``content``) has another description ``old``; say what differs."""
        if old.get("format") != FORMAT:
            raise UsageError(FOLDER_KEY, out, f"holds an {content} of another version; choose another folder")
        text = network_difference(old, identity_of(self.units.network)) or images_difference(old, self.meta)
        if text:
            raise UsageError(FOLDER_KEY, out, f"holds an {content} mined with {text}; choose another folder")
        if text := settings_difference(old, self.meta):
            raise UsageError(FOLDER_KEY, out, f"holds an {content} of other settings, {text}; choose another folder")

    def _corrupt(self, state: MiningState) -> dict[str, str]:
        """Return path and error of the images that could not be read; raise if there is no other image."""
        corrupt = {self.folder.paths[number]: reason for number, reason in sorted(state.corrupt.items())}
        if len(corrupt) == len(self.folder.paths):
            path, reason = next(iter(corrupt.items()))
            problem = f"none of its {len(corrupt)} images can be read ({printable(path)}: {reason})"
            raise UsageError(self.folder.key, printable(self.folder.root), problem)
        return corrupt

    def _rows(self, passes: Passes, state: MiningState) -> Iterator[Row]:
        """Yield the rows of the index."""
        for layer in self.units.layers:
            yield from self._side(passes, layer, state.top[layer], TOP)
            if not self.units.is_sparse(layer):
                yield from self._side(passes, layer, state.bottom[layer], BOTTOM)
            if self.patch:
                yield from self._patches(passes, layer, state.patches[layer])

    def _histograms(self, state: MiningState) -> Iterator[tuple[str, int, Histogram]]:
        """Yield layer, channel and histogram of each unit."""
        read = len(self.folder.paths) - len(state.corrupt)
        for layer, channels in self.units.channels.items():
            for unit, channel in enumerate(channels):
                yield layer, channel, state.activity[layer].histogram(unit, read)

    def _side(self, passes: Passes, layer: str, best: TopK, side: str) -> Iterator[Row]:
        sign = -1 if side == BOTTOM else 1
        sparse = self.units.is_sparse(layer)
        for unit, rank, value, number in _ranked(best):
            if sparse and value <= 0:  # a feature that is 0 is not driven by the image
                continue
            image, position = divmod(number, passes.positions[layer])
            channel = self.units.channels[layer][unit]
            yield Row(layer, channel, rank, side, self.folder.paths[image], sign * value, position=position)

    def _field(self, passes: Passes, state: MiningState, layer: str) -> int | None:
        """Return the side in px of a layer's receptive field, measured on the strongest images of some units."""
        numbers, positions = state.top[layer].numbers[:, 0].tolist(), passes.positions[layer]
        strongest = [
            (unit, self.folder.paths[number // positions]) for unit, number in enumerate(numbers) if number >= 0
        ]
        return layer_field(self.units, self.folder, layer, strongest)

    def _patches(self, passes: Passes, layer: str, best: TopK) -> Iterator[Row]:
        for unit, rank, value, number in _ranked(best):
            image, window = divmod(number, len(passes.boxes))
            channel = self.units.channels[layer][unit]
            yield Row(layer, channel, rank, TOP, self.folder.paths[image], value, passes.boxes[window])


def _ranked(best: TopK) -> Iterator[tuple[int, int, float, int]]:
    """Yield unit, rank (from 1), value and number of every entry that is filled."""
    for unit, (values, numbers) in enumerate(zip(best.values, best.numbers, strict=True)):
        for rank, (value, number) in enumerate(zip(values.tolist(), numbers.tolist(), strict=True), start=1):
            if number != NOTHING:
                yield unit, rank, value, number


def mine(
    network: VisionNetwork,
    layers: Sequence[str] | str,
    images: str | Path,
    *,
    k: int = IMAGES_PER_UNIT,
    out: str | Path | None = None,
    channels: object = "all",
    directions: Mapping[str, Tensor] | None = None,
    pooling: str = "max",
    patch: PatchSettings | None = PUBLISHED,
    batch_size: int = 32,
    workers: int = 0,
    save_every: int = 2000,
    progress: bool = False,
    cache_dir: str | Path | None = None,
) -> Index:
    """Find the top and bottom images of each unit, and the best patches of the top images; see :class:`Mining`.

    Args:
        network: the frozen network, on the device where it is to run.
        layers: module names; ``"output"`` is the network's output.
        images: a folder with images at any depth.
        k: images per unit and side, and patches per unit.
        out: the folder of the index; None: a folder in the cache.
        channels: ``"all"``, ``"0-63"``, a number or a list of these, for every layer; or {layer: such a value}.
        directions: for some layers directions (K, C), which are mined in place of channels.
        pooling: ranks images by the ``"max"`` or the ``"mean"`` of a unit's map over positions.
        patch: which windows of the top images are tried; None for no patches.
        batch_size, workers, save_every, progress: see :class:`Mining`.
        cache_dir: the cache, which holds the index if ``out`` is None; None: the cache of the commands.

    Returns:
        The index.

    Raises:
        UsageError: an unknown layer, a channel out of range, no images, fewer images than ``k``, no image that can be
            read, or an index with another description in ``out``.
    """
    cache = Path(compose_config([]).cache_dir if cache_dir is None else cache_dir).expanduser()
    begin_call(network, cache if out is None else None)
    folder = ImageFolder(images, network.preprocessing)
    units = select_units(network, [layers] if isinstance(layers, str) else layers, channels, pooling, directions)
    mining = Mining(units, folder, k, patch, batch_size, workers, progress, save_every)
    mining.check()
    return mining.run(cache / "mining" / mining.key if out is None else Path(out).expanduser())
