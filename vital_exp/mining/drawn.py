"""The drawn image set as a folder, so that the embedded networks can be mined without any images of the user."""

from __future__ import annotations

from pathlib import Path

from vital_exp.images.output import as_image, to_uint8
from vital_exp.references.drawn import CLASS_NAMES, REVISION, draw
from vital_exp.whole_files import whole_folder

IMAGES_PER_CLASS = 60
SEED = 1  # another set than the drawn references, whose default seed is 0


def drawn_folder(cache_dir: Path) -> Path:
    """Return the cache's folder of drawn images, 60 PNG files of 64 px for each of ten classes; drawn once."""
    folder = cache_dir / "drawn" / f"{REVISION}-{SEED}-{IMAGES_PER_CLASS}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with whole_folder(folder) as temporary:
        for index, name in enumerate(CLASS_NAMES):
            (temporary / name).mkdir()
            for number in range(IMAGES_PER_CLASS):
                picture = as_image(to_uint8(draw(index, number, SEED)))
                picture.save(temporary / name / f"{number:03d}.png")
    return folder
