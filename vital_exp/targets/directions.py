"""Directions in a layer's channels, from a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vital_exp.errors import UsageError

KEY = "target.vectors"
# The tensor that is read from a file of several if none is named; vital-mine concepts=... writes it.
MAIN = "directions"


def load_directions(spec: str, key: str = KEY) -> Tensor:
    """Return the directions of a file, (K, C) float32.

    Args:
        spec: a .safetensors or .npy file. ``#name`` at the end chooses one of several tensors; without it, the only
            tensor or the tensor ``directions`` is read. ``#3`` chooses one direction. A tensor (C,) is one direction.
        key: the configuration key that errors blame.

    Raises:
        UsageError: no such file or tensor, another kind of file, a tensor without one or two axes, a direction that is
            zero or not finite.
    """
    place, _, name = spec.partition("#")
    path = Path(place).expanduser()
    if not path.is_file():
        raise UsageError(key, spec, "no such file; a .safetensors or .npy file of vectors (K, C) is needed")
    tensors = _tensors(path, spec, key)
    row = int(name) if name.isdecimal() and name not in tensors else None
    vectors: Tensor = torch.atleast_2d(_tensor(tensors, "" if row is not None else name, spec, key).float())
    if vectors.ndim != 2 or 0 in vectors.shape:
        raise UsageError(key, spec, f"holds a tensor {tuple(vectors.shape)}; (K, C) is needed, one row per direction")
    if not vectors.isfinite().all() or (vectors == 0).all(dim=1).any():
        raise UsageError(key, spec, "holds a direction that is zero or not finite")
    if row is not None and row >= len(vectors):
        raise UsageError(key, spec, f"holds {len(vectors)} directions, 0 to {len(vectors) - 1}")
    return vectors if row is None else vectors[row : row + 1]


def _tensors(path: Path, spec: str, key: str) -> dict[str, Tensor]:
    """Return the tensors of a file by name; the array of a .npy file has the name ``""``."""
    try:
        if path.suffix == ".npy":
            return {"": torch.from_numpy(np.load(path, allow_pickle=False))}
        return load_file(path)
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        problem = f"cannot be read as .safetensors or .npy ({str(error).splitlines()[0]})"
        raise UsageError(key, spec, problem) from None


def _tensor(tensors: dict[str, Tensor], name: str, spec: str, key: str) -> Tensor:
    if not name and len(tensors) == 1:
        return next(iter(tensors.values()))
    name = name or (MAIN if MAIN in tensors else name)
    if name not in tensors:
        raise UsageError(key, spec, f"name one of the file's tensors, file#name: {', '.join(tensors)}", list(tensors))
    return tensors[name]
