"""Hands the site's builder the docstrings in the form that it reads."""

from __future__ import annotations

from typing import Any

import griffe

from tools.documentation.docstrings import readable


class Docstrings(griffe.Extension):
    """Makes every docstring readable."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change the docstring of an object that was read."""
        if obj.docstring:
            obj.docstring.value = readable(obj.docstring.value)
