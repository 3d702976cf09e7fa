"""Ctrl-C and SIGTERM while a batch is being ranked: they wait until it counts, so that what is done can be saved."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def held_back() -> Iterator[None]:
    """Answer the signals that Python functions answer when the block ends, not within it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    answers = {number: answer for number in SIGNALS if callable(answer := signal.getsignal(number))}
    came: list[tuple[int, FrameType | None]] = []
    for number in answers:
        signal.signal(number, lambda *given: came.append(given))
    try:
        yield
    finally:
        for number, answer in answers.items():
            signal.signal(number, answer)
    for came_first, frame in came[:1]:
        answers[signal.Signals(came_first)](came_first, frame)


def ignore_signals(_worker: int) -> None:
    """Let a worker of a DataLoader live until the process that it works for ends it: a terminal signals all of them."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
