"""Which facet of a unit should come first? A comparison of rules by judges' scores of natural images, without pictures.

    VITAL_TEST_DATA=... python benchmarks/facet_order.py --layers mobilenetv2:bn2 --units 24 --seed 1

A rule takes one facet of each unit: the largest; the most coherent; the clearest, which the library puts first
(coherence times mean activation); or the most coherent of those with at least half as many images as the largest.
Prints for each rule the mean correspondence AUC of the facets' natural images (each in turn against the others of its
facet and images of other units) by two judges, and the share of the strongest images that are in the facets.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence

import hidden_units
import torch
from torch import Tensor

from vital_exp.evaluation.correspondence import natural_correspondence, unit_vectors
from vital_exp.evaluation.reading import NetworkReader
from vital_exp.models.named import named_network
from vital_exp.references.faceted import FacetedReferences
from vital_exp.references.facets import Facet
from vital_exp.setup.request import Request

Rule = Callable[[Sequence[Facet]], Facet]
RULES: Mapping[str, Rule] = {
    "largest": lambda facets: max(facets, key=lambda one: one.share),
    "most coherent": lambda facets: max(facets, key=lambda one: one.coherence),
    "clearest": lambda facets: facets[0],
    "of the large ones": lambda facets: max(_large(facets), key=lambda one: one.coherence),
}


def _large(facets: Sequence[Facet]) -> list[Facet]:
    most = max(facet.share for facet in facets)
    return [facet for facet in facets if facet.share >= most / 2]


def chosen_images(references: FacetedReferences, request: Request) -> dict[str, dict[int, tuple[float, Tensor]]]:
    """Return, by rule and unit, the share and the images (n, 3, H, W) of the facet that the rule takes."""
    found: dict[str, dict[int, tuple[float, Tensor]]] = {name: {} for name in RULES}
    for target in dict.fromkeys(target.unit for target in request.targets):
        facets, candidates = references.facets(target), references.source.candidates(target)
        for name, rule in RULES.items():
            facet = rule(facets)
            images = torch.stack([candidates[place].load() for place in facet.members])
            found[name][target.index] = facet.share, images
    return found


def auc(vectors: Mapping[int, Tensor]) -> float:
    """Return the mean natural AUC of units, from their images' embeddings (n, D), unit vectors."""
    others = {unit: torch.cat([own for other, own in vectors.items() if other != unit]) for unit in vectors}
    return sum(natural_correspondence(own, others[unit]) for unit, own in vectors.items()) / len(vectors)


def compare(options: argparse.Namespace, place: str) -> None:
    """Print a line per rule for one layer."""
    name, layer = place.split(":")
    network = named_network(hidden_units.NETWORKS[name].keys(options.data))
    units = hidden_units.units_of(network, layer, options.units, options.seed)
    overrides = ["progress=false", "evaluation=none", "logger=none", f"cache_dir={options.out.resolve()}/cache"]
    keys = {"method": "vital_fourier", "references": hidden_units.images(options), "overrides": overrides}
    request = Request.of(network, [f"{layer}:{unit}" for unit in units], **keys)  # type: ignore[arg-type]
    assert isinstance(request.references, FacetedReferences)
    images = chosen_images(request.references, request)
    for judge in [judge for judge in hidden_units.JUDGES if judge != name][:2]:
        reader = NetworkReader(named_network(hidden_units.NETWORKS[judge].keys(options.data)))
        for rule, by_unit in images.items():
            vectors = {unit: unit_vectors(reader(own).features) for unit, (_, own) in by_unit.items()}
            share = sum(share for share, _ in by_unit.values()) / len(by_unit)
            print(f"{place}  {judge:12} {rule:18} AUC {auc(vectors):.2f}  share {share:.2f}", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare the rules on each layer."""
    options = hidden_units.parse(arguments)
    options.data = options.data.resolve()
    for place in options.layers:
        compare(options, place)


if __name__ == "__main__":
    main()
