"""What results show of themselves in a notebook."""

from __future__ import annotations

import base64
import io
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from tests.tiny import image_folder, tiny_net
from vital_exp import evaluate, load_model, visualize
from vital_exp.attacks.audit import Audit
from vital_exp.errors import UsageError
from vital_exp.evaluation.score import Score
from vital_exp.evaluation.table import Evaluation
from vital_exp.mining.images import ImageFolder
from vital_exp.mining.mine import Mining
from vital_exp.mining.units import select_units
from vital_exp.notebook_html import table
from vital_exp.progress_bars import hidden
from vital_exp.targets.unit import Target

SIZE = 32
QUIET = ["evaluation=none", "logger=none", "progress=false"]


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_show_themselves(channels: int) -> None:
    module = tiny_net()
    module.conv1 = torch.nn.Conv2d(channels, 8, 3, stride=2, padding=1, bias=False)
    network = load_model(
        module, size=SIZE, mean=[0.5] * channels, std=[0.25] * channels, class_names=["a", "<b>", "c", "d"]
    )
    references = torch.rand(4, channels, SIZE, SIZE)
    made = visualize(network, ["class:1", "class:2"], references=references, steps=2, overrides=QUIET)
    assert repr(made) == f"Pictures(2 of {channels} x {SIZE} x {SIZE}: class-1 <b>, class-2 c)"
    html = made._repr_html_()
    assert "class-1 &lt;b&gt;, activation" in html
    assert "<b>" not in html
    shown = [base64.b64decode(found) for found in re.findall(r"base64,([A-Za-z0-9+/=]+)", html)]
    assert len(shown) == 2
    with Image.open(io.BytesIO(shown[1])) as image:
        pixels = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    np.testing.assert_array_equal(pixels, (made.images[1].expand(3, -1, -1) * 255).round())
    assert made.show(columns=1).size == (128, 2 * 128 + 4)
    assert made.show().size == (2 * 128 + 4, 128)


def test_tables_show_themselves(tmp_path: Path) -> None:
    rows = [{"name": f"<{number}>", "value": number / 3} for number in range(60)]
    html = table(rows)
    assert html.count("<tr>") == 51
    assert "&lt;2&gt;</td><td>0.6667" in html
    assert "and 10 more" in html
    found = Evaluation([Target("class", 0)], {"accuracy": Score(0.5)})
    assert repr(found) == "Evaluation(1 pictures: accuracy 0.5)"
    assert "<td>accuracy</td><td>0.5</td>" in found._repr_html_()
    audit = Audit("silent_units", [tmp_path], ["all well"], [], [{"method": "vital", "n": 2}])
    assert repr(audit) == "Audit(silent_units: all well)"
    assert "<p>all well</p><table>" in audit._repr_html_()


def test_an_index_shows_itself(tmp_path: Path) -> None:
    network = load_model(tiny_net(), size=SIZE)
    folder = ImageFolder(image_folder(tmp_path / "photos", ["a"], count=4), network.preprocessing)
    index = Mining(select_units(network, ["layer1"], "0-2"), folder, 2, None).run(tmp_path / "index")
    assert repr(index).startswith("Index(3 units of layer1 in TinyNet, 4 images, ")
    html = index._repr_html_()
    assert html.count("<tr>") == 4
    shown = [base64.b64decode(found) for found in re.findall(r"base64,([A-Za-z0-9+/=]+)", html)]
    assert len(shown) == 3 * 2
    with (
        Image.open(io.BytesIO(shown[0])) as image,
        Image.open(folder.root / index.top("layer1", 0, 1)[0].image) as whole,
    ):
        assert image.size == whole.size  # smaller than a cell: as it is
        np.testing.assert_array_equal(np.asarray(image), np.asarray(whole.convert("RGB")))
    (tmp_path / "photos").rename(tmp_path / "elsewhere")
    assert f"<td>{index.top('layer1', 0, 1)[0].image}</td>" in index._repr_html_()


def test_bars_are_shown_on_a_terminal_and_in_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: None))
    assert hidden(True) is None
    assert hidden(False) is True
    kernel = SimpleNamespace(config={"IPKernelApp": {}})
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: kernel))
    assert hidden(True) is False
    assert hidden(False) is True


def test_a_run_of_a_module_is_scored_with_the_network(tmp_path: Path) -> None:
    network = load_model(tiny_net(), size=SIZE, class_names=["a", "b", "c", "d"])
    references = torch.rand(4, 3, SIZE, SIZE)
    visualize(network, "class:1", references=references, steps=2, overrides=QUIET, out=tmp_path / "run")
    with pytest.raises(UsageError, match=r"^model=None: the run's network was handed over in Python: .*model=network"):
        evaluate(tmp_path / "run", metrics=["accuracy"])
    assert evaluate(tmp_path / "run", metrics=["accuracy"], model=network).metrics["accuracy_top1"]["n"] == 1
