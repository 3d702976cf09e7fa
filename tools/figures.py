"""Figures of the code: its size, the lengths of its functions, and its upward imports.

    python tools/figures.py              # of this checkout
    python tools/figures.py ../other     # of another one

The script reads the sources and imports nothing. The length of a function counts the lines from its ``def`` to its
last, docstring included. A line of code is no blank line, no comment and no part of a docstring. Imports inside
functions and under TYPE_CHECKING count too.
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import statistics
import sys
import tokenize
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PACKAGE = "vital_exp"
PROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"
LONG = 50  # lines; longer functions are listed
CONFIGURATIONS = ("DictConfig", "OmegaConf")
SEARCHED = ("vital_exp", "conf", "tests", "benchmarks", "tools", "docs", "examples")  # for mentions of documents
READ = (".py", ".yaml", ".md")
# Notes outside the repository. A name in code, METHODS[name] or module.METHODS, is no mention.
NOTES = re.compile(r"(?<![\w.`])(?:METHODS|DESIGN|HOUSE|STYLE|PITFALLS)\b(?![`\[])")
# A path with a folder; a file name alone may be that of a command's output.
PAGE = re.compile(
    r"(?<![\w/.:-])(?:vital_exp|docs|benchmarks|conf|tests|tools|examples)/[\w/.-]+\.(?:md|yaml|py|ipynb)\b"
)
LINK = re.compile(r"\]\(([^)#:\s]+)(?:#[^)\s]*)?\)")  # of Markdown, to a file of the checkout


@dataclass(frozen=True)
class Function:
    """A function or method: its dotted name and its number of lines."""

    place: str
    lines: int


@dataclass(frozen=True)
class Sources:
    """The Python files of the package in a checkout.

    Attributes:
        root: the root of the checkout.
    """

    root: Path

    @cached_property
    def texts(self) -> Mapping[str, str]:
        """The text of each file by its module name, ``vital_exp.engine.step``."""
        folder = self.root / PACKAGE
        return {self._module(path): path.read_text(encoding="utf-8") for path in sorted(folder.rglob("*.py"))}

    def _module(self, path: Path) -> str:
        return ".".join(path.relative_to(self.root).with_suffix("").parts)

    @cached_property
    def trees(self) -> Mapping[str, ast.Module]:
        """The syntax tree of each file."""
        return {module: ast.parse(text) for module, text in self.texts.items()}

    @cached_property
    def imports(self) -> Mapping[str, frozenset[str]]:
        """The files of the package that each file imports."""
        return {module: frozenset(self._imported(module, tree)) for module, tree in self.trees.items()}

    def _imported(self, module: str, tree: ast.Module) -> Iterator[str]:
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                names = [(alias.name, "") for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [(node.module, alias.name) for alias in node.names]
            else:
                continue
            yield from (found for name, part in names if (found := self._file(name, part)) and found != module)

    def _file(self, name: str, part: str) -> str | None:
        """Return the file that ``from name import part`` reads; None outside the package."""
        candidates = (f"{name}.{part}", name, f"{name}.__init__")
        return next((found for found in candidates if found in self.texts), None)

    def functions(self) -> list[Function]:
        """Return all functions and methods, the longest first."""
        found = [
            Function(f"{module}.{node.name}", (node.end_lineno or node.lineno) - node.lineno + 1)
            for module, tree in self.trees.items()
            for node in ast.walk(tree)
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        ]
        return sorted(found, key=lambda function: (-function.lines, function.place))

    def naming(self, *names: str) -> list[str]:
        """Return the files that use any of these names."""
        return [module for module, tree in self.trees.items() if any(name in names for name in _names(tree))]

    def count(self, name: str) -> int:
        """Return the number of uses of a name, without its imports."""
        return sum(
            isinstance(node, ast.Name) and node.id == name for tree in self.trees.values() for node in ast.walk(tree)
        )

    def open_mappings(self) -> int:
        """Return the number of uses of ``Any`` in mappings of text to anything: JSON, YAML, a row of a table."""
        slices = (
            node.slice for tree in self.trees.values() for node in ast.walk(tree) if isinstance(node, ast.Subscript)
        )
        pairs = (part.elts for part in slices if isinstance(part, ast.Tuple))
        return sum([isinstance(one, ast.Name) and one.id for one in pair] == ["str", "Any"] for pair in pairs)

    def code_lines(self) -> int:
        """Return the number of lines that hold code: no blank line, no comment, no docstring."""
        return sum(_code_lines(text) for text in self.texts.values())


def _code_lines(text: str) -> int:
    blank = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    described = {number for number, _ in _docstrings(ast.parse(text))}
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    lines = {
        number for token in tokens if token.type not in blank for number in range(token.start[0], token.end[0] + 1)
    }
    return len(lines - described)


def _names(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.alias):
            yield node.name


def circles(imports: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """Return the import cycles, the largest first: strongly connected groups of files (Tarjan 1972)."""
    number: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(file: str) -> None:
        number[file] = low[file] = len(number)
        stack.append(file)
        for other in imports[file]:
            if other not in number:
                visit(other)
                low[file] = min(low[file], low[other])
            elif other in stack:
                low[file] = min(low[file], number[other])
        if low[file] == number[file]:
            group = [stack.pop()]
            while group[-1] != file:
                group.append(stack.pop())
            found.append(sorted(group))

    for file in imports:
        if file not in number:
            visit(file)
    return sorted((group for group in found if len(group) > 1), key=lambda group: (-len(group), group))


@cache
def layers(project: Path = PROJECT) -> list[set[str]]:
    """Return the files and folders of each layer, the highest first, from the contract of import-linter.

    A line of the contract is ``"engine"`` or ``"(files) | values"``, where a layer in brackets may be missing.
    """
    contracts = tomllib.loads(project.read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
    lines = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    return [set(re.findall(r"\w+", line)) for line in lines]


def layer_of(module: str) -> int:
    """Return the number of a file's layer, 0 the highest.

    Raises:
        KeyError: no layer names the file.
    """
    part = module.split(".")[1]
    if part == "__init__":
        return 0
    for number, layer in enumerate(layers()):
        if part in layer:
            return number
    raise KeyError(f"{module}: no layer in pyproject.toml names {part}")


def upward_imports(imports: Mapping[str, Iterable[str]]) -> list[tuple[str, str]]:
    """Return the pairs of a file and an imported file of a higher layer."""
    pairs = ((module, other) for module, others in imports.items() for other in sorted(others))
    return [(module, other) for module, other in pairs if layer_of(other) < layer_of(module)]


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines of a file that are prose, with their numbers: comments and docstrings of code, all of a page."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        yield from _comments(text)
        yield from _docstrings(ast.parse(text))
    elif path.suffix == ".yaml":
        yield from ((number, line[line.index("#") :]) for number, line in _numbered(text) if "#" in line)
    else:
        yield from _numbered(text)


def _numbered(text: str) -> Iterator[tuple[int, str]]:
    return enumerate(text.splitlines(), start=1)


def _comments(text: str) -> Iterator[tuple[int, str]]:
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def _docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                lines = first.value.value.splitlines()
                yield from ((first.lineno + number, line) for number, line in enumerate(lines))


def absent_documents(root: Path) -> list[str]:
    """Return the mentions of documents that a checkout does not hold: ``file:line: name``."""
    places = [path for folder in SEARCHED for path in sorted((root / folder).rglob("*")) if path.suffix in READ]
    found = []
    for path in [*places, *sorted(root.glob("*.md"))]:
        for number, line in prose(path):
            links = LINK.findall(line) if path.suffix == ".md" else []
            pages = [page for page in dict.fromkeys([*PAGE.findall(line), *links]) if not _there(root, path, page)]
            found += [f"{path.relative_to(root)}:{number}: {name}" for name in (*NOTES.findall(line), *pages)]
    return found


def _there(root: Path, path: Path, page: str) -> bool:
    """Whether the checkout holds a page that a file names, from the root or from the file's folder."""
    return (root / page).exists() or (path.parent / page).exists()


def report(root: Path) -> list[str]:
    """Return the lines that the command prints."""
    sources = Sources(root)
    functions = sources.functions()
    lengths = sorted(function.lines for function in functions)
    longest = functions[0]
    rings, upward, absent = circles(sources.imports), upward_imports(sources.imports), absent_documents(root)
    each = ", ".join(f"{name} {len(sources.naming(name))}" for name in CONFIGURATIONS)
    return [
        f"files: {len(sources.texts)}",
        f"lines: {sum(len(text.splitlines()) for text in sources.texts.values())}",
        f"lines of code: {sources.code_lines()}",
        f"functions: {len(functions)}",
        f"median function: {statistics.median(lengths):g} lines",
        f"90th percentile: {lengths[int(0.9 * len(lengths))]} lines",
        f"longest function: {longest.lines} lines, {longest.place}",
        *_listed(f"functions over {LONG} lines", [f"{f.place}: {f.lines}" for f in functions if f.lines > LONG]),
        f"files that name {' or '.join(CONFIGURATIONS)}: {len(sources.naming(*CONFIGURATIONS))} ({each})",
        f"uses of Any: {sources.count('Any')} ({sources.open_mappings()} as values of mappings with text as keys)",
        *_listed("import circles", [f"{len(ring)} files: {', '.join(ring)}" for ring in rings]),
        *_listed("upward imports", [f"{module} -> {other}" for module, other in upward]),
        *_listed("mentions of documents that are not in the repository", absent),
    ]


def _listed(name: str, lines: Sequence[str]) -> list[str]:
    return [f"{name}: {len(lines)}", *(f"    {line}" for line in lines)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the figures of a checkout."""
    parser = argparse.ArgumentParser(prog="python tools/figures.py", description=__doc__)
    parser.add_argument("checkout", nargs="?", type=Path, default=Path(__file__).resolve().parents[1])
    root = parser.parse_args(arguments).checkout.resolve()
    if not (root / PACKAGE).is_dir():
        print(f"checkout={root}: a folder that holds {PACKAGE} is needed", file=sys.stderr)
        return 2
    print("\n".join(report(root)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
