"""Where images are: a folder, a file that lists them, or a dataset, each as a folder in the end."""

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
        cache_dir: where folders of the latter two are made, once.
        key: the configuration key to blame.

    Raises:
        UsageError: a list or dataset that cannot be read.
    """
    if is_dataset(root):
        return dataset_folder(str(root), cache_dir, key)
    place = Path(root).expanduser()
    return listed_folder(place, cache_dir, key) if is_list(place) else place
