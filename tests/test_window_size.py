"""Windows of hidden units that are shown as large as they are, and pictures of their size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from tests.tiny import command
from vital_exp import evaluate
from vital_exp.config import compose_config
from vital_exp.errors import UsageError
from vital_exp.mining.patches import cut, enlarged
from vital_exp.references.drawn import draw
from vital_exp.setup.request import Request
from vital_exp.setup.window_size import settle_windows

UNIT = ["target=channel", "target.layer=layer2", "target.index=[3,5]", "method=vital_fourier", "references.facets=1"]
QUIET = ["references.count=3", "references.candidates=8", "evaluation=none", "logger=none", "progress=false"]
SHORT = ["steps=2", *QUIET]


def request(place: Path, *overrides: str) -> Request:
    return Request.from_config(compose_config([*UNIT, *SHORT, *places(place), *overrides]))


def places(place: Path) -> list[str]:
    return [f"references.root={place / 'photos'}", f"cache_dir={place / 'cache'}"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images to mine and a cache."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "photos").mkdir()
    for number in range(10):
        to_pil_image(draw(number % 5, number, 0)).save(folder / "photos" / f"{number}.png")
    return folder


def first(made: Request) -> Tensor:
    return next(iter(made.references.images(made.targets[0])))


def test_a_window_is_cut_out_as_large_as_it_is() -> None:
    picture = torch.rand(3, 10, 12)
    assert torch.equal(cut(picture, (2, 1, 7, 6)), picture[:, 1:6, 2:7])


def test_pictures_have_the_size_of_windows_where_the_network_takes_it(place: Path) -> None:
    made = request(place, "references.window=20")
    assert (made.config.references.enlarge, made.config.image.size) == (False, 20)
    shown = first(made)
    assert shown.shape == (3, 20, 20)
    large = first(request(place, "references.window=20", "references.enlarge=true"))
    (row, *_) = made.references.rows(made.targets[0])  # type: ignore[attr-defined]
    view = made.references.folder.load(row.image)  # type: ignore[attr-defined]
    torch.testing.assert_close(large, enlarged(view, row.box))
    torch.testing.assert_close(shown, cut(view, row.box))


ENLARGED = [
    (["references.window=20", "references.enlarge=true"], None),
    (["references.window=20", "image.size=32"], 32),
    (["references.window=7"], None),  # less than a quarter of 64
    (["references.window=64"], None),
    (["references.region=image"], None),
    (["references.window=20", "model=embedded_vit", "target.layer=blocks.1"], None),
    (["references.window=20", "target=neuron", "target.position=[7,7]"], None),
]


@pytest.mark.parametrize(("overrides", "size"), ENLARGED)
def test_windows_are_enlarged_otherwise(overrides: list[str], size: int | None, place: Path) -> None:
    made = request(place, *overrides)
    assert (made.config.references.enlarge, made.config.image.size) == (True, size)
    assert first(made).shape == (3, *made.network.preprocessing.size)


REFUSED = [
    (["references.window=7"], r"windows of 7 px are less than a quarter"),
    (["references.region=image"], r"only windows \(references.region=window\) of layers with a map"),
    (["references.window=20", "model=embedded_vit", "target.layer=blocks.1"], r"of layers with a map"),
]


@pytest.mark.parametrize(("overrides", "message"), REFUSED)
def test_windows_that_cannot_stay_as_large_as_they_are(overrides: list[str], message: str, place: Path) -> None:
    with pytest.raises(UsageError, match=rf"references.enlarge=False: .*{message}"):
        request(place, "references.enlarge=false", *overrides)


def test_layers_whose_windows_differ_in_size_are_enlarged(place: Path) -> None:
    made = request(place, "references.enlarge=true")
    other = request(place, "references.enlarge=true", "target.layer=layer1")
    source = made.references
    sides = {"layer1": 18, "layer2": 22}
    source.side = lambda target: sides[target.layer]  # type: ignore[attr-defined, method-assign]
    both = [*made.targets, *other.targets]
    settled = settle_windows(made.config.with_keys(references__enlarge="auto"), made.network, source, both)
    assert settled.references.enlarge is True
    with pytest.raises(UsageError, match="the layers' windows have several sizes: 18, 22 px"):
        settle_windows(made.config.with_keys(references__enlarge=False), made.network, source, both)


def test_neither_true_nor_false(place: Path) -> None:
    with pytest.raises(UsageError, match=r"references.enlarge=atuo: true, false or auto.*did you mean auto"):
        request(place, "references.enlarge=atuo")


@pytest.mark.usefixtures("workplace")
def test_a_run_is_resumed_and_judged_in_the_size_of_its_windows(place: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    asked = ["model=embedded_resnet", *UNIT, *SHORT, "references.window=20", *places(place)]
    for _ in range(2):  # the second finds all done
        assert command(*asked, f"hydra.run.dir={folder}") == 0
    results = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    assert len(results) == 2
    table = evaluate(folder, metrics=["activation_ratio", "own_unit_first", "high_frequency"])
    made = request(place, "references.window=20")
    largest = [made.references.largest_activation(target) for target in made.targets]  # type: ignore[attr-defined]
    shares = [result["activation"] / one for result, one in zip(results, largest, strict=True)]
    value = table.metrics["activation_ratio"]["value"]
    assert value == pytest.approx(sum(shares) / 2, rel=1e-3)
