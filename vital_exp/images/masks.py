"""The kinds of transparency map. Imports no torch."""

from __future__ import annotations

# A map adds up gradients over the steps: the part that the picture can follow, or the whole gradient, as published.
MASKS = ("followed", "published")
