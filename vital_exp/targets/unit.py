"""The unit of a network that a picture is made for."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field, replace

# Kinds of targets that read a direction in a layer's channels: a vector from a file, a mined concept, a feature of a
# sparse autoencoder, a text's embedding.
DIRECTIONS = ("direction", "concept", "sae", "text")
# Names that stand beside the layers' names: the network's input (normalised pictures) and its output.
INPUT, OUTPUT = "input", "output"
# The tokens of a layer that may be read.
CLASS_TOKEN, REGISTER_TOKENS, PATCH_TOKENS = "cls", "register", "patches"
TOKENS = (CLASS_TOKEN, REGISTER_TOKENS, PATCH_TOKENS)
LONGEST_NAME = 180  # characters; file systems take 255 including suffixes


@dataclass(frozen=True)
class Target:
    """One unit (a class, or a channel, neuron or direction of a layer), with its facet and variation.

    Attributes:
        kind: ``"class"``, ``"channel"``, ``"neuron"`` or one of ``DIRECTIONS``.
        index: class, channel or direction number, from 0.
        layer: module name of the layer; None for a class.
        position: (row, column) in the layer's map, for a neuron.
        variation: the number of the picture among the pictures of the same unit, from 1.
        label: a name for people ("golden retriever"); ignored in comparisons.
        facet: the number of the facet, from 0, the clearest first; None: the unit as a whole.
        tokens: which tokens of a transformer's layer are read, one of ``TOKENS``; None: all positions.

    Examples:
        >>> from vital_exp.targets.unit import Target
        >>> Target("neuron", 1935, "layer4.2", (7, 7)).name
        'neuron-layer4.2-1935-7-7'
        >>> Target("class", 207, variation=2).name
        'class-207_v2'
    """

    kind: str
    index: int
    layer: str | None = None
    position: tuple[int, int] | None = None
    variation: int = 1
    label: str = field(default="", compare=False)
    facet: int | None = None
    tokens: str | None = None

    @property
    def name(self) -> str:
        """A safe file name, such as class-207, neuron-layer4.2-1935-7-7 or channel-blocks.5-7-cls.

        Facet 0 adds _f0 at the end, variation 2 adds _v2.
        """
        parts = [self.kind, *([self.layer] if self.layer else []), str(self.index), *map(str, self.position or ())]
        parts += [self.tokens] if self.tokens else []
        name = re.sub(r"[^A-Za-z0-9._-]", "_", "-".join(parts))
        if len(name) > LONGEST_NAME:
            name = f"{name[:LONGEST_NAME]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
        name = name if self.facet is None else f"{name}_f{self.facet}"
        return name if self.variation == 1 else f"{name}_v{self.variation}"

    @property
    def is_direction(self) -> bool:
        """Whether the target reads a direction in the layer's channels."""
        return self.kind in DIRECTIONS

    @property
    def unit(self) -> Target:
        """The unit without facet and variation."""
        return replace(self, facet=None, variation=1)

    def labelled(self, label: str) -> Target:
        """Return the same target with another label."""
        return replace(self, label=label)
