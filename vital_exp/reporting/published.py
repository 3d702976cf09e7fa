"""Figures of the VITAL paper, shown beside ours.

All figures are second-hand: they come from a summary of the paper, not from the paper itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

SOURCE = "Görgün, Schiele, Fischer, ICCV 2025, arXiv 2503.22399"
NOTE = (
    f"Second-hand: read in a summary of the paper ({SOURCE}), not in the paper itself. The feature space of its FID is "
    "not named there, and is probably the target network's own."
)
# Metrics that the paper reports too, by our names, with the factor from the paper's numbers to ours.
METRICS = {"accuracy_top1": 0.01, "fid[target]": 1.0, "clip_top1": 0.01, "clip_top5": 0.01}


@dataclass(frozen=True)
class Published:
    """A line of the paper's table.

    Attributes:
        model, method: by our names.
        values: by our metrics' names, in our units.
    """

    model: str
    method: str
    values: dict[str, float]


def _line(model: str, method: str, *figures: float) -> Published:
    scaled = (figure * unit for figure, unit in zip(figures, METRICS.values(), strict=True))
    return Published(model, method, {name: round(value, 4) for name, value in zip(METRICS, scaled, strict=True)})


# Columns: accuracy of the target network on its pictures in %, FID, CLIP zero-shot top-1 and top-5 in %.
PUBLISHED = (
    _line("resnet50", "maco", 29.43, 360.74, 12.87, 29.73),
    _line("resnet50", "deep_inversion", 100.00, 35.76, 29.90, 55.20),
    _line("resnet50", "vital", 99.90, 58.79, 66.62, 92.56),
    _line("vit_l_16", "maco", 44.33, 946.96, 3.93, 10.57),
    _line("vit_l_16", "vital", 99.80, 126.29, 68.17, 92.80),
    _line("convnext_base", "maco", 66.07, 62.55, 7.20, 19.77),
    _line("convnext_base", "vital", 99.97, 3.92, 63.53, 90.30),
)
# Medians of the study with 58 people: ratings of class pictures by name and of hidden units' pictures by references
# (1 to 5), and free naming (cosine).
STUDY = {
    "maco": {"study_rating": 2.0, "study_correspondence": 2.5, "study_naming": 0.35},
    "fourier": {"study_rating": 1.5, "study_correspondence": 2.0, "study_naming": 0.30},
    "deep_inversion": {"study_rating": 3.0, "study_naming": 0.40},
    "vital": {"study_rating": 4.0, "study_correspondence": 4.0, "study_naming": 0.60},
}


def published_lines(methods: Iterable[str]) -> list[Published]:
    """Return the lines of the paper's table for these methods."""
    asked = set(methods)
    return [line for line in PUBLISHED if line.method in asked]
