"""Check the path of a weights file. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from vital_exp.errors import UsageError

KEY = "model.checkpoint"
INDEX = ".index.json"  # suffix of the index of a sharded checkpoint, as Hugging Face's tools write it
SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin", INDEX)
SHOWN = 5  # number of a folder's files that a message lists


def weights_file(path: Path | str, key: str = KEY) -> Path:
    """Return the path of an existing weights file, with ``~`` expanded.

    Args:
        path: the file's path.
        key: the configuration key that names the file.

    Raises:
        UsageError: the file does not exist, or is a folder.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        raise UsageError(key, path, f"is a folder: name the file in it{_listed(path)}")
    if not path.is_file():
        raise UsageError(key, path, "no such file")
    return path


def _listed(folder: Path) -> str:
    files = sorted(file.name for file in folder.iterdir() if file.name.endswith(SUFFIXES))
    more = f" and {len(files) - SHOWN} more" if len(files) > SHOWN else ""
    return f", {', '.join(files[:SHOWN])}{more}" if files else "; it holds no weights"
