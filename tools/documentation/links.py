"""Rewrites the relative links of a Markdown file for the file's path in the site."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

# [text](target), ![text](target) and <img src="target">; the target without its #part.
LINK = re.compile(r"""(?P<before>\]\(|\bsrc=")(?P<target>[^)#"\s]+)""")
CODE = re.compile(r"(^```.*?^```$|`[^`\n]+`)", re.MULTILINE | re.DOTALL)


def moved(text: str, source: Path, page: str, places: Mapping[Path, str], attach: Callable[[Path], str]) -> str:
    """Return a page's text with its relative links rewritten for the site.

    Args:
        text: Markdown; links in code are not changed.
        source: the file of the text, an absolute path.
        page: the page's path in the site, e.g. ``"results/masks.md"``.
        places: the path in the site of each file that is part of it, by the file's absolute path.
        attach: adds another file of the repository to the site and returns its path there.

    Returns:
        The text. Links to missing files are not changed; the site's builder reports them.
    """

    def place_of(match: re.Match[str]) -> str:
        target = match["target"]
        if re.match(r"[a-z]+:|/", target):
            return match[0]
        file = Path(os.path.normpath(source.parent / target))
        if file not in places and not file.is_file():
            return match[0]
        place = places[file] if file in places else attach(file)
        return match["before"] + os.path.relpath(place, os.path.dirname(page) or ".")

    parts = CODE.split(text)  # code at the odd places
    return "".join(part if number % 2 else LINK.sub(place_of, part) for number, part in enumerate(parts))
