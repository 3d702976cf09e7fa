"""What the pages of an atlas call the measures of its units, and what each says, in words."""

from __future__ import annotations

from dataclasses import dataclass

from vital_exp.atlases.store import MEASURES


@dataclass(frozen=True)
class Measure:
    """A measure by which units are sorted.

    Attributes:
        key: column of the table units.
        title, meaning: for people.
    """

    key: str
    title: str
    meaning: str


WORDS = {
    "clarity": (
        "clarity",
        "How alike the windows of its strongest images are: the mean cosine of their embeddings. 1: all are the same.",
    ),
    "coherence": (
        "coherence of its main facet",
        "How alike the images of the unit's clearest facet are: their mean cosine. Low: even one facet is a mixture.",
    ),
    "polysemanticity": (
        "polysemanticity",
        "How unlike two groups of its strongest images are, cut as far apart as can be. 0: the unit means one thing.",
    ),
    "redundancy": (
        "redundancy",
        "How alike its strongest images are to those of the layer's most similar unit. 1: another unit means the same.",
    ),
    "density": (
        "density",
        "Share of all images that activate it above 0. Near 0: a rare thing, or a dead unit; near 1: it hardly tells.",
    ),
    "maximum": ("largest activation", "The unit's largest activation by any image."),
    "mean": ("mean activation", "The unit's activation, mean over all images."),
    "deviation": ("standard deviation", "How much the unit's activation differs between images."),
    "correspondence": (
        "correspondence",
        "How often a window of its images is more like its picture than another unit's window is. 0.5: chance.",
    ),
    "name_score": (
        "how well its name tells it",
        "How well the name tells the unit's images from others: AUC of a label, or cosine of a word.",
    ),
}
MAP_COLUMNS = ("map_x", "map_y")


def measures() -> list[Measure]:
    """Return the measures in the order of the pages: those with words first, then what else the table has."""
    known = [key for key in WORDS if key in MEASURES]
    rest = [key for key in MEASURES if key not in WORDS and key not in MAP_COLUMNS]
    return [Measure(key, *WORDS.get(key, (key.replace("_", " "), ""))) for key in known + rest]
