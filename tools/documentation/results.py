"""The list of what was measured."""

from __future__ import annotations

import re
from collections.abc import Mapping

INTRODUCTION = """# Results

What was measured, on which machine, and the command that measures it again. The pages lie in `benchmarks/results/` of
the repository, with their tables as CSV files.

| page | command |
|---|---|
"""


def index(pages: Mapping[str, str]) -> str:
    """Return the page that lists the pages of results, each with the first command that it names."""
    rows = []
    for place, text in sorted(pages.items()):
        if place.startswith("results/") and place != "results/index.md":
            title = re.search(r"^# (.+)$", text, re.MULTILINE)
            command = re.search(r"((?:\w+=\S+ )*(?:python (?:-m )?\S*benchmarks\S*|make bench|vital-\w+)[^`\n]*)", text)
            shown = f"`{command[1].rstrip()}`" if command else ""
            rows.append(f"| [{title[1] if title else place}]({place.removeprefix('results/')}) | {shown} |")
    return INTRODUCTION + "\n".join(rows) + "\n"
