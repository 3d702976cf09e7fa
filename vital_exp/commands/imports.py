"""Import what a command needs without the garbage collector."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Import inside without looking for reference cycles.

    What modules make stays until the process ends: the collector's search through it took a quarter of the imports'
    time. Once frozen, it is not searched later either. Where nothing is imported, as in the second job of a sweep,
    nothing is frozen: what the job before left behind must go.
    """
    if not gc.isenabled():
        yield
        return
    modules = len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) > modules:
            gc.freeze()
        gc.enable()
