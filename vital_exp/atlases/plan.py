"""What an atlas would hold and how long it would take, from a few measured batches."""

from __future__ import annotations

from vital_exp.atlases.measures import IMAGES
from vital_exp.atlases.mined_layers import passes
from vital_exp.atlases.places import method_of
from vital_exp.atlases.request import AtlasRequest, Part
from vital_exp.config import compose_config
from vital_exp.mining.plan import Cost, duration, images_line, measured, told

FACETS = 2  # of a unit, on average, with facets=auto
# What a step costs, in forward passes: one forward pass, and a backward pass that costs as much as two.
PASSES_PER_STEP = 3


def describe(asked: AtlasRequest) -> str:
    """Return the plan as text."""
    units, config = asked.all_units(asked.parts), asked.config
    cost = measured(asked.folder, units.maps, config.batch_size, config.workers, asked.network.device)
    images, count = len(asked.folder.paths), sum(len(part.units) for part in asked.parts.values())
    mining = cost.seconds(images, images) * len(passes({layer: part.count for layer, part in asked.parts.items()}))
    each = {layer: _seconds(asked, part, cost) for layer, part in asked.parts.items()}
    pictures = count * (FACETS if config.facets == "auto" else int(config.facets)) if asked.makes_pictures else 0
    steps = sorted({_steps(asked, part) for part in asked.parts.values()})
    shown = ", ".join(map(str, steps))
    lines = {
        "model": f"{asked.network.name} on {asked.network.device}",
        "images": images_line(asked.folder),
        "layers": ", ".join(f"{layer} ({_count(part)})" for layer, part in asked.parts.items()),
        "units": f"{count}, {config.shown} images of each on each side",
        "pictures": f"about {pictures} by {config.pictures}, {shown} steps" if pictures else "none",
        "map": ", ".join(sorted({method_of(str(config.map), part.count) for part in asked.parts.values()})),
        "judge": str(asked.judge) if asked.judge else "none: correspondence is not measured",
        "time": f"about {duration(mining)} for mining, then about {duration(sum(each.values()))}",
    }
    return told(lines)


def _count(part: Part) -> str:
    return f"{len(part.units)} units" if len(part.units) == part.count else f"{len(part.units)} of {part.count} units"


def _seconds(asked: AtlasRequest, part: Part, cost: Cost) -> float:
    """Return how long the units of a layer take: images for facets and measures, steps of pictures."""
    config = asked.config
    images = IMAGES + int(config.shown) + (0 if config.facets == 1 or part.kind == "class" else asked.k)
    pictures = FACETS if config.facets == "auto" and part.kind != "class" else 1
    passes = pictures * _steps(asked, part) * PASSES_PER_STEP if asked.makes_pictures else 0
    return len(part.units) * (cost.seconds(images, images) + passes * cost.network)


def _steps(asked: AtlasRequest, part: Part) -> int:
    """Return the steps of a layer's pictures."""
    config = asked.config
    if config.steps is not None:
        return int(config.steps)
    target = "class" if part.kind == "class" else "channel"
    given = [f"target={target}", *([f"method={config.pictures}"] if asked.makes_pictures else [])]
    return int(compose_config(given).steps)
