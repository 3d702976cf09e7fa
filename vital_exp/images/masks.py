"""What a transparency map can add up. Imports no torch."""

from __future__ import annotations

# Over the steps: the part of the gradient that the picture can follow, or the gradient, as published.
MASKS = ("followed", "published")
