"""Concepts: directions of a layer that its patches are made of, and how much each matters for a class."""
