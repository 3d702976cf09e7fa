"""What networks return: logits are found or named, units of hidden layers need none, heads make probabilities."""

from __future__ import annotations

import json
from collections import OrderedDict, namedtuple
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.tiny import TinyNet, tiny_net
from vital_exp import load_model, mine, visualize
from vital_exp.config import compose_config
from vital_exp.errors import UsageError
from vital_exp.evaluation.evidence import Evidence
from vital_exp.evaluation.metrics import chosen, measure
from vital_exp.evaluation.recognition import logits, verdicts
from vital_exp.models.heads import Head
from vital_exp.models.layers import describe_layers, unit_shapes
from vital_exp.models.loading import wrap
from vital_exp.models.model_config import ModelConfig
from vital_exp.models.network import VisionNetwork
from vital_exp.models.outputs import described, logits_key, parts
from vital_exp.relevance.api import relevance_maps
from vital_exp.setup.request import Request
from vital_exp.visualization.plan import describe_plan

SIDE = 16
REFERENCES = torch.rand(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
SMALL = ("trainer.accelerator=cpu", "references.cache=false", "batch_size=1")


class Returning(nn.Module):
    """A TinyNet that returns what a function makes of its logits (N, classes) and its maps (N, 16, H, W)."""

    def __init__(self, packed: Callable[[Tensor, Tensor], object], classes: int = 4) -> None:
        super().__init__()
        inner: TinyNet = tiny_net(classes)
        self.conv1, self.bn1, self.relu = inner.conv1, inner.bn1, inner.relu
        self.layer1, self.fc = inner.layer1, inner.fc
        self.packed = packed

    def forward(self, pictures: Tensor) -> object:
        maps = self.layer1(self.relu(self.bn1(self.conv1(pictures))))
        return self.packed(self.fc(maps.mean((2, 3))), maps)


def returning(packed: Callable[[Tensor, Tensor], object], classes: int = 4, **keys: Any) -> VisionNetwork:
    return load_model(Returning(packed, classes), size=SIDE, **keys)


class HuggingFaceOutput(OrderedDict[str, Tensor]):
    """As their ModelOutput: a dict whose entries are attributes too."""


@dataclass
class Classified:
    features: Tensor
    logits: Tensor
    loss: Tensor | None = None


@dataclass(slots=True)
class Slotted:
    scores: Tensor


class Wrapped:
    """An object that hands its logits out as a property."""

    def __init__(self, values: Tensor) -> None:
        self._values = values

    @property
    def logits(self) -> Tensor:
        return self._values


Named = namedtuple("Named", ["prediction", "aux_logits"])

LOGITS: Mapping[str, Callable[[Tensor, Tensor], object]] = {
    "tuple": lambda z, m: (z, m),
    "logits and aux": lambda z, m: Named(z, z[:, :2]),
    "nested": lambda z, m: [m, (m, [z])],
    "dict": lambda z, m: {"out": m, "scores": z},
    "aux first": lambda z, m: {"aux": z[:, :3], "out": z},
    "features first": lambda z, m: {"features": m.mean((2, 3)), "loss": z[:, 0], "out": z},
    "named logits": lambda z, m: HuggingFaceOutput(pooled=m.mean((2, 3)), logits=z),
    "dataclass": lambda z, m: Classified(m.mean((2, 3)), z),
    "slots": lambda z, m: {"head.one": Slotted(z)},
    "object": lambda z, m: Wrapped(z),
    "namespace": lambda z, m: SimpleNamespace(predicted=z.argmax(1), maps=m, out=z),
    "(N, K, 1, 1)": lambda z, m: z[:, :, None, None],
    "(N, 1, K)": lambda z, m: (z[:, None],),
}


@pytest.mark.parametrize("kind", LOGITS)
def test_logits_are_found_in_whatever_a_network_returns(kind: str) -> None:
    plain, network = returning(lambda z, m: z), returning(LOGITS[kind])
    assert len(network.classes) == 4
    for count in (1, 2, 3):
        assert torch.equal(network(REFERENCES[:count]), plain(REFERENCES[:count]))
    maps = [relevance_maps(one, REFERENCES[:2], "class:3", ["conv1"], "lrp")["conv1"] for one in (plain, network)]
    assert torch.equal(*maps)
    assert maps[0].abs().sum() > 0
    assert unit_shapes(network)["output"] == (4, 1)
    own = relevance_maps(network, REFERENCES[:2], "output:3", ["conv1"], "lrp")["conv1"]
    assert torch.equal(own, maps[0])


@pytest.mark.parametrize("packed", [lambda z, m: z[:, 0], lambda z, m: z.squeeze(), lambda z, m: {"p": z[..., None]}])
def test_a_single_output_that_is_squeezed(packed: Callable[[Tensor, Tensor], object]) -> None:
    plain, network = returning(lambda z, m: z, 1), returning(packed, 1)
    assert len(network.classes) == 1
    for count in (1, 3):
        assert torch.equal(network(REFERENCES[:count]), plain(REFERENCES[:count]))
    squeezed = returning(lambda z, m: z.squeeze())  # (4,) of one picture
    assert squeezed(REFERENCES[:1]).shape == (1, 4)


def two_heads(z: Tensor, m: Tensor) -> object:
    return {"heads": {"shape": z, "colour": -z[:, :3]}, "maps": m}


def test_a_key_chooses_among_outputs(caplog: pytest.LogCaptureFixture) -> None:
    first, second = returning(two_heads), returning(two_heads, output="heads.colour")
    assert "heads.shape is taken as its logits; model.output=heads.colour chooses another" in caplog.text
    assert torch.equal(second(REFERENCES), -first(REFERENCES)[:, :3])
    assert len(second.classes) == 3
    by_names = returning(two_heads, class_names=["red", "green", "blue"])
    assert by_names.output.key == "heads.colour"
    assert returning(lambda z, m: (m, z), output=1).output.classes == 4
    assert returning(lambda z, m: Named(z, z[:, :2]), output="1").output.classes == 2
    assert caplog.text.count("is taken as") == 1
    maps = returning(two_heads, output="maps")
    assert maps.class_names is None
    assert unit_shapes(maps)["output"] == (16, SIDE // 4, SIDE // 4)
    made = visualize(maps, ["output:5"], references=REFERENCES, method="fourier", steps=2, overrides=SMALL)
    assert made.results[0]["status"] == "done"
    one = Request.of(Returning(two_heads), "class:0", overrides=[*SMALL, "model.output=heads.colour", "steps=1"],
                     references=torch.rand(2, 3, 224, 224))  # fmt: skip
    assert len(one.network.classes) == 3
    with pytest.raises(UsageError, match=r"model\.output=maps: the network is wrapped already"):
        Request.of(maps, "conv1:0", overrides=["model.output=maps"])


@pytest.mark.parametrize(
    ("key", "told"),
    [
        ("heads.color", r"heads\.shape \(N, 4\), heads\.colour \(N, 3\), maps \(N, 16, .*did you mean heads\.colour"),
        ("heads", r"does not name one tensor; the network returns heads\.shape \(N, 4\)"),
        (7, r"model\.output=7: does not name one tensor"),
    ],
)
def test_a_wrong_key_is_told_what_there_is(key: str | int, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        returning(two_heads, output=key)


def test_other_mistakes_of_the_key() -> None:
    with pytest.raises(UsageError, match=r"model\.output=logits: the network returns one tensor.*leave the key out"):
        returning(lambda z, m: z, output="logits")
    with pytest.raises(UsageError, match=r"model\.output=best: has no numbers for each picture: \(N,\) torch.int64"):
        returning(lambda z, m: {"out": z, "best": z.argmax(1)}, output="best")


# Hidden units need no output.


def boxes(z: Tensor, m: Tensor) -> object:
    """As torchvision's detectors: a list of one dict for each picture, with another number of boxes each."""
    return [{"boxes": one.new_zeros(i + 1, 4), "scores": one[: i + 1]} for i, one in enumerate(z)]


ANYTHING: Mapping[str, Callable[[Tensor, Tensor], object]] = {
    "segmentation": lambda z, m: OrderedDict(out=m, aux=m),
    "detection": boxes,
    "nothing": lambda z, m: None,
    "generator": lambda z, m: (one for one in (z, m)),
    "text": lambda z, m: {"answer": ["a cat"] * len(z)},
    "tokens": lambda z, m: (m.flatten(2).transpose(1, 2),),
    "dense logits": lambda z, m: {"features": z, "logits": m},
}
METHODS = ("vital", "maco", "accentuation", "fourier")


@pytest.fixture(scope="module")
def usual() -> tuple[Tensor, Tensor]:
    """A picture and a relevance map of a unit of the network that returns its logits."""
    return shown(returning(lambda z, m: z))


def shown(network: VisionNetwork) -> tuple[Tensor, Tensor]:
    asked: dict[str, Any] = {"references": REFERENCES, "method": "vital_fourier", "steps": 2, "overrides": SMALL}
    maps = relevance_maps(network, REFERENCES, "layer1:3@1,1", ["conv1"])
    return visualize(network, ["layer1.0:3"], **asked).images, maps["conv1"]


@pytest.mark.parametrize("kind", ANYTHING)
def test_hidden_units_need_no_output(kind: str, usual: tuple[Tensor, Tensor]) -> None:
    network = returning(ANYTHING[kind])
    assert network.class_names is None
    assert all(map(torch.equal, shown(network), usual))
    with pytest.raises(UsageError, match=r"target=class: .*no class outputs \(N, classes\) among what it returns \("):
        _ = network.classes


class Padding(Returning):
    """Copies each picture into a frame first, as torchvision's detectors do: no rule of relevance is for that."""

    def forward(self, pictures: Tensor) -> object:
        framed = torch.zeros_like(pictures)
        for number in range(len(pictures)):
            framed[number][:, :SIDE].copy_(pictures[number])
        return super().forward(framed)


def test_what_a_detector_does_to_its_input_needs_no_rule(usual: tuple[Tensor, Tensor]) -> None:
    assert all(map(torch.equal, shown(load_model(Padding(boxes), size=SIDE)), usual))
    network = load_model(Padding(lambda z, m: torch.fft.fft(z).abs()), size=SIDE)
    with pytest.raises(UsageError, match="no rule for the operation fft"):  # the one in the way, not the first of all
        relevance_maps(network, REFERENCES, "class:1", ["conv1"])


@pytest.mark.parametrize("method", METHODS)
def test_hidden_units_need_no_output_by_any_method(method: str) -> None:
    network = returning(lambda z, m: None)
    extra = {"init": REFERENCES[:1]} if method == "accentuation" else {}
    with_norms = ["objective=[activation,batch_norm]", "transforms=none"] if method == "fourier" else []
    asked: dict[str, Any] = {"references": REFERENCES, "method": method, "steps": 2, **extra}
    made = visualize(network, ["layer1.0:3"], overrides=[*SMALL, *with_norms], **asked)
    assert made.results[0]["status"] == "done"


def test_mining_and_plans_need_no_output(tmp_path: Path) -> None:
    from PIL import Image

    for number, image in enumerate(REFERENCES):
        pixels = (image * 255).byte().permute(1, 2, 0).numpy()
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.fromarray(np.ascontiguousarray(pixels)).save(tmp_path / f"images/{number}.png")
    network = returning(boxes)
    index = mine(network, ["layer1"], tmp_path / "images", k=2, out=tmp_path / "index", progress=False, workers=0)
    assert len(index.top("layer1", 3)) == 2
    for place, call in {
        "layers": lambda: mine(network, ["output"], tmp_path / "images", k=2, progress=False),
        "target.layer": lambda: visualize(network, ["output:0"], references=REFERENCES, overrides=SMALL),
    }.items():
        with pytest.raises(UsageError, match=r"no tensor with a row for each picture.*a list of one result for each"):
            call()
        assert place
    file = tmp_path / "own.py"
    file.write_text("from tests.test_outputs import Returning\ndef build():\n    return Returning(lambda z, m: None)\n")
    config = compose_config([
        *("model=python", f"model.factory={file}:build", f"model.size={SIDE}", "target=channel", "target.layer=layer1"),
        *("target.index=3", f"references.root={tmp_path / 'images'}", "references.count=2", *SMALL),
    ])  # fmt: skip
    assert "layer1" in describe_plan(Request.from_config(config))
    assert "layer1.0" in describe_layers(network)


def test_metrics_of_a_network_that_returns_nothing() -> None:
    from vital_exp.references.tensors import TensorReferences
    from vital_exp.targets.class_names import ClassNames
    from vital_exp.targets.unit import Target

    network = returning(lambda z, m: None)
    targets = [Target("channel", index, "layer1.0") for index in (1, 3)]
    references = TensorReferences(REFERENCES, ClassNames.numbered(1))
    shown = (REFERENCES[:2] * 255).byte()
    scores = measure(
        Evidence(network, targets, shown, references), chosen(["activation_ratio", "fid", "inception_score"])
    )
    assert scores["activation_ratio"].value is not None
    reasons = [str(score.reason) for name, score in scores.items() if name != "activation_ratio"]
    assert all("not computed: needs" in reason for reason in reasons), reasons
    assert len(reasons) == 2


def test_the_rule_by_hand() -> None:
    rows = torch.rand(2, 5)
    assert logits_key({"loss": torch.rand(()), "y": rows}, 2) == "y"
    assert logits_key((torch.rand(2), rows), 2) == "1"  # (N,) comes last
    assert logits_key((torch.rand(2), torch.rand(2, 3), rows), 2, wanted=5) == "2"
    assert logits_key({"labels": torch.ones(2, 5).long(), "scores": rows}, 2) == "scores"
    assert logits_key([rows, torch.rand(3, 5)], 2) == "0"
    assert logits_key({"hidden_states": (rows, rows)}, 2) is None
    assert logits_key({"deep": {"logits": rows}, "first": rows}, 2) == "deep.logits"
    assert logits_key([{"a": rows}, {"a": rows}], 2) is None  # one result for each of two pictures
    assert parts(nn.Linear(1, 1)) == {}
    looped: dict[str, object] = {"y": rows}
    looped["self"] = looped
    assert "y (N, 5)" in described(looped, 2)
    assert described((one for one in ()), 2) == "a generator without tensors"


# Heads.


def test_verdicts_of_a_sigmoid_by_hand() -> None:
    sigmoid = Head("sigmoid")
    single = verdicts(torch.tensor([[-5.0], [2.0], [0.0]]), torch.tensor([0, 0, 0]), sigmoid)
    assert single["top1"].tolist() == [0, 1, 0]
    assert single["probability"].tolist() == pytest.approx([1 / (1 + np.exp(5)), 1 / (1 + np.exp(-2)), 0.5])
    scores = torch.tensor([[3.0, 4, -1, -2, -3, -4]]).expand(4, -1)
    several = verdicts(scores, torch.arange(4), sigmoid)
    assert several["top1"].tolist() == [0, 1, 0, 0]
    assert several["top5"].tolist() == [1, 1, 0, 0]  # the third is among the five highest, and denied
    assert several["probability"].tolist() == pytest.approx((1 / (1 + np.exp([-3, -4, 1, 2]))).tolist())
    assert verdicts(scores, torch.arange(4))["top5"].tolist() == [1, 1, 1, 1]


def test_what_says_nothing_recognises_nothing() -> None:
    constant = verdicts(torch.zeros(2, 8), torch.tensor([0, 7]))
    assert constant["top1"].tolist() == [0, 0]
    assert constant["top5"].tolist() == [0, 0]
    broken = verdicts(torch.tensor([[torch.nan, 1.0], [2.0, 1.0]]), torch.tensor([0, 0]))
    assert torch.isnan(broken["top1"]).tolist() == [True, False]


def scored(network: VisionNetwork, tmp_path: Path, **more: Any) -> tuple[dict[str, Any], str]:
    out = tmp_path / "run"
    overrides = [*SMALL, "evaluation=basic", "logger=none", *more.get("overrides", ())]
    given: dict[str, Any] = {"references": REFERENCES, "method": "vital_fourier", "steps": 2, "out": out}
    visualize(network, ["class:0"], overrides=overrides, **given)
    page = (out / "report.html").read_text()
    metrics: dict[str, Any] = json.loads((out / "metrics.json").read_text())
    assert json.loads((out / "provenance.json").read_text())["head"] == network.head.kind
    return metrics, page


def biased(classes: int, bias: float, head: str | None = None) -> VisionNetwork:
    module = tiny_net(classes)
    with torch.no_grad():
        module.fc.bias.fill_(bias)
    return load_model(module, size=SIDE, head=head)


def test_one_logit_is_read_by_its_sigmoid(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    network = biased(1, -5)
    assert "has one output" in caplog.text
    metrics, page = scored(network, tmp_path)
    assert metrics["accuracy_top1"]["value"] == 0
    assert metrics["probability"]["value"] < 0.1
    assert "sigmoid of the class" in page


def test_a_head_of_none_makes_up_no_probability(tmp_path: Path) -> None:
    metrics, page = scored(biased(1, 5, "none"), tmp_path)
    assert set(metrics) == {"accuracy"}
    assert metrics["accuracy"]["value"] is None
    assert "model.head=none" in metrics["accuracy"]["reason"]
    assert "model.head=none" in page
    assert "recognised</span>" not in page


@pytest.mark.parametrize(("classes", "head"), [(1, None), (4, "sigmoid"), (4, "none")])
def test_metrics_that_need_a_softmax_are_not_made_up(classes: int, head: str | None) -> None:
    from vital_exp.targets.unit import Target

    network = biased(classes, 0, head)
    shown = (REFERENCES * 255).byte()
    evidence = Evidence(network, [Target("class", 0, variation=v + 1) for v in range(3)], shown)
    scores = measure(evidence, chosen(["accuracy", "inception_score"]))
    assert "not computed: needs a softmax" in str(scores["inception_score[target]"].reason) or head == "none"
    assert scores["inception_score[target]"].value is None
    own = logits(network, shown.float() / 255).sigmoid()[:, 0]
    if head == "none":
        assert "model.head=none" in str(scores["accuracy"].reason)
    else:
        assert scores["probability"].value == pytest.approx(float(own.mean()), abs=1e-5)


@pytest.mark.parametrize(
    ("squash", "kind"),
    [(nn.Softmax(dim=1), "softmax"), (nn.Sigmoid(), "sigmoid"), (lambda z: torch.sigmoid(z).squeeze(-1), "sigmoid")],
)
def test_a_softmax_or_sigmoid_at_the_end_is_not_taken_twice(squash: Callable[[Tensor], Tensor], kind: str) -> None:
    classes = 4 if isinstance(squash, nn.Module) else 1
    plain, network = returning(lambda z, m: z, classes, head=kind), returning(lambda z, m: squash(z), classes)
    assert network.head == Head(kind, inside=True)
    index = torch.zeros(3).long()
    own, through = (verdicts(one(REFERENCES), index, one.head) for one in (plain, network))
    assert torch.allclose(own["probability"], through["probability"], atol=1e-6)
    assert torch.equal(own["top1"], through["top1"])
    logs = [one.head.log_probabilities(one(REFERENCES)) for one in (plain, network)]
    assert torch.allclose(*logs, atol=1e-5)
    with pytest.raises(UsageError, match=rf"model\.head=.*the network ends in a {kind}"):
        returning(lambda z, m: squash(z), classes, head={"softmax": "sigmoid", "sigmoid": "softmax"}[kind])
    attention = returning(lambda z, m: z * z.softmax(dim=1), classes)  # a softmax inside is no end
    assert not attention.head.inside


def test_cross_entropy_of_a_sigmoid() -> None:
    outputs = torch.tensor([[0.3, -1.0, 2.0]])
    wanted = functional.binary_cross_entropy_with_logits(outputs, torch.ones(1, 3), reduction="none")
    assert torch.allclose(-Head("sigmoid").log_probabilities(outputs), wanted)
    overrides = [*SMALL, "objective=cross_entropy"]
    made = visualize(biased(1, -5), ["class:0"], references=REFERENCES, method="fourier", steps=3, overrides=overrides)
    losses = made.history["class-0"]["total"]
    assert losses[-1] < losses[0]
    with pytest.raises(UsageError, match=r"cross_entropy: needs probabilities of classes; model\.head=none"):
        visualize(biased(4, 0, "none"), ["class:0"], references=REFERENCES, method="fourier", overrides=overrides)


@pytest.mark.parametrize(
    ("keys", "classes", "told"),
    [
        ({"head": "softmax"}, 1, r"model\.head=softmax: the softmax of one output is 1"),
        ({"head": "sigmiod"}, 4, r"model\.head=sigmiod: one of softmax, sigmoid, none \(did you mean sigmoid\?\)"),
        ({"class_names": ["cat", "dog"]}, 1, r"model\.class_names=2 names: the network has 1 class.*one name"),
    ],
)
def test_mistakes_of_heads(keys: dict[str, Any], classes: int, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        load_model(tiny_net(classes), size=SIDE, **keys)


def test_features_have_no_head() -> None:
    with pytest.raises(UsageError, match=r"model\.head=sigmoid: the network has no outputs \(N, classes\)"):
        returning(lambda z, m: m, head="sigmoid")
    module = Returning(lambda z, m: z)
    module.num_classes = 0  # type: ignore[assignment]
    assert wrap(module, ModelConfig(size=SIDE)).class_names is None
    assert len(wrap(module, ModelConfig(size=SIDE, head="softmax")).classes) == 4
