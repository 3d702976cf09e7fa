"""The package as a user gets it: the wheel in an environment of its own, used in an empty folder."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from vital_exp.config_tree import groups, options_of

pytestmark = pytest.mark.slow

pytest.importorskip("hatchling", reason="builds the wheel: part of the extra dev")

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "timm", "lightning", "wandb")  # seconds each
MISTAKE = 2
SIDE_OF_EMBEDDED = 64


@dataclass(frozen=True)
class Installed:
    """An environment that holds the wheel, and a folder to work in."""

    bin: Path
    home: Path

    def run(self, command: str, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment as somebody would who has nothing else."""
        known = {key: os.environ[key] for key in ("SYSTEMROOT", "TMPDIR", "OMP_NUM_THREADS") if key in os.environ}
        environment = {**known, "PATH": os.defpath, "HOME": str(self.home), "VITAL_CACHE": str(self.home / "cache")}
        return subprocess.run(
            [self.bin / command, *arguments],
            cwd=cwd or self.home,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    def python(self, code: str) -> str:
        """Return what a program prints."""
        done = self.run("python", "-c", code)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that VITAL_WHEEL names, as make dist does, or a new one."""
    if given := os.environ.get("VITAL_WHEEL"):
        return Path(given).resolve()
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """Install the wheel into a new environment that borrows only the dependencies of this one."""
    home = tmp_path_factory.mktemp("home")
    environment = tmp_path_factory.mktemp("environment")
    venv.create(environment, with_pip=False, symlinks=os.name != "nt")
    binaries = environment / ("Scripts" if os.name == "nt" else "bin")
    pip = [sys.executable, "-m", "pip", "--python", str(binaries / "python"), "install"]
    offline = ["--quiet", "--no-deps", "--no-index", str(wheel)]
    done = subprocess.run([*pip, *offline], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    own = next(environment.rglob("site-packages"))
    # A path named in a .pth file comes after the environment's own, and its own .pth files, such as that of an editable
    # vital_exp, are not read.
    borrowed = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (own / "borrowed_dependencies.pth").write_text("\n".join(borrowed) + "\n", encoding="utf-8")
    return Installed(binaries, home)


def test_the_wheel_holds_configurations_weights_and_templates(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    configs = {p.relative_to(ROOT).as_posix() for p in (ROOT / "conf").rglob("*.yaml")}
    assert configs
    assert {f"vital_exp/{name}" for name in configs} == {name for name in names if name.endswith(".yaml")}
    data = [*(ROOT / "vital_exp/models/embedded").iterdir(), *(ROOT / "vital_exp/reporting/templates").iterdir()]
    assert {p.relative_to(ROOT).as_posix() for p in data if p.is_file()} <= set(names)


def test_the_wheel_says_that_it_is_typed(wheel: Path) -> None:
    assert "vital_exp/py.typed" in zipfile.ZipFile(wheel).namelist()  # PEP 561


def test_the_wheel_holds_no_tools(wheel: Path) -> None:
    tools = {path.name for path in (ROOT / "tools").glob("*.py")}
    assert tools
    assert not tools & {Path(name).name for name in zipfile.ZipFile(wheel).namelist()}


def test_the_wheel_holds_nothing_else(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    assert {name.split("/")[0].split("-")[0] for name in archive.namelist()} == {"vital_exp"}
    assert not [name for name in archive.namelist() if "test" in name.lower() or "__pycache__" in name]
    largest = max(archive.infolist(), key=lambda file: file.file_size)
    assert largest.file_size <= 3e6, largest.filename  # the limit of an embedded network


def test_the_wheel_carries_its_licence_and_needs(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    metadata = next(name for name in archive.namelist() if name.endswith("METADATA"))
    text = archive.read(metadata).decode()
    assert "License-Expression: MIT" in text
    assert "Requires-Dist: torch>=" in text
    assert any(name.endswith("licenses/LICENSE") for name in archive.namelist())


def test_the_command_says_its_version(wheel: Path, installed: Installed) -> None:
    done = installed.run("vital-visualize", "--version")
    assert done.stdout == f"vital-visualize {wheel.name.split('-')[1]}\n"


def test_what_is_imported_is_the_wheel(installed: Installed) -> None:
    code = "import vital_exp, vital_exp.config_tree as tree; print(vital_exp.__file__, tree.config_dir())"
    printed = installed.python(code)
    for path in map(Path, printed.split()):
        assert installed.bin.parent in path.parents
        assert ROOT not in path.parents


def test_importing_the_package_imports_no_torch(installed: Installed) -> None:
    code = f"import sys, vital_exp; print([m for m in {HEAVY} if m in sys.modules])"
    assert installed.python(code) == "[]"


def test_help_imports_no_torch(installed: Installed) -> None:
    code = f"""
import sys
from vital_exp.commands.visualize import main
try:
    main(["--help"])
except SystemExit as end:
    assert not end.code, end.code
print([m for m in {HEAVY} if m in sys.modules])
"""
    assert installed.python(code).splitlines()[-1] == "[]"


@pytest.mark.parametrize("program", [("vital-visualize",), ("python", "-m", "vital_exp", "visualize")])
def test_help_names_every_group_and_its_options(installed: Installed, program: tuple[str, ...]) -> None:
    done = installed.run(*program, "--help")
    assert done.returncode == 0, done.stderr
    assert all(f"  {group}: " in done.stdout for group in groups())
    done = installed.run(*program, "--help", "method")
    assert all(f"  {option}\n" in done.stdout for option in options_of("method"))


def test_layers_are_listed(installed: Installed) -> None:
    done = installed.run("vital-visualize", "list=layers")
    assert done.returncode == 0, done.stderr
    assert any(line.split()[:2] == ["*", "layer4"] for line in done.stdout.splitlines())


def test_a_dry_run_leaves_nothing_behind(installed: Installed, tmp_path: Path) -> None:
    done = installed.run("vital-visualize", "dry_run=true", "target.index=star", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "class-0 (star)" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_ends_in_one_line(installed: Installed, tmp_path: Path) -> None:
    done = installed.run("vital-visualize", "target.index=starr", cwd=tmp_path)
    assert done.returncode == MISTAKE
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "target.index=starr" in done.stderr
    assert "star" in done.stderr.split("did you mean")[1]


def test_pictures_are_made_in_an_empty_folder(installed: Installed, tmp_path: Path) -> None:
    command = ["steps=2", "target.index=[0,heart]", "references.count=3", "hydra.run.dir=run"]
    done = installed.run("vital-visualize", *command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    _check_run_folder(tmp_path / "run", ["class-0", "class-1"])

    made = (tmp_path / "run/results.jsonl").read_bytes()
    again = installed.run("vital-visualize", *command, cwd=tmp_path)  # nothing is left to do
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "run/results.jsonl").read_bytes() == made

    other = installed.run("vital-visualize", *command, "seed=2", cwd=tmp_path)
    assert other.returncode == MISTAKE
    assert "seed (1 there, 2 now)" in other.stderr


def _check_run_folder(run: Path, targets: list[str]) -> None:
    from PIL import Image

    results = [json.loads(line) for line in (run / "results.jsonl").read_text().splitlines()]
    assert [(result["target"], result["status"]) for result in results] == [(target, "done") for target in targets]
    for target in targets:
        for name, mode in ((f"{target}.png", "RGB"), (f"{target}_masked.png", "RGBA")):
            with Image.open(run / "images" / name) as image:
                assert (image.mode, image.size) == (mode, (SIDE_OF_EMBEDDED, SIDE_OF_EMBEDDED))
    with (run / "history.csv").open(newline="") as file:
        assert [row["target"] for row in csv.DictReader(file)] == [target for target in targets for _ in range(2)]
    metrics = json.loads((run / "metrics.json").read_text())
    assert all({"value", "low", "high", "n"} <= set(metric) for metric in metrics.values())
    assert json.loads((run / "provenance.json").read_text())["versions"]["vital-exp"]
    assert (run / ".hydra/config.yaml").is_file()
    gallery = (run / "report.html").read_text()
    assert all(target in gallery for target in targets)
