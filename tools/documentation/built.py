"""Check that a built site loads nothing from a network and has no dead links.

Usage: ``python -m tools.documentation.built site``
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

# Relations of links that a browser loads by itself when it shows a page, beside everything with a src.
FETCHED = ("stylesheet", "icon", "preconnect", "preload", "modulepreload", "manifest")


class Page(HTMLParser):
    """The links of a page, the files it loads, and its anchors."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.places: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note the attributes of an element."""
        found = {name: value or "" for name, value in attrs}
        self.places |= {found[name] for name in ("id", "name") if name in found}
        if found.get("src"):
            self.fetched.append(found["src"])
        if tag == "link" and set(found.get("rel", "").split()) & set(FETCHED):
            self.fetched.append(found.get("href", ""))
        elif tag == "a" and found.get("href"):
            self.links.append(found["href"])


def defects(site: Path) -> Iterator[str]:
    """Yield the defects of a site: files from a network, dead links, and links to anchors that do not exist."""
    for path in sorted(site.rglob("*.html")):
        page, name = _page(path), path.relative_to(site)
        for place in page.fetched:
            if urlsplit(place).scheme not in ("", "data") or place.startswith("//"):
                yield f"{name}: {place} is fetched from a network"
        for link in [*page.links, *page.fetched]:
            if not urlsplit(link).scheme and not link.startswith(("/", "//")) and not _leads_somewhere(path, link):
                yield f"{name}: {link} leads nowhere"


def _leads_somewhere(page: Path, link: str) -> bool:
    parts = urlsplit(link)
    file = (page.parent / unquote(parts.path)).resolve() if parts.path else page
    if not file.is_file():
        return False
    return not parts.fragment or file.suffix != ".html" or unquote(parts.fragment) in _page(file).places


@cache
def _page(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def main(site: Path) -> int:
    """Print the defects of a site; return the exit code."""
    found = list(defects(site))
    print("\n".join(found) if found else f"open {site / 'index.html'} in a browser")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
