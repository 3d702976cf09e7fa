"""Every formula of the evaluation against an independent twin: torch-fidelity, numpy, scipy, or known numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from vital_exp.evaluation import artefacts, distances, mis, semantic_lens
from vital_exp.evaluation.comparison import paired_difference
from vital_exp.evaluation.intervals import bootstrap_mean, resamples
from vital_exp.evaluation.path_similarity import path_similarity, pooled, ranks
from vital_exp.evaluation.ranking import auc
from vital_exp.evaluation.recognition import verdicts
from vital_exp.evaluation.score import NotComputed, Score


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- distances of sets ----------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("pictures", "natural", "size"), [(40, 60, 8), (30, 30, 16), (12, 50, 32)])
def test_fid_kid_and_inception_score_are_those_of_torch_fidelity(pictures: int, natural: int, size: int) -> None:
    pytest.importorskip("torch_fidelity")
    from torch_fidelity import metric_fid, metric_isc, metric_kid

    shown, real = drawn(0, pictures, size) * 1.3 + 0.4, drawn(1, natural, size)
    statistics = [metric_fid.fid_features_to_statistics(x.double()) for x in (shown, real)]
    published = metric_fid.fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert distances.fid(shown, real).value == pytest.approx(published, rel=1e-3)
    logits = drawn(2, pictures, size) * 3
    published = metric_isc.isc_features_to_metric(logits, splits=1)["inception_score_mean"]
    assert distances.inception_score(logits).value == pytest.approx(published, rel=1e-4)
    if pictures == natural:  # else both draw subsets, each its own
        options = {"kid_subsets": 1, "kid_subset_size": pictures, "verbose": False, "rng_seed": 0}
        published = metric_kid.kid_features_to_metric(real, shown, **options)["kernel_inception_distance_mean"]
        assert distances.kid(shown, real).value == pytest.approx(published, rel=1e-3)


def test_resampled_fid_is_the_fid_of_the_resample() -> None:
    shown, real = drawn(0, 9, 5) + 1, drawn(1, 20, 5)
    found = distances._resampled_fid(shown.double(), real.double())
    for number, chosen in enumerate(resamples(9, count=distances.FID_RESAMPLES)[:5]):
        assert found[number] == pytest.approx(distances.fid(shown[chosen], real).value, rel=1e-3)


def test_resampled_inception_score_is_that_of_the_resample() -> None:
    logits = drawn(0, 12, 4) * 2
    found = distances._inception_scores(logits.double().softmax(dim=1).numpy())
    for number, chosen in enumerate(resamples(12)[:5]):
        assert found[number] == pytest.approx(distances.inception_score(logits[chosen]).value, rel=1e-5)


def test_resampled_kid_compares_different_pictures_only() -> None:
    shown, real = drawn(0, 6, 3).double(), drawn(1, 8, 3).double()
    found = distances._resampled_kid(shown, real)

    def kernel(a: Tensor, b: Tensor) -> float:
        return float((a @ b / 3 + 1) ** 3)

    chosen = resamples(6)[0]
    within = [kernel(shown[i], shown[j]) for i in chosen for j in chosen if i != j]
    others = [kernel(real[i], real[j]) for i in range(8) for j in range(8) if i != j]
    across = [kernel(shown[i], real[j]) for i in chosen for j in range(8)]
    assert found[0] == pytest.approx(np.mean(within) + np.mean(others) - 2 * np.mean(across))


def test_intervals_of_sets_hold_the_value_and_narrow() -> None:
    real = drawn(1, 200, 4)
    few, many = (distances.kid(drawn(2, n, 4) + 1, real) for n in (10, 150))
    for score in (few, many):
        assert score.value is not None
        assert score.low is not None
        assert score.high is not None
        assert score.low < score.value < score.high
    assert (many.high - many.low) / many.value < (few.high - few.low) / few.value  # type: ignore[operator]


def test_too_few_pictures_say_how_many_are_needed() -> None:
    with pytest.raises(NotComputed, match="at least 2 pictures, and there is 1"):
        distances.fid(drawn(0, 1, 3), drawn(1, 9, 3))
    with pytest.raises(NotComputed, match="at least 50 pictures, and there are 9"):
        distances.kid(drawn(0, 9, 3), drawn(1, 99, 3), subset_size=50)
    with pytest.raises(NotComputed, match="at least 50 natural images, and there are 9"):
        distances.kid(drawn(0, 99, 3), drawn(1, 9, 3), subset_size=50)
    with pytest.raises(NotComputed, match="at least 2 pictures"):
        distances.inception_score(drawn(0, 1, 3))


def test_fid_of_few_pictures_says_so_and_of_many_has_no_interval() -> None:
    few = distances.fid(drawn(0, 5, 8), drawn(1, 30, 8))
    assert "5 images in 8 dimensions" in str(few.reason)
    many = distances.fid(drawn(0, distances.FID_AFFORDABLE + 1, 3), drawn(1, 400, 3))
    assert many.value is not None
    assert many.low is None
    assert "no interval" in str(many.reason)


# --- the two-alternative task ---------------------------------------------------------------------------------------


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_mis_against_loops_over_images() -> None:
    features, activations = drawn(0, 400, 6), drawn(1, 400)
    margins = []
    for task in mis.tasks(activations, seed=3):

        def distance(query: int, task: mis.Task = task) -> float:
            x = features[query].numpy()
            strong = [cosine(x, features[i].numpy()) for i in task.strong]
            weak = [cosine(x, features[i].numpy()) for i in task.weak]
            return float(np.mean(strong) - np.mean(weak))

        margins.append(distance(task.strong_query) - distance(task.weak_query))
    found = mis.natural_interpretability(features, activations, seed=3)
    assert found.score == pytest.approx(np.mean([1 / (1 + math.exp(-m / 0.16)) for m in margins]), abs=1e-6)
    assert found.fraction == pytest.approx(np.mean([m > 0 for m in margins]))


def test_tasks_deal_one_image_of_each_bin() -> None:
    activations = drawn(0, 2000)
    found = list(mis.tasks(activations))
    assert len(found) == mis.TASKS
    order = activations.argsort(descending=True).tolist()
    place = {image: rank for rank, image in enumerate(order)}
    for task in found:
        assert [place[i] // 20 for i in (task.strong_query, *task.strong.tolist())] == list(range(10))
        assert [(1999 - place[i]) // 20 for i in (task.weak_query, *task.weak.tolist())] == list(range(10))
    used = [i for task in found for i in (task.strong_query, *task.strong.tolist())]
    assert len(set(used)) == 200


def test_pictures_in_place_of_references() -> None:
    features, activations = drawn(0, 100, 4), drawn(1, 100)
    pictures, others = drawn(2, 2, 4), drawn(3, 3, 4)
    (task,) = mis.tasks(activations)

    def distance(query: int) -> float:
        x = features[query].numpy()
        own, foreign = ([cosine(x, y.numpy()) for y in group] for group in (pictures, others))
        return float(np.mean(own) - np.mean(foreign))

    margin = distance(task.strong_query) - distance(task.weak_query)
    found = mis.picture_interpretability(features, activations, pictures, others)
    assert found.score == pytest.approx(1 / (1 + math.exp(-margin / 0.16)), abs=1e-6)
    assert found.fraction == (margin > 0)
    with pytest.raises(NotComputed, match="at least 20 natural images, and there are 19"):
        mis.natural_interpretability(features[:19], activations[:19])


# --- similarity along the path --------------------------------------------------------------------------------------


@pytest.mark.parametrize("measure", ["spearman", "pearson", "cosine"])
def test_path_similarity_against_pairs(measure: str) -> None:
    stats = pytest.importorskip("scipy.stats")
    twins = {
        "spearman": lambda a, b: stats.spearmanr(a, b)[0],
        "pearson": lambda a, b: stats.pearsonr(a, b)[0],
        "cosine": cosine,
    }
    like = twins[measure]
    labels, owners = torch.tensor([0, 1, 1, 2]), torch.tensor([0, 0, 0, 1, 1, 2, 2])
    shown, natural = (drawn(0, 4, 12).relu() * 3).round(), (drawn(1, 7, 12).relu() * 3).round()  # with ties
    x, y = shown.numpy(), natural.numpy()
    table = []
    for c in range(3):
        own, others = np.flatnonzero(owners == c), np.flatnonzero(owners != c)
        picture = np.mean([like(x[i], y[j]) for i in np.flatnonzero(labels == c) for j in own])
        same = np.mean([like(y[i], y[j]) for i in own for j in own if i != j])
        table.append([picture, same, np.mean([like(y[i], y[j]) for i in own for j in others])])
    picture, same, different = np.mean(table, axis=0)
    found = path_similarity(shown, labels, natural, owners, measure)
    assert (found.picture, found.same, found.different) == pytest.approx((picture, same, different))
    assert found.value == pytest.approx((picture - different) / (same - different))
    assert found.n == 3
    assert np.mean(list(found.by_class.values())) == pytest.approx(found.value)


def test_path_similarity_of_natural_images_is_one_and_of_other_classes_zero() -> None:
    centres = drawn(0, 4, 50)
    owners = torch.arange(4).repeat_interleave(200)
    natural = centres[owners] + 0.5 * drawn(1, 800, 50)
    shown, labels = centres.repeat(50, 1) + 0.5 * drawn(2, 200, 50), torch.arange(4).repeat(50)
    same = path_similarity(shown, labels, natural, owners)
    assert same.value == pytest.approx(1, abs=0.02)
    shuffled = path_similarity(shown, (labels + 1) % 4, natural, owners)
    assert abs(shuffled.value) < 0.05
    assert same.low <= same.value <= same.high


def test_pooled_layers_average_raw_similarities() -> None:
    labels, owners = torch.arange(3), torch.arange(3).repeat_interleave(2)
    shown, natural = ({layer: drawn(seed + i, n, 9) for i, layer in enumerate("ab")} for seed, n in ((0, 3), (5, 6)))
    parts = [path_similarity(shown[layer], labels, natural[layer], owners) for layer in "ab"]
    found = pooled(shown, labels, natural, owners)
    assert found.picture == pytest.approx(np.mean([part.picture for part in parts]))
    scale = np.mean([part.same for part in parts]) - np.mean([part.different for part in parts])
    lift = found.picture - np.mean([part.different for part in parts])
    assert found.value == pytest.approx(lift / scale)


def test_path_similarity_needs_pairs() -> None:
    with pytest.raises(ValueError, match="two natural images"):
        path_similarity(drawn(0, 1, 5), torch.zeros(1), drawn(1, 3, 5), torch.zeros(3))


def test_ranks_share_ties() -> None:
    stats = pytest.importorskip("scipy.stats")
    rows = (drawn(0, 3, 40) * 2).round()
    assert np.allclose(ranks(rows).numpy() + 1, stats.rankdata(rows.numpy(), axis=1))


# --- units ----------------------------------------------------------------------------------------------------------


def test_auc_against_all_pairs() -> None:
    positive, negative = (drawn(0, 30) * 2).round(), (drawn(1, 17) * 2).round()
    pairs = [(p > q) + 0.5 * (p == q) for p in positive.numpy() for q in negative.numpy()]
    assert auc(positive, negative) == pytest.approx(np.mean(pairs))
    assert auc(torch.tensor([1.0]), torch.tensor([0.0])) == 1


def test_clarity_is_the_mean_cosine_of_pairs() -> None:
    rows = drawn(0, 7, 5)
    pairs = [cosine(rows[i].numpy(), rows[j].numpy()) for i in range(7) for j in range(7) if i != j]
    assert semantic_lens.clarity(rows) == pytest.approx(np.mean(pairs))
    with pytest.raises(NotComputed, match="at least 2 images"):
        semantic_lens.clarity(rows[:1])


def test_redundancy_is_the_nearest_other_unit() -> None:
    rows = drawn(0, 5, 3)
    wanted = [max(cosine(rows[i].numpy(), rows[j].numpy()) for j in range(5) if j != i) for i in range(5)]
    assert semantic_lens.redundancy(rows).tolist() == pytest.approx(wanted)
    with pytest.raises(NotComputed, match="at least 2 units"):
        semantic_lens.redundancy(rows[:1])


def test_polysemanticity_tells_two_meanings_from_one() -> None:
    first, second = torch.tensor([1.0, 0, 0]), torch.tensor([0, 1.0, 0])
    noise = 0.05 * drawn(0, 8, 3)
    two = torch.cat([first.expand(4, -1), second.expand(4, -1)]) + noise
    centres = [two[:4].numpy() / np.linalg.norm(two[:4], axis=1, keepdims=True)]
    centres.append(two[4:].numpy() / np.linalg.norm(two[4:], axis=1, keepdims=True))
    wanted = 1 - cosine(centres[0].mean(axis=0), centres[1].mean(axis=0))
    assert semantic_lens.polysemanticity(two) == pytest.approx(wanted, abs=1e-6)
    assert semantic_lens.polysemanticity(first.expand(5, -1)) == 0
    assert semantic_lens.polysemanticity(first.expand(8, -1) + noise) < 0.05
    with pytest.raises(NotComputed, match="at least 3"):
        semantic_lens.polysemanticity(two[:2])


def test_verdicts_by_hand() -> None:
    logits = torch.tensor([[3.0, 2, 1, 0, -1, -2], [3.0, 2, 1, 0, -1, -2]])
    found = verdicts(logits, torch.tensor([0, 5]))
    assert found["top1"].tolist() == [1, 0]
    assert found["top5"].tolist() == [1, 0]
    shares = np.exp([3.0, 2, 1, 0, -1, -2]) / np.exp([3.0, 2, 1, 0, -1, -2]).sum()
    assert found["probability"].tolist() == pytest.approx([shares[0], shares[5]])


# --- artefacts ------------------------------------------------------------------------------------------------------


def test_a_repeated_tile_is_found() -> None:
    tile = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    tiled, single = tile.repeat(1, 1, 4, 4), torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    both = artefacts.repetition(torch.cat([tiled, single, torch.full((1, 3, 64, 64), 0.5)]))
    assert both[0] == pytest.approx(1, abs=1e-4)
    assert both[1] < 0.15
    assert both[2] == 0


def test_repetition_against_shifted_products() -> None:
    picture = torch.rand(1, 3, 12, 12, generator=torch.Generator().manual_seed(0)).double()
    grey = picture[0].mean(dim=0).numpy()
    grey = grey - grey.mean()
    heights = np.array([[(grey * np.roll(grey, (i, j), (0, 1))).sum() for j in range(12)] for i in range(12)])
    heights /= heights[0, 0]
    peaks = [0.0]
    for i in range(12):
        for j in range(12):
            away = math.hypot(min(i, 12 - i), min(j, 12 - j))
            around = [heights[(i + a) % 12, (j + b) % 12] for a in (-1, 0, 1) for b in (-1, 0, 1)]
            if away >= 2 and heights[i, j] >= max(around):
                peaks.append(heights[i, j])
    assert float(artefacts.repetition(picture)[0]) == pytest.approx(max(peaks), abs=1e-5)


def test_high_frequency_of_waves() -> None:
    place = torch.arange(64.0)
    slow, fast = (torch.sin(2 * math.pi * f * place).expand(1, 3, 64, -1) for f in (0.1, 0.4))
    share = artefacts.high_frequency(torch.cat([slow, fast, slow + fast, torch.full((1, 3, 64, 64), 0.5)]))
    assert share.tolist() == pytest.approx([0, 1, 0.5, 0], abs=0.01)


# --- intervals and comparisons --------------------------------------------------------------------------------------


def test_paired_differences() -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(size=50)
    better = paired_difference({i: base[i] + 1 for i in range(50)}, {i: base[i] for i in range(40)})
    assert better["n"] == 40
    assert better["value"] == pytest.approx(1)
    assert better["significant"]
    noise = paired_difference(base.tolist(), (base + rng.normal(size=50)).tolist())
    assert noise["low"] < 0 < noise["high"]
    assert not noise["significant"]


def test_pairing_sees_what_two_intervals_do_not() -> None:
    rng = np.random.default_rng(1)
    base = rng.normal(size=30) * 10
    a, b = base + 0.5 + 0.1 * rng.normal(size=30), base
    intervals = [bootstrap_mean(values.tolist()) for values in (a, b)]
    assert intervals[0]["low"] < intervals[1]["high"]  # they overlap
    assert paired_difference(a.tolist(), b.tolist())["significant"]


def test_comparisons_without_pairs() -> None:
    assert paired_difference({"a": 1.0}, {"b": 2.0}) == {
        "value": None,
        "low": None,
        "high": None,
        "n": 0,
        "significant": False,
    }
    assert not paired_difference([3.0], [1.0])["significant"]
    assert paired_difference([1.0, math.nan], [0.0, 1.0])["n"] == 1
    with pytest.raises(ValueError, match="two mappings or two sequences"):
        paired_difference([1.0], {"a": 1.0})


def test_a_value_of_a_unit_counts_once_whatever_its_variations() -> None:
    score = Score.mean([1.0, 1.0, 0.0, math.nan], groups=[0, 0, 1, 2])
    assert (score.value, score.n) == (0.5, 2)
    assert score.values[:3] == (1.0, 1.0, 0.0)  # type: ignore[index]
    with pytest.raises(NotComputed):
        Score.mean([math.nan])


def test_entries_hold_numbers_json_knows() -> None:
    assert Score(math.nan, math.inf, 1.0, 3).entry() == {"value": None, "low": None, "high": 1.0, "n": 3}
    assert Score.missing("needs x").entry()["reason"] == "not computed: needs x"
