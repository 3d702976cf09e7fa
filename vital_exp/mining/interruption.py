"""Ctrl-C and SIGTERM wait until a batch has been ranked, so that the state that is saved is whole."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def held_back() -> Iterator[None]:
    """Delay the Python handlers of Ctrl-C and SIGTERM until the block ends; only the main thread has handlers."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: handler for number in SIGNALS if callable(handler := signal.getsignal(number))}
    received: list[tuple[int, FrameType | None]] = []
    for number in handlers:
        signal.signal(number, lambda *arguments: received.append(arguments))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if received:
        first, frame = received[0]
        handlers[signal.Signals(first)](first, frame)


def ignore_signals(_worker: int) -> None:
    """Ignore Ctrl-C and SIGTERM in a DataLoader's worker: a terminal signals all processes, and the parent ends it."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
