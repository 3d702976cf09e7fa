"""Warnings as lines for people: without the path of a source file, each once, with a count. Imports no torch."""

from __future__ import annotations

import logging
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

# The beginning of a warning about one target, such as class-207 or channel-layer3-7_f0.
OF_TARGET = re.compile(r"((?:class|channel|neuron|direction|concept|sae|text)-\S+): ")
NAMED = 3  # targets that the count of a warning names


class WarningsOnce(logging.Filter):
    """Lets each warning pass once, whichever target it is about, and counts its repetitions."""

    def __init__(self) -> None:
        super().__init__()
        self.targets: dict[str, list[str]] = {}
        self._latest: logging.LogRecord | None = None
        self._latest_is_new = False

    def is_new(self, text: str) -> bool:
        """Count a warning; return whether it is the first of its kind."""
        match = OF_TARGET.match(text)
        rest = text[match.end() :] if match else text
        known = rest in self.targets
        self.targets.setdefault(rest, []).append(match[1] if match else "")
        return not known

    def filter(self, record: logging.LogRecord) -> bool:
        """Let a warning pass if it is new; each terminal handler asks, so the answer for a record is kept."""
        if record.levelno < logging.WARNING:
            return True
        if record is not self._latest:
            self._latest, self._latest_is_new = record, self.is_new(record.getMessage())
        return self._latest_is_new

    def format_warning(self, message: object, *_place: object) -> str:
        """Return the line of a warning of Python's module warnings; empty if it is not new."""
        text = " ".join(str(message).split())
        return f"warning: {text}\n" if self.is_new(text) else ""

    def repeated(self) -> Iterator[str]:
        """Yield a line for each warning that came more than once."""
        for rest, (_, *later) in self.targets.items():
            names = list(dict.fromkeys(filter(None, later)))
            more = f", and {len(names) - NAMED} more" if len(names) > NAMED else ""
            of = f" of {', '.join(names[:NAMED])}{more}" if names else ""
            if later:
                yield f"warning: {len(later)} times more{of}: {rest}"


class TerminalLine(logging.Formatter):
    """The message alone; in front of a warning or an error, its level."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        kind = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        return f"{kind}{super().format(record)}"


@contextmanager
def warnings_once() -> Iterator[None]:
    """Print warnings in this context as lines, each once, and at the end the counts of those that were repeated."""
    once, format_before = WarningsOnce(), warnings.formatwarning
    terminals = [handler for handler in logging.getLogger().handlers if type(handler) is logging.StreamHandler]
    formatters = [handler.formatter for handler in terminals]
    for handler in terminals:
        handler.setFormatter(TerminalLine())
        handler.addFilter(once)
    warnings.formatwarning = once.format_warning  # type: ignore[assignment]
    try:
        yield
    finally:
        warnings.formatwarning = format_before
        for handler, formatter in zip(terminals, formatters, strict=True):
            handler.setFormatter(formatter)
            handler.removeFilter(once)
        for line in once.repeated():
            print(line, file=sys.stderr)
