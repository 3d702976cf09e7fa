"""Folders of networks as Hugging Face's hub keeps them: on disk, or fetched from it file by file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vital_exp.errors import UsageError
from vital_exp.text_files import read_json

KEY = "model.name"
HUB = "Hugging Face's hub"
CONFIG = "config.json"
# Where a folder has its weights, the first that is there. Pickles are read as weights only.
SAFE_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
SAFE_PARTS = "model-*-of-*.safetensors"
PICKLES = ("pytorch_model.bin", "pytorch_model.pth", "model.pth")


def local_folder(place: str, value: str) -> Path:
    """Return a folder that a user named, with a network in it.

    Args:
        place: the folder.
        value: of ``model.name``, which a mistake is blamed on.

    Raises:
        UsageError: no such folder, or no config.json in it.
    """
    folder = Path(place).expanduser()
    if not folder.is_dir():
        raise UsageError(KEY, value, "no such folder")
    if not (folder / CONFIG).is_file():
        raise UsageError(KEY, value, f"this folder holds no {CONFIG}, which says what network it is")
    return folder


def hub_folder(name: str, files: Sequence[str], cache_dir: Path | None, fetch: bool) -> Path:
    """Return the folder in which the cache keeps a network of Hugging Face's hub.

    Args:
        name: ``owner/name``, with ``@revision`` for another than the newest.
        files: names or patterns of those that are wanted.
        cache_dir: where they are kept; None: the hub's own cache.
        fetch: whether those that are not there are downloaded.

    Raises:
        OSError, ValueError: they cannot be had.
    """
    from huggingface_hub import snapshot_download

    repository, _, revision = name.partition("@")
    # Nothing in the folder is run; only the files that were asked for are there.
    return Path(
        snapshot_download(
            repository,
            revision=revision or None,
            cache_dir=cache_dir,
            allow_patterns=list(files),
            local_files_only=not fetch,
        )
    )


def in_cache(name: str, files: Sequence[str], cache_dir: Path) -> bool:
    """Return whether the cache has one of some files of a network of the hub, ``owner/name@revision``."""
    from huggingface_hub import try_to_load_from_cache

    repository, _, revision = name.partition("@")
    found = (try_to_load_from_cache(repository, file, cache_dir=cache_dir, revision=revision or None) for file in files)
    return any(isinstance(path, str) for path in found)


def read_config(folder: Path) -> dict[str, Any]:
    """Return what a folder's config.json says.

    Raises:
        UsageError: it is no JSON object.
    """
    content = read_json(folder / CONFIG, KEY)
    if not isinstance(content, dict):
        raise UsageError(KEY, folder / CONFIG, "is no JSON object, so it describes no network")
    return content
