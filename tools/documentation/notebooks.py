"""A notebook as a page: its cells with their saved outputs, without a new run."""

from __future__ import annotations

from pathlib import Path, PurePosixPath


def page(file: Path, place: str) -> tuple[str, dict[str, Path | bytes]]:
    """Return a notebook as Markdown, and its pictures by their path in the site.

    Args:
        file: the notebook.
        place: the notebook's path in the site, e.g. ``"tutorials/audit.ipynb"``.
    """
    from nbconvert import MarkdownExporter

    name = PurePosixPath(place).stem
    folder = PurePosixPath(place).parent / f"{name}_files"
    resources = {"output_files_dir": folder.name, "unique_key": name}
    text, found = MarkdownExporter().from_filename(str(file), resources=resources)
    pictures = {str(folder.parent / path): content for path, content in found["outputs"].items()}
    return text, pictures
