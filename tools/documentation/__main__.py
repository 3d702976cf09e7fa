"""Assemble the pages of the site: ``python -m tools.documentation build/docs``, then ``mkdocs build --strict``."""

from __future__ import annotations

import sys
from pathlib import Path

from tools.documentation.site import assemble

if __name__ == "__main__":
    assemble(Path(sys.argv[1]))
