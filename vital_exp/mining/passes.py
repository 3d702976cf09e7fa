"""The two passes of mining: over all images, then over windows of the images that rank (VITAL's references)."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from vital_exp.images.output import resized
from vital_exp.mining.activity import Activity
from vital_exp.mining.images import ImageBatch, ImageFolder
from vital_exp.mining.interruption import held_back
from vital_exp.mining.patches import PatchSettings, crops, windows_over
from vital_exp.mining.plan import WINDOWS_OVER_A_POSITION, Cost, duration, windows_per_image
from vital_exp.mining.state import IMAGES_PASS, PATCHES_PASS, MiningState
from vital_exp.mining.top import NOTHING, TopK
from vital_exp.mining.units import Units
from vital_exp.progress_bars import hidden

Watch = Callable[[str, Tensor, Tensor], None]

logger = logging.getLogger(__name__)


@dataclass
class Passes:
    """Runs the passes of a mining from any state on.

    Attributes:
        units: the units that are mined.
        folder: the images.
        patch: which windows are tried; None for no patches.
        batch_size: images or windows in the network at once.
        workers: processes that decode images.
        save_every: images or windows in the network between two saves.
        progress: whether progress bars are shown on a terminal.
        save: called with the state after every ``save_every`` images or windows, and on Ctrl-C and SIGTERM.
        watch: called with each layer, the numbers (N,) of some images and the units' values (N, U); None: not called.
    """

    units: Units
    folder: ImageFolder
    patch: PatchSettings | None
    batch_size: int
    workers: int
    save_every: int
    progress: bool
    save: Callable[[MiningState], None]
    watch: Watch | None = None

    def __post_init__(self) -> None:
        self.device = self.units.network.device
        self.size = self.units.network.preprocessing.size
        self._seconds, self._in_network, self._shown = 0.0, 0.0, 0
        self.positions = {layer: math.prod(shape) for layer, shape in self.units.shapes.items()}
        self.boxes = self.patch.windows(*self.size) if self.patch else []

    def start(self, k: int) -> MiningState:
        """Return the empty state, before the first image."""
        counts = {layer: len(numbers) for layer, numbers in self.units.channels.items()}

        def empty() -> dict[str, TopK]:
            return {layer: TopK(count, k, self.device) for layer, count in counts.items()}

        images = len(self.folder.paths)
        activity = {layer: Activity(count, images, self.device) for layer, count in counts.items()}
        return MiningState(empty(), empty(), empty() if self.patch else {}, activity=activity)

    def run(self, state: MiningState) -> None:
        """Run the passes that the state has not finished."""
        if state.phase == IMAGES_PASS:
            self._pass(state, range(len(self.folder.paths)), self.batch_size, self._add_images)
            state.phase, state.position = PATCHES_PASS, 0
            self.save(state)
        if self.patch:
            self._tell_patches(state, self.patch)
            windows = len(self.boxes) if self.patch.search == "all" else WINDOWS_OVER_A_POSITION
            numbers = ranked_images(state.top, self.positions)
            self._pass(state, numbers, max(1, self.batch_size // windows), self._add_patches)

    def _tell_patches(self, state: MiningState, patch: PatchSettings) -> None:
        """Log what the second pass will do and, where this process timed the first pass, how long it will take."""
        images = len(ranked_images(state.top, self.positions)) - state.position
        ranked = sum(int((top.numbers != NOTHING).sum()) for top in state.top.values())
        windows = windows_per_image(patch, self.boxes, ranked / max(1, images + state.position))
        cost = self._cost
        about = f", about {duration(cost.seconds(images, images * windows))}" if cost else ""
        hint = "; patch.search=strongest tries fewer" if patch.search == "all" else ""
        logger.info("patches: %d images, up to %d windows of each%s%s", images, windows, about, hint)

    @property
    def _cost(self) -> Cost | None:
        """The mean cost of an image so far; None before the first image."""
        if not self._shown:
            return None
        network = self._in_network / self._shown
        return Cost(max(0.0, self._seconds / self._shown - network), network)

    def _pass(
        self,
        state: MiningState,
        numbers: Sequence[int],
        size: int,
        add: Callable[[MiningState, Tensor, Tensor], int],
    ) -> None:
        """Pass the images of these numbers, from the state's position on, to ``add``, ``size`` at once.

        The state is saved after every ``save_every`` images or windows and on an interruption.
        """
        unsaved, began = 0, time.perf_counter()
        try:
            with closing(self._batches(numbers, state.position, size, state.phase)) as batches:
                for batch in batches:
                    with held_back():
                        unsaved += self._count(state, batch, add)
                        if unsaved >= self.save_every:
                            self.save(state)
                            unsaved = 0
            self._seconds += time.perf_counter() - began
        except KeyboardInterrupt:  # comes between two batches, since signals are held back within a batch
            self.save(state)
            raise

    def _count(self, state: MiningState, batch: ImageBatch, add: Callable[[MiningState, Tensor, Tensor], int]) -> int:
        """Add a batch to the state; return how many images or windows passed the network."""
        shown = 0
        if batch.pixels is not None:
            began = time.perf_counter()
            shown = add(state, batch.rgb(self.device), batch.numbers.to(self.device))
            self._in_network += time.perf_counter() - began
            self._shown += shown
        state.corrupt |= batch.corrupt
        state.position += batch.count
        return shown

    def _batches(
        self, numbers: Sequence[int], position: int, size: int, phase: str
    ) -> Generator[ImageBatch, None, None]:
        """Yield batches and advance a progress bar."""
        loaded = self.folder.batches(numbers[position:], size, self.workers, pin_memory=self.device.type == "cuda")
        disable = hidden(self.progress)
        with tqdm(
            total=len(numbers), initial=position, desc=phase, unit="image", disable=disable, dynamic_ncols=True
        ) as bar:
            for batch in loaded:
                yield batch
                bar.update(batch.count)

    def _add_images(self, state: MiningState, rgb: Tensor, numbers: Tensor) -> int:
        """Rank images for every unit; return how many passed the network."""
        for layer, (values, seconds, positions) in self.units.ranked(rgb).items():
            numbered = numbers[:, None] * self.positions[layer] + positions  # (N, U)
            state.activity[layer].add(values, numbers)
            if self.watch:
                self.watch(layer, numbers, values)
            state.top[layer].add(values, numbered, seconds)
            state.bottom[layer].add(-values, numbered, -seconds)
        return len(rgb)

    def _add_patches(self, state: MiningState, rgb: Tensor, numbers: Tensor) -> int:
        """Rank the best window of each image for the units whose top images include it."""
        tried = self._tried(state, rgb, numbers)
        needed = torch.stack([by_unit.any(dim=1) for by_unit in tried.values()]).any(dim=0)  # (N, W)
        windows = crops(rgb, self.boxes)[needed]  # (M, C, side, side); the network sees each window once for all units
        parts = [self.units.values(resized(chunk, self.size)) for chunk in windows.split(self.batch_size)]
        for layer, by_unit in tried.items():
            values = torch.cat([part[layer] for part in parts])  # (M, U)
            everywhere = values.new_full((*needed.shape, values.shape[1]), -torch.inf)  # (N, W, U)
            everywhere[needed] = values.nan_to_num(-torch.inf, torch.inf, -torch.inf)
            best, window = everywhere.masked_fill(~by_unit.transpose(1, 2), -torch.inf).max(dim=1)  # (N, U)
            state.patches[layer].add(best, numbers[:, None] * len(self.boxes) + window)
        return len(windows)

    def _tried(self, state: MiningState, rgb: Tensor, numbers: Tensor) -> dict[str, Tensor]:
        """Return for each layer which windows of which images are tried for its units, (N, U, W)."""
        tried = {}
        strongest = self.units.strongest(rgb) if self.patch and self.patch.search == "strongest" else {}
        for layer, top in state.top.items():
            images = _images(top, self.positions[layer])  # (U, k)
            ranks = (images == numbers[:, None, None]).any(dim=2)[..., None]  # (N, U, 1)
            tried[layer] = ranks.expand(-1, -1, len(self.boxes))
            if strongest:
                held = windows_over(strongest[layer], self.units.shapes[layer], self.boxes, self.size)
                tried[layer] = tried[layer] & held
        return tried


def _images(top: TopK, positions: int) -> Tensor:
    """Return the numbers (U, k) of the images that rank; NOTHING in free places."""
    return top.numbers.div(positions, rounding_mode="floor")


def ranked_images(tops: Mapping[str, TopK], positions: Mapping[str, int]) -> list[int]:
    """Return the numbers of all images that rank for a unit, ascending.

    Args:
        tops: the ranking of each layer, whose numbers are image * positions + position.
        positions: the number of positions of each layer's map.
    """
    images = torch.cat([_images(top, positions[layer]).flatten() for layer, top in tops.items()]).unique()
    return [int(number) for number in images.tolist() if number != NOTHING]
