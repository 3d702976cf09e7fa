"""Where an atlas keeps the activation atlases of its layers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vital_exp.atlases.store import safe_name

FOLDER, FOUND = "cells", "cells.json"


def cells_folder(folder: Path, layer: str) -> Path:
    """Return the folder of a layer's activation atlas."""
    return folder / FOLDER / safe_name(layer)


def cells_of(folder: Path, layer: str) -> dict[str, Any] | None:
    """Return the content of a layer's cells.json; None if its activation atlas was not asked for or is unfinished."""
    path = cells_folder(folder, layer) / FOUND
    found: dict[str, Any] | None = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    return found
