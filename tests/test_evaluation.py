"""The evaluation as a whole: metrics can tell, passes are shared, and what is missing is said."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from tests.tiny import tiny_net
from vital_exp import load_model
from vital_exp.commands.help_text import help_text
from vital_exp.errors import UsageError
from vital_exp.evaluation.crops import CROPS_PER_SIDE, crops_of
from vital_exp.evaluation.metrics import METRICS, chosen, higher_is_better
from vital_exp.evaluation.pictures import PictureSet, folder_pictures
from vital_exp.evaluation.reading import NetworkReader, classifier
from vital_exp.evaluation.settings import MetricSettings
from vital_exp.evaluation.table import Evaluation
from vital_exp.images.output import to_uint8
from vital_exp.models.network import Preprocessing, VisionNetwork
from vital_exp.references.drawn import CLASS_NAMES, DrawnReferences, draw
from vital_exp.runs.evaluate import evaluate, evaluate_pictures, settings_of
from vital_exp.targets.class_names import ClassNames
from vital_exp.targets.unit import Target

VARIATIONS = 3  # polysemanticity needs as many
PER_CLASS = 12  # natural images
HELD_OUT = 77  # a seed of drawn images that are no references
# Metrics that know which class a picture is meant to be.
LABELLED = ("accuracy", "transfer", "probability", "activation_ratio", "correspondence", "cosy", "mis_pictures")
LABELLED += ("path_similarity",)


def png(pixels: Tensor, path: Path) -> None:
    Image.fromarray(to_uint8(pixels).permute(1, 2, 0).numpy()).save(path)


def targets_of(shift: int = 0) -> list[Target]:
    return [
        Target("class", (index + shift) % 10, variation=variation)
        for index in range(10)
        for variation in range(1, VARIATIONS + 1)
    ]


def real_pictures() -> Tensor:
    images = [draw(index, number, HELD_OUT) for index in range(10) for number in range(VARIATIONS)]
    return to_uint8(torch.stack(images))


def noise() -> Tensor:
    return torch.randint(0, 256, (30, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def networks() -> tuple[VisionNetwork, VisionNetwork]:
    return load_model("embedded_resnet"), load_model("embedded_judge")


def table_of(
    networks: tuple[VisionNetwork, VisionNetwork], pixels: Tensor, targets: list[Target], **options: Any
) -> Evaluation:
    network, judge = networks
    arguments: dict[str, Any] = {
        "references": DrawnReferences(count=PER_CLASS),
        "judges": [judge],
        "metrics": chosen("all"),
        "features": (),
        "settings": MetricSettings(),
        "cache_dir": Path("nowhere"),
    } | options
    return evaluate_pictures(network, PictureSet(targets, pixels), **arguments)


@pytest.fixture(scope="module")
def tables(networks: tuple[VisionNetwork, VisionNetwork]) -> Mapping[str, Evaluation]:
    return {
        "real": table_of(networks, real_pictures(), targets_of()),
        "noise": table_of(networks, noise(), targets_of()),
        "shuffled": table_of(networks, real_pictures(), targets_of(shift=3)),
    }


def better(name: str, good: Evaluation, bad: Evaluation) -> bool:
    a, b = good.scores[name].value, bad.scores[name].value
    assert a is not None
    assert b is not None
    return a > b if higher_is_better(name) else a < b


def computed(table: Evaluation) -> list[str]:
    return [name for name, score in table.scores.items() if score.value is not None]


# --- truth ----------------------------------------------------------------------------------------------------------


def test_real_images_score_better_than_noise_in_every_quality_metric(tables: Mapping[str, Evaluation]) -> None:
    names = [name for name in computed(tables["real"]) if higher_is_better(name) is not None]
    assert {name.partition("[")[0] for name in names} >= {
        "fid",
        "kid",
        "inception_score",
        "path_similarity",
        "cosy_mad",
    }
    assert {"repetition_deviation", "high_frequency_deviation", "mis_pictures[embedded_judge]"} <= set(names)
    assert [name for name in names if not better(name, tables["real"], tables["noise"])] == []


def test_true_labels_score_better_than_shuffled_in_every_metric_that_uses_them(
    tables: Mapping[str, Evaluation],
) -> None:
    names = [name for name in computed(tables["real"]) if name.startswith(LABELLED)]
    names = [name for name in names if higher_is_better(name) is not None]
    assert len(names) > 15
    assert [name for name in names if not better(name, tables["real"], tables["shuffled"])] == []
    for name in ("fid[target]", "inception_score[embedded_judge]", "repetition_deviation"):
        assert tables["real"].scores[name].value == pytest.approx(tables["shuffled"].scores[name].value, rel=1e-3)


def test_real_images_of_the_class_score_at_the_ceiling(tables: Mapping[str, Evaluation]) -> None:
    real = {name: tables["real"].scores[name].value for name in computed(tables["real"])}
    for name in ("accuracy_top1", "transfer_top1[embedded_judge]", "correspondence_auc[embedded_judge]", "cosy_auc"):
        assert real[name] == pytest.approx(1, abs=0.02), name
    assert real["path_similarity"] == pytest.approx(1, abs=0.05)
    assert real["mis_pictures_fraction[embedded_judge]"] == real["mis_natural_fraction[embedded_judge]"] == 1
    assert abs(real["kid[target]"] or 0) < 0.1


def test_noise_is_clear_but_redundant(tables: Mapping[str, Evaluation]) -> None:
    """Why clarity and polysemanticity only describe."""
    real, noisy = tables["real"].scores, tables["noise"].scores
    assert noisy["clarity[embedded_judge]"].value > real["clarity[embedded_judge]"].value  # type: ignore[operator]
    assert noisy["redundancy[embedded_judge]"].value > 0.99  # type: ignore[operator]
    assert real["redundancy[embedded_judge]"].value < 0.9  # type: ignore[operator]


def test_every_number_has_an_interval_and_n(tables: Mapping[str, Evaluation]) -> None:
    for name, entry in tables["real"].metrics.items():
        assert set(entry) - {"reason"} == {"value", "low", "high", "n"}
        if entry["value"] is None:
            assert str(entry["reason"]).startswith("not computed: needs "), name
        else:
            assert entry["low"] <= entry["value"] <= entry["high"], name  # type: ignore[operator]
            assert entry["n"] >= 10, name  # type: ignore[operator]
    assert json.loads(json.dumps(tables["real"].metrics)) == tables["real"].metrics


def test_what_needs_weights_is_in_the_table_and_nothing_was_fetched(tables: Mapping[str, Evaluation]) -> None:
    reasons = {name: score.reason for name, score in tables["real"].scores.items() if score.value is None}
    assert set(reasons) == {
        *("fid[inception]", "kid[inception]", "inception_score[inception]", "lpips_diversity", "clip", "naming"),
        *("seconds", "memory", "own_unit_first"),
    }
    assert all(
        "download=true" in str(reasons[name]) or "pip install" in str(reasons[name])
        for name in reasons
        if name not in ("seconds", "memory", "own_unit_first")
    )


def test_rows_hold_a_value_per_target(tables: Mapping[str, Evaluation], tmp_path: Path) -> None:
    rows = tables["real"].rows
    assert [row["target"] for row in rows] == [target.name for target in targets_of()]
    assert {"activation", "top1", "top1[embedded_judge]", "activation_ratio", "path_similarity"} <= set(rows[0])
    for name in ("accuracy_top1", "cosy_mad", "path_similarity[layer4]"):
        column = name.removeprefix("accuracy_")
        mean = sum(float(row[column]) for row in rows) / len(rows)
        assert mean == pytest.approx(tables["real"].scores[name].value)


# --- passes ---------------------------------------------------------------------------------------------------------


def count_pictures(module: nn.Module, counts: Counter[str], name: str) -> None:
    def count(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        counts[name] += len(inputs[0])

    module.register_forward_pre_hook(count)


def test_every_picture_is_passed_once_through_each_network() -> None:
    network, judge = load_model("embedded_resnet"), load_model("embedded_judge")
    counts: Counter[str] = Counter()
    count_pictures(network.module, counts, "network")
    count_pictures(judge.module, counts, "judge")
    found = table_of((network, judge), real_pictures(), targets_of())
    needed = 30 + 10 * PER_CLASS
    cropped = needed + 30 * CROPS_PER_SIDE**2
    assert found.forward_passes == {"target": cropped, "embedded_judge": cropped, "pixels": needed}
    assert counts["network"] <= cropped + 6  # which axes are the pictures' and channels', and what is the classifier
    assert counts["judge"] <= cropped + 6


def test_natural_images_are_left_alone_where_nobody_asks() -> None:
    network, judge = load_model("embedded_resnet"), load_model("embedded_judge")
    found = table_of((network, judge), real_pictures(), targets_of(), metrics=chosen(["accuracy", "transfer"]))
    assert found.forward_passes == {"target": 30, "embedded_judge": 30}
    found = table_of((network, judge), real_pictures(), targets_of(), metrics=chosen("correspondence"))
    assert found.forward_passes == {"embedded_judge": 30 + 10 * PER_CLASS}


def test_features_are_what_the_classifier_is_given() -> None:
    network = load_model(tiny_net(), size=32)
    pictures = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    read = NetworkReader(network)(pictures)
    assert read.logits is not None
    assert classifier(network) is network.module.fc
    assert torch.allclose(network.module.fc(read.features), read.logits, atol=1e-5)  # type: ignore[operator]
    assert not list(network.module.fc._forward_pre_hooks)  # type: ignore[union-attr]


# --- crops ----------------------------------------------------------------------------------------------------------


def mosaics(pictures: Tensor) -> Tensor:
    """Each picture sixteen times, in a grid."""
    return pictures.repeat(1, 1, CROPS_PER_SIDE, CROPS_PER_SIDE)


@pytest.mark.parametrize("left_over", [0, 1, 3])
def test_crops_cover_the_picture(left_over: int) -> None:
    small = torch.rand(2, 5, 4, 6, generator=torch.Generator().manual_seed(0))
    before = left_over // 2
    large = torch.nn.functional.pad(mosaics(small), (before, left_over - before) * 2)
    assert torch.equal(crops_of(large), small[:, None].expand(-1, CROPS_PER_SIDE**2, -1, -1, -1))


def test_objects_in_crops_are_recognised_there(networks: tuple[VisionNetwork, VisionNetwork]) -> None:
    pictures, targets = real_pictures()[:10], targets_of()[:10]
    asked = chosen(["crops", "accuracy"])
    whole = table_of(networks, pictures, targets, metrics=asked, references=None).scores
    many = table_of(networks, mosaics(pictures), targets, metrics=asked, references=None).scores
    for name in ("crops_top1", "crops_any_top1", "crops_top1[embedded_judge]"):
        assert many[name].value == 1
    assert (many["crops_probability[embedded_judge]"].value or 0) > 0.9
    assert (many["accuracy_top1"].value or 0) < 0.5 < (whole["accuracy_top1"].value or 0)
    assert (whole["crops_top1"].value or 0) < 0.5


def test_pictures_smaller_than_their_crops_say_so(networks: tuple[VisionNetwork, VisionNetwork]) -> None:
    found = table_of(networks, real_pictures()[:2, :, :3], targets_of()[:2], metrics=chosen("crops"), references=None)
    assert found.scores["crops"].reason == "not computed: needs pictures of at least 4 px a side, and these have 3 x 64"


# --- mistakes and gaps ----------------------------------------------------------------------------------------------


def test_unknown_metrics_suggest_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"metrics=fdi: .*did you mean fid"):
        chosen(["fdi"])
    with pytest.raises(UsageError, match="at least one"):
        chosen([])
    assert [metric.name for metric in chosen("all")] == list(METRICS)
    with pytest.raises(KeyError):
        higher_is_better("nonsense")


def test_the_help_that_the_message_names_lists_all_metrics() -> None:
    words = help_text("evaluate", ["evaluation"]).replace(",", " ").replace(".", " ").split()
    assert set(METRICS) <= set(words)
    with pytest.raises(UsageError, match=r"^metrics=x-9: no such metric; vital-evaluate --help evaluation lists all$"):
        chosen(["x-9"])


def test_every_metric_says_which_direction_is_better() -> None:
    assert all(metric.better for metric in METRICS.values())
    assert higher_is_better("fid[target]") is False
    assert higher_is_better("transfer_top1[x]") is True
    assert higher_is_better("repetition") is None
    assert higher_is_better("repetition_deviation") is False


def test_judges_must_have_the_same_classes(networks: tuple[VisionNetwork, VisionNetwork]) -> None:
    other = load_model(tiny_net(), size=64)
    with pytest.raises(UsageError, match="judges=TinyNet: the judge has 4 classes, the network 10"):
        table_of(networks, real_pictures(), targets_of(), judges=[other])


def test_metrics_say_what_they_lack(networks: tuple[VisionNetwork, VisionNetwork]) -> None:
    bare = table_of(networks, real_pictures()[:1], targets_of()[:1], references=None, judges=[])
    reasons = {name: str(score.reason) for name, score in bare.scores.items() if score.value is None}
    assert "needs natural images of the targets" in reasons["activation_ratio"]
    assert "needs a judge" in reasons["transfer"]
    assert "at least 2 pictures, and there is 1" in reasons["inception_score[target]"]
    assert bare.scores["accuracy_top1"].value == 1
    one = table_of(networks, real_pictures()[:1], targets_of()[:1])
    assert "at least 2 targets" in str(one.scores["cosy"].reason)
    assert "at least 2 targets" in str(one.scores["path_similarity"].reason)
    assert "at least 20 natural images" in str(one.scores["mis[embedded_judge]"].reason)
    assert "at least 2 units" in str(one.scores["redundancy[embedded_judge]"].reason)
    small = table_of(networks, real_pictures(), targets_of(), settings=MetricSettings(kid_subset_size=50))
    assert "needs at least 50 pictures, and there are 30" in str(small.scores["kid[target]"].reason)


def test_hidden_units_are_scored_by_their_layer(networks: tuple[VisionNetwork, VisionNetwork]) -> None:
    targets = [Target("channel", index, "layer3") for index in (0, 5)] + [Target("neuron", 7, "layer3", (2, 3))]
    found = table_of(networks, real_pictures()[:3], targets)
    assert "class targets" in str(found.scores["accuracy"].reason)
    network = networks[0]
    activation = {}
    handle = network.module.layer3.register_forward_hook(lambda _m, _i, out: activation.update(it=out))  # type: ignore
    with torch.no_grad():
        network(real_pictures()[:3].float() / 255)
    handle.remove()
    it = activation["it"]
    wanted = [it[0, 0].max(), it[1, 5].max(), it[2, 7, 2, 3]]
    assert found.activations == pytest.approx([float(value) for value in wanted], rel=1e-4)
    assert found.scores["cosy_auc"].n == 3


def test_a_run_without_references_on_this_machine_says_so(networks: tuple[VisionNetwork, VisionNetwork]) -> None:
    from vital_exp.references.none import NoReferences

    found = table_of(networks, real_pictures(), targets_of(), references=NoReferences("gone"))
    assert found.scores["fid"].reason if "fid" in found.scores else found.scores["fid[target]"].reason


def test_settings_are_checked() -> None:
    group = {
        "kid_subset_size": None,
        "download": False,
        "inception": None,
        "inception_features": 2048,
        "lpips": {},
        "clip": {},
    }
    assert settings_of(group) == MetricSettings()
    with pytest.raises(UsageError, match="kid_subset_size=1: a whole number of at least 2"):
        settings_of({**group, "kid_subset_size": 1})
    with pytest.raises(UsageError, match="download=yes"):
        settings_of({**group, "download": "yes"})
    with pytest.raises(UsageError, match=r"evaluation.lpips.net=alexx: .*did you mean alex"):
        settings_of({**group, "lpips": {"net": "alexx"}})
    with pytest.raises(UsageError, match=r"evaluation.inception_features=512: .*64, 192, 768, 2048"):
        settings_of({**group, "inception_features": 512})


# --- folders of pictures --------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for index in range(3):
        png(draw(index, 0, HELD_OUT), tmp_path / f"class-{index}.png")
    return tmp_path


def read(folder: Path, pattern: str = "class-{index}.png", table: Path | None = None) -> PictureSet:
    return folder_pictures(folder, ClassNames(CLASS_NAMES), Preprocessing(size=(64, 64)), pattern, table)


def test_names_say_the_targets(folder: Path) -> None:
    found = read(folder)
    assert [(target.name, target.label) for target in found.targets] == [
        ("class-0", "star"),
        ("class-1", "heart"),
        ("class-2", "fish"),
    ]
    assert torch.equal(found.pixels[1], to_uint8(draw(1, 0, HELD_OUT)))


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        ("{name}.png", "fish.png"),
        ("{target}.png", "class-2.png"),
        ("seed0/{index}_*.png", "seed0/2_final.png"),
        ("{name}-{variation}.png", "fish-1.png"),
    ],
)
def test_patterns(pattern: str, name: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    png(draw(2, 0, 0), tmp_path / name)
    assert [target.name for target in read(tmp_path, pattern).targets] == ["class-2"]


def test_a_table_says_the_targets(folder: Path) -> None:
    table = folder / "targets.csv"
    table.write_text("picture,target\nclass-0.png,fish\nclass-1.png,class:4\nclass-2.png,layer3:7\n")
    assert [target.name for target in read(folder, table=table).targets] == ["class-2", "class-4", "channel-layer3-7"]


def test_pictures_of_different_sizes_are_brought_to_the_network_s(folder: Path) -> None:
    png(torch.rand(3, 80, 100), folder / "class-5.png")
    assert read(folder).pixels.shape == (4, 3, 64, 64)


MISTAKES = {
    "pattern without a target": ("picture-*.png", "", "pattern=.*needs a placeholder for the target"),
    "pattern with a strange place": ("class-{number}.png", "", "pattern=.*{index}"),
    "pattern that fits nothing": ("unit-{index}.png", "", "pattern=.*matches no file.*class-0.png"),
    "unknown class": ("{target}.png", "x", "targets=class-99: of class-99.png"),
    "two pictures of a target": ("*-{index}.png", "other-1.png", "pictures=class-1: has two pictures"),
    "table without columns": ("a,b\n", "csv", "targets=.*needs the columns picture and target, and has a, b"),
    "empty table": ("picture,target\n", "csv", "names no picture"),
    "unknown target in a table": ("picture,target\nclass-0.png,starr\n", "csv", "targets=starr: .*did you mean star"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_in_a_folder(mistake: str, folder: Path) -> None:
    first, second, message = MISTAKES[mistake]
    table = None
    if second == "csv":
        table = folder / "targets.csv"
        table.write_text(first)
    elif second:
        png(torch.zeros(3, 8, 8), folder / (second if second.endswith("png") else "class-99.png"))
    with pytest.raises(UsageError, match=message):
        read(folder, "class-{index}.png" if table else first, table)


def test_missing_and_broken_pictures_are_named_and_counted(folder: Path) -> None:
    whole = (folder / "class-1.png").read_bytes()
    (folder / "class-1.png").write_bytes(whole[: len(whole) // 2])
    table = folder / "targets.csv"
    table.write_text("picture,target\nclass-0.png,0\nclass-1.png,1\nclass-7.png,7\n")
    found = read(folder, table=table)
    assert [target.index for target in found.targets] == [0]
    assert found.unreadable["class-7.png"] == "missing"
    assert "class-1.png" in found.unreadable
    table.write_text("picture,target\nclass-7.png,7\n")
    with pytest.raises(UsageError, match=r"1 of 1 pictures could not be read: class-7.png \(missing\)"):
        read(folder, table=table)
    with pytest.raises(UsageError, match="does not exist"):
        read(folder / "nowhere")


# --- the Python function --------------------------------------------------------------------------------------------


def test_evaluate_a_folder_from_python(folder: Path) -> None:
    found = evaluate(
        folder,
        model="embedded_resnet",
        judges=["embedded_judge"],
        metrics=["accuracy", "transfer", "activation_ratio"],
        references=DrawnReferences(count=2),
    )
    assert found.scores["transfer_top1[embedded_judge]"].value == 1
    assert 0.4 < found.scores["activation_ratio"].value < 1.3  # type: ignore[operator]
    assert "transfer_top1[embedded_judge]" in str(found)
    tensors = {f"class:{index}": torch.stack([draw(index, n, 0) for n in range(2)]) for index in range(3)}
    same = evaluate(folder, model="embedded_resnet", metrics="activation_ratio", references=tensors)
    assert same.scores["activation_ratio"].value == pytest.approx(found.scores["activation_ratio"].value)


def test_mistakes_from_python(folder: Path) -> None:
    with pytest.raises(UsageError, match="model=None: the network"):
        evaluate(folder)
    with pytest.raises(UsageError, match=r"judges=embedded_juge: .*did you mean embedded_judge"):
        evaluate(folder, model="embedded_resnet", judges=["embedded_juge"], metrics="accuracy")
    with pytest.raises(UsageError, match=r"download=False: .*weights of resnet50"):
        evaluate(folder, model="resnet50")


def test_judges_that_would_be_downloaded_are_not(folder: Path) -> None:
    judges = ["resnet50", {"name": "resnet18"}]
    found = evaluate(folder, model="embedded_resnet", judges=judges, metrics=["transfer", "fid"])  # type: ignore[arg-type]
    for name in ("resnet50", "resnet18"):
        assert f"needs the weights of {name}" in str(found.scores[f"transfer[{name}]"].reason)


def test_saving_keeps_what_was_not_asked_again(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    evaluate(folder, model="embedded_resnet", metrics="accuracy").save(out)
    evaluate(folder, model="embedded_resnet", metrics="repetition").save(out)
    metrics = json.loads((out / "metrics.json").read_text())
    assert {"accuracy_top1", "repetition"} <= set(metrics)
    with (out / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["target"] for row in rows] == ["class-0", "class-1", "class-2"]
    assert all(row["top1"] and row["repetition"] for row in rows)
    assert not [path for path in out.iterdir() if path.name.endswith(".part")]
