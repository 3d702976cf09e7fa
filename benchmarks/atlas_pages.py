"""The site of a large atlas: seconds and memory to write it, seconds until a browser shows it from disk.

    python benchmarks/atlas_pages.py                          5,000 units in three layers
    python benchmarks/atlas_pages.py --units 500 --repeats 3
    python benchmarks/atlas_pages.py --folder atlas           an existing atlas

Needs Chromium; run it from the checkout. The units are synthetic (tests/synthetic_atlas.py), with the contents of a
real atlas: 2 facets, 18 images, 10 classes and up to 18 neighbours each.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import unquote, urlparse

import psutil
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.chromium import Tab, tab
from tests.synthetic_atlas import write_atlas
from vital_exp.atlases.site import write_site
from vital_exp.atlases.store import DONE, Store, UnitRow
from vital_exp.atlases.store import Entry as Unit
from vital_exp.engine.memory import MEBIBYTE, forget_peak, peak

LAYERS = {"layer2.3": 0.2, "layer3.5": 0.4, "layer4.2": 0.4}  # shares of the units
BATCH = 16  # units that change before the site is written again
SHOWN = "performance.getEntriesByName('shown').at(0)?.startTime"
PAINTED = """new Promise((done) => new PerformanceObserver((list) => done(list.getEntries().at(-1).startTime))
  .observe({type: 'largest-contentful-paint', buffered: true}))"""
COMPLETE = "[...document.images].filter((one) => one.checkVisibility()).every((one) => one.complete)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--units", type=int, default=5000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="of an atlas; made up without it")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = options.folder or Path(place) / "atlas"
        figures: dict[str, object] = {}
        if options.folder is None:
            write_atlas(folder, {layer: round(share * options.units) for layer, share in LAYERS.items()})
            figures["writing"] = writing(folder)
        figures["files"] = files(folder)
        figures["viewing"] = viewing(folder, options.repeats, Path(place))
    print(json.dumps(figures, indent=2))


def writing(folder: Path) -> dict[str, object]:
    """Time the writing of the whole site, without changes, after a batch, and again, each in a process of its own."""
    found: dict[str, object] = {}
    layer = next(iter(LAYERS))
    for name, changed, everything in (
        ("all", 0, False),
        ("nothing", 0, False),
        ("batch", BATCH, False),
        ("again", 0, True),
    ):
        store, rows = Store.open(folder), Store.open(folder).units(layer)
        mined = [row for row in rows if row.status != DONE][:changed]
        store.write(*(Unit(UnitRow(layer, row.unit, DONE)) for row in mined))
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found[name] = pool.apply(_measured, (folder, everything))
    return found


def _measured(folder: Path, everything: bool) -> dict[str, float]:
    cpu = torch.device("cpu")
    before, resident = forget_peak(cpu), psutil.Process().memory_info().rss / MEBIBYTE
    started, worked = time.perf_counter(), time.process_time()
    write_site(folder, everything)
    seconds, busy, most = time.perf_counter() - started, time.process_time() - worked, peak(cpu, before)
    more = round((most or resident) - resident, 1)
    return {"seconds": round(seconds, 2), "processor seconds": round(busy, 2), "MiB more than before": more}


def files(folder: Path) -> dict[str, float]:
    """The largest files that a page loads, and the bytes that the site adds to the atlas."""
    data = [path.stat().st_size for path in (folder / "data").rglob("*.*")]
    thumbnails = [path.stat().st_size for path in (folder / "thumbnails").rglob("*.webp")]
    return {
        "largest of data, kB": round(max(data) / 1000),
        "data, MB": round(sum(data) / 1e6, 1),
        "thumbnails, MB": round(sum(thumbnails) / 1e6, 1),
    }


def viewing(folder: Path, repeats: int, place: Path) -> dict[str, object]:
    """Open each page in a new browser: milliseconds until the page is shown, and until its images are."""
    layer = Store.open(folder).layers()[-1].layer
    pages = {
        "entrance": ("index.html", ""),
        "layer": ("layer.html", f"{layer}?sort=clarity"),
        "map": ("layer.html", f"{layer}?view=map"),
        "unit": ("unit.html", f"{layer}/12"),
        "search": ("index.html", "?find=wheel"),
    }
    found: dict[str, object] = {}
    for name, (page, fragment) in pages.items():
        times = []
        for repeat in range(repeats):
            with tab(place / f"{name}{repeat}") as browser:
                times.append(_opened(browser, folder / page, fragment))
        columns = zip(*times, strict=True)
        shown, painted, complete, loaded, largest = (statistics.median(column) for column in columns)
        worst = max(one[1] for one in times)
        found[name] = {
            **{"shown, ms": round(shown), "painted, ms": round(painted), "slowest of these, ms": round(worst)},
            **{"all images, ms": round(complete), "loaded, kB": round(loaded), "largest file, kB": round(largest)},
        }
    return found


def _opened(browser: Tab, page: Path, fragment: str) -> tuple[float, float, float, float, float]:
    browser.open(page, fragment=fragment)
    browser.wait(f"{SHOWN} !== undefined && {COMPLETE}")
    complete = browser.ask("performance.now()")
    sizes = [
        Path(unquote(urlparse(address).path)).stat().st_size
        for address in set(browser.requests())
        if address.startswith("file:")
    ]
    return browser.ask(SHOWN), browser.ask(PAINTED), complete, sum(sizes) / 1000, max(sizes) / 1000


if __name__ == "__main__":
    main()
