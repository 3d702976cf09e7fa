"""The command vital-audit: every check on a run of the embedded network, what it writes, its mistakes in one line."""

from __future__ import annotations

import csv
import json
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from tests.tiny import ON_CPU, SHORT, command, exit_code
from vital_exp import audit, visualize
from vital_exp.attacks.audit import _fewer_views
from vital_exp.attacks.natural import natural_images
from vital_exp.attacks.paths import compared_layers, similarity_plot, verdict
from vital_exp.attacks.recorded import RecordedRun
from vital_exp.attacks.saved import load_network
from vital_exp.attacks.slingshot import slingshot as slingshot_of
from vital_exp.commands.audit import main
from vital_exp.commands.hydra_app import MISTAKE
from vital_exp.errors import UsageError
from vital_exp.images.output import resized, to_uint8
from vital_exp.models.named import named_network
from vital_exp.references.drawn import draw
from vital_exp.targets.unit import Target

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("workplace")]

# The shortest audit there is.
BRIEF = ("count=4", "methods=[fourier]", "steps=1", "targets=1")
ONE_STEP = {"count": 4, "steps": 1, "targets": 1}
TUNING = ("tuning.steps=1", "tuning.batch_size=2")
CIRCUIT = (
    "snapshots.steps=4",
    "snapshots.seeds=1",
    "snapshots.least_units=4",
    "detector.epochs=1",
    "detector.least_updates=1",
)
CHECKS = {"fooling_circuit": CIRCUIT, "silent_units": (), "slingshot": TUNING, "diversion": ()}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two classes, one of a single class, one of two hidden units."""
    root = tmp_path_factory.mktemp("runs")
    brief = (*SHORT, *ON_CPU, f"cache_dir={root / 'cache'}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", sys.argv)
        patch.setenv("HYDRA_FULL_ERROR", "1")
        assert command(*brief, "target.index=[0,3]", f"hydra.run.dir={root / 'classes'}") == 0
        assert command(*brief, f"hydra.run.dir={root / 'single'}") == 0
        hidden = ("target=channel", "target.layer=layer3", "target.index=[1,2]", "relevance=none", "method=fourier")
        assert command(*brief, *hidden, f"hydra.run.dir={root / 'hidden'}") == 0
    return root


def run_audit(*arguments: str) -> int:
    """Run vital-audit in this process and return its exit code."""
    return exit_code(main, *arguments)


def rows(folder: str) -> list[dict[str, str]]:
    with (Path(folder) / "audit.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_path_similarity_of_several_runs(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = f"run=[{runs / 'classes'},{runs / 'classes'}/../classes]"
    assert run_audit(folders, "count=4", "layer=[conv1,layer3,fc]", "hydra.run.dir=out") == 0
    assert capsys.readouterr().out.count("vital (classes):") == 2
    found = rows("out")
    assert len(found) == 2 * 3 * 3  # runs, layers, measures
    assert {row["measure"] for row in found} == {"spearman", "pearson", "cosine"}
    for row in found:
        picture, same, different = (float(row[key]) for key in ("picture", "same", "different"))
        assert float(row["value"]) == pytest.approx((picture - different) / (same - different))
        assert float(row["low"]) <= float(row["value"]) <= float(row["high"])
    page = Path("out/report.html").read_text()
    assert "<svg" in page
    assert "http-equiv" in page
    assert Path("out/plot.svg").read_text().count("<polyline") == 2


def test_pictures_of_another_size_are_compared_at_the_networks(runs: Path, workplace: Path) -> None:
    large, fitted = workplace / "large", workplace / "fitted"
    for folder in (large, fitted):
        shutil.copytree(runs / "classes", folder)
    for file in large.glob("images/class-?.png"):
        with Image.open(file) as image:
            doubled = image.convert("RGB").resize((2 * image.width, 2 * image.height))
        doubled.save(file)
        pixels = torch.from_numpy(np.array(doubled)).permute(2, 0, 1)[None] / 255
        small = resized(pixels, (doubled.height // 2, doubled.width // 2))[0]
        Image.fromarray(to_uint8(small).permute(1, 2, 0).numpy()).save(fitted / "images" / file.name)
    assert run_audit(f"run=[{large},{fitted}]", "count=4", "layer=[conv1,fc]", "hydra.run.dir=out") == 0
    values = [float(row["value"]) for row in rows("out")]
    assert values[: len(values) // 2] == pytest.approx(values[len(values) // 2 :], abs=0.01)


def test_natural_images_are_processed_as_natural_images_are(runs: Path, workplace: Path) -> None:
    """Natural images in place of the pictures reach the ceiling; those of the other class, the floor."""
    folder = Path(shutil.copytree(runs / "classes", workplace / "natural"))
    values = {}
    for name, order in (("own", (0, 3)), ("other", (3, 0))):
        for target, index in zip(("class-0", "class-3"), order, strict=True):
            array = (draw(index, 900, 5).permute(1, 2, 0) * 255).round().byte().numpy()
            Image.fromarray(array).save(folder / "images" / f"{target}.png")
        found = audit("path_similarity", folder, layer=["layer4", "fc"], count=20)
        values[name] = [row["value"] for row in found.rows]
    assert min(values["own"]) > 0.6
    assert max(values["other"]) < 0.2


@pytest.mark.parametrize("check", CHECKS)
def test_every_attack_of_classes(runs: Path, check: str, capsys: pytest.CaptureFixture[str]) -> None:
    asked = (f"run={runs / 'classes'}", f"check={check}", *BRIEF, *CHECKS[check], "hydra.run.dir=out")
    assert run_audit(*asked, "judges=[embedded_judge]") == 0
    said = capsys.readouterr().out
    assert said.splitlines()[1].startswith(f"{check} x fourier: ")
    (row,) = rows("out")
    assert row["target"] == "class-0"
    assert 0 <= float(row["decoy_probability[embedded_judge]"]) <= 1
    assert 0 < float(row["decoy_distance"]) < 4
    content = json.loads(Path("out/audit.json").read_text())
    if check == "silent_units":
        assert content["facts"]["logits_unchanged"] == 1
        assert content["table"][0]["agreement"] == 1
    if check == "fooling_circuit":
        assert any("by construction" in note for note in content["notes"])
    page = Path("out/report.html").read_text()
    assert "fourier, attacked" in page
    assert page.count("data:image/png") == 3  # decoy, before, after
    ((folder, overrides),) = content["saved"].items()
    network = load_network(Path("out/attacked") / folder)
    assert network.class_names == named_network("embedded_resnet").class_names
    if check == "silent_units":  # the command takes any of them alike
        assert command(*shlex.split(overrides), *SHORT[1:], *ON_CPU, "method=fourier", "hydra.run.dir=again") == 0


def test_attacks_of_hidden_units(runs: Path) -> None:
    for check in ("silent_units", "proxpulse"):
        asked = (f"run={runs / 'hidden'}", f"check={check}", *BRIEF, *TUNING, f"hydra.run.dir={check}")
        assert run_audit(*asked) == 0
        (row,) = rows(check)
        assert row["target"] == "channel-layer3-1"
        assert float(row["attacked_activation"]) == float(row["attacked_activation"])  # a number
    assert "top_images_kept" in rows("proxpulse")[0]
    below = {**ONE_STEP, "methods": ["vital"], "layer": "layer2.0.conv1"}  # relevance passes the silent units
    assert audit("silent_units", runs / "hidden", **below).rows[0]["method"] == "vital"
    similar = audit("path_similarity", runs / "hidden", layer="layer2", count=3)
    assert {row["n"] for row in similar.rows} == {2}


def test_a_diversion_makes_one_picture_of_each_hidden_unit(runs: Path) -> None:
    """With 16 references or more, vital_fourier would make one picture of each facet."""
    found = audit("diversion", runs / "hidden", count=16, steps=1, methods=["vital_fourier"])
    assert [row["target"] for row in found.rows] == ["channel-layer3-1", "channel-layer3-2"]


def test_a_circuit_is_broken_and_no_decoy_is_shown(runs: Path) -> None:
    for run in ("classes", "hidden"):
        asked = (f"run={runs / run}", "check=circuit_breaker", *BRIEF, *TUNING, f"hydra.run.dir={run}")
        assert run_audit(*asked) == 0
        (row,) = rows(run)
        assert "decoy_distance" not in row
        assert 0 <= float(row["circuit_kept_relevance"]) <= 1
        page = (Path(run) / "report.html").read_text()
        assert page.count("data:image/png") == 2  # before and after
    assert load_network(next(Path("hidden/attacked").iterdir())).name.endswith("circuit breaker")


def test_a_slingshot_at_the_alignment(runs: Path) -> None:
    asked = ("check=slingshot", "aim=alignment", *BRIEF[:1], "steps=1", "targets=1", "methods=[vital_fourier]", *TUNING)
    for run in ("classes", "hidden"):
        assert run_audit(f"run={runs / run}", *asked, f"hydra.run.dir={run}") == 0
        (row,) = rows(run)
        assert row["attack"] == "alignment_slingshot"
        assert -1 <= float(row["slope_cosine_after"]) <= 1
        assert 0 <= float(row["decoy_correspondence"]) <= 1


def test_an_arbitrary_picture_is_shown(runs: Path, workplace: Path) -> None:
    Image.new("RGB", (64, 64), (200, 40, 40)).save(workplace / "red.png")
    brief = {"snapshots": {"steps": 4, "seeds": 1, "least_units": 0}, "detector": {"epochs": 1, "least_updates": 1}}
    asked = {"count": 4, "methods": ["fourier"], "steps": 1, "targets": 1, "decoy": "red.png"}
    found = audit("fooling_circuit", runs / "classes", **asked, **brief)
    (_, decoy), *_ = found.panels[0].pictures
    torch.testing.assert_close(decoy[:, 5, 5], torch.tensor([200, 40, 40]) / 255)


def test_of_few_classes_the_detector_also_learns_from_channels(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[Target]] = []

    def taken(_network: object, targets: Sequence[Target], *_: object, **__: object) -> torch.Tensor:
        asked.append(list(targets))
        return torch.rand(len(targets), 3, 64, 64)

    monkeypatch.setattr("vital_exp.attacks.audit.snapshots", taken)
    brief = {
        "count": 4,
        "methods": ["fourier"],
        "steps": 1,
        "targets": 1,
        "detector": {"epochs": 1, "least_updates": 1},
    }
    audit("fooling_circuit", runs / "classes", **brief, snapshots={"least_units": 5})
    trained, *channels, held_out = asked
    assert [target.name for target in (*trained, *held_out)] == ["class-0", "class-3"]
    names = [[target.name for target in layer] for layer in channels]
    assert names == [["channel-layer3-0", "channel-layer3-48"], ["channel-layer4-0", "channel-layer4-96"]]
    audit("fooling_circuit", runs / "classes", **brief, snapshots={"least_units": 0})
    assert len(asked) == 6


def test_a_saved_network_answers_as_it_did(runs: Path, workplace: Path) -> None:
    found = audit("silent_units", runs / "classes", workplace / "out", count=4, methods=["fourier"], steps=1, targets=1)
    given = natural_images(RecordedRun.of(runs / "classes", 4, None).references, [0, 3], 4).images
    noise = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    honest, saved = named_network("embedded_resnet"), load_network(workplace / "out/attacked/network")
    with torch.no_grad():
        assert torch.equal(honest(given), saved(given))  # silent for what it was built with
        assert not torch.equal(honest(noise), saved(noise))  # and there
    assert saved.name.endswith("silent units at layer4.0.conv1")
    assert len(found.saved) == 1


@pytest.mark.parametrize(
    ("check", "run", "options", "problem"),
    [
        ("silent_unit", "classes", {}, "did you mean silent_units"),
        ("path_similarity", "nowhere", {}, "no such folder"),
        ("path_similarity", "classes", {"count": 1}, "count=1: a whole number of at least 2"),
        ("path_similarity", "classes", {"layer": "layr3"}, "layer=layr3"),
        ("path_similarity", "single", {}, "at least two targets"),
        ("path_similarity", "classes", {"images": "nowhere"}, "nowhere"),
        ("slingshot", "classes", {"methods": ["lucid"]}, "methods=lucid: one of"),
        ("slingshot", "classes", {"methods": "fourier"}, "a list of methods"),
        ("slingshot", "classes", {"overrides": "transforms=lucid"}, "overrides=transforms=lucid: a list of overrides"),
        ("slingshot", "classes", {"aim": "alignmnt"}, "did you mean alignment"),
        (
            "slingshot",
            "classes",
            {"aim": "alignment", "methods": ["fourier"], "count": 4},
            "methods=fourier: aim=align",
        ),
        ("circuit_breaker", "classes", {"count": 4, "layer": "layr3"}, "layer=layr3: no such layer"),
        ("slingshot", "classes", {"tuning": {"steps": 0}}, "tuning.steps=0: a whole number of at least 1"),
        ("slingshot", "classes", {"tuning": {"preservation": 2}}, "tuning.preservation=2: a number from 0 to 1"),
        ("slingshot", "classes", {"tuning": {"epochs": 3}}, "no such key"),
        ("silent_units", "single", {"count": 2}, "natural images of at least two classes"),
        ("silent_units", "classes", {"count": 2, "layer": "layer4.0.bn1"}, "is no convolution"),
        ("silent_units", "classes", {"count": 2, "decoy": "small.png"}, "decoy=3x16x16: an image of the network"),
        ("silent_units", "classes", {"count": 2, "decoy": "none.png"}, "decoy=none.png: no such file"),
        ("silent_units", "classes", {"count": 2, "decoy": "stra"}, "did you mean star"),
        ("proxpulse", "classes", {"count": 2}, "a hidden unit is needed"),
        ("fooling_circuit", "hidden", {"count": 2}, "a run of classes is needed"),
        ("fooling_circuit", "classes", {"snapshots": {"held_out": 1.5}}, "a share between 0 and 1"),
        ("fooling_circuit", "classes", {"snapshots": {"steps": None}}, "snapshots.steps=None"),
        ("fooling_circuit", "classes", {"detector": {"lr": -1}}, "detector.lr=-1"),
    ],
)
def test_mistakes(runs: Path, check: str, run: str, options: dict[str, object], problem: str) -> None:
    Image.new("RGB", (16, 16)).save("small.png")
    with pytest.raises(UsageError) as mistake:
        audit(check, runs / run, **options)
    assert problem in str(mistake.value)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("check=silent_units",), "run=None: a run folder of vital-visualize is needed"),
        (("run=nowhere",), "no such folder"),
        (("run=nowhere", "check=silent_unit"), "silent_units"),
        (("run=nowhere", "chek=silent_units"), "chek"),
        (("run=[one,two]", "check=silent_units"), "one run folder; path similarity takes several"),
    ],
)
def test_mistakes_are_told_in_one_line(
    arguments: tuple[str, ...], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_audit(*arguments, "hydra.run.dir=out") == MISTAKE
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert problem in told


def test_a_run_of_tensors_has_no_natural_images(workplace: Path) -> None:
    visualize("embedded_resnet", ["class:0"], references=torch.rand(2, 3, 64, 64), steps=1, out=workplace / "run",
              overrides=["evaluation=none"])  # fmt: skip
    with pytest.raises(UsageError, match=r"no natural images to compare with.*images=folder"):
        audit("path_similarity", workplace / "run")


def lines(*values: float) -> list[dict[str, object]]:
    return [
        {"run": "r", "method": "m", "layer": f"l{i}", "measure": "spearman", "low": v, "high": v, "value": v}
        for i, v in enumerate(values)
    ]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ((0.1, 0.7, 0.9), "from l1 on (layer 2 of 3)"),
        ((0.8, 0.2, 0.9), "from l2 on (layer 3 of 3)"),
        ((0.8, 0.9), "in every layer"),
        ((0.9, 0.4), "not even at the last layer"),
    ],
)
def test_the_verdict_names_the_first_layer(values: tuple[float, ...], said: str) -> None:
    assert said in verdict("m", lines(*values))


@pytest.mark.parametrize(("folder", "name"), [("fourier", "fourier"), ("r1", "fourier (r1)")])
def test_a_run_s_name_is_not_said_twice(folder: str, name: str) -> None:
    run = SimpleNamespace(record=SimpleNamespace(method="fourier"), folder=Path(folder))
    assert RecordedRun.name.fget(run) == name  # type: ignore[attr-defined]


def test_the_plot_keeps_what_is_out_of_range_inside() -> None:
    plot = similarity_plot(lines(0.1, -20.0, 30.0))
    assert "<polyline" in plot
    assert "-" not in plot.split("<polyline")[1].split('"')[1]  # no coordinate below 0


def test_layers_compared_are_those_with_weights() -> None:
    layers = compared_layers(named_network("embedded_resnet"))
    assert layers[0] == "conv1"
    assert layers[-1] == "fc"


def test_a_slingshot_aims_at_a_method_that_starts_from_a_mean(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    starts = []
    real = slingshot_of

    def watched(*arguments: object, **keys: object) -> object:
        starts.append(keys["start"])
        return real(*arguments, **keys)  # type: ignore[arg-type]

    monkeypatch.setattr("vital_exp.attacks.audit.slingshot", watched)
    tuning = {"steps": 1, "batch_size": 2}
    for method in ("vital_fourier", "fourier"):
        audit("slingshot", runs / "classes", **ONE_STEP, methods=[method], tuning=tuning)
    own = RecordedRun.of(runs / "classes", 4, None).references.images(Target("class", 0))
    torch.testing.assert_close(starts[0], torch.stack(list(own)).mean(dim=0), atol=1e-3, rtol=0)
    assert starts[1] is None


def test_methods_of_many_views_take_fewer() -> None:
    assert _fewer_views("maco", 2) == ("views=2",)
    assert _fewer_views("maco", None) == _fewer_views("fourier", 2) == ()


def test_pictures_that_cannot_be_made_are_counted_apart(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vital_exp.attacks import comparison

    honestly = comparison.make_pictures
    calls: list[str] = []

    def attacked_fails(
        network: object, targets: Sequence[Target], method: str, *more: object, **keys: object
    ) -> object:
        pictures = honestly(network, targets, method, *more, **keys)  # type: ignore[arg-type]
        calls.append(method)
        if method == "fourier" and calls.count(method) == 2:  # of the attacked network
            pictures.images[0] = torch.nan
        if method == "activation_max":
            pictures.images[:] = torch.nan
        return pictures

    monkeypatch.setattr(comparison, "make_pictures", attacked_fails)
    asked = {"count": 4, "steps": 1, "methods": ["fourier", "activation_max"]}
    found = audit("silent_units", runs / "hidden", **asked)
    first, *others = (row for row in found.rows if row["method"] == "fourier")
    assert first["failed"] == 1
    assert "decoy_distance" not in first
    assert all(row["failed"] == 0 and row["decoy_distance"] > 0 for row in others)
    some, none = found.table
    assert (some["n"], some["failed"]) == (len(others), pytest.approx(1 / (1 + len(others))))
    assert none == {"attack": "silent_units", "method": "activation_max", "n": 0, "failed": 1}
    assert "no gradient reaches" in found.verdicts[0]
    assert (
        found.verdicts[1]
        == "silent_units x activation_max: no picture can be made; no gradient reaches 100% of the units"
    )
