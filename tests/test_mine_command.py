"""The command vital-mine: what it writes and prints, and its mistakes in one line."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.tiny import exit_code, image_folder
from vital_exp import no_effect
from vital_exp.commands import hydra_app, mine
from vital_exp.config import compose_config, groups
from vital_exp.configuration import Configuration
from vital_exp.images.spectrum import load_magnitude
from vital_exp.mining import drawn, sheets
from vital_exp.mining.counts import IMAGES_PER_UNIT
from vital_exp.mining.index import Index

pytestmark = pytest.mark.usefixtures("workplace")

MISTAKE = 2
# The shortest mining there is.
SHORT = ("images={photos}", "layers=[layer4]", "channels=[0,3]", "k=3", "patch.overlap=0", "workers=0", "batch_size=64")
QUIET = ("trainer.accelerator=cpu", "progress=false")


def command(*arguments: str) -> int:
    """Run vital-mine in this process and return its exit code."""
    return exit_code(mine.main, *arguments)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("places")
    image_folder(root / "photos", ["a", "b"], count=3, corrupt=1)
    image_folder(root / "broken", ["a"], count=0, corrupt=2)
    (root / "empty").mkdir()
    (root / "file").write_text("")
    save_file({"v": torch.eye(192)[:2]}, root / "two.safetensors")
    save_file({"v": torch.eye(5)}, root / "five.safetensors")
    return {path.name: path for path in root.iterdir()}


def placed(places: dict[str, Path], *arguments: str) -> list[str]:
    """Put folders and files in the place of their names."""
    for name, path in places.items():
        arguments = tuple(argument.replace(f"{{{name}}}", str(path)) for argument in arguments)
    return list(arguments)


def test_a_mining_leaves_an_index_sheets_and_a_page(
    places: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run = placed(places, *SHORT, *QUIET, "hydra.run.dir=run")
    assert command(*run) == 0
    printed = capsys.readouterr().out
    said = [line.split(maxsplit=1)[0] for line in printed.splitlines()]
    assert said[:5] == ["preparing", "model", "images", "units", "folder"]
    assert "\nmodel    embedded_resnet on cpu\n" in printed
    assert "\nunits    2 of layer4, k=3 images on each side\n" in printed
    assert "2 of 8 images could not be read: a/broken0.png" in printed
    assert f"index: {Path('run/index.sqlite').resolve()} (2 units of layer4)" in printed
    assert str(Path("run/index.html")) in printed
    index = Index.open("run")
    assert index.units() == [("layer4", 0), ("layer4", 3)]
    assert len(index.top("layer4", 3)) == len(index.patches("layer4", 3)) == 3
    assert sorted(index.corrupt) == ["a/broken0.png", "b/broken0.png"]
    for channel in (0, 3):
        with Image.open(f"run/sheets/layer4/{channel}.jpg") as sheet:
            assert sheet.width == 2 * sheets.MARGIN + sheets.COLUMNS * (sheets.TILE + sheets.GAP) - sheets.GAP
            assert np.asarray(sheet).std() > 10
    assert OmegaConf.load("run/.hydra/config.yaml").k == 3
    assert json.loads(Path("run/provenance.json").read_text())["network"] == "embedded_resnet"

    files = {path: path.stat().st_mtime_ns for path in Path("run").rglob("*") if path.suffix in (".sqlite", ".jpg")}
    Path("run/sheets/layer4/3.jpg").unlink()  # as if interrupted among the sheets
    assert command(*run) == 0
    again = {path: path.stat().st_mtime_ns for path in files}
    assert [path.name for path in files if again[path] != files[path]] == ["3.jpg"]

    capsys.readouterr()
    assert command(*run, "k=2") == MISTAKE
    assert "k (3 there, 2 now)" in capsys.readouterr().err
    assert OmegaConf.load("run/.hydra/config.yaml").k == 3


def test_the_page_is_one_file_that_fetches_nothing(places: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    run = placed(places, *SHORT, *QUIET, "hydra.run.dir=run")
    assert command(*run) == 0
    page = Path("run/index.html").read_text()
    sources = re.findall(r'src="([^"]*)"', page)
    assert len(sources) == 2
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert "://" not in re.sub(r'"data:[^"]*"', "", page)
    assert "2 files could not be read" in page
    assert "a/broken0.png" in page
    assert str(places["photos"]) in page

    monkeypatch.setattr("vital_exp.reporting.mining.EMBED_BYTES", 1000)  # too many sheets for one file
    assert command(*run) == 0
    sources = re.findall(r'src="([^"]*)"', Path("run/index.html").read_text())
    assert sources == ["sheets/layer4/0.jpg", "sheets/layer4/3.jpg"]
    assert all((Path("run") / source).is_file() for source in sources)


@pytest.mark.parametrize("shown", [True, False])
def test_bars_of_images_and_of_patches_on_a_terminal(
    shown: bool, places: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    run = placed(places, *SHORT, *QUIET, "hydra.run.dir=run", "sheets=false")
    assert command(*run, f"progress={shown}") == 0
    told = capsys.readouterr().err
    if not shown:
        assert told == ""
        return
    lines = re.split(r"[\r\n]+", told)
    assert any(line.startswith("images: 100%") and " 8/8 " in line for line in lines), told
    count = len({row.image for unit in (0, 3) for row in Index.open("run").top("layer4", unit)})
    assert any(line.startswith("patches: 100%") and f" {count}/{count} " in line for line in lines), told


def test_sheets_and_patches_can_be_left_out(places: dict[str, Path]) -> None:
    run = placed(places, *SHORT, *QUIET, "hydra.run.dir=run", "sheets=false", "patches=false")
    assert command(*run) == 0
    assert not Path("run/sheets").exists()
    assert not Path("run/index.html").exists()
    index = Index.open("run")
    assert index.meta["patch"] is None
    assert command(*run[:-2], "patches=false") == 0  # sheets of an index without patches
    assert Path("run/index.html").is_file()


def test_a_limited_number_of_sheets(places: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sheets, "MOST_SHEETS", 4)
    layers = ["layers=[layer3,layer4]", "channels=0-5", "patches=false"]
    assert command(*placed(places, *SHORT, *QUIET, "hydra.run.dir=run"), *layers) == 0
    found = sorted(str(path.relative_to("run/sheets")) for path in Path("run/sheets").rglob("*.jpg"))
    assert found == ["layer3/0.jpg", "layer3/1.jpg", "layer4/0.jpg", "layer4/1.jpg"]
    assert "<b>4</b> of <b>12</b> units" in Path("run/index.html").read_text()


def test_directions_of_a_file(places: dict[str, Path]) -> None:
    run = placed(places, *SHORT, *QUIET, "hydra.run.dir=run", "directions={two.safetensors}", "channels=all")
    assert command(*run, "sheets=false") == 0
    index = Index.open("run")
    assert index.units() == [("layer4", 0), ("layer4", 1)]
    assert index.meta["layers"][0]["directions"]


def test_no_argument_is_a_small_part_of_the_embedded_network(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (workplace / "photos").mkdir()
    jobs: list[Configuration] = []

    def remember(config: Configuration) -> int:
        jobs.append(config)
        return 0

    monkeypatch.setattr(mine, "mine_job", remember)
    assert command() == 0
    assert command("images=photos") == 0
    demo, own = jobs
    assert (demo.model.name, demo.images, demo.channels, demo.patch.search) == (
        *("embedded_resnet", None),
        *("0-31", "strongest"),
    )
    assert own == compose_config(["images=photos"], "mine")


def test_drawn_images_and_the_last_aligned_layer_are_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawn, "IMAGES_PER_CLASS", 2)
    arguments = ("channels=0", "k=2", "patches=false", "sheets=false", "workers=0", "batch_size=100")
    assert command("model=embedded_vit", *arguments, *QUIET, "hydra.run.dir=run") == 0
    index = Index.open("run")
    assert index.meta["images"] == 20
    assert [layer for layer, _ in index.units()] == [index.meta["layers"][0]["layer"]]
    assert re.fullmatch(r"blocks\.\d+", index.units()[0][0])


def test_the_spectrum_of_a_folder(places: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    arguments = placed(places, "spectrum={photos}", "spectrum_size=32", "workers=0", *QUIET, "hydra.run.dir=run")
    assert command(*arguments) == 0
    made = load_file("run/spectrum.safetensors")["magnitude"]
    assert made.shape == (3, 32, 17)
    assert torch.equal(load_magnitude("run/spectrum.safetensors", 3), made)  # as image=maco reads it
    printed = capsys.readouterr().out
    assert "2 of 8 images could not be read" in printed
    assert "image.magnitude=" in printed
    by_images = placed(places, "spectrum=true", "images={photos}", "spectrum_size=32", "workers=0", *QUIET)
    assert command(*by_images, "hydra.run.dir=again") == 0
    assert torch.equal(load_file("again/spectrum.safetensors")["magnitude"], made)


MISTAKES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "unknown layer": (("layers=[layer44]",), ("layers=layer44", "did you mean layer4", "list=layers")),
    "no layers": (("layers=[]",), ("layers=[]", "at least one")),
    "channel out of range": (("channels=192",), ("channels=192", "192 channels of layer4, 0 to 191")),
    "channels that are a word": (("channels=some",), ("channels=some", "0 to 191")),
    "k larger than the folder": (("k=9",), ("k=9", "holds 8 images")),
    "k=0": (("k=0",), ("k=0", "at least 1")),
    "k is a word": (("k=many",), ("k=many", "whole number")),
    "pooling": (("pooling=maximum",), ("pooling=maximum", "did you mean max")),
    "patch too large": (("patch.size=65",), ("patch.size=65", "1 to 64")),
    "overlap": (("patch.overlap=1",), ("patch.overlap=1", "below 1")),
    "search": (("patch.search=strong",), ("patch.search=strong", "did you mean strongest")),
    "batch_size": (("batch_size=0",), ("batch_size=0", "at least 1")),
    "workers": (("workers=-1",), ("workers=-1", "at least 0")),
    "save_every": (("save_every=x",), ("save_every=x", "at least 1")),
    "missing folder": (("images=nowhere",), ("images=nowhere", "does not exist")),
    "a file": (("images={file}",), ("images=", "no folder")),
    "empty folder": (("images={empty}",), ("images=", "holds no images")),
    "images that cannot be read": (("images={broken}", "k=1"), ("images=", "none of its 2 images", "broken0.png")),
    "no folder": (("images=null", "model=timm", "model.name=resnet10t", "model.pretrained=false"), ("images=None",)),
    "images are a number": (("images=3",), ("images=3", "a folder of images")),
    "directions of other channels": (("directions={five.safetensors}",), ("directions=(5, 5)", "(K, 192)")),
    "missing directions": (("directions=no.npy",), ("directions=no.npy", "no such file")),
    "directions of two layers": (
        ("directions={two.safetensors}", "layers=[layer3,layer4]"),
        ("directions=", "to one layer"),
    ),
    "spectrum of nowhere": (("spectrum=nowhere",), ("spectrum=nowhere", "does not exist")),
    "spectrum of broken images": (("spectrum={broken}",), ("spectrum=", "none of its 2 images")),
    "spectrum is a number": (("spectrum=3",), ("spectrum=3", "true, false or a folder")),
    "size of the spectrum": (("spectrum={photos}", "spectrum_size=0"), ("spectrum_size=0", "at least 1")),
    "sheets is a word": (("sheets=some",), ("sheets=some", "true or false")),
    "unknown model": (("model=resnet51",), ("model=resnet51", "did you mean resnet50")),
    "unknown key": (("pach.size=3",), ("pach.size=3", "did you mean patch.size")),
    "unknown key with +": (("+chanels=3",), ("+chanels=3", "did you mean channels")),
    "the atlas's name of a key": (("units=0-3",), ("units=0-3", "did you mean channels?")),
    "key of another command": (("optimizer.lr=1",), ("optimizer.lr=1", "no such key")),
    "group of another command": (("references=folder",), ("references=folder", "no such key")),
    "key of an optional group": (("references.count=3",), ("references.count=3", "no such key")),
    "a part taken away": (("~k",), ("~k", "taken away")),
    "several values without -m": (("k=2,3",), ("k=2,3", "-m")),
    "no cuda": (("trainer.accelerator=cuda",), ("trainer.accelerator=cuda", "cpu")),
    "unknown list": (("list=layer",), ("list=layer", "did you mean layers")),
    "run folder is a file": (("hydra.run.dir={file}",), ("hydra.run.dir=", "cannot be made")),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line(mistake: str, places: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    arguments, words = MISTAKES[mistake]
    code = command(*placed(places, *SHORT, *QUIET, "hydra.run.dir=run", "progress=true", *arguments))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert code == MISTAKE
    assert lines[0].startswith("vital-mine: ")
    assert all(word in lines[0] for word in words), lines[0]
    assert not Path("run/index.sqlite").exists()


def test_the_relevance_that_ranks_images_is_chosen() -> None:
    """Visualize has a group of this name, which Hydra would look for."""
    for spelling in ("relevance", "relevance_method"):
        config = compose_config(["pooling=relevance", "class=0", f"{spelling}=attn_lrp"], "mine")
        assert config.relevance_method == "attn_lrp"
    assert "relevance" not in config


def test_keys_of_mining_are_not_those_of_visualize() -> None:
    for command_name, key in (("visualize", "pooling=max"), ("mine", "steps=3")):
        with pytest.raises(ValueError, match="no such key"):
            compose_config([key], command_name)
    assert groups("mine") == ["concepts", "model"]
    assert "references" not in compose_config([], "mine")


@pytest.mark.parametrize("model", ["embedded_resnet", "embedded_vit", "resnet50", "timm", "python"])
def test_every_kind_of_model_composes(model: str) -> None:
    assert compose_config([f"model={model}"], "mine").model == compose_config([f"model={model}"]).model


def test_an_interrupted_command_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_config: Configuration) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(mine, "mine_job", interrupted)
    assert command("hydra.run.dir=run") == hydra_app.INTERRUPTED
    assert "hydra.run.dir" in capsys.readouterr().err


def test_help_and_layers(capsys: pytest.CaptureFixture[str], workplace: Path) -> None:
    assert command("--help") == 0
    text = capsys.readouterr().out
    assert all(key in text for key in ("images", "layers", "channels", "find_by", "dry_run=true", "list=layers"))
    assert command("list=layers") == 0
    assert any(line.split()[:2] == ["*", "layer4"] for line in capsys.readouterr().out.splitlines())
    assert list(workplace.iterdir()) == []


@pytest.mark.slow
def test_help_imports_no_torch() -> None:
    code = (
        "import sys\nfrom vital_exp.commands.mine import main\ntry:\n    main(['--help'])\nexcept SystemExit:\n"
        "    print([m for m in ('torch', 'timm', 'lightning') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("arguments", [(), ("concepts=nmf",), ("patches=false",)])
def test_what_the_command_adds_by_itself_is_never_told_to_have_no_effect(
    arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(no_effect.logger, "warning", lambda text, *values: said.append(text % values))
    monkeypatch.setattr(mine, "mine_job", lambda _config: 0)
    assert command(*arguments) == 0
    assert not said


def test_the_command_and_the_functions_keep_as_many_images_of_a_unit() -> None:
    assert compose_config([], "mine").k == IMAGES_PER_UNIT
