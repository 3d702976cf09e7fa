"""Read the tensors of a local file, by name, without running code from the file."""

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

# Files of other formats, recognised by their first bytes or their suffix, and the advice in the message.
CONVERT = "save the weights as a state_dict, or as .safetensors"
HEADS = (
    (b"version https://git-lfs", "is a Git LFS pointer, not the weights: git lfs pull fetches them"),
    (b"\x89HDF", f"is HDF5 (Keras): {CONVERT}"),
    (b"\x93NUMPY", f"is a NumPy array: {CONVERT}"),
    (b"<", "is a web page, not the weights: fetch the file itself"),
)
OTHER_KINDS = dict.fromkeys((".npz", ".npy"), "NumPy arrays") | dict.fromkeys((".h5", ".hdf5", ".keras"), "Keras")
OTHER_KINDS |= {".onnx": "ONNX", ".pb": "TensorFlow", ".tflite": "TensorFlow", ".msgpack": "Flax", ".gguf": "GGUF"}
DEEPEST = 12  # nested containers: a checkpoint has few, but a pickled container may contain itself


def read_tensors(path: Path | str, key: str = KEY) -> dict[str, Tensor]:
    """Return the tensors of a file by dotted path: ``state_dict.model.conv1.weight``.

    Args:
        path: a .safetensors file, a file of torch.save that loads with ``weights_only=True``, or the index of a sharded
            checkpoint (``.index.json``).
        key: the configuration key that names the file.

    Raises:
        UsageError: the file does not exist, has another format, could execute code, or holds no tensors.
    """
    path = weights_file(path, key)
    content = _sharded(path, key) if path.name.endswith(INDEX) else _content(path, key)
    return _tensors(content, path, key)


def tensors_of(content: bytes, path: Path, key: str) -> dict[str, Tensor]:
    """Return the tensors in bytes that torch.save wrote, by dotted path, as :func:`read_tensors` does.

    Args:
        content: the bytes, which are a part of the file ``path``.
        path: the file, for the message.
        key: the configuration key that names the file.

    Raises:
        UsageError: the bytes could execute code, cannot be read, or hold no tensors.
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
    """Return a file's content: nested dicts, lists and tensors."""
    with path.open("rb") as file:
        head = file.read(64)
    for beginning, problem in HEADS:
        if head.startswith(beginning):
            raise UsageError(key, path, problem)
    if path.suffix.lower() in OTHER_KINDS:
        raise UsageError(key, path, f"is of {OTHER_KINDS[path.suffix.lower()]}: {CONVERT}")
    if head[8:9] != b"{" and (path.suffix != ".safetensors" or head.startswith(b"PK")):
        with path.open("rb") as file:  # opened here: torch may choose a loader by the file's name
            return _unpickled(file, path, key)
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise UsageError(key, path, f"not a readable checkpoint ({_first_line(error)})") from error


def _unpickled(file: IO[bytes], path: Path, key: str) -> Any:
    """Return the content of a torch.save file, loaded with ``weights_only=True``, which runs no code."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about an unusual pickle protocol: torch reads or refuses the file next
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
    """Return the tensors of a sharded checkpoint: an index names the files, which lie beside it."""
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
    """Return the first sentence of a loader's message; the rest is for programmers."""
    return str(error).strip().split("\n")[0].split(". ")[0] or "it ends too early"
