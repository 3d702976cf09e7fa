"""Converts docstrings to the form that the site's builder reads.

In the code ``:func:`name``` is a link, and ``mean, std:`` describes two arguments in one line.
"""

from __future__ import annotations

import re

ROLE = re.compile(r":(?:func|class|meth|mod|data|attr):`~?([^`]+)`")
# A line that describes several arguments, with its continuation lines.
SEVERAL = re.compile(r"^( +)(\w+(?:, \w+)+): (.*(?:\n\1 +.*)*)", re.MULTILINE)


def readable(text: str) -> str:
    """Return a docstring with plain names in place of links, and a line for each argument."""
    return SEVERAL.sub(_one_by_one, ROLE.sub(r"`\1`", text))


def _one_by_one(match: re.Match[str]) -> str:
    indent, names, said = match.groups()
    return "\n".join(f"{indent}{name}: {said}" for name in names.split(", "))
