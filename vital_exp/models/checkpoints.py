"""Load weights from a local file without running code from it."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from vital_exp.errors import UsageError

# Where training scripts put the weights inside a checkpoint, the commonest first.
NESTING = ("state_dict", "model_state_dict", "model", "state_dict_ema", "net", "network")
# What wrappers (DataParallel, torch.compile, Lightning modules) put before every name.
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.")
KEY = "model.checkpoint"
COUNTER = "num_batches_tracked"
# Names shown when a checkpoint belongs to another network.
NAMES_SHOWN = 3


def load_checkpoint(module: nn.Module, path: Path | str) -> None:
    """Load the weights of a .safetensors or weights-only torch file into ``module``, strictly.

    Weights stored in half precision become the module's own. A prefix that every name carries is dropped.

    Raises:
        UsageError: no such file, a file that would execute code, or the weights of another network.
    """
    own = module.state_dict()
    weights = _without_prefix(read_weights(path), set(own))
    # Counters of training steps, which checkpoints of before torch 0.4 and exported networks lack.
    weights = {name: value for name, value in own.items() if name.endswith(COUNTER)} | weights
    _check(own, weights, path)
    module.load_state_dict({name: value.to(own[name].dtype) for name, value in weights.items()}, strict=True)


def read_weights(path: Path | str) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint by name."""
    path = Path(path).expanduser()
    if not path.is_file():
        raise UsageError(KEY, path, "no such file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings():  # of an unusual pickle protocol, before it refuses or reads the file
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise UsageError(KEY, path, f"not a readable checkpoint ({_first_line(error)})") from error
    except pickle.UnpicklingError as error:
        holds = "holds" if "Unsupported global" in str(error) else "is damaged or holds"
        problem = f"{holds} pickled objects, which could run code; save the state_dict alone, or as .safetensors"
        raise UsageError(KEY, path, problem) from error
    return _tensors(content, path)


def _tensors(content: object, path: Path) -> dict[str, Tensor]:
    for key in NESTING:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if not isinstance(content, dict):
        raise UsageError(KEY, path, f"holds {type(content).__name__}, not a state_dict")
    weights = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if not weights:
        raise UsageError(KEY, path, "holds no weights")
    return weights


def _without_prefix(weights: dict[str, Tensor], own: set[str]) -> dict[str, Tensor]:
    for _ in range(len(PREFIXES)):
        prefix = next((p for p in PREFIXES if all(name.startswith(p) for name in weights)), None)
        if prefix is None or own & set(weights):
            break
        weights = {name[len(prefix) :]: value for name, value in weights.items()}
    return weights


def _check(own: dict[str, Tensor], weights: dict[str, Tensor], path: Path | str) -> None:
    missing = [name for name in own if name not in weights]
    unexpected = sorted((name for name in weights if name not in own), key=lambda name: name.endswith(COUNTER))
    shapes = [
        f"{name} {tuple(weights[name].shape)} instead of {tuple(value.shape)}"
        for name, value in own.items()
        if name in weights and weights[name].shape != value.shape
    ]
    problems = [
        f"{what} {', '.join(names[:NAMES_SHOWN])}{' ...' if len(names) > NAMES_SHOWN else ''}"
        for what, names in (("lacks", missing), ("has unknown", unexpected), ("has", shapes))
        if names
    ]
    if problems:
        raise UsageError(KEY, path, f"the weights of another network: {'; '.join(problems)}")


def _first_line(error: BaseException) -> str:
    """The first sentence of a loader's message; what it says further is meant for programmers."""
    return str(error).strip().split("\n")[0].split(". ")[0] or "it ends too early"
