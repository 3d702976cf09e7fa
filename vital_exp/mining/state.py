"""How far mining has come, kept on disk whole, so that an interrupted pass goes on."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vital_exp.mining.extremes import Extremes


@dataclass
class MiningState:
    """What has been found so far.

    Attributes:
        extremes: for each layer the strongest and weakest images of its units.
        patch_values, patch_windows: for each layer (U, k), the best window of each strongest image.
        scanned: how many images have passed.
        searched: how many of the strongest images' patches are done.
        corrupt: image number to reason.
    """

    extremes: dict[str, Extremes]
    patch_values: dict[str, Tensor] = field(default_factory=dict)
    patch_windows: dict[str, Tensor] = field(default_factory=dict)
    scanned: int = 0
    searched: int = 0
    corrupt: dict[int, str] = field(default_factory=dict)

    def save(self, path: Path, key: str) -> None:
        """Write the state whole; ``key`` says what it is the state of."""
        tensors: dict[str, Tensor] = {}
        for layer, found in self.extremes.items():
            tensors |= {f"values/{layer}": found.values, f"images/{layer}": found.images}
        tensors |= {f"patch_values/{layer}": values for layer, values in self.patch_values.items()}
        tensors |= {f"patch_windows/{layer}": numbers for layer, numbers in self.patch_windows.items()}
        counts = {"scanned": self.scanned, "searched": self.searched, "corrupt": self.corrupt, "key": key}
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
        os.close(handle)
        try:
            contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
            save_file(contiguous, temporary, {"counts": json.dumps(counts)})
            os.replace(temporary, path)
        finally:
            Path(temporary).unlink(missing_ok=True)

    def load(self, path: Path, key: str) -> None:
        """Take over a kept state; another key's, or a damaged one, is passed over and made again."""
        try:
            with safe_open(path, "pt") as file:
                counts = json.loads(file.metadata()["counts"])
                tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, ValueError, KeyError, TypeError):
            return
        if counts["key"] != key:
            return
        self.scanned, self.searched = counts["scanned"], counts["searched"]
        self.corrupt = {int(number): reason for number, reason in counts["corrupt"].items()}
        for layer in self.extremes:
            self.extremes[layer] = Extremes(tensors[f"values/{layer}"], tensors[f"images/{layer}"])
            if f"patch_values/{layer}" in tensors:
                self.patch_values[layer] = tensors[f"patch_values/{layer}"]
                self.patch_windows[layer] = tensors[f"patch_windows/{layer}"]

    def begin_patches(self) -> None:
        """Make room for the patches of every strongest image."""
        for layer, found in self.extremes.items():
            if layer not in self.patch_values:
                self.patch_values[layer] = torch.full(found.values.shape[1:], -torch.inf)
                self.patch_windows[layer] = torch.zeros(found.values.shape[1:], dtype=torch.int64)
