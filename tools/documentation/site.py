"""The folder of Markdown pages from which the site is built, and the site's navigation."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

import yaml

from tools.documentation import api, commands, configuration, notebooks, results
from tools.documentation.links import moved

ROOT = Path(__file__).resolve().parents[2]
# Files at the root of the checkout that are pages of the site.
PROJECT = ("CONTRIBUTING.md", "CODE_OF_CONDUCT.md", "SECURITY.md", "CHANGELOG.md")
# Tutorials in the order in which they are read.
LESSONS = ("index", "own_model", "hidden_units", "concepts", "sweep", "audit", "atlas")
# Tabs of the navigation: pages by their path, in this order, or sections of pages. Pages that match a pattern are
# sorted by name.
Entry = str | tuple[str, tuple[str, ...]]
TABS: tuple[tuple[str, tuple[Entry, ...]], ...] = (
    ("Home", ("index.md",)),
    ("Start", ("getting-started.md", "your-own-model.md", "guide/trust.md", "faq.md", "glossary.md")),
    ("Tutorials", (*(f"tutorials/{name}.md" for name in LESSONS), "tutorials/*")),
    ("Guides", ("guide/index.md", "guide/*", "atlas.md", "relevance.md", "performance.md", "scale.md")),
    ("How-to", ("how-to/index.md", "how-to/*")),
    ("Methods", ("methods/README.md", "methods/vital.md", "methods/*")),
    (
        "Reference",
        (
            "reference/index.md",
            "reference/commands.md",
            "reference/exit-codes.md",
            "bibliography.md",
            ("Python", ("reference/api.md", "reference/api/*")),
            ("Configuration", ("reference/configuration.md", "reference/configuration/*")),
        ),
    ),
    ("Results", ("results/index.md", "results/*")),
    ("Project", ("project/contributing.md", "project/*")),
)


@dataclass
class Site:
    """The pages and files of a site, by their path in it.

    Attributes:
        pages: the text of each Markdown page.
        files: other files, such as pictures and the targets of links.
    """

    pages: dict[str, str] = field(default_factory=dict)
    files: dict[str, Path | bytes] = field(default_factory=dict)

    def attach(self, file: Path) -> str:
        """Add a file of the checkout to the site and return its path there."""
        place = f"files/{file.relative_to(ROOT).as_posix()}"
        self.files[place] = file
        return place


def assemble(out: Path) -> Site:
    """Write all pages into a folder, whose earlier content is removed, and ``mkdocs.yml`` beside the folder."""
    site = gather()
    shutil.rmtree(out, ignore_errors=True)
    for place, content in {**site.pages, **site.files}.items():
        path = out / place
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Path):
            shutil.copyfile(content, path)
        else:
            path.write_bytes(content.encode() if isinstance(content, str) else content)
    settings = {
        "INHERIT": str(ROOT / "mkdocs.yml"),
        "docs_dir": str(out.resolve()),
        "site_dir": str(ROOT / "site"),
        "nav": navigation(site),
    }
    (out.parent / "mkdocs.yml").write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    return site


def gather() -> Site:
    """Return the site: the pages of docs/, and those made from the code and the benchmarks."""
    site = Site()
    sources = written_pages()
    places = {file: _shown_at(place) for place, file in sources.items()} | {ROOT / "README.md": "index.md"}
    for place, file in sources.items():
        if file.suffix == ".ipynb":
            text, pictures = notebooks.page(file, place)
            site.files |= pictures
        elif file.suffix == ".md":
            text = file.read_text(encoding="utf-8")
        else:
            site.files[place] = file
            continue
        site.pages[_shown_at(place)] = moved(text, file, place, places, site.attach)
    site.pages |= configuration.pages() | commands.pages() | api.pages()
    site.pages["results/index.md"] = results.index(site.pages)
    return site


def written_pages() -> dict[str, Path]:
    """Return the files that are written by hand, pictures among them, by their path in the site."""
    docs = {p.relative_to(ROOT / "docs").as_posix(): p for p in sorted((ROOT / "docs").rglob("*")) if p.is_file()}
    measured_in = ROOT / "benchmarks/results"
    found = (p for p in sorted(measured_in.rglob("*")) if p.is_file())
    measured = {f"results/{p.relative_to(measured_in).as_posix()}": p for p in found}
    project = {f"project/{Path(name).stem.lower().replace('_', '-')}.md": ROOT / name for name in PROJECT}
    return docs | measured | project


def _shown_at(place: str) -> str:
    """Return the path at which the site shows a file; a notebook becomes a Markdown page."""
    return str(PurePosixPath(place).with_suffix(".md")) if place.endswith(".ipynb") else place


def navigation(site: Site) -> list[dict[str, object]]:
    """Return the tabs with their pages; each page is in one tab.

    Raises:
        ValueError: a page is in no tab.
    """
    left = sorted(site.pages)

    def listed(entries: tuple[Entry, ...]) -> list[object]:
        found: list[object] = []
        for entry in entries:
            if isinstance(entry, tuple):
                found.append({entry[0]: listed(entry[1])})
            else:
                matching = [page for page in left if fnmatch(page, entry)]
                left[:] = [page for page in left if page not in matching]
                found += matching
        return found

    tabs = [(title, listed(entries)) for title, entries in TABS]
    if left:
        raise ValueError(f"pages without a place in the navigation: {', '.join(left)}")
    return [{title: pages[0] if len(pages) == 1 else pages} for title, pages in tabs if pages]
