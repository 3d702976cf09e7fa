"""Take the screenshots of the documentation: pages of runs on embedded networks and drawn images alone.

    python -m tools.screenshots                   # makes the pages in a new folder, in ten minutes, and takes them
    python -m tools.screenshots --pages FOLDER    # keeps the pages in FOLDER, and makes only those that are missing

Needs Chromium. Writes docs/images/pages/<page>-<light, dark or phone>.webp.
"""

from __future__ import annotations

import argparse
import io
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from tests.chromium import Tab, tab

OUT = Path(__file__).resolve().parents[1] / "docs" / "images" / "pages"
LARGEST_FILE = 120_000  # bytes
DESKTOP, PHONE = (1280, 860), (390, 844)  # px
SHOTS = {"light": (DESKTOP, False), "dark": (DESKTOP, True), "phone": (PHONE, False)}
SETTLED = "Promise.all([...document.images].map((one) => one.decode().catch(() => null))).then(() => true)"


@dataclass(frozen=True)
class Page:
    """A page: its file, relative to the folder of pages, and the command that makes it."""

    file: str
    command: str


NET = "model=embedded_resnet progress=false"
PAGES: Mapping[str, Page] = {
    "run": Page(
        "sweep/0/report.html",
        f"visualize -m method=vital_fourier,fourier,maco {NET} "
        "target.index=[0,1,2,3,4,5] steps=150 hydra.sweep.dir=sweep",
    ),
    "sweep": Page("sweep/report/report.html", "report runs=sweep"),
    "mining": Page("mining/index.html", f"mine {NET} layers=[layer3] channels=0-11 hydra.run.dir=mining"),
    "concepts": Page(
        "concepts/index.html",
        f"mine {NET} layers=[layer3] concepts=nmf concepts.count=6 concepts.class=heart hydra.run.dir=concepts",
    ),
    "circuit": Page(
        "circuit/circuit.html",
        f"visualize {NET} target=circuit target.unit=class:star target.levels=2 "
        "target.width=3 steps=100 references.region=image method=vital_fourier "
        "hydra.run.dir=circuit",
    ),
    "audit": Page("audit/report.html", "audit run=sweep/0 count=20 hydra.run.dir=audit"),
    "study": Page("sweep/study/study.html", "evaluate run=sweep study=true progress=false"),
    "atlas": Page("atlas/index.html", f"atlas {NET} layers=[layer3] units=0-11 steps=100 hydra.run.dir=atlas"),
}


def make(page: Page, folder: Path) -> None:
    """Make a page with its command, unless the file exists."""
    if (folder / page.file).is_file():
        return
    command, *arguments = shlex.split(page.command)
    subprocess.run([sys.executable, "-m", f"vital_exp.commands.{command}", *arguments], cwd=folder, check=True)


def photograph(chromium: Tab, page: Path, size: tuple[int, int], dark: bool) -> Image.Image:
    """Return the top of a page in a window of a size."""
    chromium.open(page, *size, dark=dark)
    chromium.wait(SETTLED)
    with tempfile.TemporaryDirectory() as folder:
        chromium.photograph(Path(folder) / "seen.png")
        with Image.open(Path(folder) / "seen.png") as image:
            return image.convert("RGB")


def small(image: Image.Image) -> bytes:
    """Return a WebP of at most ``LARGEST_FILE`` bytes, if some quality fits, in the best quality that does."""
    for quality in range(90, 20, -10):
        buffer = io.BytesIO()
        image.save(buffer, "WEBP", quality=quality, method=6)
        if buffer.tell() <= LARGEST_FILE:
            break
    return buffer.getvalue()


def main(pages: Path, out: Path = OUT) -> None:
    """Make and photograph all pages."""
    pages.mkdir(parents=True, exist_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    for page in PAGES.values():
        make(page, pages)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile, tab(Path(profile)) as chromium:
        for name, page in PAGES.items():
            for kind, (size, dark) in SHOTS.items():
                image = photograph(chromium, pages / page.file, size, dark)
                (out / f"{name}-{kind}.webp").write_bytes(small(image))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", type=Path, help="the folder of the pages; by default a temporary one")
    given = parser.parse_args().pages
    if given:
        main(given)
    else:
        with tempfile.TemporaryDirectory() as made:
            main(Path(made))
