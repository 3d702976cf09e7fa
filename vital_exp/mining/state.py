"""A half-made mining on disk, so that an interrupted one goes on."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from vital_exp.mining.activity import Activity
from vital_exp.mining.meta import Meta
from vital_exp.mining.top import TopK
from vital_exp.whole_files import whole_path

NAME = "state.safetensors"
IMAGES_PASS, PATCHES_PASS = "images", "patches"


@dataclass
class MiningState:
    """How far a mining has come.

    Attributes:
        top, bottom: for each layer the images of its units, those of ``bottom`` with negated values; their numbers are
            image * positions of the layer's map + the unit's strongest position.
        patches: for each layer the patches of its units; their numbers are image * windows + window.
        phase: the pass that is running.
        position: images of this pass that are done.
        corrupt: reason by number of the image.
        activity: for each layer how far all images drive its units.
    """

    top: dict[str, TopK]
    bottom: dict[str, TopK]
    patches: dict[str, TopK]
    phase: str = IMAGES_PASS
    position: int = 0
    corrupt: dict[int, str] = field(default_factory=dict)
    activity: dict[str, Activity] = field(default_factory=dict)

    def save(self, path: Path, meta: Meta) -> None:
        """Write the state whole."""
        progress = {"phase": self.phase, "position": self.position, "corrupt": self.corrupt}
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.cpu().contiguous() for name, tensor in self._tensors().items()}
        with whole_path(path) as temporary:
            save_file(tensors, temporary, {"meta": json.dumps(meta), "progress": json.dumps(progress)})

    def load(self, path: Path) -> None:
        """Take over a saved state of the same meta."""
        with safe_open(path, "pt") as file:
            progress = json.loads(file.metadata()["progress"])
            for name, tensor in self._tensors().items():
                tensor.copy_(file.get_tensor(name))
        self.phase, self.position = progress["phase"], progress["position"]
        self.corrupt = {int(number): reason for number, reason in progress["corrupt"].items()}

    def _tensors(self) -> dict[str, torch.Tensor]:
        activity = {
            f"activity/{layer}/{what}": getattr(one, what)
            for layer, one in self.activity.items()
            for what in ("awake", "sample")
        }
        return activity | {
            f"{part}/{layer}/{what}": getattr(one, what)
            for part in ("top", "bottom", "patches")
            for layer, one in getattr(self, part).items()
            for what in ("values", "seconds", "numbers")
        }


def read_meta(path: Path) -> dict[str, Any] | None:
    """Return what a saved state is of; None when there is none, or it is damaged (it is then made again)."""
    try:
        with safe_open(path, "pt") as file:
            meta: dict[str, Any] = json.loads(file.metadata()["meta"])
            return meta
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None
