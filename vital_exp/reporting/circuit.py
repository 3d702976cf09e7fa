"""The page of a circuit: a tree of pictures, one file that opens offline."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vital_exp.reporting.causal import read_causal
from vital_exp.reporting.facets import facet_count, facet_words, is_facet
from vital_exp.reporting.gallery import Embedded, embed, read_run
from vital_exp.reporting.pages import environment
from vital_exp.targets.words import in_words
from vital_exp.whole_files import write_whole

PAGE = "circuit.html"


@dataclass(frozen=True)
class Leaf:
    """One unit on the page, with the units below it."""

    name: str
    title: str
    share: float
    facet: str
    picture: Embedded | None
    masked: Embedded | None
    references: Embedded | None
    error: str
    children: list[Leaf]


def write_circuit(folder: Path, network: str, method: str) -> Path:
    """Write ``folder/circuit.html`` from ``circuit.json`` and the run folders of its levels; return its path."""
    tree = json.loads((folder / "circuit.json").read_text(encoding="utf-8"))
    root = _leaf(tree, folder, 0)
    page = environment().get_template("circuit.html")
    layers = [level[0]["layer"] for level in _levels(tree)[1:]]
    most = max((node["share"] for level in _levels(tree)[1:] for node in level), default=0.0) or 1.0
    titles = {node["target"]: _title(node) for level in _levels(tree) for node in level}
    words = {"network": network, "method": method, "layers": layers, "causal": read_causal(folder, titles)}
    return write_whole(folder / PAGE, page.generate(root=root, most=most, **words))


def _title(node: dict[str, Any]) -> str:
    return str(node["label"] or in_words(node["target"]))


def _levels(tree: dict[str, Any]) -> list[list[dict[str, Any]]]:
    levels, level = [], [tree]
    while level:
        levels.append(level)
        level = [child for node in level for child in node["children"]]
    return levels


def _main_facet(result: dict[str, Any]) -> str:
    """Words for the facet that the picture shows; empty where the unit has no facets."""
    if not is_facet(result):
        return ""
    count = facet_count(result)
    which = "its only facet" if count == 1 else f"main facet of {count}" if count else "main facet"
    return f"{which}: {facet_words(result)}"


def _leaf(node: dict[str, Any], folder: Path, depth: int) -> Leaf:
    run = folder / f"level{depth}"
    names = (node["target"], f"{node['target']}_f0")  # the unit, or its main facet
    result = next(one for one in read_run(run).results if one["target"] in names)
    return Leaf(
        name=node["target"],
        title=_title(node),
        share=node["share"],
        facet=_main_facet(result),
        picture=embed(run / "images", f"{result['target']}.png", False),
        masked=embed(run / "images", f"{result['target']}_masked.png", False),
        references=embed(run / "references", f"{result['target']}.jpg", False),
        error=str(result.get("error") or ""),
        children=[_leaf(child, folder, depth + 1) for child in node["children"]],
    )
