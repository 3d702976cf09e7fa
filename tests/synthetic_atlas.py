"""An atlas of made-up units, written through the store: what pages are tested and measured with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from vital_exp.atlases.store import (
    DONE,
    FAILED,
    INPUT,
    MINED,
    OUTPUT,
    SIMILAR,
    STRONGEST,
    WEAKEST,
    ClassRow,
    Entry,
    FacetRow,
    ImageRow,
    LayerRow,
    NeighbourRow,
    Store,
    UnitRow,
)

SIDE, INPUT_SIDE = 96, 224  # px of the files, of the network's input
POOL = 24  # different pictures and images, which units share
NAMES = ("dog", "wheel", "<b>sky</b>", "tench & net", "text", "", "fur", "eye")
CLASSES = tuple(f"class {number}" for number in range(10))
ERROR = "the loss is not finite from step 3 on"


def write_pool(folder: Path, rng: np.random.Generator) -> None:
    """Write coloured clouds: pictures, the same masked, images, and where units fire in them."""
    for kind in ("pictures", "windows"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for number in range(POOL):
        small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        picture = small.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        picture.save(folder / f"pictures/{number}.png")
        masked = picture.convert("RGBA")
        masked.putalpha(Image.linear_gradient("L").resize((SIDE, SIDE)))
        masked.save(folder / f"pictures/{number}_masked.png")
        image = small.rotate(90).resize((SIDE, SIDE), Image.Resampling.NEAREST)
        image.save(folder / f"windows/{number}.webp")
        image.point(lambda level: level // 2 + 127).save(folder / f"windows/{number}_fires.webp")


def _entry(layer: str, unit: int, count: int, beside: Mapping[str, int], rng: np.random.Generator) -> Entry:
    status = FAILED if unit % 40 == 7 else MINED if unit % 40 == 9 else DONE
    clarity, density, x, y = (float(value) for value in rng.random(4))
    histogram = {"low": -1.0, "high": 3.0, "counts": [int(value) for value in rng.integers(0, 90, 24)]}
    row = UnitRow(
        *(layer, unit, status),
        error=ERROR if status == FAILED else None,
        name=NAMES[unit % len(NAMES)] or None,
        name_score=0.5 + clarity / 2,
        clarity=None if unit % 50 == 3 else clarity,
        redundancy=1 - clarity / 3,
        polysemanticity=1 - clarity,
        coherence=clarity,
        **{"mean": density, "deviation": 0.1 + density, "density": density, "maximum": 1e4 * density},
        **{"map_x": x, "map_y": y, "histogram": histogram},
    )
    pool = (unit * 7) % POOL
    facets = [
        FacetRow(
            *(layer, unit, facet, 0.6 - 0.2 * facet, 0.8 - 0.1 * facet, 9),
            *(f"pictures/{(pool + facet) % POOL}.png", f"pictures/{(pool + facet) % POOL}_masked.png"),
            **{"activation": 4.2, "activation_ratio": 1.2, "seconds": 3.5},
        )
        for facet in range(2 if status == DONE else 0)
    ]
    images = [
        ImageRow(
            *(layer, unit, kind, rank, f"n01440764/photo {rank}.JPEG", 9.5 - rank),
            facet=rank % 2 if kind == STRONGEST else None,
            file=f"windows/{(pool + rank) % POOL}.webp",
            box=(40, 20, 152, 132) if kind == STRONGEST else None,
            overlay=f"windows/{(pool + rank) % POOL}_fires.webp" if kind == STRONGEST else None,
        )
        for kind in (STRONGEST, WEAKEST)
        for rank in range(1, 10)
    ]
    others = [(SIMILAR, layer, count)] + [(kind, other, beside[other]) for kind, other in _joined(layer, beside)]
    neighbours = [
        NeighbourRow(layer, unit, kind, rank, other, int(rng.integers(size)), 0.9 - 0.25 * rank)
        for kind, other, size in others
        for rank in range(1, 7)
    ]
    classes = [ClassRow(layer, unit, name, float(value)) for name, value in zip(CLASSES, rng.random(10), strict=True)]
    return Entry(row, facets, images, neighbours, classes)


def _joined(layer: str, layers: Mapping[str, int]) -> list[tuple[str, str]]:
    names = list(layers)
    place = names.index(layer)
    before, after = names[place - 1] if place else None, names[place + 1] if place + 1 < len(names) else None
    return [(kind, other) for kind, other in ((INPUT, before), (OUTPUT, after)) if other is not None]


def write_atlas(folder: Path, layers: Mapping[str, int], finished: bool = True, seed: int = 0) -> Store:
    """Write an atlas of layers with so many units each; one unit in 40 has failed, one is only mined."""
    rng = np.random.default_rng(seed)
    write_pool(folder, rng)
    meta: dict[str, object] = {
        **{"network": "resnet50", "images": 2000, "folder": "/somewhere/imagenet/val", "input": [3, 224, 224]},
        **{"method": "vital", "seed": 0, "finished": finished, "versions": {"vital_exp": "0.1.0"}},
    }
    told = "vital-visualize model=resnet50 target=channel target.layer={} target.index={{unit}}"
    meta["commands"] = {layer: told.format(layer) for layer in layers}
    names = list(layers)
    rows = [
        LayerRow(
            name, place, "channel", layers[name], 56 >> place, 56 >> place, 32 << place, tuple(names[place + 1 :][:1])
        )
        for place, name in enumerate(names)
    ]
    store = Store.create(folder, meta, rows)
    for layer, count in layers.items():
        for first in range(0, count, 500):
            units = range(first, min(count, first + 500))
            store.write(*(_entry(layer, unit, count, layers, rng) for unit in units))
    return store
