"""The drawn image set as a folder, so that the embedded networks can be mined without images of the user's."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from PIL import Image

from vital_exp.images.output import to_uint8
from vital_exp.references.drawn import CLASS_NAMES, REVISION, draw

IMAGES_PER_CLASS = 60
SEED = 1  # not the references' own


def drawn_folder(cache_dir: Path) -> Path:
    """Return the folder of drawn images in the cache, drawn there if it is not: 600 PNG files of 64 px, ten classes."""
    folder = cache_dir / "drawn" / f"{REVISION}-{SEED}-{IMAGES_PER_CLASS}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, suffix=".part"))
    for index, name in enumerate(CLASS_NAMES):
        (temporary / name).mkdir()
        for number in range(IMAGES_PER_CLASS):
            pixels = to_uint8(draw(index, number, SEED)).permute(1, 2, 0).numpy()
            Image.fromarray(pixels).save(temporary / name / f"{number:03d}.png")
    try:
        os.replace(temporary, folder)
    except OSError:  # another process was faster
        shutil.rmtree(temporary)
    return folder
