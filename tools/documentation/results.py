"""The page that lists the results."""

from __future__ import annotations

import re
from collections.abc import Mapping

INTRODUCTION = """# Results

Each page says what was measured, on which machine, and with which command. The pages are in `benchmarks/results/` of
the repository, beside their tables as CSV files.

| page | command |
|---|---|
"""


def index(pages: Mapping[str, str]) -> str:
    """Return the page that lists the pages of results, each with the first command in its text."""
    rows = []
    for place, text in sorted(pages.items()):
        if place.startswith("results/") and place != "results/index.md":
            title = re.search(r"^# (.+)$", text, re.MULTILINE)
            command = re.search(r"((?:\w+=\S+ )*(?:python (?:-m )?\S*benchmarks\S*|make bench|vital-\w+)[^`\n]*)", text)
            shown = f"`{command[1].rstrip()}`" if command else ""
            rows.append(f"| [{title[1] if title else place}]({place.removeprefix('results/')}) | {shown} |")
    return INTRODUCTION + "\n".join(rows) + "\n"
