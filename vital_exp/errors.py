"""The one exception a user sees: a mistake told in one line that names the key, the value and what is allowed."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

# Suggestions shown after "did you mean"; more than three read as noise.
SUGGESTIONS = 3


class UsageError(ValueError):
    """A mistake in what the user asked for; the commands print it as one line and exit with code 2.

    Args:
        key: the configuration key (or Python argument) that holds the mistake, e.g. ``"model.name"``.
        value: what it holds.
        problem: what is wrong with it and what is allowed, without a final full stop.
        options: every allowed value; the nearest to ``value`` are suggested.

    Attributes:
        everywhere: whether every rank of the job knows of it, so that one tells it and all go on together.

    Examples:
        >>> from vital_exp.errors import UsageError
        >>> str(UsageError("model.name", "resnet51", "no such network", ["resnet50", "resnet18"]))
        'model.name=resnet51: no such network (did you mean resnet50 or resnet18?)'
    """

    everywhere = False

    def __init__(self, key: str, value: object, problem: str, options: Iterable[str] = ()) -> None:
        self.key, self.value, self.problem, self.options = key, value, problem, tuple(options)
        near = nearest(str(value), self.options)
        hint = f" (did you mean {' or '.join(near)}?)" if near else ""
        super().__init__(_one_line(f"{key}={value}: {problem}{hint}"))

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        """Rebuild from the arguments: worker processes hand exceptions back pickled."""
        return type(self), (self.key, self.value, self.problem, self.options)


def _one_line(text: str) -> str:
    """Escape what would end the line, or steer the terminal."""
    text = text.replace("\n", " ")
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


def nearest(value: str, options: Iterable[str], count: int = SUGGESTIONS) -> list[str]:
    """Return up to ``count`` of ``options`` that are spelled most like ``value``, best first, ignoring case.

    Examples:
        >>> from vital_exp.errors import nearest
        >>> nearest("vitl", ["vital", "fourier", "maco"])
        ['vital']
    """
    by_lower = {option.lower(): option for option in options}
    return [by_lower[match] for match in difflib.get_close_matches(value.lower(), by_lower, n=count, cutoff=0.5)]
