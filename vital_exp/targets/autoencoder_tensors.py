"""Read the tensors of a file of a sparse autoencoder without running code from it."""

from __future__ import annotations

import pickle
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vital_exp.errors import UsageError

KEY = "target.checkpoint"
INNER = "state_dict"


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a .safetensors file, or of a state_dict that torch.save wrote, by name.

    Raises:
        UsageError: the file cannot be read, holds something else, or objects that would run code.
    """
    if path.suffix != ".safetensors":
        return tensors_of(path.read_bytes(), path)
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UsageError(KEY, path, f"cannot be read as .safetensors ({error})") from None


def tensors_of(content: bytes, path: Path) -> dict[str, Tensor]:
    """Return the tensors of what torch.save wrote: a state_dict, alone or as ``state_dict`` of a dict.

    Raises:
        UsageError: see :func:`read_tensors`.
    """
    try:
        found: Any = torch.load(BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        problem = "holds Python objects, which could run code: save its state_dict alone, or as .safetensors"
        raise UsageError(KEY, path, problem) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise UsageError(KEY, path, f"cannot be read as a file of torch.save ({str(error).splitlines()[0]})") from None
    found = found.get(INNER, found) if isinstance(found, dict) else found
    tensors = (
        {str(name): one for name, one in found.items() if isinstance(one, Tensor)} if isinstance(found, dict) else {}
    )
    if not tensors:
        raise UsageError(KEY, path, "holds no tensors by name; a state_dict is needed")
    return tensors
