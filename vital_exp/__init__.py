"""vital_exp: pictures of what the units of a vision network detect.

``from vital_exp import visualize, mine, evaluate, report, audit, load_model``; the commands have the same names.
The first use of a name imports torch; ``import vital_exp`` alone does not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vital_exp.api import (
        Atlas,
        Audit,
        Evaluation,
        Index,
        Pictures,
        Report,
        atlas,
        audit,
        evaluate,
        load_model,
        mine,
        report,
        visualize,
    )

__all__ = [
    "Atlas",
    "Audit",
    "Evaluation",
    "Index",
    "Pictures",
    "Report",
    "atlas",
    "audit",
    "evaluate",
    "load_model",
    "mine",
    "report",
    "visualize",
]


if not TYPE_CHECKING:  # a type checker would take every name for an attribute

    def __getattr__(name: str) -> object:
        if name in __all__:
            from vital_exp import api

            return getattr(api, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
