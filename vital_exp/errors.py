"""The exception for mistakes of a user: one line with the key, its value and the allowed values."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

# Suggestions shown after "did you mean"; a longer list hides the right one.
SUGGESTIONS = 3


class UsageError(ValueError):
    """A mistake of the user; the commands print it as one line and exit with code 2.

    Args:
        key: the configuration key (or Python argument) that holds the mistake, e.g. ``"model.name"``.
        value: the key's value.
        problem: what is wrong and what is allowed, without a final full stop.
        options: every allowed value; the nearest to ``value`` are suggested.

    Attributes:
        everywhere: whether every rank of the job has this mistake, so that one rank reports it and all ranks go on.

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
        """Pickle the constructor's arguments: worker processes return exceptions as pickles."""
        return type(self), (self.key, self.value, self.problem, self.options)


def _one_line(text: str) -> str:
    """Replace line breaks by spaces, and escape characters that cannot be printed."""
    text = text.replace("\n", " ")
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


def nearest(value: str, options: Iterable[str], count: int = SUGGESTIONS) -> list[str]:
    """Return up to ``count`` of ``options`` whose spelling is nearest to ``value``, nearest first; case is ignored.

    Examples:
        >>> from vital_exp.errors import nearest
        >>> nearest("vitl", ["vital", "fourier", "maco"])
        ['vital']
    """
    by_lower = {option.lower(): option for option in options}
    return [by_lower[match] for match in difflib.get_close_matches(value.lower(), by_lower, n=count, cutoff=0.5)]
