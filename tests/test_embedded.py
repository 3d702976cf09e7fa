"""The drawn image set, the networks trained on it and the command that trains them."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from vital_exp.errors import UsageError
from vital_exp.models.embedded import EMBEDDED, MEAN, SIZE, STD, build, weights_path
from vital_exp.references.drawn import CLASS_NAMES, DrawnReferences, draw, draw_set
from vital_exp.targets.unit import Target

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

import train_embedded

NAMES = tuple(EMBEDDED)
MOST_BYTES = 3_000_000
CARD = json.loads(weights_path(NAMES[0]).with_name("model_card.json").read_text(encoding="utf-8"))
# Neither of training nor of the figures in the model card.
UNSEEN_SEED = 30_000


@pytest.fixture(scope="module")
def unseen() -> dict[str, tuple[Tensor, Tensor]]:
    return {kind: draw_set(40, UNSEEN_SEED, kind) for kind in ("typical", "swapped")}


# --- drawings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("palettes", ["typical", "swapped"])
@pytest.mark.parametrize("class_index", range(len(CLASS_NAMES)))
def test_a_drawing_is_an_rgb_picture_and_a_function_of_its_arguments(class_index: int, palettes: str) -> None:
    image = draw(class_index, 3, 7, palettes)
    assert image.shape == (3, SIZE, SIZE)
    assert image.dtype == torch.float32
    assert 0 <= image.min() < image.max() <= 1
    state = torch.get_rng_state()
    draw(class_index, 4, 7, palettes)
    assert torch.equal(image, draw(class_index, 3, 7, palettes))
    assert torch.equal(state, torch.get_rng_state())


def test_class_number_seed_and_palettes_all_matter() -> None:
    first = draw(0, 0, 0)
    for other in (draw(1, 0, 0), draw(0, 1, 0), draw(0, 0, 1), draw(0, 0, 0, "swapped")):
        assert (first - other).abs().mean() > 0.02


def test_a_set_is_its_single_drawings_with_labels() -> None:
    images, labels = draw_set(2, 5, "swapped")
    assert labels.tolist() == [i // 2 for i in range(20)]
    assert torch.equal(images[7], draw(3, 1, 5, "swapped"))


def test_swapped_palettes_are_never_the_own_ones_and_all_others_occur() -> None:
    from vital_exp.references.drawn import _lender

    lent = {_lender(4, number, 0, "swapped") for number in range(100)}
    assert lent == set(range(10)) - {4}
    assert _lender(4, 0, 0, "typical") == 4


def test_mean_colour_tells_classes_apart_only_when_palettes_are_typical() -> None:
    def share_right(kind: str) -> float:
        centres = draw_set(20, 1)[0].mean((2, 3)).view(10, 20, 3).mean(1)
        images, labels = draw_set(20, 2, kind)
        guess = torch.cdist(images.mean((2, 3)), centres).argmin(1)
        return (guess == labels).float().mean().item()

    assert share_right("typical") > 0.7
    assert share_right("swapped") < 0.15


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        ((10, 0, 0), "class_index"),
        ((0, -1, 0), "number"),
        ((0, 0, -1), "seed"),
        ((0, 0, 0, "swaped"), "palettes"),
    ],
)
def test_drawing_refuses_what_it_does_not_have(arguments: tuple, key: str) -> None:
    with pytest.raises(UsageError, match=key):
        draw(*arguments)


def test_an_empty_set_is_refused() -> None:
    with pytest.raises(UsageError, match="count_per_class"):
        draw_set(0, 0)


# --- references -----------------------------------------------------------------------------------------------------


def test_references_of_a_class_are_its_drawings() -> None:
    images = list(DrawnReferences(count=3, seed=2).images(Target("class", 6)))
    assert [torch.equal(image, draw(6, number, 2)) for number, image in enumerate(images)] == [True] * 3


def test_references_of_a_hidden_unit_mix_all_classes() -> None:
    images = list(DrawnReferences(count=20).images(Target("channel", 99, layer="layer4")))
    assert torch.equal(images[13], draw(3, 13, 0))
    assert len(images) == 20


@pytest.mark.parametrize("size", [32, 96, 225])
def test_references_come_in_the_size_asked(size: int) -> None:
    image = next(DrawnReferences(count=1, size=size).images(Target("class", 0)))
    assert image.shape == (3, size, size)
    assert image.min() >= 0
    assert image.max() <= 1


def test_fingerprints_tell_apart_what_differs_in_images() -> None:
    star, heart = Target("class", 0), Target("class", 1)
    prints = [
        DrawnReferences().fingerprint(star),
        DrawnReferences().fingerprint(heart),
        DrawnReferences(count=49).fingerprint(star),
        DrawnReferences(seed=1).fingerprint(star),
        DrawnReferences(size=32).fingerprint(star),
        DrawnReferences().fingerprint(Target("channel", 0, layer="conv1")),
    ]
    assert len(set(prints)) == len(prints)
    assert prints[0] == DrawnReferences(size=64).fingerprint(Target("class", 0, variation=2))
    assert DrawnReferences().class_indices() == list(range(10))


@pytest.mark.parametrize("arguments", [{"count": 0}, {"seed": -1}, {"size": 0}])
def test_references_refuse_bad_options(arguments: dict) -> None:
    with pytest.raises(UsageError, match=f"references.{next(iter(arguments))}"):
        DrawnReferences(**arguments)


def test_references_refuse_an_unknown_class() -> None:
    with pytest.raises(UsageError, match=r"target\.index=10"):
        list(DrawnReferences().images(Target("class", 10)))


# --- networks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_small_and_finite_and_load_strictly(name: str) -> None:
    path = weights_path(name)
    assert path.stat().st_size <= MOST_BYTES
    state = load_file(path)
    assert all(value.isfinite().all() for value in state.values())
    network = build(name)
    network.load_state_dict(state, strict=True)
    assert network.eval()(torch.zeros(2, 3, SIZE, SIZE)).shape == (2, len(CLASS_NAMES))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("palettes", "least"), [("typical", 0.98), ("swapped", 0.95)])
def test_networks_know_unseen_drawings(
    name: str, palettes: str, least: float, unseen: dict[str, tuple[Tensor, Tensor]]
) -> None:
    network = train_embedded.load_weights(name, weights_path(name))
    assert train_embedded.accuracy(network, *unseen[palettes]) >= least


@pytest.mark.parametrize("name", NAMES)
def test_the_model_card_tells_of_the_file_in_the_package(name: str) -> None:
    entry, path = CARD["networks"][name], weights_path(name)
    assert entry["accuracy"]["typical"] >= 0.98
    assert entry["accuracy"]["swapped"] >= 0.95
    assert entry["parameters"] == sum(p.numel() for p in build(name).parameters())
    assert entry["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert entry["command"].startswith("python tools/train_embedded.py --seed")
    text = path.with_name("MODEL_CARD.md").read_text(encoding="utf-8")
    assert f"{entry['accuracy']['typical']:.2%}" in text
    assert (CARD["mean"], CARD["std"], CARD["classes"]) == (list(MEAN), list(STD), list(CLASS_NAMES))


def test_unknown_networks_suggest_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean embedded_resnet"):
        build("embeded_resnet")
    with pytest.raises(UsageError, match=r"model\.name"):
        weights_path("resnet")


# --- training -------------------------------------------------------------------------------------------------------


@pytest.fixture
def threads() -> int:
    return min(2, torch.get_num_threads())


def test_augmentation_keeps_range_and_follows_its_stream() -> None:
    images, _ = draw_set(1, 0)
    first, again, other = (
        train_embedded.augment(images, train_embedded.RECIPES["embedded_vit"], torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.shape == images.shape
    assert 0 <= first.min() <= first.max() <= 1


def test_batches_visit_every_image_before_any_again() -> None:
    labels = torch.arange(12)
    recipe = train_embedded.Recipe(steps=3, rate=1.0, decay=0.0, batch_size=4, noise=0.0, swapped=0.5)
    drawn = train_embedded.batches(torch.zeros(12, 1), labels, recipe, torch.Generator().manual_seed(0))
    assert sorted(torch.cat([chosen for _, chosen in drawn]).tolist()) == list(range(12))


def test_the_command_trains_the_same_weights_from_the_same_seed(tmp_path: Path, threads: int) -> None:
    common = ["--names", "embedded_judge", "--steps", "2", "--count", "3", "--held-out", "2", "--threads", str(threads)]
    for folder in ("a", "b"):
        assert train_embedded.main([*common, "--out", str(tmp_path / folder)]) == 0
    cards = [json.loads((tmp_path / folder / "model_card.json").read_text()) for folder in ("a", "b")]
    assert cards[0] == cards[1]
    entry = cards[0]["networks"]["embedded_judge"]
    assert entry["command"].endswith(f"--seed 0 --count 3 --threads {threads} --steps 2")
    assert entry["bytes"] == (tmp_path / "a" / "embedded_judge.safetensors").stat().st_size


def test_the_card_keeps_networks_not_trained_this_time(tmp_path: Path, threads: int) -> None:
    common = ["--steps", "1", "--count", "1", "--held-out", "1", "--threads", str(threads), "--out", str(tmp_path)]
    for name in ("embedded_vit", "embedded_resnet"):
        assert train_embedded.main([*common, "--names", name]) == 0
    card = json.loads((tmp_path / "model_card.json").read_text())
    assert list(card["networks"]) == ["embedded_resnet", "embedded_vit"]


def test_the_command_refuses_a_negative_seed(capsys: pytest.CaptureFixture[str]) -> None:
    assert train_embedded.main(["--seed", "-1"]) == 2
    assert "seed=-1: must be at least 0" in capsys.readouterr().err


@pytest.mark.parametrize("key", ["steps", "count", "held-out", "threads"])
def test_the_command_refuses_counts_below_one(key: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert train_embedded.main([f"--{key}", "0"]) == 2
    assert "must be at least 1" in capsys.readouterr().err
