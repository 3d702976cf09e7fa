"""The reference of the Python API: every public function and class of the packages that users build with."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import vital_exp

ROOT = Path(vital_exp.__file__).parent
FACE = "reference/api.md"
FACE_TEXT = """# Functions of the commands

The functions have the names of the commands: `from vital_exp import load_model, visualize, mine, evaluate, report,
audit`. The pages beside this one document their parts, for those who write a part of their own.

"""
# The title of each page, and the packages or modules whose public names the page documents.
PAGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "objectives": ("Objectives: formulas, terms, gradient rules", ("objectives", "engine.gradient", "setup.schedule")),
    "images": ("Images: parameterisations and colours", ("images",)),
    "transforms": ("Transforms", ("images.transforms",)),
    "relevance": ("Relevance", ("relevance",)),
    "references": ("References", ("references",)),
    "evaluation": ("Evaluation: metrics, intervals, tables", ("evaluation",)),
    "targets": ("Targets", ("targets",)),
    "models": ("Models", ("models.named", "models.network", "models.layers", "models.taps", "models.model_config")),
    "mining": (
        "Mining and concepts",
        ("mining.index", "mining.mine", "concepts.factors", "concepts.importance", "concepts.activation_atlas"),
    ),
    "naming": ("Names of units", ("naming",)),
    "circuits": ("Circuits", ("circuits",)),
    "atlases": ("Atlases", ("atlases.opened", "atlases.compare", "atlases.store")),
    "audits": ("Audits", ("attacks.settings", "attacks.audit")),
    "errors": ("Mistakes and values", ("errors", "values")),
}


def pages() -> dict[str, str]:
    """Return the pages of the API by their path in the site."""
    functions_first = sorted(vital_exp.__all__, key=lambda name: (name[0].isupper(), name))
    made = {FACE: FACE_TEXT + "\n".join(directive(f"vital_exp.{name}") for name in functions_first)}
    for page, (title, places) in PAGES.items():
        sections = [section(module) for place in places for module in modules(place)]
        made[f"reference/api/{page}.md"] = "\n".join([f"# {title}", "", *(text for text in sections if text)])
    return made


def modules(place: str) -> list[str]:
    """Return the modules of a package (``"objectives"``, without sub-packages), or a module (``"errors"``) itself."""
    path = ROOT / place.replace(".", "/")
    if not path.is_dir():
        return [f"vital_exp.{place}"]
    return [f"vital_exp.{place}.{file.stem}" for file in sorted(path.glob("*.py")) if file.stem != "__init__"]


def section(module: str) -> str:
    """Return a module's section: its docstring, and a directive for each public name; empty without public names."""
    tree = ast.parse(_file(module).read_text(encoding="utf-8"))
    names = list(public_names(tree))
    if not names:
        return ""
    said = re.sub(r"docs/([\w/-]+\.md)", r"[\1](../../\1)", ast.get_docstring(tree) or "")
    return "\n".join(
        [f"## {module.removeprefix('vital_exp.')}", "", said, "", *(directive(f"{module}.{n}") for n in names)]
    )


def public_names(tree: ast.Module) -> Iterator[str]:
    """Yield the names of a module's functions and classes that do not begin with an underscore."""
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            yield node.name


def directive(name: str) -> str:
    """Return the line that mkdocstrings replaces with the documentation of an object."""
    return f"::: {name}\n"


def _file(module: str) -> Path:
    return ROOT.parent / f"{module.replace('.', '/')}.py"
