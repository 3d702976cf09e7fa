"""Circuits: a unit, the most relevant channels of the layer below, and so on layer by layer, with a picture of each."""
