"""Atlases of networks that nobody had in mind: wrapped, of other outputs, axes and channels; default layers."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny import exit_code, image_folder
from vital_exp.atlases.store import DONE, Store
from vital_exp.commands.atlas import main

CODE = """
import torch
from torch import nn

from tests.tiny import tiny_net


class Wrapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.ModuleDict({"net": tiny_net(width=4)})

    def forward(self, x):
        return {"logits": self.backbone["net"](x), "loss": None}


class Tuple(Wrapped):
    def forward(self, x):
        return self.backbone["net"](x), x


class OneLogit(Wrapped):
    def forward(self, x):
        return self.backbone["net"](x)[:, :1]


def grey():
    network = tiny_net(width=4)
    old = network.conv1
    network.conv1 = nn.Conv2d(1, old.out_channels, old.kernel_size, old.stride, old.padding, bias=False)
    network.conv1.weight.data = old.weight.data.sum(1, keepdim=True)
    return network.eval()


class ChannelsLast(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Conv2d(3, 8, 4, 4)
        self.blocks = nn.ModuleList(nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.GELU()) for _ in range(3))
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = self.embed(x).permute(0, 2, 3, 1)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x.mean((1, 2)))
"""
SHORT = ("steps=1", "units=0-1", "facets=1", "shown=3", "workers=0", "progress=false", "map=pca", "judge=null")
# Few images: references are fewer than asked for.
pytestmark = [
    pytest.mark.filterwarnings("ignore::vital_exp.references.folder.ReferenceWarning"),
    pytest.mark.slow,
]


@pytest.mark.parametrize("kind", ["Wrapped", "Tuple", "OneLogit", "grey", "ChannelsLast"])
def test_every_default_layer_has_units_with_pictures(kind: str, workplace: Path) -> None:
    (workplace / "nets.py").write_text(CODE)
    image_folder(workplace / "photos", ["cat", "dog"], 10, side=32)
    more = ["model.mean=[0.5]", "model.std=[0.5]"] if kind == "grey" else []
    asked = ["model=python", f"model.factory=nets.py:{kind}", "model.size=32", "images=photos", *more, *SHORT]
    asked += ["trainer.accelerator=cpu", f"cache_dir={workplace}/cache", "hydra.run.dir=atlas"]
    assert exit_code(main, *asked) == 0
    store = Store.open("atlas")
    layers = store.layers()
    assert len(layers) >= 2
    for layer in layers:
        assert [row.status for row in store.units(layer.layer)] == [DONE] * 2
        assert all(row.picture for row in store.facets(layer.layer))
        assert all(row.file for row in store.images(layer.layer))
