"""The values that a run returns."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from vital_exp.engine.batch import Made
from vital_exp.errors import UsageError
from vital_exp.images.output import as_image, to_uint8
from vital_exp.models.channels import as_rgb
from vital_exp.notebook_html import contact_sheet, figures
from vital_exp.references.base import References
from vital_exp.references.faceted import FacetedReferences
from vital_exp.setup.run_setup import RunSetup
from vital_exp.targets.class_names import ClassNames
from vital_exp.targets.selection import parse_target
from vital_exp.targets.unit import Target

NAMED = 4  # targets that a repr names


class History(dict[str, dict[str, list[float]]]):
    """The values of the terms at each step, by target: the name in the run folder, or any other spelling of the target.

    The name of a unit with one facet finds this facet. If the unit has several facets, a KeyError names them.
    """

    def __init__(self, terms: Mapping[str, dict[str, list[float]]], class_names: ClassNames | None) -> None:
        super().__init__(terms)
        self._class_names = class_names

    def __missing__(self, spelling: str) -> dict[str, list[float]]:
        try:
            target = parse_target(spelling, self._class_names)
        except UsageError as error:
            raise KeyError(spelling) from error
        facets = [name for name in self if re.fullmatch(_facet_of(target), name)]
        found = target.name if target.name in self else facets[0] if len(facets) == 1 else None
        if found is None:
            raise KeyError(f"{spelling} has {len(facets)} facets: {', '.join(facets)}" if facets else spelling)
        return self[found]


def _facet_of(target: Target) -> str:
    """Return a pattern for the names of a target's facets: channel-layer4-7_f0_v2 is a facet of channel-layer4-7_v2."""
    ending = f"_v{target.variation}" if target.variation > 1 else ""
    return rf"{re.escape(replace(target, variation=1).name)}_f\d+{ending}"


@dataclass(kw_only=True)
class Outcome:
    """The results of a run without its pictures, in the order of the targets.

    Attributes:
        targets: the targets.
        results: one dict per target, as in results.jsonl.
        metrics: as in metrics.json.
        rows: metrics of each target, as in metrics.csv.
        path: the run folder; None when nothing was written.
    """

    targets: list[Target]
    results: list[dict[str, Any]]
    metrics: Mapping[str, Mapping[str, float | int | str | None]] = field(default_factory=dict)
    rows: list[dict[str, float | int | str]] = field(default_factory=list)
    path: Path | None = None


@dataclass(kw_only=True)
class Pictures(Outcome):
    """The pictures of a run with their results, in the order of the targets.

    Attributes:
        images: (N, 3, H, W) float32 RGB in [0, 1]; NaN where a target failed.
        masks: (N, 1, H, W) in [0, 1], the transparency maps.
        history: {target: {term: one value per step, "total": ...}}.
    """

    images: Tensor
    masks: Tensor
    history: History

    def __repr__(self) -> str:
        """Return one line: the number, shape and targets of the pictures, without the values of the tensors."""
        names = ", ".join(map(_caption, self.targets[:NAMED])) + (", ..." if len(self.targets) > NAMED else "")
        shape = " x ".join(map(str, self.images.shape[1:]))
        return f"Pictures({len(self.targets)} of {shape}: {names}{f'; in {self.path}' if self.path else ''})"

    def show(self, columns: int = 5) -> Image.Image:
        """Return all pictures in one image, which a notebook displays.

        Pictures that are neither grey nor RGB are shown by their first three channels; failed targets are black.

        Args:
            columns: number of pictures in a row.
        """
        return contact_sheet(self._shown(), columns)

    def _repr_html_(self) -> str:
        results = {result["target"]: result for result in self.results}
        captions = [_caption(target, results.get(target.name)) for target in self.targets]
        return figures(zip(self._shown(), captions, strict=True))

    def _shown(self) -> list[Image.Image]:
        return [as_image(to_uint8(as_rgb(picture.nan_to_num()))) for picture in self.images]


def _caption(target: Target, result: Mapping[str, Any] | None = None) -> str:
    """Return the name and the label of a target, and the activation or the error of its picture."""
    name = f"{target.name} {target.label}".strip()
    if result is None:
        return name
    if result["status"] == "failed":
        return f"{name}: failed, {result['error']}"
    activation = result["activation"]
    return name if activation is None else f"{name}, activation {activation:.3g}"


def result_line(setup: RunSetup, target: Target, made: Made, cost: Mapping[str, float | None]) -> dict[str, Any]:
    """Return a target's line in results.jsonl.

    Args:
        setup: of the run.
        target: of the line.
        made: the target's picture, or the error.
        cost: ``"seconds"``, and ``"memory"`` in MB.
    """
    error = made.error
    return {
        "target": target.name,
        "kind": target.kind,
        "layer": target.layer,
        "index": target.index,
        "label": target.label,
        "status": "failed" if error else "done",
        "image": None if error else f"images/{target.name}.png",
        "seed": setup.seed,
        "steps": setup.steps,
        "loss": None if error else {name: values[-1] for name, values in made.history.items()},
        "activation": made.activation,
        **cost,
        "error": error,
        "position": list(target.position) if target.position else target.tokens,
        "variation": target.variation,
        "facet": target.facet,
        **_described(setup.references, target),
        "config_hash": setup.config_hash,
    }


def _described(references: References, target: Target) -> dict[str, Any]:
    """Return the columns that describe the target's facet; their values are None without a facet."""
    if isinstance(references, FacetedReferences) and target.facet is not None:
        return references.describe(target)
    return {"share": None, "coherence": None, "members": None, "facets": None}
