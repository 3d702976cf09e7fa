"""Circuits: which channels matter for a unit, and the tree of their pictures as one page."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.tiny import command, image_folder, tiny_net
from vital_exp import load_model
from vital_exp.circuits.run import CircuitRun
from vital_exp.circuits.tree import channel_relevance, grow
from vital_exp.config import compose_config
from vital_exp.errors import UsageError
from vital_exp.mining import drawn
from vital_exp.references.tensors import TensorReferences
from vital_exp.relevance import relevance_maps
from vital_exp.targets.class_names import ClassNames
from vital_exp.targets.unit import Target

SIZE = 32
SHORT = ("model=embedded_resnet", "steps=1", "references.count=2", "references.cache=false", "batch_size=2")
QUIET = ("trainer.accelerator=cpu", "evaluation=none", "logger=none", "progress=false")


def test_relevance_of_channels_is_that_of_the_maps_over_the_references() -> None:
    own = load_model(tiny_net(), size=SIZE)
    images = torch.rand(10, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    references = TensorReferences(images, ClassNames.numbered(4))
    for target in (Target("class", 1), Target("channel", 5, "layer1")):
        found = channel_relevance(own, target, references, "relu", "gradient_x_activation")
        maps = relevance_maps(own, images, target, ["relu"], "gradient_x_activation")["relu"]
        np.testing.assert_allclose(found, maps.flatten(2).sum(dim=2).mean(dim=0), rtol=1e-4, atol=1e-7)


def test_the_channel_that_a_unit_reads_is_found() -> None:
    """layer1's channel 5 reads channel 3 of relu alone: it has all of the relevance."""
    module = tiny_net()
    with torch.no_grad():
        module.layer1[0].weight[5] = 0  # type: ignore[index, union-attr]
        module.layer1[0].weight[5, 3] = 1  # type: ignore[index, union-attr]
    own = load_model(module, size=SIZE)
    images = torch.rand(4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    references = TensorReferences(images, ClassNames.numbered(4))
    tree = grow(own, Target("channel", 5, "layer1"), ["relu"], 3, lambda _: references)
    assert [(child.target, pytest.approx(child.share, abs=1e-5)) for child in tree.children] == [
        (Target("channel", 3, "relu"), 1.0)
    ]
    assert [len(level) for level in tree.levels()] == [1, 1]


@pytest.fixture(autouse=True)
def workplace(workplace: Path) -> Path:
    image_folder(workplace / "photos", ["star", "heart"], count=2)
    return workplace


def test_a_circuit_is_a_page_of_pictures(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawn, "IMAGES_PER_CLASS", 2)
    asked = (*SHORT, *QUIET, "target=circuit", "target.unit=class:heart", "target.width=2")
    asked = (*asked, "target.layers=[layer4,layer3]", "references.region=image", "hydra.run.dir=run")
    asked = (*asked, "target.ablation_images=3")
    assert command(*asked, "dry_run=true") == 0
    assert "at most 7 pictures (1 of class-1, 2 of layer4, 4 of layer3)" in capsys.readouterr().out
    assert not Path("run").exists()
    assert command(*asked) == 0
    assert "run/circuit.html" in capsys.readouterr().out
    tree = json.loads(Path("run/circuit.json").read_text())
    assert (tree["target"], tree["label"], len(tree["children"])) == ("class-1", "heart", 2)
    units = [child for middle in tree["children"] for child in middle["children"]]
    assert {unit["layer"] for unit in units} == {"layer3"}
    assert all(0 < unit["share"] <= 1 for unit in units)
    page = Path("run/circuit.html").read_text()
    assert len(re.findall(r'class="picture" src="data:image/png;base64,', page)) == 3 + len(units)
    causal = json.loads(Path("run/causal.json").read_text())
    assert [layer["layer"] for layer in causal["layers"]] == ["layer4", "layer3"]
    assert causal["images"] == {"references": 2, "others": 3}
    assert "Edges by relevance and by ablation" in page
    assert page.count("<svg") == 4  # two layers, over references and other images
    assert "://" not in re.sub(r'"data:[^"]*"', "", page)
    assert Path("run/level0/images/class-1.png").is_file()
    made = {path: path.stat().st_mtime_ns for path in Path("run").rglob("*.png")}
    assert command(*asked) == 0  # finished: nothing is made again
    assert {path: path.stat().st_mtime_ns for path in made} == made


def test_a_layer_that_cannot_be_ablated_leaves_the_tree(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*_: object) -> None:
        raise UsageError("target.layers", "layer4", "returns tuple: its channels cannot be replaced")

    monkeypatch.setattr(drawn, "IMAGES_PER_CLASS", 2)
    monkeypatch.setattr("vital_exp.circuits.run.causal", refused)
    asked = (*SHORT, *QUIET, "target=circuit", "target.unit=class:heart", "target.width=1", "target.levels=2")
    assert command(*asked, "references.region=image", "target.ablation_images=2", "hydra.run.dir=run") == 0
    said = capsys.readouterr()
    assert "no ablation: target.layers=layer4: returns tuple" in said.out + said.err
    assert not Path("run/causal.json").exists()
    assert "Ablation of channels" not in Path("run/circuit.html").read_text()


def test_relevance_and_pictures_of_a_level_are_of_the_same_windows() -> None:
    """In the size in which the unit saw them, by as many candidates as the folder's size gives."""
    config = compose_config(
        [*SHORT, *QUIET, "target=circuit", "target.unit=layer3:5", "method=vital_fourier", "relevance=lrp"]
    )
    circuit = CircuitRun.from_config(config)
    level = circuit.level([circuit.root])
    assert level.config.references.enlarge is False
    assert level.config.references.candidates == 60  # of 600 drawn images
    assert circuit.references([circuit.root]) is level.references
    side = level.config.image.size
    assert next(iter(level.references.images(circuit.root))).shape == (3, side, side)


def test_a_class_at_the_root_has_the_references_of_classes() -> None:
    def of_root(*asked: str) -> tuple[int, int | str, int]:
        overrides = [
            "model=embedded_resnet",
            "method=vital_fourier",
            "target=circuit",
            "target.unit=class:heart",
            *asked,
        ]
        circuit = CircuitRun.from_config(compose_config(overrides), overrides)
        own = circuit.config_of([circuit.root]).references
        return own.count, own.facets, own.candidates

    assert of_root() == (50, 1, 200)  # the method's choices for hidden units are 12, auto, 80
    assert of_root("references.count=3", "references.facets=2") == (3, 2, 200)


def test_a_unit_that_its_references_do_not_excite(capsys: pytest.CaptureFixture[str]) -> None:
    asked = (*SHORT, *QUIET, "target=circuit", "target.unit=class:heart", "references.root=photos")
    assert command(*asked, "hydra.run.dir=run") == 2
    assert "no positive relevance reaches layer4: its references do not excite class-1" in capsys.readouterr().err


MISTAKES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "no unit": ((), ("target.unit=None", "class:207")),
    "no such class": (("target.unit=class:hart",), ("target.unit=hart", "did you mean heart")),
    "a position": (("target.unit='layer4:1@0,0'",), ("target.unit=", "a class or a channel")),
    "no such layer": (("target.unit=class:heart", "target.layers=[layer9]"), ("target.layers=layer9", "layer4")),
    "one level": (("target.unit=class:heart", "target.levels=1"), ("target.levels=1", "at least 2")),
    "half an image": (
        ("target.unit=class:heart", "target.ablation_images=-1"),
        ("target.ablation_images=-1", "at least 0"),
    ),
    "relevance without maps": (("target.unit=class:heart", "relevance=none"), ("relevance.method=none", "lrp")),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line(mistake: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, words = MISTAKES[mistake]
    assert command(*SHORT, *QUIET, "target=circuit", "hydra.run.dir=run", *arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert all(word in lines[0] for word in words), lines[0]
