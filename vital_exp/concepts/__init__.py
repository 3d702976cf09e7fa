"""Concepts: directions found by factorising a layer's activations of image patches, and their importance."""
