"""Builds the pages of the documentation's site: the written ones, and the reference from the code."""
