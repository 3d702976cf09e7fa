"""Concepts on disk: concepts.safetensors with directions and factors, concepts.csv with their importance."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vital_exp.concepts.factors import Factors
from vital_exp.errors import UsageError
from vital_exp.whole_files import whole_file, whole_path

NAME, TABLE = "concepts.safetensors", "concepts.csv"
KEY = "target.concepts"
META = "concepts"  # key in the file's metadata
FORMAT = 2  # version of the metadata
TENSORS = ("directions", "components", "mean")


@dataclass(frozen=True)
class Concepts:
    """The concepts of a layer.

    Attributes:
        factors: components and directions; if there is importance, the most important concept first.
        importance: (K,), of each concept for a class; None: not computed.
        meta: the network, layer, images, method, count, seed, class and kind of importance.
    """

    factors: Factors
    importance: Tensor | None
    meta: dict[str, Any]

    def __len__(self) -> int:
        return len(self.factors.directions)

    @property
    def layer(self) -> str:
        """The layer's name."""
        return str(self.meta["layer"])

    def save(self, out: Path) -> Path:
        """Write ``out/concepts.safetensors`` (tensors directions, components, mean, importance) and its table."""
        tensors = {name: getattr(self.factors, name).contiguous() for name in TENSORS}
        if self.importance is not None:
            tensors["importance"] = self.importance.contiguous()
        out.mkdir(parents=True, exist_ok=True)
        self._write_table(out / TABLE)
        with whole_path(out / NAME) as temporary:
            save_file(tensors, temporary, {META: json.dumps(self.meta)})
        return out / NAME

    def _write_table(self, path: Path) -> None:
        with whole_file(path) as file:
            table = csv.writer(file)
            table.writerow(["concept", "layer", "method", "class", "label", "importance", "importance_kind"])
            for number in range(len(self)):
                value = "" if self.importance is None else f"{float(self.importance[number]):.6g}"
                kind = "" if self.importance is None else self.meta["importance"]
                label = self.meta["label"] or ""
                number_of_class = "" if self.meta["class"] is None else self.meta["class"]
                table.writerow([number, self.layer, self.factors.method, number_of_class, label, value, kind])

    @classmethod
    def open(cls, path: str | Path, key: str = KEY) -> Concepts:
        """Open a file of concepts, or the file of concepts in a folder.

        Raises:
            UsageError: there is no such file, or it holds no concepts, or concepts of another version.
        """
        place = Path(path).expanduser()
        place = place / NAME if place.is_dir() else place
        if not place.is_file():
            raise UsageError(key, path, f"no {NAME} there; vital-mine concepts=nmf writes one")
        try:
            with safe_open(place, "pt") as file:
                meta = json.loads(file.metadata()[META])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no dict
            factors = Factors(meta["method"], **{name: tensors[name] for name in TENSORS})
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise UsageError(key, path, f"holds no concepts of vital-mine ({error})") from None
        if meta.get("format") != FORMAT:
            raise UsageError(key, path, "holds concepts of another version; mine them again")
        return cls(factors, tensors.get("importance"), meta)


def by_importance(factors: Factors, importance: Tensor) -> tuple[Factors, Tensor]:
    """Return factors and importance with the most important concept first."""
    order = torch.argsort(importance, descending=True, stable=True)
    ranked = Factors(factors.method, factors.components[order], factors.mean, factors.directions[order])
    return ranked, importance[order]
