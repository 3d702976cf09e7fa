"""Which features of a picture matter for a unit: relevance maps, masks and channel weights (docs/methods/vital.md)."""

from vital_exp.relevance.maps import METHODS, activations_and_relevance

__all__ = ["METHODS", "activations_and_relevance", "relevance_maps"]


def __getattr__(name: str) -> object:
    if name == "relevance_maps":  # needs the loading of networks, which imports this package
        from vital_exp.relevance.api import relevance_maps

        return relevance_maps
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
