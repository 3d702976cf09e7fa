"""The files of an open project agree with each other and with what they describe."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import yaml

import vital_exp

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
KINDS = ("Added", "Changed", "Deprecated", "Removed", "Fixed", "Security")  # of Keep a Changelog
LONGEST = 120  # lines of CONTRIBUTING.md: two pages
RELEASE = r"\[(Unreleased|\d+\.\d+\.\d+)\]( - \d{4}-\d{2}-\d{2})?"


def recipe(target: str) -> list[str]:
    """The commands of a target of the Makefile."""
    text = (ROOT / "Makefile").read_text().replace("$(BIN)", ".venv/bin")
    found = re.search(rf"^{target}:.*\n((?:\t.+\n)+)", text, re.M)
    assert found
    return [line.strip() for line in found[1].splitlines()]


def test_pre_commit_runs_what_make_lint_runs() -> None:
    repos = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    hooks = [hook for repo in repos for hook in repo["hooks"]]
    assert [hook["entry"] for hook in hooks] == recipe("lint")
    assert all(hook["language"] == "system" and hook["pass_filenames"] is False for hook in hooks)


def test_workflows_call_what_is_here() -> None:
    jobs = yaml.safe_load((ROOT / ".github/workflows/checks.yml").read_text())["jobs"]
    commands = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    assert commands == [".ci/run", "make docs"]
    assert (ROOT / ".ci/run").is_file()
    assert recipe("docs")


def test_make_help_names_every_target() -> None:
    text = (ROOT / "Makefile").read_text()
    targets = re.search(r"^\.PHONY: (.+)$", text, re.M)
    assert targets
    told = re.findall(r'@echo "make (\S+)', text)
    assert {*told, "help"} == set(targets[1].split())


def test_the_changelog_has_the_form_of_keep_a_changelog() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    releases, kinds = re.findall(r"^## (.+)$", text, re.M), re.findall(r"^### (.+)$", text, re.M)
    assert releases[0] == "[Unreleased]"
    assert [release for release in releases if not re.fullmatch(RELEASE, release)] == []
    assert set(kinds) <= set(KINDS)


def test_versions_agree() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]


def test_the_package_is_typed() -> None:
    assert (Path(vital_exp.__file__).parent / "py.typed").is_file()
    assert "Typing :: Typed" in PROJECT["classifiers"]


def test_the_contributors_guide_is_two_pages_and_names_files_that_are_there() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    assert len(text.splitlines()) <= LONGEST
    named = re.findall(r"`((?:vital_exp|tests|conf)/[\w/.]+)`", text)
    assert len(named) > 10
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "SECURITY.md", "CODE_OF_CONDUCT.md", "CHANGELOG.md"])
def test_links_lead_to_files(name: str) -> None:
    for link in re.findall(r"\]\(([^)#\s]+)", (ROOT / name).read_text()):
        assert link.startswith("https://") or (ROOT / link).exists(), link
