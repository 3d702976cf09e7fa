"""Turns every place that images can come from into a folder: a folder itself, a file that lists images, a dataset."""

from __future__ import annotations

from pathlib import Path

from vital_exp.image_folders import is_dataset, is_list
from vital_exp.references.huggingface import dataset_folder
from vital_exp.references.listed import listed_folder


def image_root(root: str | Path, cache_dir: Path, key: str = "references.root") -> Path:
    """Return the folder of images that a root names.

    Args:
        root: a folder; a .csv, .tsv or .txt file that lists images (:func:`listed_folder`); or a dataset,
            ``hf:place?split=train`` (:func:`dataset_folder`).
        cache_dir: the folder in which lists and datasets become folders, once each.
        key: the configuration key that an error names.

    Raises:
        UsageError: the list or dataset cannot be read.
    """
    if is_dataset(root):
        return dataset_folder(str(root), cache_dir, key)
    place = Path(root).expanduser()
    return listed_folder(place, cache_dir, key) if is_list(place) else place
