"""Metrics of hidden units, with ceilings and floors, against plain loops; facets; what cannot be computed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.tiny import TinyNet, tiny_net
from vital_exp import load_model, visualize
from vital_exp.config import compose_config
from vital_exp.errors import UsageError
from vital_exp.evaluation import artefacts, mis
from vital_exp.evaluation.activation import own_first, shares
from vital_exp.evaluation.correspondence import natural_correspondence
from vital_exp.evaluation.evidence import Evidence
from vital_exp.evaluation.metrics import METRICS, SETS, chosen, higher_is_better, measure, proxy_of
from vital_exp.evaluation.path_similarity import path_similarity
from vital_exp.evaluation.pictures import PictureSet
from vital_exp.evaluation.pooling import pooled, pooled_ratios
from vital_exp.evaluation.readability import MEASURES, number_text, numbers_of, readable
from vital_exp.evaluation.score import NotComputed, Score
from vital_exp.evaluation.settings import MetricSettings
from vital_exp.evaluation.table import Evaluation
from vital_exp.images.output import to_uint8
from vital_exp.models.network import VisionNetwork
from vital_exp.references.base import References
from vital_exp.runs.evaluate import evaluate_pictures
from vital_exp.targets.unit import Target

SIDE, COUNT = 32, 12
# Two facets of unit 7, two units without facets: four targets of three units.
FACETED = (
    *(Target("channel", 7, "layer1", facet=0), Target("channel", 7, "layer1", facet=1)),
    *(Target("channel", 3, "layer1", facet=0), Target("channel", 11, "layer1", facet=0)),
)
PLACES = {7: 0, 3: 1, 11: 2}
UNITS = ("activation_ratio", "activation_ratio_others", "own_unit_first")


class DrawnFor(References):
    """Random images of each unit and facet; unit 11 shares its last image with unit 3."""

    def images(self, target: Target) -> Iterator[Tensor]:
        for number in range(COUNT):
            shared = target.index == 11 and number == COUNT - 1
            index = 3 if shared else target.index
            seed = 1000 * index + 100 * (target.facet or 0) + number
            tint = torch.rand(3, 1, 1, generator=torch.Generator().manual_seed(index + 50 * (target.facet or 0)))
            noise = torch.rand(3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))
            yield tint * 0.7 + noise * 0.3

    def fingerprint(self, target: Target) -> str:
        return target.name

    def class_indices(self) -> None:
        return None


class Mined(DrawnFor):
    """The same, with the largest activation of a mining; unit 3 never fires."""

    def largest_activation(self, target: Target) -> float:
        return {7: 0.9, 3: 0.0, 11: 0.8}[target.index]


@pytest.fixture(scope="module")
def network() -> VisionNetwork:
    return load_model(tiny_net(), size=SIDE)


@pytest.fixture(scope="module")
def judge() -> VisionNetwork:
    return load_model(tiny_net(width=5), size=SIDE)


def pictures_of(targets: Sequence[Target], seed: int = 5) -> Tensor:
    return torch.rand(len(targets), 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed)) ** 2


def table_of(
    network: VisionNetwork,
    judges: Sequence[VisionNetwork],
    targets: Sequence[Target] = FACETED,
    references: DrawnFor | None = None,
    metrics: str | Sequence[str] = "units",
) -> Evaluation:
    shown = PictureSet(list(targets), to_uint8(pictures_of(targets)))
    asked, where = chosen(metrics), Path("nowhere")
    return evaluate_pictures(network, shown, references or DrawnFor(), judges, asked, (), MetricSettings(), where)


@pytest.fixture(scope="module")
def table(network: VisionNetwork, judge: VisionNetwork) -> Evaluation:
    return table_of(network, [judge])


@torch.no_grad()
def unit_of_image(network: VisionNetwork, image: Tensor, unit: int) -> float:
    module = network.module
    whole = network.preprocessing.normalise(image[None])
    maps = module.layer1(module.relu(module.bn1(module.conv1(whole))))  # type: ignore[operator]
    return float(maps[0, unit].max())


@torch.no_grad()
def embedding(network: VisionNetwork, image: Tensor) -> np.ndarray:
    module = network.module
    whole = network.preprocessing.normalise(image[None])
    maps = module.layer1(module.relu(module.bn1(module.conv1(whole))))  # type: ignore[operator]
    vector = maps.mean((2, 3))[0].double().numpy()
    return vector / np.linalg.norm(vector)


def rounded(image: Tensor) -> Tensor:
    return to_uint8(image).float() / 255


def natural() -> list[tuple[Target, Tensor]]:
    return [(target, rounded(image)) for target in FACETED for image in DrawnFor().images(target)]


def shown() -> list[tuple[Target, Tensor]]:
    return [(target, rounded(image)) for target, image in zip(FACETED, pictures_of(FACETED), strict=True)]


def pairs_won(picture: np.ndarray, own: list[np.ndarray], others: list[np.ndarray]) -> float:
    won = [float(picture @ a > picture @ b) + 0.5 * float(picture @ a == picture @ b) for a, b in product(own, others)]
    return statistics.fmean(won)


# --- against loops --------------------------------------------------------------------------------------------------


def test_correspondence_and_its_ceiling_against_all_pairs(table: Evaluation, judge: VisionNetwork) -> None:
    real = [(target, image, embedding(judge, image)) for target, image in natural()]
    found, ceiling = [], []
    for target, image in shown():
        own = [(i, v) for t, i, v in real if t == target]
        others = [(i, v) for t, i, v in real if t.index != target.index]
        found.append(pairs_won(embedding(judge, image), [v for _, v in own], [v for _, v in others]))
        left_out = []
        for place, (single, vector) in enumerate(own):
            rest = [v for number, (_, v) in enumerate(own) if number != place]
            left_out.append(pairs_won(vector, rest, [v for i, v in others if not torch.equal(i, single)]))
        ceiling.append(statistics.fmean(left_out))
    scores = table.scores
    assert scores["correspondence_auc[TinyNet]"].values == pytest.approx(tuple(found))
    assert scores["correspondence_auc_natural[TinyNet]"].values == pytest.approx(tuple(ceiling))
    assert scores["correspondence_auc_natural[TinyNet]"].value == pytest.approx(statistics.fmean(ceiling))


def test_the_shared_image_was_left_out_of_others_too() -> None:
    own, others = torch.eye(4)[:2].double(), torch.eye(4)[1:].double()
    # The second own image is also another unit's: of the pairs that are left, none is decided.
    assert natural_correspondence(own, others) == 0.5
    assert math.isnan(natural_correspondence(own[:1], others))
    assert math.isnan(natural_correspondence(own, others[:0]))
    assert natural_correspondence(torch.tensor([[1.0, 0], [0.8, 0.6]]), torch.tensor([[0.0, 1.0]])) == 1


@pytest.mark.parametrize("mined", [False, True])
def test_own_unit_first_and_the_natural_images_against_loops(
    network: VisionNetwork, judge: VisionNetwork, mined: bool
) -> None:
    references = Mined() if mined else DrawnFor()
    scores = table_of(network, [judge], references=references, metrics=UNITS).scores
    reads = {unit: [(t, unit_of_image(network, image, unit)) for t, image in natural()] for unit in PLACES}
    largest = {unit: max(value for _, value in values) for unit, values in reads.items()}
    if mined:
        largest = {7: 0.9, 3: 0.0, 11: 0.8}
    competing = [unit for unit in PLACES if largest[unit] > 0]

    def first(values: dict[int, float], own: int) -> float:
        found = {unit: values[unit] / largest[unit] for unit in competing}
        leaders = [unit for unit in competing if found[unit] == max(found.values())]
        return float(own in leaders) / len(leaders)

    wanted, ratios, ceiling, floor = [], [], [], []
    for target, image in shown():
        values = {unit: unit_of_image(network, image, unit) for unit in PLACES}
        if target.index in competing:
            wanted.append(first(values, target.index))
            ratios.append(values[target.index] / largest[target.index])
    for unit in competing:
        own = [number for number, (target, _) in enumerate(reads[unit]) if target.index == unit]
        strongest = max(own, key=lambda number: reads[unit][number][1])
        ceiling.append(first({other: reads[other][strongest][1] for other in PLACES}, unit))
        floor.append(statistics.fmean(v / largest[unit] for t, v in reads[unit] if t.index != unit))
    assert scores["own_unit_first"].value == pytest.approx(statistics.fmean(wanted))
    assert scores["own_unit_first"].n == len(wanted)
    assert scores["own_unit_first_natural"].value == pytest.approx(statistics.fmean(ceiling))
    assert scores["own_unit_first_chance"].value == pytest.approx(1 / len(competing))
    assert scores["activation_ratio"].value == pytest.approx(statistics.fmean(ratios), rel=1e-4)
    assert scores["activation_ratio_others"].value == pytest.approx(statistics.fmean(floor), rel=1e-4)
    assert scores["own_unit_first_natural"].n == scores["activation_ratio_others"].n == len(competing)


def test_units_that_share_the_lead_share_the_point() -> None:
    activations = torch.tensor([[6.0, 6, 1], [6, 6, 6], [1, 2, 9], [0, 0, 0], [5, 1, 1]])
    found = own_first(shares(activations, torch.tensor([6.0, 6, 6])), torch.tensor([0, 1, 0, 2, 0]))
    assert found.tolist() == pytest.approx([1 / 2, 1 / 3, 0, 1 / 3, 1])
    silent = own_first(shares(activations, torch.tensor([6.0, 6, 0])), torch.tensor([0, 1, 0, 2, 0]))
    assert silent[[0, 1, 2, 4]].tolist() == pytest.approx([1 / 2, 1 / 2, 0, 1])
    assert silent[3].isnan()


def test_fine_grain_is_a_multiple_of_the_own_natural_images(table: Evaluation) -> None:
    energy = [float(artefacts.high_frequency(image[None])[0]) for _, image in shown()]
    medians = []
    for target, _ in shown():
        own = [float(artefacts.high_frequency(image[None])[0]) for t, image in natural() if t == target]
        medians.append(statistics.median(own))
    ratios = [a / b for a, b in zip(energy, medians, strict=True)]
    scores = table.scores
    assert scores["high_frequency_ratio"].values == pytest.approx(tuple(ratios), rel=1e-4)
    assert scores["high_frequency_ratio"].value == pytest.approx(statistics.geometric_mean(ratios), rel=1e-4)
    assert scores["high_frequency_natural"].value == pytest.approx(statistics.fmean(medians), rel=1e-4)
    score = scores["high_frequency_ratio"]
    assert score.low is not None
    assert score.high is not None
    assert min(ratios) * 0.999 <= score.low <= score.high <= max(ratios) * 1.001


def test_the_geometric_mean_makes_one_of_two_and_a_half() -> None:
    assert Score.geometric_mean([2.0, 0.5, math.nan]).value == pytest.approx(1)
    assert Score.geometric_mean([2.0, 0.5, math.nan]).n == 2
    with pytest.raises(NotComputed):
        Score.geometric_mean([math.nan])
    found = pooled_ratios({("a", 0): 2.0, ("b", 0): 0.5, ("c", 0): math.nan})
    assert found["value"] == pytest.approx(1)
    assert (found["low"], found["high"], found["n"]) == (pytest.approx(0.5), pytest.approx(2), 2)


def test_white_noise_has_the_energy_of_its_frequencies() -> None:
    noise = torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert float(artefacts.high_frequency(noise).mean()) == pytest.approx(artefacts.WHITE_NOISE, abs=0.01)


def test_mis_explains_a_unit_by_the_pictures_of_all_its_facets(table: Evaluation, judge: VisionNetwork) -> None:
    features = torch.tensor(np.stack([embedding(judge, image) for _, image in natural()]))
    made = torch.tensor(np.stack([embedding(judge, image) for _, image in shown()]))
    network = load_model(tiny_net(), size=SIDE)
    found = []
    for unit, number in PLACES.items():
        activations = torch.tensor([unit_of_image(network, image, unit) for _, image in natural()])
        own = torch.tensor([target.index == unit for target in FACETED])
        (task,) = mis.tasks(activations, seed=number)
        like = [
            np.mean([features[query].numpy() @ picture for picture in made[own].numpy()])
            - np.mean([features[query].numpy() @ picture for picture in made[~own].numpy()])
            for query in (task.strong_query, task.weak_query)
        ]
        found.append(1 / (1 + math.exp(-(like[0] - like[1]) / mis.TEMPERATURE)))
    score = table.scores["mis_pictures[TinyNet]"]
    assert score.value == pytest.approx(statistics.fmean(found), abs=1e-5)
    assert score.n == 3


def test_paths_are_not_compared_with_other_facets_of_the_unit() -> None:
    def drawn(seed: int, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))

    owners, facet_of, labels = torch.tensor([0, 0, 1, 1, 2, 2]), [0, 0, 1], torch.tensor([0, 1, 2])
    made, real = drawn(0, 3, 9), drawn(1, 6, 9)
    x, y = (rows.numpy() / np.linalg.norm(rows.numpy(), axis=1, keepdims=True) for rows in (made, real))
    raw = []
    for facet in range(3):
        own = [i for i in range(6) if owners[i] == facet]
        others = [i for i in range(6) if facet_of[int(owners[i])] != facet_of[facet]]
        picture = np.mean([x[facet] @ y[i] for i in own])
        raw.append((picture, y[own[0]] @ y[own[1]], np.mean([y[i] @ y[j] for i in own for j in others])))
    picture, same, different = np.mean(raw, axis=0)
    found = path_similarity(made, labels, real, owners, "cosine", facet_of)
    assert (found.picture, found.same, found.different) == pytest.approx((picture, same, different))
    alone = path_similarity(made, labels, real, owners, "cosine")
    assert alone.different != pytest.approx(different)


def test_paths_say_nothing_where_natural_images_of_a_unit_are_as_unlike_as_others(
    network: VisionNetwork, judge: VisionNetwork
) -> None:
    class Noise(DrawnFor):
        def images(self, target: Target) -> Iterator[Tensor]:
            generator = torch.Generator().manual_seed(target.index * 10 + (target.facet or 0))
            yield from torch.rand(COUNT, 3, SIDE, SIDE, generator=generator)

    score = table_of(network, [judge], references=Noise(), metrics=["path_similarity"]).scores["path_similarity"]
    assert score.value is None
    assert "needs natural images of one unit that are more similar than those of two (" in str(score.reason)


# --- what counts as a unit ------------------------------------------------------------------------------------------


def test_facets_and_variations_of_a_unit(network: VisionNetwork) -> None:
    again = Target("channel", 7, "layer1", facet=1, variation=2)
    evidence = Evidence(network, [*FACETED, again], to_uint8(pictures_of([*FACETED, again])), DrawnFor())
    assert (evidence.unit_of, evidence.facet_of) == ([0, 1, 2, 3, 1], [0, 0, 1, 2])
    assert (evidence.whole_units, evidence.whole_of) == ([0, 2, 3], [0, 0, 1, 2, 0])
    labels = evidence.natural.labels
    assert torch.equal(evidence.others(1), labels >= 2)
    assert torch.equal(evidence.others(2), labels != 2)


def test_facets_and_variations_are_pooled_with_their_unit() -> None:
    found = pooled({("channel-a-7_f0", 0): 1.0, ("channel-a-7_f1_v2", 0): 3.0, ("channel-a-9_f0", 0): 4.0})
    assert (found["value"], found["n"], found["units"]) == (3, 3, 2)


def test_one_unit_has_nobody_to_be_compared_with(network: VisionNetwork, judge: VisionNetwork) -> None:
    for targets, told in ((FACETED[:2], "facets of one unit"), (FACETED[2:3], "")):
        reasons = {name: str(s.reason) for name, s in table_of(network, [judge], targets).scores.items() if s.reason}
        for name in ("own_unit_first", "activation_ratio_others"):
            assert reasons[name].startswith("not computed: needs at least 2 units, and there is 1")
            assert told in reasons[name]
        assert "needs natural images of at least 2 targets" in reasons["correspondence[TinyNet]"]
        assert told in reasons["correspondence[TinyNet]"]
        assert "at least 2 targets" in reasons["path_similarity"]
    assert table_of(network, [judge], FACETED[:2]).scores["mis_pictures[TinyNet]"].value is None


def test_classes_do_not_compete(network: VisionNetwork, judge: VisionNetwork) -> None:
    classes = [Target("class", 0), Target("class", 1)]
    scores = table_of(network, [judge], classes, metrics=["own_unit_first", "correspondence"]).scores
    assert "needs hidden units" in str(scores["own_unit_first"].reason)
    assert scores["correspondence_auc_natural[TinyNet]"].n == 2
    assert "How readable" not in str(table_of(network, [judge], classes))


def test_without_a_judge_or_natural_images(network: VisionNetwork, judge: VisionNetwork) -> None:
    alone = table_of(network, [])
    assert "needs a judge" in str(alone.scores["correspondence"].reason)
    assert alone.scores["own_unit_first"].value is not None
    rows = {row.measure.number: row for row in readable(alone.metrics)}
    assert "needs a judge" in str(rows["correspondence_auc"].pictures["reason"])
    assert rows["correspondence_auc"].meaning.startswith("Another network compares")
    evidence = Evidence(network, FACETED, to_uint8(pictures_of(FACETED)), judges={"TinyNet": judge})
    bare = measure(evidence, chosen("units"))
    assert bare["high_frequency"].value is not None
    for name in ("high_frequency_ratio", "own_unit_first", "activation_ratio_others", "correspondence[TinyNet]"):
        assert "needs natural images" in str(bare[name].reason)


class Maps(TinyNet):
    """Returns its last maps, no logits."""

    def forward(self, pictures: Tensor) -> Tensor:
        maps: Tensor = self.layer1(self.relu(self.bn1(self.conv1(pictures))))
        return maps


def test_a_network_without_classes_and_a_judge_of_other_classes(judge: VisionNetwork) -> None:
    bare = load_model(Maps().eval(), size=SIDE)
    assert bare.class_names is None
    of_maps = {row.measure.number: row.pictures["value"] for row in readable(table_of(bare, [judge]).metrics)}
    assert [number for number, value in of_maps.items() if value is None] in ([], ["path_similarity"])
    other = load_model(tiny_net(classes=7), size=SIDE)
    assert table_of(other, [judge], metrics="correspondence").scores["correspondence_auc[TinyNet]"].n == 4


# --- the set, and its table -----------------------------------------------------------------------------------------


def test_units_stands_for_its_metrics(network: VisionNetwork) -> None:
    assert [metric.name for metric in chosen("units")] == list(SETS["units"])
    assert [metric.name for metric in chosen(["units", "mis", "basic"])][-2:] == ["accuracy", "transfer"]
    assert set(SETS["units"]) | set(SETS["basic"]) <= set(METRICS)
    assert compose_config(["evaluation=units"], "visualize").evaluation.metrics == "units"
    with pytest.raises(UsageError, match=r"metrics=unit: .*evaluation lists all .did you mean units"):
        chosen("unit")


def test_ceilings_and_floors_only_describe(table: Evaluation) -> None:
    for name in table.scores:
        bound = name.partition("[")[0].endswith(("_natural", "_others", "_chance"))
        assert not (bound and higher_is_better(name) is not None), name
    assert higher_is_better("correspondence_auc[a]") is higher_is_better("own_unit_first") is True
    assert proxy_of("correspondence_auc[a]") == proxy_of("mis_pictures[a]") != ""
    assert proxy_of("correspondence_auc_natural[a]") == ""


def test_every_number_of_the_set_stands_in_the_table(table: Evaluation) -> None:
    rows = readable(table.metrics)
    assert [row.measure for row in rows] == list(MEASURES)
    told = numbers_of(rows)
    left = {name for name in table.metrics if name not in told}
    assert all("fraction" in name or "deviation" in name or name.startswith("path_similarity") for name in left)
    by_name = {row.name: row for row in rows}
    resemblance = by_name["correspondence_auc[TinyNet]"]
    assert resemblance.ceiling["value"] == table.scores["correspondence_auc_natural[TinyNet]"].value
    assert (resemblance.floor["value"], resemblance.floor["note"]) == (0.5, "by construction")
    assert resemblance.meaning.startswith("TinyNet compares the picture")
    assert by_name["own_unit_first"].floor["value"] == pytest.approx(1 / 3)
    assert by_name["activation_ratio"].floor["value"] == table.scores["activation_ratio_others"].value
    assert by_name["high_frequency_ratio"].floor["value"] is None


def test_the_printed_table_has_pictures_natural_images_and_chance(table: Evaluation) -> None:
    printed = str(table)
    assert printed.startswith("How readable")
    lines = printed.splitlines()
    place = next(i for i, line in enumerate(lines) if line.startswith("own_unit_first"))
    for name in ("own_unit_first", "own_unit_first_natural"):
        value, interval = number_text(table.metrics[name]).rstrip(")").split(" (")
        assert value in lines[place]
        assert interval in lines[place + 1]
    assert "0.333" in lines[place]
    assert max(map(len, lines)) <= 80
    assert "high_frequency_deviation" in printed


def test_two_judges_have_a_line_each_and_what_one_lacks_is_told() -> None:
    entry = {"value": 0.6, "low": 0.5, "high": 0.7, "n": 4}
    metrics = {
        "correspondence": {"value": None, "reason": "not computed: needs a judge"},  # of an earlier evaluation
        "correspondence_auc[a]": entry,
        "correspondence[b]": {"value": None, "reason": "not computed: needs the weights of b"},
        "path_similarity[layer1]": entry,
    }
    rows = readable(metrics)
    assert [(row.name, row.pictures["value"]) for row in rows] == [
        ("correspondence_auc[a]", 0.6),
        ("correspondence_auc[b]", None),
    ]
    assert "weights of b" in rows[1].pictures["reason"]
    assert rows[0].ceiling["value"] is None
    assert readable({"activation_ratio": entry})[0].ceiling["note"] == "by definition"
    assert readable({}) == []


def test_what_cannot_be_computed_any_more_leaves_no_old_value(
    network: VisionNetwork, judge: VisionNetwork, tmp_path: Path
) -> None:
    table_of(network, [judge]).save(tmp_path)
    one = table_of(network, [judge], FACETED[:1], metrics=["own_unit_first"])
    one.save(tmp_path)
    rows = (tmp_path / "metrics.csv").read_text().splitlines()
    assert "own_unit_first," not in rows[0]
    assert "correspondence_auc[TinyNet]" in rows[0]


def test_a_run_of_hidden_units_asks_judges_of_other_classes() -> None:
    own = load_model(tiny_net(), size=32)  # of four classes; the judge knows ten others
    overrides = ["evaluation=units", "evaluation.judges=[embedded_judge]", "references.count=3", "relevance=none"]
    natural = {f"layer1:{unit}": torch.rand(3, 3, 32, 32) for unit in (0, 1)}
    made = visualize(own, list(natural), references=natural, steps=1, overrides=[*overrides, "progress=false"])
    assert made.metrics["correspondence_auc[embedded_judge]"]["value"] is not None
