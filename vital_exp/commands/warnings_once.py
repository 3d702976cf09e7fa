"""Warnings as lines for people: without the path of a source, each once, and how often it came. Imports no torch."""

from __future__ import annotations

import logging
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

# What a warning begins with that is of one target: class-207, channel-layer3-7_f0.
OF_TARGET = re.compile(r"((?:class|channel|neuron|direction|concept|sae|text)-\S+): ")
NAMED = 3  # targets that are named


class WarningsOnce(logging.Filter):
    """Lets a warning through once, also where it is of other targets, and counts how often it comes."""

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
        """Hold back what was told before; several terminals ask about one record."""
        if record.levelno < logging.WARNING:
            return True
        if record is not self._latest:
            self._latest, self._latest_is_new = record, self.is_new(record.getMessage())
        return self._latest_is_new

    def format_warning(self, message: object, *_place: object) -> str:
        """Return the line of a warning of Python's, empty where it was told before."""
        text = " ".join(str(message).split())
        return f"warning: {text}\n" if self.is_new(text) else ""

    def repeated(self) -> Iterator[str]:
        """Yield a line of each warning that came more than once."""
        for rest, (_, *later) in self.targets.items():
            names = list(dict.fromkeys(filter(None, later)))
            more = f", and {len(names) - NAMED} more" if len(names) > NAMED else ""
            of = f" of {', '.join(names[:NAMED])}{more}" if names else ""
            if later:
                yield f"warning: {len(later)} times more{of}: {rest}"


class TerminalLine(logging.Formatter):
    """A message as it stands; a warning or an error says that it is one."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        kind = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        return f"{kind}{super().format(record)}"


@contextmanager
def warnings_once() -> Iterator[None]:
    """Show warnings on the terminal as lines inside, each once, and at the end how often the others came."""
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
