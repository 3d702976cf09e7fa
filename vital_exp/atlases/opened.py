"""An atlas in Python: its tables, pictures and neighbours; a notebook displays it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image

from vital_exp.atlases.store import DONE, FAILED, MEASURES, LayerRow, NeighbourRow, Store
from vital_exp.errors import UsageError
from vital_exp.notebook_html import ROWS_SHOWN, figures, lines, table

KEY = "folder"
PICTURES_SHOWN = 12  # in a notebook
COLUMNS_SHOWN = ("layer", "unit", "status", "name", "clarity", "redundancy", "polysemanticity", "density", "maximum")


class Atlas:
    """A folder of vital-atlas, finished or not; every question reads the file anew.

    Args:
        folder: of the atlas.

    Raises:
        UsageError: there is no atlas.
    """

    def __init__(self, folder: str | Path) -> None:
        self.store = Store.open(folder, KEY)
        self.folder = self.store.folder

    @property
    def meta(self) -> dict[str, Any]:
        """What the atlas was made from: network, images, method, seed, versions."""
        return self.store.meta()

    @property
    def layers(self) -> list[LayerRow]:
        """The layers, in the order of the network."""
        return self.store.layers()

    @property
    def units(self) -> Any:
        """The table of units: a pandas DataFrame where pandas is installed, else a list of dicts.

        Columns: layer, unit, status, error, name, histogram and the numbers of ``vital_exp.atlases.store.MEASURES``.
        """
        rows = [asdict(row) for row in self.store.units()]
        try:
            import pandas
        except ModuleNotFoundError:
            return rows
        found = pandas.DataFrame(rows)
        return found.astype(dict.fromkeys(MEASURES, "float64")) if rows else found

    def pictures(self, layer: str, unit: int, masked: bool = False) -> list[Image.Image]:
        """Return the pictures of a unit's facets, the clearest facet first; those that were not made are left out.

        Args:
            layer, unit: the unit.
            masked: whether the parts that do not matter are transparent.

        Raises:
            UsageError: the atlas does not have the unit.
        """
        self._check(layer, unit)
        files = [row.masked if masked else row.picture for row in self.store.facets(layer, unit)]
        return [_opened(self.folder / file) for file in files if file]

    def neighbours(self, layer: str, unit: int, kind: str | None = None) -> list[NeighbourRow]:
        """Return the nearest units of a unit, by rank; some may be units that the atlas leaves out.

        Args:
            layer, unit: the unit.
            kind: ``"similar"``, ``"input"`` or ``"output"``; None: all.

        Raises:
            UsageError: the atlas does not have the unit.
        """
        self._check(layer, unit)
        return [row for row in self.store.neighbours(layer, unit) if kind in (None, row.kind)]

    def _check(self, layer: str, unit: int) -> None:
        layers = [row.layer for row in self.layers]
        if layer not in layers:
            raise UsageError("layer", layer, f"the atlas has {', '.join(layers)}", layers)
        if not self.store.units(layer, unit):
            raise UsageError("unit", unit, f"of {layer} the atlas does not have it")

    def __repr__(self) -> str:
        """Return network, layers, state and folder in one line."""
        done, failed = (self.store.count(status=status) for status in (DONE, FAILED))
        told = f"{done} of {self.store.count()} units done, {failed} failed"
        layers = ", ".join(row.layer for row in self.layers)
        return f"Atlas({self.meta.get('network')}: {layers}; {told}; {self.folder})"

    def _repr_html_(self) -> str:
        done = [row for row in self.store.units() if row.status == DONE]
        best = sorted(done, key=lambda row: -(row.clarity or 0))
        rows = [{name: getattr(row, name) for name in COLUMNS_SHOWN} for row in best]
        shown = [
            (pictures[0], f"{row.layer}:{row.unit} {row.name or ''}".strip())
            for row in best[:PICTURES_SHOWN]
            if (pictures := self.pictures(row.layer, row.unit))
        ]
        return (
            lines([repr(self), f"The clearest first; open {self.folder / 'index.html'}"])
            + figures(shown)
            + table(rows[: ROWS_SHOWN + 1])
        )


def _opened(path: Path) -> Image.Image:
    image: Image.Image
    with Image.open(path) as image:
        image.load()
    return image
