"""The line that a command prints at once: what it prepares. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

LISTS = ("layers", "facets")
LONGEST = 60  # letters of a name in the line


def announcement(content: Mapping[str, object], command: str) -> str | None:
    """Return the line for a command's composed configuration; None for a command that answers at once."""
    if command not in PREPARED:
        return None
    if content.get("list") is not None:
        if content["list"] not in LISTS:
            return None  # the job reports the mistake
        return f"preparing the {content['list']} of {_model(content)}"
    return f"preparing {PREPARED[command](content)}"


def _visualize(content: Mapping[str, Any]) -> str:
    target = content["target"]
    kind, index = target["kind"], target.get("index")
    if kind == "circuit":
        return f"a circuit of {target['unit']} of {_model(content)}"
    units = f"all {_plural(kind)}" if index == "all" else f"{kind} {_short(index)}"
    place = f" of {target['layer']}" if target.get("layer") else ""
    return f"{_model(content)}: {units}{place}, by {content['method']['name']}"


def _mine(content: Mapping[str, object]) -> str:
    if content["spectrum"]:
        place = content["spectrum"] if isinstance(content["spectrum"], str) else content["images"]
        return f"the spectrum of {place or 'images drawn by code'}"
    return f"{_model(content)}: {'concepts' if content.get('concepts') else 'units'} by {_images(content)}"


def _images(content: Mapping[str, object]) -> str:
    return f"the images of {content['images']}" if content["images"] else "images drawn by code"


def _evaluate(content: Mapping[str, object]) -> str:
    return f"metrics of {content['run'] or content['pictures']}"


def _report(content: Mapping[str, object]) -> str:
    return f"a report of {_short(content['runs'])}"


def _audit(content: Mapping[str, Any]) -> str:
    return f"{content['check']['name']} of {_short(content['run'])}"


def _atlas(content: Mapping[str, object]) -> str:
    if content["compare"]:
        return f"a comparison of {_short(content['compare'])}"
    return f"an atlas of {_model(content)} by {_images(content)}"


PREPARED: Mapping[str, Callable[[Mapping[str, object]], str]] = {
    "visualize": _visualize,
    "mine": _mine,
    "evaluate": _evaluate,
    "report": _report,
    "audit": _audit,
    "atlas": _atlas,
}


def _model(content: Mapping[str, Any]) -> str:
    model = content["model"]
    return str(model["name"] or model["factory"] or model["source"])


def _plural(kind: str) -> str:
    return {"class": "classes", "sae": "features", "text": "prompts"}.get(kind, f"{kind}s")


def _short(given: object) -> str:
    text = ", ".join(map(str, given)) if isinstance(given, list) else str(given)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
