"""Names of targets in words, for pages and tables."""

from __future__ import annotations

import re

# Regular expressions of targets' names, and the words for them.
NAMES = {
    r"class-(\d+)": r"class \1",
    r"neuron-(.+)-(\d+)-(\d+)-(\d+)": r"neuron \2 of \1 at row \3, column \4",
    r"(channel|direction|concept|sae|text)-(.+)-(\d+)": r"\1 \3 of \2",
}


def in_words(name: str) -> str:
    """Return the name of a target in words: channel-layer4.2-7_f0_v2 is channel 7 of layer4.2, facet 0, variation 2."""
    ending = re.search(r"(?:_f(\d+))?(?:_v(\d+))?$", name)
    assert ending is not None  # it may be empty
    facet, variation = (
        f", {word} {n}" if n else "" for word, n in zip(("facet", "variation"), ending.groups(), strict=True)
    )
    for pattern, words in NAMES.items():
        if found := re.fullmatch(pattern, name[: ending.start()]):
            return found.expand(words) + facet + variation
    return name
