"""Folders of networks in the format of Hugging Face's hub: on disk, or fetched from the hub file by file."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vital_exp.errors import UsageError
from vital_exp.text_files import read_json

KEY = "model.name"
HUB = "Hugging Face's hub"
CONFIG = "config.json"
# Files with a folder's weights: the first that exists is read; pickles as weights only.
SAFE_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
SAFE_PARTS = "model-*-of-*.safetensors"
PICKLES = ("pytorch_model.bin", "pytorch_model.pth", "model.pth")
RETRIES = "huggingface_hub.utils._http"  # the logger that tells of each attempt, with the whole address


@contextmanager
def retries_told_once() -> Iterator[None]:
    """Say in one warning that the hub does not answer, instead of two lines for each attempt."""
    logger, told = logging.getLogger(RETRIES), False

    def passes(record: logging.LogRecord) -> bool:
        nonlocal told
        if record.levelno != logging.WARNING:
            return True
        if not told:
            told = True
            warnings.warn(f"{HUB} does not answer; it is asked again for up to a minute", stacklevel=2)
        return False

    logger.addFilter(passes)
    try:
        yield
    finally:
        logger.removeFilter(passes)


def local_folder(place: str, value: str) -> Path:
    """Return a folder that a user named, with a network in it.

    Args:
        place: the folder.
        value: the value of ``model.name``, which a mistake is blamed on.

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
        name: ``owner/name``, with ``@revision`` for another revision than the newest.
        files: names or patterns of the files wanted.
        cache_dir: where files are kept; None: the hub's own cache.
        fetch: whether files that are not in the cache are downloaded.

    Raises:
        OSError, ValueError: the files are not in the cache, or cannot be downloaded.
    """
    from huggingface_hub import snapshot_download

    repository, _, revision = name.partition("@")
    # No code of the folder is run: only the files asked for are downloaded.
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
    """Whether the cache has at least one of these files of a network of the hub, ``owner/name@revision``."""
    from huggingface_hub import try_to_load_from_cache

    repository, _, revision = name.partition("@")
    found = (try_to_load_from_cache(repository, file, cache_dir=cache_dir, revision=revision or None) for file in files)
    return any(isinstance(path, str) for path in found)


def read_config(folder: Path) -> dict[str, Any]:
    """Return the content of a folder's config.json.

    Raises:
        UsageError: the file holds no JSON object.
    """
    content = read_json(folder / CONFIG, KEY)
    if not isinstance(content, dict):
        raise UsageError(KEY, folder / CONFIG, "is not a JSON object, so it describes no network")
    return content
