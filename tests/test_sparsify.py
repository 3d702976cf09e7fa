"""SPADE: the pruned weights against explicit inverses, what stays, what the user is told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.tiny import ON_CPU, SHORT, command, tiny_net
from vital_exp import load_model
from vital_exp.engine import objective_and_gradient
from vital_exp.errors import UsageError
from vital_exp.models.network import VisionNetwork
from vital_exp.models.sparsify import (
    DAMPING,
    Sparsification,
    augmented,
    chosen,
    columns_of,
    pruned_weights,
    second_moments,
    sparsified,
)

GENERATOR = torch.Generator().manual_seed(0)
IMAGES = list(torch.rand(6, 3, 16, 16, generator=GENERATOR))


def data(columns: int = 6, rows: int = 5) -> tuple[np.ndarray, np.ndarray]:
    numbers = np.random.default_rng(0)
    values = numbers.normal(size=(40, columns)) @ numbers.normal(size=(columns, columns))
    return numbers.normal(size=(rows, columns)), values


@pytest.mark.parametrize(("sparsity", "block"), [(0.5, 1), (0.5, 3), (0.6, 6), (0.0, 2)])
def test_weights_are_those_of_optimal_brain_surgery_column_by_column(sparsity: float, block: int) -> None:
    """Twin: for each column the inverse of H over the columns to come, anew; Hassibi and Stork's update."""
    weights, values = data()
    moments = values.T @ values
    damped = moments + DAMPING * np.diag(moments).mean() * np.eye(6)
    twin = weights.copy()
    gone: set[tuple[int, int]] = set()
    for column in range(6):
        if column % block == 0:
            here = range(column, min(column + block, 6))
            pivots = {c: np.linalg.inv(damped[c:, c:])[0, 0] for c in here}
            scores = sorted((twin[r, c] ** 2 / pivots[c], r, c) for r in range(5) for c in here)
            gone |= {(r, c) for _, r, c in scores[: int(sparsity * len(scores) + 1e-9)]}
        inverse = np.linalg.inv(damped[column:, column:])
        for row in range(5):
            if (row, column) in gone:
                twin[row, column:] -= twin[row, column] / inverse[0, 0] * inverse[0]
    ours = pruned_weights(torch.tensor(weights), torch.tensor(moments), sparsity, block).numpy()
    np.testing.assert_allclose(ours, twin, atol=1e-10)
    assert np.mean(ours == 0) == pytest.approx(sparsity, abs=0.1)


def test_the_error_is_below_that_of_pruning_the_smallest_weights() -> None:
    weights, values = data(40, 30)
    ours = pruned_weights(torch.tensor(weights), torch.tensor(values.T @ values), 0.7, 1).numpy()
    order = np.abs(weights).argsort(axis=0)
    smallest = weights.copy()
    np.put_along_axis(smallest, order[:21], 0, axis=0)
    error, usual = (np.square((one - weights) @ values.T).sum() for one in (ours, smallest))
    assert error < 0.7 * usual


@pytest.mark.parametrize("padding", [{}, {"padding": "same"}, {"padding": (1, 2), "padding_mode": "reflect"}])
def test_columns_times_weights_are_the_layer(padding: dict[str, object]) -> None:
    torch.manual_seed(0)
    for part, shape in ((nn.Conv2d(3, 4, 3, bias=False, **padding), (2, 3, 9, 8)), (nn.Linear(3, 4, False), (2, 7, 3))):  # type: ignore[arg-type]
        values = torch.randn(shape)
        made = columns_of(part, values) @ part.weight.flatten(1).mT
        wanted = part(values)
        wanted = wanted.flatten(2).mT if wanted.ndim == 4 else wanted
        torch.testing.assert_close(made, wanted.flatten(0, 1), atol=1e-5, rtol=1e-5)


def network() -> VisionNetwork:
    return load_model(tiny_net(), size=16)


def test_second_moments_are_of_every_position_of_every_image() -> None:
    own = network()
    layers = {"fc": own.module.fc}
    batches = list(augmented(IMAGES, Sparsification(images=20)))
    assert [len(batch) for batch in batches] == [16, 4]
    assert all(float(batch.min()) >= 0 and float(batch.max()) <= 1 for batch in batches)
    found = second_moments(own, layers, iter(batches))["fc"]
    pictures = own.preprocessing.normalise(torch.cat(batches))
    seen = own.module.layer1(own.module.relu(own.module.bn1(own.module.conv1(pictures)))).mean((2, 3))  # type: ignore[operator]
    torch.testing.assert_close(found, 2 / 20 * seen.mT @ seen, atol=1e-5, rtol=1e-4)


def test_a_copy_is_pruned_from_the_end_and_the_network_stays() -> None:
    own = network()
    before = {name: value.clone() for name, value in own.module.state_dict().items()}
    pruned = sparsified(own, IMAGES, Sparsification(0.5, 32))
    assert all(torch.equal(value, before[name]) for name, value in own.module.state_dict().items())
    zeros = {n: float((p.weight == 0).float().mean()) for n, p in pruned.module.named_modules() if hasattr(p, "weight")}
    assert 0.5 <= zeros["fc"] < 0.6  # columns that are always 0 go too
    assert zeros["conv1"] == zeros["layer1.0"] == 0
    everywhere = sparsified(own, IMAGES, Sparsification({"layer1": 0.75, "fc": 0.5}, 32))
    assert float((everywhere.module.layer1[0].weight == 0).float().mean()) == pytest.approx(0.76, abs=0.02)
    below = chosen(own, {"fc": 0.5, "layer1": 0.5}, "layer1")
    assert list(below) == ["layer1.0"]
    kept = sparsified(own, IMAGES, Sparsification(0.0, 4))
    assert torch.equal(kept.module.fc.weight, own.module.fc.weight)


def test_the_picture_s_loss_is_that_of_the_pruned_network() -> None:
    own = network()
    pictures, references = torch.stack(IMAGES[:1]), torch.stack(IMAGES)
    asked = ["objective=[activation]", "transforms=none", "model.sparsify=spade", "model.sparsify_images=32"]
    losses, _ = objective_and_gradient(own, "class:1", pictures, references=references, overrides=asked)
    twin = sparsified(own, IMAGES, Sparsification(0.95, 32))
    torch.testing.assert_close(losses, -twin(pictures)[:, 1])
    assert float(losses) != pytest.approx(float(-own(pictures)[:, 1]))
    with pytest.raises(UsageError, match="one target at a time"):
        objective_and_gradient(own, ["class:1", "class:2"], pictures.repeat(2, 1, 1, 1), references=references,
                               overrides=asked)  # fmt: skip


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (["sparsify=spad"], ("model.sparsify=spad", "spade")),
        (["sparsify=spade", "sparsity=1.0"], ("model.sparsity=1.0", "at least 0 and below 1")),
        (["sparsify=spade", "sparsity={layr3: 0.5}"], ("model.sparsity=layr3", "layer3")),
        (["sparsify=spade", "sparsify_images=0"], ("model.sparsify_images=0", "at least 1")),
    ],
)
def test_mistakes_are_one_line(
    keys: list[str], words: tuple[str, ...], workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = command(*SHORT, *ON_CPU, *(f"model.{key}" for key in keys), "hydra.run.dir=run")
    told = capsys.readouterr().err
    assert code == 2
    assert all(word in told for word in words), told
    assert "Traceback" not in told


def test_a_layer_of_few_rows_is_never_emptied() -> None:
    weights, values = data(rows=1)
    assert (pruned_weights(torch.tensor(weights), torch.tensor(values.T @ values), 0.95, 1) != 0).all()


def test_targets_are_made_one_at_a_time(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = [*SHORT, *ON_CPU, "model.sparsify=spade", "model.sparsify_images=16", "method=fourier"]
    assert command(*asked, "batch_size=3", "hydra.run.dir=run") == 2
    assert "batch_size=3: 1 or auto" in capsys.readouterr().err
    assert command(*asked, "target.index=[0,1]", "batch_size=auto", "hydra.run.dir=run") == 0
