"""Functions that a user names: ``package.module:function`` or ``path/file.py:function``."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vital_exp.errors import UsageError


def find_factory(spelling: str, key: str) -> Callable[..., Any]:
    """Return the function that ``package.module:function`` or ``path/file.py:function`` names.

    Raises:
        UsageError: a wrong spelling, no such module or function.
    """
    place, separator, function = spelling.rpartition(":")
    if not separator or not place:
        raise UsageError(key, spelling, "package.module:function or file.py:function")
    module = _import_file(Path(place), key) if place.endswith(".py") else _import_module(place, key)
    if not hasattr(module, function):
        public = [name for name in vars(module) if not name.startswith("_")]
        raise UsageError(key, spelling, f"{place} has no {function}", public)
    factory: Callable[..., Any] = getattr(module, function)
    return factory


def _import_module(name: str, key: str) -> Any:
    sys.path.insert(0, str(Path.cwd()))  # a module beside the user, as `python -m` would find it
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise UsageError(key, name, f"cannot be imported ({error})") from error
    finally:
        sys.path.remove(str(Path.cwd()))


def _import_file(path: Path, key: str) -> Any:
    if not path.expanduser().is_file():
        raise UsageError(key, path, "no such file")
    spec = importlib.util.spec_from_file_location(path.stem, path.expanduser())
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)  # dataclasses and pickling look their module up by name
    spec.loader.exec_module(module)
    return module
