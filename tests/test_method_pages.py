"""Every method, metric, attack, term and option of a picture has its page or section, in one form; its command runs."""

from __future__ import annotations

import re
import shlex
from functools import cache
from pathlib import Path

import pytest
import yaml

from tests.tiny import ON_CPU, command, exit_code
from vital_exp.attacks.audit import CHECKS
from vital_exp.commands import evaluate
from vital_exp.config_tree import config_dir, options_of
from vital_exp.evaluation.metrics import METRICS

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "methods"
PARTS = ("Idea", "Equation", "Paper", "Defaults", "Picture", "Command", "Limits", "Cost")  # in this order
GROUPS = {  # groups of options, each described on one page
    "relevance": "relevance",
    "objective": "objectives",
    "objective/alignment": "distances",
    "image": "images",
    "transforms": "transforms",
}
CHANGES = ("spade", "steer")  # of the network, while pictures are made
NOTHING = ("none", "auto")  # options that choose nothing of their own
ELSEWHERE = {"path_similarity": ("metrics", "path_similarity"), "theory": ("theory", "theory")}  # checks, no attacks
SHARED = "## What all of them share\n"
SMALL = 80_000  # bytes of a picture


def described() -> list[tuple[str, str]]:
    """The page and the name of everything that is described: a page of its own where the page is the name's."""
    pages = {name: path.stem for path in FOLDER.glob("*.md") for name in titles(path)}
    found = [(pages.get(option, option), option) for option in options_of("method")]
    found += [("metrics", name) for name in METRICS]
    found += [ELSEWHERE.get(check, ("attacks", check)) for check in CHECKS]
    found += [(pages[change], change) for change in CHANGES]
    for group, page in GROUPS.items():
        found += [(page, option) for option in options_of(group) if option not in NOTHING]
    return list(dict.fromkeys(found))


def titles(page: Path) -> list[str]:
    """The names in a page's title: ``# `maco`, `maco_horama`: phases``."""
    return re.findall(r"`(\w+)`", page.read_text(encoding="utf-8").partition("\n")[0])


@cache
def section(page: str, name: str) -> str:
    """What a page says of a name: the whole page where its title names it, else the section of that heading."""
    text = (FOLDER / f"{page}.md").read_text(encoding="utf-8")
    if name in titles(FOLDER / f"{page}.md"):
        return text
    found = re.search(rf"^## `{name}`\n(.*?)(?=^## |\Z)", text, re.M | re.S)
    assert found, f"docs/methods/{page}.md has no section `{name}`"
    return found[1]


def parts(page: str, name: str) -> dict[str, str]:
    """The parts of a section by their names, in its order."""
    pieces = re.split(r"^(?:## (\w+)$|\*\*(\w+)\.\*\*)", section(page, name), flags=re.M)
    names = [heading or bold for heading, bold in zip(pieces[1::3], pieces[2::3], strict=True)]
    return dict(zip(names, pieces[3::3], strict=True))


@pytest.mark.parametrize(("page", "name"), described())
def test_everything_is_described_in_the_same_parts(page: str, name: str) -> None:
    found = parts(page, name)
    assert [part for part in found if part in PARTS] == list(PARTS)
    assert [part for part in PARTS if not found[part].strip()] == []
    assert re.search(r"^    \S", found["Equation"], re.M), "an equation stands in a block"
    assert re.search(r"```bash\n(python .+\n)?vital-", found["Command"])


@pytest.mark.parametrize(("page", "name"), described())
def test_a_picture_is_there_and_small_or_a_reason(page: str, name: str) -> None:
    said = parts(page, name)["Picture"]
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", said)
    assert pictures or said.strip().startswith("None:") or ".ipynb" in said
    for picture in pictures:
        file = (FOLDER / picture).resolve()
        assert file.suffix == ".svg" or file.stat().st_size <= SMALL, picture


@pytest.mark.parametrize(("group", "page"), GROUPS.items())
def test_every_key_of_an_option_is_named_where_it_is_described(group: str, page: str) -> None:
    text = (FOLDER / f"{page}.md").read_text(encoding="utf-8")
    shared = re.search(rf"^{SHARED}(.*?)(?=^## )", text, re.M | re.S)
    assert shared
    for option in options_of(group):
        if option not in NOTHING:
            written = (config_dir() / group / f"{option}.yaml").read_text(encoding="utf-8")
            said = shared[1] + section(page, option)
            missing = [key for key in leaves(yaml.safe_load(written)) if not re.search(rf"\b{key}\b", said)]
            assert missing == [], f"{group}={option}"


def leaves(node: object) -> list[str]:
    """The names of the keys that hold values."""
    if not isinstance(node, dict):
        return []
    own = [key for key, value in node.items() if not isinstance(value, dict) and key not in ("_target_", "defaults")]
    return [*own, *(key for value in node.values() for key in leaves(value))]


def test_every_picture_has_a_command_that_makes_it() -> None:
    from tools.method_pictures import strips

    made = {f"{name}.jpg" for name in strips()}
    shown = set(re.findall(r"\(\.\./images/(\w+\.jpg)\)", "\n".join(p.read_text() for p in FOLDER.glob("*.md"))))
    assert shown - {"methods.jpg"} <= made  # tools/readme_picture.py makes that one


def written_commands(page: str) -> list[list[str]]:
    """The words of each command of a page, as a shell reads them."""
    text = (FOLDER / f"{page}.md").read_text(encoding="utf-8")
    code = "".join(re.findall(r"^```bash\n(.*?)^```", text, re.M | re.S)).replace("\\\n", " ")
    return [shlex.split(line, comments=True) for line in code.splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("page", GROUPS.values())
def test_the_commands_of_a_page_make_pictures(page: str, workplace: Path) -> None:
    for words in written_commands(page):
        if words[0] == "vital-visualize" and "image.weights=folder" not in words:  # a model that users have
            assert command(*words[1:], "steps=2", "references.count=4", "progress=false", *ON_CPU) == 0, words


@pytest.mark.slow
def test_the_commands_of_the_metrics_measure(workplace: Path) -> None:
    short = ("steps=2", "references.count=20", "progress=false", *ON_CPU)
    assert command("target.index=[star,fish]", "target.variations=2", *short, "hydra.run.dir=run") == 0
    for _, *words in written_commands("metrics"):
        asked = [
            re.sub(r"^run=.*", "run=run", re.sub(r"^judges=.*", "judges=[embedded_judge]", word)) for word in words
        ]
        keys = [word for word in asked if not word.startswith("evaluation.clip")]
        assert exit_code(evaluate.main, *keys, "trainer.accelerator=cpu") == 0, words
