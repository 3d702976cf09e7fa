"""Read the tensors of a local file, by name, without running code from it."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vital_exp.errors import UsageError
from vital_exp.text_files import read_json
from vital_exp.weights_places import INDEX, KEY, weights_file

# What files of other kinds begin with, or are called, and what to do.
CONVERT = "save the weights as a state_dict, or as .safetensors"
HEADS = (
    (b"version https://git-lfs", "is a Git LFS pointer, not the weights: git lfs pull fetches them"),
    (b"\x89HDF", f"is HDF5 (Keras): {CONVERT}"),
    (b"\x93NUMPY", f"is a NumPy array: {CONVERT}"),
    (b"<", "is a web page, not the weights: fetch the file itself"),
)
OTHER_KINDS = dict.fromkeys((".npz", ".npy"), "NumPy arrays") | dict.fromkeys((".h5", ".hdf5", ".keras"), "Keras")
OTHER_KINDS |= {".onnx": "ONNX", ".pb": "TensorFlow", ".tflite": "TensorFlow", ".msgpack": "Flax", ".gguf": "GGUF"}
DEEPEST = 12  # containers in each other; a checkpoint has few, a pickle may hold itself


def read_tensors(path: Path | str, key: str = KEY) -> dict[str, Tensor]:
    """Return the tensors of a file by the dotted path to each: ``state_dict.model.conv1.weight``.

    Args:
        path: a .safetensors file, a file of torch.save that loads as weights only, or the index of weights in several.
        key: the configuration's key that names the file.

    Raises:
        UsageError: no such file, one of another kind, one that would execute code, or no tensors in it.
    """
    path = weights_file(path, key)
    content = _sharded(path, key) if path.name.endswith(INDEX) else _content(path, key)
    return _tensors(content, path, key)


def tensors_of(content: bytes, path: Path, key: str) -> dict[str, Tensor]:
    """Return the tensors of what torch.save wrote, which is part of a file, as :func:`read_tensors` does.

    Raises:
        UsageError: it would execute code, cannot be read, or there are no tensors in it.
    """
    return _tensors(_unpickled(BytesIO(content), path, key), path, key)


def _tensors(content: object, path: Path, key: str) -> dict[str, Tensor]:
    if not isinstance(content, dict):
        raise UsageError(key, path, f"holds {type(content).__name__}, not a state_dict")
    tensors = dict(_walk(content, ""))
    if not tensors:
        raise UsageError(key, path, "holds no weights")
    return tensors


def _content(path: Path, key: str) -> Any:
    """What a file holds: nested dicts, lists and tensors."""
    with path.open("rb") as file:
        head = file.read(64)
    for beginning, problem in HEADS:
        if head.startswith(beginning):
            raise UsageError(key, path, problem)
    if path.suffix.lower() in OTHER_KINDS:
        raise UsageError(key, path, f"is of {OTHER_KINDS[path.suffix.lower()]}: {CONVERT}")
    if head[8:9] != b"{" and (path.suffix != ".safetensors" or head.startswith(b"PK")):
        with path.open("rb") as file:  # not by its name, which torch goes by
            return _unpickled(file, path, key)
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise UsageError(key, path, f"not a readable checkpoint ({_first_line(error)})") from error


def _unpickled(file: IO[bytes], path: Path, key: str) -> Any:
    """What torch.save wrote, by torch's loader that runs no code."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of an unusual pickle protocol, before torch refuses or reads the file
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        holds = "holds" if "Unsupported global" in str(error) else "is damaged or holds"
        problem = f"{holds} pickled objects, which could run code; save the state_dict alone, or as .safetensors"
        raise UsageError(key, path, problem) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        if "TorchScript" in str(error):
            raise UsageError(key, path, f"is a TorchScript archive, which holds code: {CONVERT}") from error
        raise UsageError(key, path, f"not a readable checkpoint ({_first_line(error)})") from error


def _sharded(index: Path, key: str) -> dict[str, Tensor]:
    """The tensors of several files, which an index beside them names."""
    content = read_json(index, key)
    parts = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(parts, dict) or not all(isinstance(part, str) for part in parts.values()):
        raise UsageError(key, index, "is no index of weights: it has no weight_map from names to files")
    tensors: dict[str, Tensor] = {}
    for part in sorted(set(parts.values())):
        if Path(part).name != part or not (index.parent / part).is_file():
            raise UsageError(key, index, f"names {part}, which is not beside it")
        found = _content(index.parent / part, key)
        tensors |= found if isinstance(found, dict) else {}
    if lacking := [name for name in parts if name not in tensors]:
        raise UsageError(key, index, f"names {lacking[0]} in {parts[lacking[0]]}, which does not hold it")
    return tensors


def _walk(node: object, prefix: str, depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    """Yield the dotted path of every tensor in nested dicts and lists."""
    if depth > DEEPEST:
        return
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, (list, tuple)) else ()
    for key, value in items:
        if isinstance(value, Tensor):
            yield f"{prefix}{key}", value
        else:
            yield from _walk(value, f"{prefix}{key}.", depth + 1)


def _first_line(error: BaseException) -> str:
    """The first sentence of a loader's message; what it says further is meant for programmers."""
    return str(error).strip().split("\n")[0].split(". ")[0] or "it ends too early"
