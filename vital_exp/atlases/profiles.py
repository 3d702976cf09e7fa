"""Activation profiles: the activation of every unit of a layer by every image, on disk, read block by block.

A value is the unit's largest activation over positions, as in mining. No matrix of all units by all units is held.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vital_exp.atlases.store import PROFILES, safe_name
from vital_exp.errors import UsageError
from vital_exp.whole_files import whole_file

LARGEST = float(np.finfo(np.float16).max)  # what float16 holds; larger values are cut off
UNITS_AT_ONCE = 512  # at most
VALUES_AT_ONCE = 2**18  # at most, 1 MB, of rows that are as long as a layer has units
Array = NDArray[Any]


def profile_path(folder: Path, layer: str) -> Path:
    """Return the file of a layer's profiles."""
    return folder / PROFILES / f"{safe_name(layer)}.npy"


class ProfileWriter:
    """Writes profiles while images pass by; see :class:`vital_exp.mining.passes.Passes`.

    Args:
        folder: the atlas's.
        units: how many units each layer has.
        images: how many there are; the rows of images that cannot be read stay NaN.
        given: the units of each layer whose values are handed over.
    """

    def __init__(self, folder: Path, units: Mapping[str, int], images: int, given: Mapping[str, range]) -> None:
        (folder / PROFILES).mkdir(parents=True, exist_ok=True)
        self._paths = {layer: profile_path(folder, layer) for layer in units}
        self._given = {layer: slice(own.start, own.stop) for layer, own in given.items()}
        for layer, count in units.items():
            make_array(self._paths[layer], (images, count), np.float16)

    def __call__(self, layer: str, numbers: Tensor, values: Tensor) -> None:
        """Take in values (N, U) of the images of some numbers (N,)."""
        kept = values.float().clamp(-LARGEST, LARGEST).half().cpu().numpy()
        array = np.load(self._paths[layer], mmap_mode="r+")  # opened each time: pages of an open one stay in memory
        array[numbers.cpu().numpy(), self._given[layer]] = kept


def make_array(path: Path, shape: tuple[int, int], dtype: type[np.floating[Any]]) -> None:
    """Make the file of an array of NaN, if it is not there with this shape; a block of it is in memory at a time."""
    if path.is_file() and np.load(path, mmap_mode="r").shape == shape:
        return
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    rows = rows_at_once(shape[1])
    with whole_file(path, binary=True) as file:
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, shape[0], rows):
            file.write(np.full((min(rows, shape[0] - start), shape[1]), np.nan, dtype).tobytes())


def rows_at_once(width: int) -> int:
    """Return how many rows of an array of this width are in memory at a time."""
    return max(1, min(UNITS_AT_ONCE, VALUES_AT_ONCE // max(1, width)))


@dataclass(frozen=True)
class Profile:
    """The profiles of a layer's units.

    Attributes:
        values: (images, units) float16, on disk.
        rows: numbers of the images that could be read.
    """

    values: Array
    rows: Array

    @classmethod
    def open(cls, folder: Path, layer: str, key: str) -> Profile:
        """Open the profiles of a layer.

        Raises:
            UsageError: the file is missing.
        """
        path = profile_path(folder, layer)
        if not path.is_file():
            raise UsageError(key, folder, f"{PROFILES}/{path.name} there is missing: choose another folder")
        values = np.load(path, mmap_mode="r")
        return cls(values, np.flatnonzero(np.isfinite(values[:, 0])))

    def __len__(self) -> int:
        """Return how many units there are."""
        return int(self.values.shape[1])

    def block(self, start: int, end: int) -> Array:
        """Return the values (images that could be read, end - start) of some units, float32."""
        found: Array = self.values[:, start:end][self.rows].astype(np.float32)
        return found

    def centred(self, start: int, end: int) -> Tensor:
        """Return the values of :meth:`block` less each unit's mean, at length 1; 0 for a unit that never changes."""
        values = torch.from_numpy(self.block(start, end)).double()
        values = values - values.mean(dim=0)
        lengths = values.norm(dim=0)
        # float16 steps of one value around its mean are no activation
        return torch.where(lengths > 1e-6, values / lengths.clamp(min=1e-6), 0.0).float()


def most_alike(own: Profile, other: Profile, count: int, itself: bool = False) -> tuple[Tensor, Tensor]:
    """Return, for each unit, the units of another layer or network whose activations correlate most with its own.

    Args:
        own, other: profiles over the same images.
        count: how many are asked for.
        itself: whether both are the same layer; a unit is then not compared with itself.

    Returns:
        Correlations and numbers of the other's units, (U, min(count, U')), the largest correlation first.
    """
    starts = range(0, len(own), UNITS_AT_ONCE)
    found = [most_alike_of(own, start, other, count, itself) for start in starts]
    return torch.cat([values for values, _ in found]), torch.cat([numbers for _, numbers in found])


def most_alike_of(own: Profile, start: int, other: Profile, count: int, itself: bool = False) -> tuple[Tensor, Tensor]:
    """Return what :func:`most_alike` returns, for the ``UNITS_AT_ONCE`` units from number ``start`` on."""
    left = own.centred(start, start + UNITS_AT_ONCE)
    best = torch.empty(left.shape[1], 0), torch.empty(left.shape[1], 0, dtype=torch.int64)
    for place in range(0, len(other), UNITS_AT_ONCE):
        values = left.T @ other.centred(place, place + UNITS_AT_ONCE)
        if itself and place == start:
            values.fill_diagonal_(-torch.inf)
        numbers = torch.arange(place, place + values.shape[1]).expand_as(values)
        best = _best(torch.cat([best[0], values], dim=1), torch.cat([best[1], numbers], dim=1), count)
    return best


def _best(values: Tensor, numbers: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the largest values of each row with their numbers; of equal ones the first."""
    order = values.sort(dim=1, descending=True, stable=True).indices[:, :count]
    return values.gather(1, order), numbers.gather(1, order)
