"""Mine a folder: one streaming pass over its images, then the best patches of the strongest (METHODS 1.4)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from vital_exp.errors import UsageError
from vital_exp.mining.extremes import NONE, Extremes
from vital_exp.mining.images import ImageFolder
from vital_exp.mining.index import Index, Row, write_index
from vital_exp.mining.patches import PUBLISHED, PatchSettings, best_patches
from vital_exp.mining.state import MiningState
from vital_exp.mining.units import Units, select_units
from vital_exp.models.network import VisionNetwork
from vital_exp.references.decoding import printable

IMAGES_PER_SAVE = 2048
PATCHED_IMAGES_PER_SAVE = 64  # each is some tens of forward passes


@dataclass
class Mining:
    """One mining run.

    Attributes:
        units: what is mined.
        folder: the images.
        k: how many images on each side.
        patch: which windows of the strongest images are tried; None for no patches.
        batch_size: images passed through the network together.
        workers: processes that decode images; 0 decodes in this one.
        progress: a progress bar on the terminal.
    """

    units: Units
    folder: ImageFolder
    k: int = 50
    patch: PatchSettings | None = PUBLISHED
    batch_size: int = 16
    workers: int = 0
    progress: bool = False

    def check(self) -> None:
        """Check the settings.

        Raises:
            UsageError: the first that is not allowed.
        """
        for key, least in (("k", 1), ("batch_size", 1), ("workers", 0)):
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise UsageError(key, value, f"a whole number of at least {least}")
        count = len(self.folder.paths)
        if self.k > count:
            raise UsageError("k", self.k, f"{printable(self.folder.root)} holds only {count} images")
        if self.patch:
            self.patch.check(self.units.network.preprocessing.size)

    @property
    def key(self) -> str:
        """A hash of all that the result depends on."""
        directions = {layer: vectors.tolist() for layer, vectors in self.units.directions.items()}
        parts = (
            *(self.units.network.weights_hash(), repr(self.units.network.preprocessing), self.folder.fingerprint),
            *(dict(self.units.channels), self.units.pooling, directions, self.k, self.patch),
        )
        return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:24]

    def run(self, out: Path) -> Index:
        """Mine into a folder, or go on there; returns the finished index.

        Raises:
            UsageError: see :meth:`check`; the folder holds the index of another mining.
        """
        self.check()
        finished, kept = out / "index.sqlite", out / "mining.safetensors"
        if finished.is_file():
            index = Index.open(finished)
            if index.meta["key"] != self.key:
                raise UsageError("hydra.run.dir", out, "holds an index of another network, folder or settings")
            return index
        out.mkdir(parents=True, exist_ok=True)
        state = MiningState({layer: Extremes.empty(len(c), self.k) for layer, c in self.units.channels.items()})
        state.load(kept, self.key)
        self._scan(state, kept)
        if self.patch:
            self._search(state, kept)
        corrupt = {self.folder.paths[number]: reason for number, reason in sorted(state.corrupt.items())}
        index = write_index(finished, self._rows(state), corrupt, self._meta())
        kept.unlink(missing_ok=True)
        return index

    @torch.no_grad()
    def _scan(self, state: MiningState, kept: Path) -> None:
        """Let all images pass that have not yet."""
        total = len(self.folder.paths)
        if state.scanned >= total:
            return
        saved = state.scanned
        with self._bar("images", total, state.scanned) as bar:
            for numbers, images, corrupt in self.folder.batches(self.batch_size, self.workers, state.scanned):
                if numbers:
                    for layer, values in self.units.values(images).items():
                        state.extremes[layer].add(values, torch.tensor(numbers))
                state.corrupt |= corrupt
                state.scanned += len(numbers) + len(corrupt)
                bar.update(len(numbers) + len(corrupt))
                if state.scanned - saved >= IMAGES_PER_SAVE:
                    saved = state.scanned
                    state.save(kept, self.key)
        state.save(kept, self.key)

    def _search(self, state: MiningState, kept: Path) -> None:
        """Find the best patch of every strongest image that has none yet; each image is decoded once."""
        assert self.patch is not None
        state.begin_patches()
        top = {layer: found.images[0] for layer, found in state.extremes.items()}  # (U, k)
        numbers = sorted({int(n) for images in top.values() for n in images.unique() if n != NONE})
        with self._bar("patches", len(numbers), state.searched) as bar:
            for number in numbers[state.searched :]:
                places = {layer: (images == number).nonzero() for layer, images in top.items()}  # (u, 2)
                wanted = {layer: place[:, 0].tolist() for layer, place in places.items() if len(place)}
                image = self.folder.load(self.folder.paths[number])
                found = best_patches(self.units, self.patch, image, wanted, self.batch_size)
                for layer, (values, windows) in found.items():
                    state.patch_values[layer][tuple(places[layer].T)] = values
                    state.patch_windows[layer][tuple(places[layer].T)] = windows
                state.searched += 1
                bar.update(1)
                if state.searched % PATCHED_IMAGES_PER_SAVE == 0:
                    state.save(kept, self.key)

    def _rows(self, state: MiningState) -> Iterator[Row]:
        for layer, channels in self.units.channels.items():
            found = state.extremes[layer]
            for unit, channel in enumerate(channels):
                for side, name in enumerate(("top", "bottom")):
                    numbers, values = found.images[side, unit].tolist(), found.values[side, unit].tolist()
                    for rank, (number, value) in enumerate(zip(numbers, values, strict=True)):
                        if number != NONE:
                            yield Row(layer, channel, rank, name, self.folder.paths[number], value, None)
                if self.patch:
                    yield from self._patch_rows(state, layer, unit, channel)

    def _patch_rows(self, state: MiningState, layer: str, unit: int, channel: int) -> Iterator[Row]:
        assert self.patch is not None
        boxes = self.patch.windows(*self.folder.preprocessing.size)
        values, numbers = state.patch_values[layer][unit], state.extremes[layer].images[0, unit]
        order = [place for place in values.argsort(descending=True, stable=True).tolist() if numbers[place] != NONE]
        for rank, place in enumerate(order):
            box = boxes[int(state.patch_windows[layer][unit, place])]
            path = self.folder.paths[int(numbers[place])]
            yield Row(layer, channel, rank, "patch", path, float(values[place]), box)

    def _meta(self) -> dict[str, object]:
        network = self.units.network
        return {
            "key": self.key,
            "model": network.name,
            "weights": network.weights_hash(),
            "preprocessing": repr(network.preprocessing),
            "folder": str(self.folder.root.resolve()),
            "fingerprint": self.folder.fingerprint,
            "images": len(self.folder.paths),
            "layers": self.units.layers,
            "directions": sorted(self.units.directions),
            "k": self.k,
            "pooling": self.units.pooling,
            "patch": asdict(self.patch) if self.patch else None,
        }

    def _bar(self, unit: str, total: int, done: int) -> tqdm:
        return tqdm(total=total, initial=done, unit=f" {unit}", disable=None if self.progress else True)


def mine_network(
    network: VisionNetwork,
    layers: Sequence[str],
    images: str | Path,
    out: Path,
    *,
    k: int = 50,
    channels: object = "all",
    pooling: str = "max",
    patch: PatchSettings | None = PUBLISHED,
    directions: Mapping[str, Tensor] | None = None,
    batch_size: int = 16,
    workers: int = 0,
    progress: bool = False,
) -> Index:
    """Mine a folder for units of a network; see :func:`vital_exp.mine` and :class:`Mining`.

    Raises:
        UsageError: an unknown layer, a channel out of range, no images, fewer images than ``k``.
    """
    units = select_units(network, layers, channels, pooling, directions)
    folder = ImageFolder(Path(images).expanduser(), network.preprocessing)
    return Mining(units, folder, k, patch, batch_size, workers, progress).run(out)
