"""Imports of commands: without the garbage collector, and without the metrics that nobody asks for."""

from __future__ import annotations

import gc
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import Any

METRICS = "torchmetrics"
UTILITIES = f"{METRICS}.utilities"
# What Lightning imports from torchmetrics, with the modules that define it.
ASKED = {"Metric": f"{METRICS}.metric", "MetricCollection": f"{METRICS}.collections"}


@contextmanager
def uncollected() -> Iterator[None]:
    """Switch the garbage collector off for the imports in this context, and postpone those of torchmetrics' metrics.

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
        with metrics_postponed():
            yield
    finally:
        if len(sys.modules) > modules:
            gc.freeze()
        gc.enable()


@contextmanager
def metrics_postponed() -> Iterator[None]:
    """Let a torchmetrics that is imported in this context import its metrics only when one of them is asked for.

    Lightning imports torchmetrics for two classes, and torchmetrics imports Transformers, SciPy's signal processing and
    more for its metrics of text and audio: a fifth of the demo's processor time with one step (docs/performance.md).
    """
    spec = None if METRICS in sys.modules else find_spec(METRICS)
    if not spec:
        yield
        return
    package = module_from_spec(spec)
    package.__class__ = _PostponedMetrics
    vars(package).update(_logger=logging.getLogger(METRICS), __version__=version(METRICS))  # others read these
    sys.modules[METRICS] = package
    try:
        yield
    finally:
        # Its modules import each other. In Lightning's order they can; in a network's file the order may be another.
        if UTILITIES not in sys.modules:
            del sys.modules[METRICS]


class _PostponedMetrics(ModuleType):
    """The package torchmetrics before its ``__init__`` has run."""

    def __getattr__(self, name: str) -> Any:
        """Return a class of :data:`ASKED` from its own module; run ``__init__`` for any other name."""
        if name.startswith("__") and name != "__all__":
            raise AttributeError(name)  # as modules without such an attribute do
        if name in ASKED:
            try:
                import_module(UTILITIES)  # first: it and the module import each other
                return getattr(import_module(ASKED[name]), name)
            except (ImportError, AttributeError):  # another version
                pass
        self.__class__ = ModuleType  # type: ignore[assignment]
        assert self.__spec__ is not None
        assert self.__spec__.loader is not None
        self.__spec__.loader.exec_module(self)
        return getattr(self, name)
