"""The reference has every command, key and public name; its pages' links and docstrings come out as meant."""

from __future__ import annotations

import base64
import inspect
import json
import re
from functools import cache
from importlib import import_module
from pathlib import Path
from textwrap import dedent

import pytest
import yaml

import vital_exp
from tools.documentation import api, built, commands, configuration, kinds, notebooks, results
from tools.documentation.docstrings import readable
from tools.documentation.links import moved
from tools.documentation.yaml_comments import read_file
from vital_exp.__main__ import COMMANDS
from vital_exp.commands import hydra_app
from vital_exp.commands.help_text import WIDTH, help_text
from vital_exp.config_tree import config_dir, groups, known_keys, options_of

SCREEN = 40  # lines
ROOT = Path(__file__).resolve().parents[1]
# What stands in mappings on one line, or in a mapping that is open: the mapping is in the reference.
IN_MAPPINGS = ("model.arguments.", "method.steps.", "method.details.")


@cache
def reference() -> str:
    """Every page of commands and configuration, as one text."""
    return "\n".join((commands.pages() | configuration.pages()).values())


@cache
def python_reference() -> frozenset[str]:
    """The names of the objects that the Python pages document."""
    return frozenset(re.findall(r"^::: (\S+)$", "\n".join(api.pages().values()), re.M))


def leaves(command: str) -> list[str]:
    """The keys of a command that hold values."""
    keys = known_keys(command)
    inside = [key for key in keys if key.startswith(IN_MAPPINGS)]
    return [key for key in keys if key not in inside and not any(o.startswith(f"{key}.") for o in {*keys} - {*inside})]


# Configuration and commands.


@pytest.mark.parametrize("command", COMMANDS)
def test_every_key_of_a_command_is_in_the_reference(command: str) -> None:
    assert not [key for key in leaves(command) if not re.search(rf"`{re.escape(key)}[`=]", reference())]


def test_every_command_and_option_is_in_the_reference() -> None:
    assert set(configuration.command_names()) == set(COMMANDS)
    for command in COMMANDS:
        assert f"## vital-{command}\n" in reference()
        for group in groups(command):
            for option in options_of(group):
                assert f"## {group}={option} {{#" in reference()


def test_every_key_has_a_meaning() -> None:
    for file in configuration.files():
        for key in file.keys:
            said = configuration.meaning(key, file)
            assert said, f"{file.group}/{file.name}.yaml: {key.name} has no comment"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("mask", "one of `followed`, `published`"),
        ("trainer.precision", "one of `32-true`, `bf16-mixed`, `64-true`"),
        ("model.size", "whole number or list of whole numbers or null"),
        ("resume", "true or false"),
        ("objective.alignment.depth_growth", "number"),
        ("tuning.lr", "number"),
        ("target.layer", "text or null"),
    ],
)
def test_the_kind_of_a_value_is_what_the_code_takes(name: str, kind: str) -> None:
    found = {
        kinds.kind_of(key, file, configuration.meaning(key, file))
        for file in configuration.files()
        for key in file.keys
        if key.name == name and file.group not in ("method", "experiment", "check")
    }
    assert kind in found


def test_every_option_says_what_it_is() -> None:
    silent = [file for file in configuration.files() if not file.header and file.name != "_keys"]
    assert [f"{file.group}/{file.name}.yaml" for file in silent] == []


def test_defaults_stand_as_the_files_have_them() -> None:
    for group, option, key in (("trainer", "default", "precision"), ("references", "_keys", "count")):
        value = yaml.safe_load((config_dir() / group / f"{option}.yaml").read_text())[key]
        assert f"| `{group}.{key}` | `{value}` |" in reference()


def test_comments_are_read_from_behind_and_above(tmp_path: Path) -> None:
    path = tmp_path / "group" / "option.yaml"
    path.parent.mkdir()
    text = """\
        # What it is,
        # in two lines.
        defaults: [_keys]
        first: "a#b" # behind: this | that
        # Above, in
        # two lines.
        second: {class: 4}
        part: # a part
          _target_: package.Class
          third: [1, 2]
        """
    path.write_text(dedent(text))
    file = read_file(path, tmp_path)
    assert (file.group, file.header, file.bases) == ("group", "What it is, in two lines.", ("_keys",))
    assert [(key.name, key.default, key.comment) for key in file.keys] == [
        ("group.first", '"a#b"', "behind: this | that"),
        ("group.second", "{class: 4}", "Above, in two lines."),
        ("group.part", "package.Class", "a part"),
        ("group.part.third", "[1, 2]", ""),
    ]


def test_the_page_of_exit_codes_has_those_of_the_commands() -> None:
    page = (ROOT / "docs/reference/exit-codes.md").read_text()
    codes = {hydra_app.MISTAKE, hydra_app.SOME_FAILED, hydra_app.INTERRUPTED, hydra_app.BROKEN_PIPE}
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", page, re.M)} == {0, *codes}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_one_screen_of_a_terminal(command: str) -> None:
    lines = help_text(command).splitlines()
    assert len(lines) <= SCREEN
    assert [line for line in lines if len(line) > WIDTH] == []
    assert f"```text\n{help_text(command).rstrip()}\n```" in reference()


@pytest.mark.parametrize("command", COMMANDS)
def test_what_help_names_are_keys_of_the_command(command: str) -> None:
    named = re.search(r"^Keys:\n((?:  .+\n)+)", help_text(command), re.M)
    assert named
    assert [key for key in named[1].split() if key not in known_keys(command)] == []


# Python.


def test_every_public_name_of_the_package_is_in_the_reference() -> None:
    assert {f"vital_exp.{name}" for name in vital_exp.__all__} <= python_reference()


@pytest.mark.parametrize("page", api.PAGES)
def test_every_public_function_and_class_is_in_the_reference(page: str) -> None:
    for place in api.PAGES[page][1]:
        for module in map(import_module, api.modules(place)):
            for name, thing in vars(module).items():
                own = (inspect.isfunction(thing) or inspect.isclass(thing)) and thing.__module__ == module.__name__
                if own and not name.startswith("_"):
                    assert f"{module.__name__}.{name}" in python_reference()


@pytest.mark.parametrize("package", ["objectives", "images.transforms", "relevance", "engine"])
def test_what_a_package_exports_is_in_the_reference(package: str) -> None:
    module = import_module(f"vital_exp.{package}")
    for thing in (getattr(module, name) for name in module.__all__):
        if callable(thing) and hasattr(thing, "__qualname__"):
            assert f"{thing.__module__}.{thing.__qualname__}" in python_reference()


@pytest.mark.parametrize("page", sorted((ROOT / "docs").rglob("*.md")), ids=lambda path: path.stem)
def test_what_a_page_imports_is_in_the_reference(page: Path) -> None:
    code = "".join(re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S))
    for module, names in re.findall(r"^from (vital_exp[\w.]*) import (.+)$", code, re.M):
        for thing in (getattr(import_module(module), name.strip()) for name in names.split(",")):
            if inspect.isfunction(thing) or inspect.isclass(thing):
                own = f"{thing.__module__}.{thing.__name__}"
                assert python_reference() & {own, f"vital_exp.{thing.__name__}"}, own


def test_docstrings_come_out_readable() -> None:
    text = "See :func:`a.b`.\n\nArgs:\n    mean, std: of channels,\n        one each.\n    size: px.\n"
    said = "of channels,\n        one each."
    assert readable(text) == f"See `a.b`.\n\nArgs:\n    mean: {said}\n    std: {said}\n    size: px.\n"


# Pages.


def test_links_follow_their_files() -> None:
    root = Path("/checkout")
    places = {root / "docs/methods/vital.md": "methods/vital.md", root / "docs/relevance.md": "relevance.md"}
    text = "[a](../docs/methods/vital.md#x) `[b](../docs/relevance.md)` [c](https://example.org) [d](gone.md)"
    out = moved(text, root / "conf/page.md", "results/page.md", places, lambda file: f"files/{file.name}")
    assert out == "[a](../methods/vital.md#x) `[b](../docs/relevance.md)` [c](https://example.org) [d](gone.md)"


def test_a_linked_file_that_is_no_page_is_attached(tmp_path: Path) -> None:
    (tmp_path / "code.py").touch()
    out = moved("[a](code.py)", tmp_path / "page.md", "results/page.md", {}, lambda file: f"files/{file.name}")
    assert out == "[a](../files/code.py)"


def test_a_notebook_is_a_page_with_its_pictures(tmp_path: Path) -> None:
    pytest.importorskip("nbconvert", reason="builds the site: part of the extra docs")
    image = "iVBORw0KGgo="
    outputs = [{"output_type": "display_data", "metadata": {}, "data": {"image/png": image, "text/plain": ["figure"]}}]
    code = {"cell_type": "code", "source": "1 + 1", "execution_count": 1, "metadata": {}, "outputs": outputs}
    words = {"cell_type": "markdown", "source": "# Title", "metadata": {}}
    cells = [{**words, "id": "a"}, {**code, "id": "b"}]
    path = tmp_path / "trial.ipynb"
    path.write_text(json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    text, pictures = notebooks.page(path, "tutorials/trial.ipynb")
    assert "# Title" in text
    assert list(pictures.values()) == [base64.b64decode(image)]
    (place,) = pictures
    assert f"({Path(place).relative_to('tutorials')})" in text


def test_a_built_site_with_dead_links_or_a_network_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other.html").write_text('<h1 id="here">x</h1>')
    page = '<a href="other.html#here">a</a> <a href="https://example.org">b</a> <img src="data:image/png;base64,AA==">'
    (tmp_path / "index.html").write_text(page)
    assert built.main(tmp_path) == 0
    dead = '<a href="other.html#gone">a</a><img src="gone.png"><script src="https://example.org/x.js"></script>'
    (tmp_path / "index.html").write_text(dead)
    built._page.cache_clear()
    assert list(built.defects(tmp_path)) == [
        "index.html: https://example.org/x.js is fetched from a network",
        "index.html: other.html#gone leads nowhere",
        "index.html: gone.png leads nowhere",
    ]


def test_every_page_of_results_says_which_command_measures_it() -> None:
    pages = {f"results/{p.name}": p.read_text() for p in (ROOT / "benchmarks/results").glob("*.md")}
    rows = [line for line in results.index(pages).splitlines() if line.startswith("| [")]
    assert len(rows) == len(pages)
    assert [row for row in rows if row.endswith("|  |")] == []


def test_every_paper_that_is_cited_is_in_the_bibliography() -> None:
    entries = re.findall(r"^@\w+\{([a-z]+)(\d{4})", (ROOT / "docs/bibliography.md").read_text(), re.M)
    known = {(author, year) for author, year in entries}
    text = "\n".join(path.read_text() for path in (ROOT / "docs/methods").glob("*.md"))
    cited = set(re.findall(r"([A-Z][a-zü]+) (?:et al\.?|and [A-Z][a-z]+),? \(?(\d{4})", text))
    assert len(cited) > 10
    assert {(author.lower(), year) for author, year in cited} <= known


def test_the_answers_to_questions_name_keys_that_are_there() -> None:
    known = {key for command in COMMANDS for key in (*known_keys(command), *groups(command))}
    codes = re.findall(r"`([^`\n]+)`", (ROOT / "docs/faq.md").read_text())
    named = [word.split("=")[0] for code in codes for word in code.split() if "=" in word]
    assert len(named) > 10
    assert [key for key in named if key not in known] == []
