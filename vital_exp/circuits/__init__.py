"""Circuits: a class or unit, the channels below that are most relevant for it, and so on down, each with a picture."""
