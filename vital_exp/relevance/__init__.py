"""Relevance of features for a unit: relevance maps, masks and channel weights (docs/methods/relevance.md)."""

from vital_exp.relevance.api import relevance_maps
from vital_exp.relevance.maps import METHODS, activations_and_relevance

__all__ = ["METHODS", "activations_and_relevance", "relevance_maps"]
