"""The state of an unfinished mining on disk, from which an interrupted mining resumes."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

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
    """The state of a mining.

    Attributes:
        top, bottom: for each layer the ranking of images by its units; ``bottom`` holds negated values. The numbers are
            image * positions of the layer's map + the unit's strongest position.
        patches: for each layer the ranking of patches by its units. The numbers are image * windows + window.
        phase: the pass that is running.
        position: the number of images that this pass has finished.
        corrupt: error by number of the image.
        activity: for each layer the distribution of its units' activations over all images.
    """

    top: dict[str, TopK]
    bottom: dict[str, TopK]
    patches: dict[str, TopK]
    phase: str = IMAGES_PASS
    position: int = 0
    corrupt: dict[int, str] = field(default_factory=dict)
    activity: dict[str, Activity] = field(default_factory=dict)

    def save(self, path: Path, meta: Meta) -> None:
        """Write the state; a temporary file is renamed at the end, so that the old state survives an interruption."""
        progress = {"phase": self.phase, "position": self.position, "corrupt": self.corrupt}
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.cpu().contiguous() for name, tensor in self._tensors().items()}
        with whole_path(path) as temporary:
            save_file(tensors, temporary, {"meta": json.dumps(meta), "progress": json.dumps(progress)})

    def load(self, path: Path) -> None:
        """Take over a saved state, which must have the same meta."""
        with safe_open(path, "pt") as file:
            progress = json.loads(file.metadata()["progress"])
            for name, tensor in self._tensors().items():
                tensor.copy_(file.get_tensor(name))
        self.phase, self.position = progress["phase"], progress["position"]
        self.corrupt = {int(number): reason for number, reason in progress["corrupt"].items()}

    def _tensors(self) -> dict[str, torch.Tensor]:
        ranking = ("values", "seconds", "numbers")
        parts = {"activity": ("awake", "sample"), "top": ranking, "bottom": ranking, "patches": ranking}
        return {
            f"{part}/{layer}/{name}": getattr(holder, name)
            for part, names in parts.items()
            for layer, holder in getattr(self, part).items()
            for name in names
        }


def read_meta(path: Path) -> dict[str, object] | None:
    """Return the meta of a saved state; None where the file is missing or damaged: mining then starts anew."""
    try:
        with safe_open(path, "pt") as file:
            meta: dict[str, object] = json.loads(file.metadata()["meta"])
            return meta
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None
