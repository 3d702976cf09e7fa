"""What a run hands back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from vital_exp.errors import UsageError
from vital_exp.targets.class_names import ClassNames
from vital_exp.targets.selection import parse_target
from vital_exp.targets.unit import Target


class History(dict[str, dict[str, list[float]]]):
    """Terms by step of each target, by its name in the run folder; every other spelling of a target finds it too."""

    def __init__(self, terms: Mapping[str, dict[str, list[float]]], class_names: ClassNames | None) -> None:
        super().__init__(terms)
        self._class_names = class_names

    def __missing__(self, spelling: str) -> dict[str, list[float]]:
        try:
            name = parse_target(spelling, self._class_names).name
        except UsageError as error:
            raise KeyError(spelling) from error
        if name == spelling:
            raise KeyError(spelling)
        return self[name]


@dataclass(kw_only=True)
class Outcome:
    """What a run made, but for the pictures themselves, in the order of its targets.

    Attributes:
        targets: the targets.
        results: one dict per target, as in results.jsonl.
        metrics: as in metrics.json.
        rows: per-target values, as in metrics.csv.
        path: the run folder; None when nothing was written.
    """

    targets: list[Target]
    results: list[dict[str, Any]]
    metrics: Mapping[str, Mapping[str, float | int | str | None]] = field(default_factory=dict)
    rows: list[dict[str, float | int | str]] = field(default_factory=list)
    path: Path | None = None


@dataclass(kw_only=True)
class Pictures(Outcome):
    """What a run made, in the order of its targets.

    Attributes:
        images: (N, 3, H, W) float32 RGB in [0, 1]; NaN where a target failed.
        masks: (N, 1, H, W) in [0, 1], the transparency maps.
        history: {target: {term: one value per step, "total": ...}}.
    """

    images: Tensor
    masks: Tensor
    history: History
