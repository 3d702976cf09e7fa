"""Imports of commands, without the garbage collector."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Switch the garbage collector off for the imports in this context.

    Objects of modules live until the process ends, and searching them for reference cycles took a quarter of the
    imports' time. They are frozen at the end, so that later collections skip them too. Where nothing was imported, as
    in the second job of a sweep, nothing is frozen: garbage of the job before must still be collected.
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
