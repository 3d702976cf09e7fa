"""An extension of griffe, the site's reader of code, that converts docstrings."""

from __future__ import annotations

import griffe

from tools.documentation.docstrings import readable


class Docstrings(griffe.Extension):
    """Converts each docstring with :func:`readable`."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        """Convert the docstring of an object."""
        if obj.docstring:
            obj.docstring.value = readable(obj.docstring.value)
