"""The table of methods: what a network recognises in a sweep's pictures, whole and in crops, and their sheet."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.tiny import ON_CPU, SHORT, command

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import methods


def test_crops_are_squares_of_the_picture() -> None:
    picture = torch.arange(8 * 12).reshape(1, 8, 12)
    found = list(methods.crops(picture, 0.5, torch.Generator().manual_seed(0)))
    assert [crop.shape for crop in found] == [(1, 4, 4)] * methods.CROPS_PER_PICTURE
    assert all((crop[0, :, 1:] - crop[0, :, :-1] == 1).all() for crop in found)
    assert len({int(crop[0, 0, 0]) for crop in found}) > 1
    assert torch.equal(next(methods.crops(picture[..., :8], 1.0, torch.Generator())), picture[..., :8])


@pytest.mark.usefixtures("workplace")
def test_one_table_and_sheet_per_network(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    brief = (*SHORT, *ON_CPU, "target.index=[0,3]", "evaluation=basic", f"cache_dir={workplace / 'cache'}")
    for method in ("fourier", "activation_max"):
        assert command(*brief, f"method={method}", f"hydra.run.dir=sweep/{method}") == 0
    methods.main(["sweep", "--out", "out"])
    head, _, *lines = (workplace / "out/methods_embedded_resnet.md").read_text().splitlines()
    assert "| accuracy_top1 |" in head
    assert "| in crops of 0.25 | in crops of 0.5 | seconds |" in head
    assert sorted(line.split(" | ")[0] for line in lines) == ["| activation_max", "| fourier"]
    with Image.open(workplace / "out/methods_embedded_resnet.jpg") as sheet:
        assert sheet.size == (2 * methods.TILE, 2 * (methods.TILE + methods.LABEL))
    assert "embedded_resnet" in capsys.readouterr().out
