"""What README and the pages of docs/ tell a reader to type works; their links lead somewhere."""

from __future__ import annotations

import ast
import re
import shlex
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torchvision.transforms.functional import to_pil_image

from tests.tiny import ON_CPU, command
from tools.documentation import api, commands, configuration
from vital_exp import load_model
from vital_exp.config import compose_config
from vital_exp.config_tree import groups, options_of
from vital_exp.references.drawn import draw_set

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
LINES, WORDS, PICTURE = 150, 1200, 600_000  # of the README at most; bytes of its picture
# Pages of the site that are made when it is built.
MADE_PAGES = api.pages() | commands.pages() | configuration.pages()
MADE = {ROOT / "docs" / place for place in (*MADE_PAGES, "results/index.md")}
DOCUMENTS = [README, *sorted((ROOT / "docs").rglob("*.md"))]
# How-tos that run as they stand.
RUN = ("objective-term", "transform", "method-preset", "target", "relevance-rule", "metric")
SHORT = ("steps=2", "progress=false", *ON_CPU)


def blocks(document: Path) -> Iterator[tuple[str, str]]:
    """Yield the language and the text of each code block."""
    yield from re.findall(r"^```(\w+)\n(.*?)^```", document.read_text(encoding="utf-8"), re.M | re.S)


def lines(document: Path) -> Iterator[list[str]]:
    """Yield the words of each line of the shell's blocks, without comments."""
    text = "".join(code for language, code in blocks(document) if language in ("bash", "console", "sh"))
    for line in text.replace("\\\n", " ").splitlines():
        yield shlex.split(line, comments=True)


def documented_commands() -> list[Any]:
    """Every command in a code block: its name, and its list of arguments; once if several pages have the same."""
    found: dict[tuple[str, ...], Any] = {}
    for document in DOCUMENTS:
        for words in lines(document):
            for place, word in enumerate(words):
                if name := re.fullmatch(r"vital-(\w+)", word):
                    if "--config-dir" not in words:  # those run, below
                        arguments = words[place + 1 :]
                        shown = f"{document.stem}: {name[1]} {' '.join(arguments)[:60]}"
                        found.setdefault((name[1], *arguments), pytest.param(name[1], arguments, id=shown))
                    break
    return list(found.values())


@pytest.mark.parametrize(("name", "arguments"), documented_commands())
def test_every_documented_command_composes(name: str, arguments: list[str]) -> None:
    overrides = [a for a in arguments if not a.startswith(("-", "hydra"))]
    if "-m" in arguments:  # one job of the sweep
        overrides = [re.sub(r"=([^\[{,(]+),.*", r"=\1", override) for override in overrides]
        overrides = [re.sub(r"=(\[[^\]]*\]),.*", r"=\1", override) for override in overrides]  # lists
        overrides = [re.sub(r"=interval\(([^,]+),.*", r"=\1", override) for override in overrides]
    compose_config([re.sub(r"^pattern=(.*)$", r"pattern='\1'", override) for override in overrides], name)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.stem)
def test_every_link_to_a_file_has_its_file(document: Path) -> None:
    for link in re.findall(r"\]\(([^)#\s]+)", document.read_text(encoding="utf-8")):
        if not link.startswith(("http://", "https://")):
            file = (document.parent / link).resolve()
            assert file.exists() or file in MADE, link


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.stem)
def test_every_link_to_a_heading_has_its_heading(document: Path) -> None:
    for link, heading in re.findall(r"\]\(([^)#\s]*)#([^)\s]+)\)", document.read_text(encoding="utf-8")):
        file = (document.parent / link).resolve() if link else document
        if file.suffix == ".md" and file.exists():
            assert heading in anchors(file), f"{link}#{heading}"


def anchors(document: Path) -> set[str]:
    """The headings of a page as GitHub and the site spell them in addresses."""
    titles = re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.stem)
def test_python_of_the_pages_imports_what_there_is(document: Path) -> None:
    for language, code in blocks(document):
        for node in ast.walk(ast.parse(code)) if language == "python" else ():
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("vital_exp"):
                module = import_module(str(node.module))
                assert [name.name for name in node.names if not hasattr(module, name.name)] == []


def test_the_configuration_page_names_every_group_and_option() -> None:
    page = (ROOT / "docs" / "guide" / "configuration.md").read_text(encoding="utf-8")
    rows = {row[0]: row[1] for row in re.findall(r"^\| `([\w/]+)` \| (.+?) \|", page, re.M)}
    for group in groups():
        missing = [o for o in options_of(group) if not o.startswith("_") and f"`{o}`" not in rows.get(group, "")]
        assert not missing, f"{group}: {missing}"


# The README.


def test_the_readme_is_one_page() -> None:
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LINES
    assert len(text.split()) <= WORDS
    assert (ROOT / "docs" / "images" / "methods.jpg").stat().st_size <= PICTURE


def test_the_readme_names_every_method() -> None:
    text = README.read_text(encoding="utf-8")
    assert [method for method in options_of("method") if f"`{method}`" not in text] == []


@pytest.mark.slow
def test_python_of_the_readme_runs(workplace: Path) -> None:
    images, labels = draw_set(2, 0)
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        folder = workplace / "photos" / ("cat" if label == 0 else f"class {label}")
        folder.mkdir(parents=True, exist_ok=True)
        to_pil_image(image).save(folder / f"{number}.png")
    (workplace / "names.txt").write_text("\n".join(["cat", *(f"class {label}" for label in range(1, 10))]))
    (code,) = [code for language, code in blocks(README) if language == "python"]
    known: dict[str, Any] = {"my_module": load_model("embedded_resnet").module}
    short = 'method="vital_fourier", overrides=["steps=2", "evaluation=none", "references.count=2"]'
    exec(code.replace('method="vital_fourier"', short), known)
    assert known["pictures"].images.shape == (1, 3, 224, 224)
    assert {target.index for target in known["units"].targets} == {7, 12}


@pytest.mark.slow
def test_commands_of_the_readme_run(workplace: Path) -> None:
    """The three commands of a user's own network, with small images, random weights, and one job of the sweep."""
    images, _ = draw_set(2, 0)
    folder = workplace / "photos" / "golden retriever"
    folder.mkdir(parents=True)
    for number in range(16):  # as many as two facets need
        to_pil_image(images[number]).save(folder / f"{number}.png")
    save_file(timm.create_model("mobilenetv2_100").state_dict(), workplace / "weights.safetensors")
    shown = [words for words in lines(README) if words[:1] == ["vital-visualize"] and len(words) > 1]
    assert len(shown) == 3
    for number, (_, *words) in enumerate(shown):
        small = [*SHORT, "model.size=64", "references.count=2", "model.pretrained=false", f"hydra.run.dir=run{number}"]
        asked = [word.replace("0-15", "0-1").replace("vital,fourier,maco", "maco") for word in words]
        assert command(*[word.replace("0,1,2", "0") for word in asked if word != "-m"], *small) == 0
        assert list((workplace / f"run{number}" / "images").glob("*.png"))


def test_costs_of_the_readme_are_those_that_were_measured() -> None:
    measured = (ROOT / "docs/results/measured.md").read_text(encoding="utf-8")
    (head,), (costs,) = (re.findall(rf"^\| {row}\| (.+) \|$", measured, re.M) for row in ("", "cost "))
    for method, cost in zip(head.split("|"), costs.split("|"), strict=True):
        row = re.search(rf"^\| `{method.strip()}`.*\| (\d+)[^|]*\|$", README.read_text(encoding="utf-8"), re.M)
        assert row, method
        assert int(row[1]) == round(float(cost)), method


# How-tos.


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN)
def test_a_how_to_runs(page: str, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are written, Python is executed and commands are run, in the order of the page."""
    monkeypatch.syspath_prepend(workplace)
    known: dict[str, Any] = {}
    for language, code in blocks(ROOT / "docs" / "how-to" / f"{page}.md"):
        if named := re.match(r"# ([\w/]+\.(?:py|yaml))\n", code):
            file = workplace / named[1]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(code[named.end() :], encoding="utf-8")
        elif language == "python":
            exec(code.replace("steps=20", "steps=2"), known)
        elif language == "bash":
            for line in code.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                assert words[:2] == ["PYTHONPATH=.", "vital-visualize"]
                assert command(*words[2:], *SHORT) == 0, line
    if page == "relevance-rule":
        _check_relevance(known)
    if page == "metric":
        assert known["table"].metrics["saturation"]["n"] == 2


def _check_relevance(known: dict[str, Any]) -> None:
    """The rule of the page is that of an activation function, and without it the operation is refused."""
    from vital_exp.errors import UsageError

    maps = known["relevance_maps"](known["network"], known["images"], "3:5", ["0", "1"])
    torch.testing.assert_close(maps["0"], maps["1"])
    del known["RULES"]["exp"]
    with pytest.raises(UsageError, match="exp"):
        known["relevance_maps"](known["network"], known["images"], "3:5", ["0"])


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tables that the pages add to, and modules that they write, are not left to other tests."""
    from vital_exp.evaluation.metrics import METRICS
    from vital_exp.relevance.rule_pass import RULES

    before = set(METRICS), set(RULES), set(sys.modules)
    yield
    for table, names in ((METRICS, before[0]), (RULES, before[1])):
        for name in set(table) - names:
            del table[name]  # type: ignore[attr-defined]
    for name in {name for name in sys.modules if name.startswith("my_")} - before[2]:
        del sys.modules[name]
