"""The file of weights that a user names. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from vital_exp.errors import UsageError

KEY = "model.checkpoint"
INDEX = ".index.json"  # of weights in several files, as Hugging Face's tools write them
SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin", INDEX)
SHOWN = 5  # files of a folder that are named


def weights_file(path: Path | str, key: str = KEY) -> Path:
    """Return the file that a user names.

    Args:
        path: of the file.
        key: the configuration's key that names it.

    Raises:
        UsageError: no such file, or a folder.
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
