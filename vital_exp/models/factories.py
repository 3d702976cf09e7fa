"""Functions that a user names: ``package.module:function`` or ``path/file.py:function``."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from vital_exp.errors import UsageError, nearest


def find_factory(spelling: str, key: str) -> Callable[..., object]:
    """Return the function that ``package.module:function`` or ``path/file.py:function`` names.

    Raises:
        UsageError: a wrong spelling, no such module or function.
    """
    place, function = check_spelling(spelling, key)
    module = _import_file(Path(place), key) if place.endswith(".py") else _import_module(place, key)
    if not hasattr(module, function):
        raise UsageError(key, spelling, f"{place} has no {function}", _like(place, function, vars(module)))
    factory: Callable[..., object] = getattr(module, function)
    return factory


def check_spelling(spelling: str, key: str) -> tuple[str, str]:
    """Return the module or file, and the function, that a spelling names. Nothing is imported.

    Raises:
        UsageError: a wrong spelling, no such file, or a file that defines no such name.
    """
    place, separator, function = spelling.rpartition(":")
    if not separator or not place:
        raise UsageError(key, spelling, "package.module:function or file.py:function")
    if place.endswith(".py"):
        path = Path(place)
        if not path.expanduser().is_file():
            raise UsageError(key, path, "no such file")
        if (names := _names_of(path.expanduser())) is not None and function not in names:
            raise UsageError(key, spelling, f"{place} has no {function}", _like(place, function, names))
    return place, function


def _like(place: str, function: str, names: Iterable[str]) -> list[str]:
    """Return spellings of the public names nearest to ``function``; the place in front counts for nothing."""
    return [f"{place}:{name}" for name in nearest(function, (name for name in names if not name.startswith("_")))]


def _names_of(path: Path) -> list[str] | None:
    """Return the names that a file defines, by its text; None where only running the file can tell."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return None  # the import will report the mistake
    found: list[str] = []
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.append(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            found += [(name.asname or name.name).split(".")[0] for name in node.names]
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            found += [name.id for name in ast.walk(node) if isinstance(name, ast.Name)]
        elif not isinstance(node, ast.Expr) and not _is_main(node):
            return None  # if, try, with and for may define more
    return None if "*" in found else found


def _is_main(node: ast.stmt) -> bool:
    """Whether this is ``if __name__ == "__main__"``, which defines nothing for others."""
    return isinstance(node, ast.If) and "__name__" in ast.unparse(node.test)


def _import_module(name: str, key: str) -> object:
    sys.path.insert(0, str(Path.cwd()))  # modules in the working folder are found, as by `python -m`
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise UsageError(key, name, f"cannot be imported ({error})") from error
    finally:
        sys.path.remove(str(Path.cwd()))


def _import_file(path: Path, key: str) -> object:
    if not path.expanduser().is_file():
        raise UsageError(key, path, "no such file")
    spec = importlib.util.spec_from_file_location(path.stem, path.expanduser())
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)  # dataclasses and pickling look their module up by name
    spec.loader.exec_module(module)
    return module
