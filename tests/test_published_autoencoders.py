"""Sparse autoencoders in the formats of saev, SAELens and Prisma, against matrix products written out here."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.tiny import tiny_net
from vital_exp import load_model, visualize
from vital_exp.errors import UsageError
from vital_exp.evaluation.reconstruction import unexplained
from vital_exp.models.network import model_space
from vital_exp.targets.autoencoder import SparseAutoencoder
from vital_exp.targets.autoencoder_files import load_autoencoder

SIZE, CHANNELS, FEATURES = 32, 16, 24
KEYS: dict[str, Any] = {
    **{
        "layer": "layer1",
        "format": "auto",
        "mean": None,
        "scale": None,
        "encoder": "encoder.weight",
        "encoder_bias": "encoder.bias",
    },
    **{"decoder": None, "decoder_bias": None, "activation": None, "k": None, "threshold": None},
}
Twin = Callable[[np.ndarray], np.ndarray]


def tensors(*more: str) -> dict[str, Tensor]:
    """The names and shapes that the three libraries share, and biases or thresholds (features,)."""
    stream = torch.Generator().manual_seed(3)
    found = {"W_enc": torch.randn(CHANNELS, FEATURES, generator=stream)}
    found |= {"W_dec": torch.randn(FEATURES, CHANNELS, generator=stream)}
    found |= {"b_dec": torch.randn(CHANNELS, generator=stream), "b_enc": torch.randn(FEATURES, generator=stream)}
    return found | {name: torch.rand(FEATURES, generator=stream) for name in more}


def saev(folder: Path, header: dict[str, Any], own: dict[str, Tensor]) -> Path:
    """A line of JSON, and behind it what torch.save makes of the state_dict."""
    path = folder / "sae.pt"
    with path.open("wb") as file:
        file.write(json.dumps(header).encode() + b"\n")
        torch.save(own, file)
    return path


def saev_now(activation: str, schema: int = 5, **params: Any) -> dict[str, Any]:
    """saev's header since the end of July 2025."""
    cfg = {"d_model": CHANNELS, "d_sae": FEATURES, "activation": {"cls": activation, "params": params}}
    return {"schema": schema, "cfg": cfg, "commit": "unknown", "lib": "0.1.0"}


def saelens(folder: Path, settings: dict[str, Any], own: dict[str, Tensor]) -> Path:
    """A folder with cfg.json and sae_weights.safetensors."""
    usual = {"d_in": CHANNELS, "d_sae": FEATURES, "dtype": "float32", "metadata": {"sae_lens_version": "6.1.0"}}
    (folder / "cfg.json").write_text(json.dumps(usual | settings))
    save_file(own, folder / "sae_weights.safetensors")
    return folder


def prisma(folder: Path, settings: dict[str, Any], own: dict[str, Tensor]) -> Path:
    """weights.pt, and config.json beside it."""
    usual = {"architecture": "standard", "activation_fn_str": "relu", "normalize_activations": "none", "_device": "cpu"}
    (folder / "config.json").write_text(json.dumps(usual | settings))
    torch.save(own, folder / "weights.pt")
    return folder / "weights.pt"


def load(path: Path, **changed: Any) -> SparseAutoencoder:
    return load_autoencoder({**KEYS, "checkpoint": str(path), **changed}, CHANNELS)


def values() -> Tensor:
    return torch.randn(2, CHANNELS, 5, generator=torch.Generator().manual_seed(1))


def compare(one: SparseAutoencoder, features: Twin, back: Twin | None = None) -> None:
    """Compare features and reconstruction, position by position, with those of functions of one vector (C,)."""
    given = values().double().numpy()
    encoded, decoded = one.encode(values()), one.reconstruct(values())
    for n in range(given.shape[0]):
        for p in range(given.shape[2]):
            expected = features(given[n, :, p])
            np.testing.assert_allclose(encoded[n, :, p], expected, atol=1e-4)
            for number in (0, 5, 11):
                alone = one.read(values()[n : n + 1], torch.tensor([number]))[0, p]
                np.testing.assert_allclose(alone, expected[number], atol=1e-4)
            if back is not None:
                np.testing.assert_allclose(decoded[n, :, p], back(given[n, :, p]), atol=1e-3)


def named(own: dict[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.double().numpy() for name, tensor in own.items()}


def largest(before: np.ndarray, k: int) -> np.ndarray:
    kept = np.zeros_like(before)
    kept[np.argsort(before)[-k:]] = before[np.argsort(before)[-k:]]
    return kept


SAEV_OLD = [
    {"d_vit": CHANNELS, "exp_factor": 2, "l1_coeff": 4e-4, "ghost_grads": False},
    {"schema": 1, "cls": "Relu", "cfg": {"d_vit": CHANNELS, "exp_factor": 2}},
]


@pytest.mark.parametrize("header", [*SAEV_OLD, saev_now("Relu", 2), saev_now("Relu")], ids=str)
def test_saev_subtracted_the_decoders_bias_until_the_middle_of_2025(header: dict[str, Any], tmp_path: Path) -> None:
    own = tensors()
    w, bias = named(own), 0.0 if header.get("schema", 1) > 1 else 1.0

    def features(a: np.ndarray) -> np.ndarray:
        return np.maximum((a - bias * w["b_dec"]) @ w["W_enc"] + w["b_enc"], 0)

    one = load(saev(tmp_path, header, own))
    assert one.activation == "relu"
    compare(one, features, lambda a: features(a) @ w["W_dec"] + w["b_dec"])


def test_saevs_top_k_has_no_relu(tmp_path: Path) -> None:
    own = tensors()
    w = named(own)
    one = load(saev(tmp_path, saev_now("TopK", top_k=20), own))
    assert (one.encode(values()) < 0).any()
    compare(one, lambda a: largest(a @ w["W_enc"] + w["b_enc"], 20))
    old = {"schema": 1, "cls": "TopK", "cfg": {"d_vit": CHANNELS, "top_k": 3}}
    compare(load(saev(tmp_path, old, own)), lambda a: largest((a - w["b_dec"]) @ w["W_enc"] + w["b_enc"], 3))


@pytest.mark.parametrize("threshold", [0.8, 0.0])
def test_saevs_batch_top_k_reads_its_threshold(threshold: float, tmp_path: Path) -> None:
    own = tensors() | {"activation.threshold": torch.tensor(threshold)}
    w = named(own)
    one = load(saev(tmp_path, saev_now("BatchTopK", top_k=3, momentum=0.1), own))

    def features(a: np.ndarray) -> np.ndarray:
        before = a @ w["W_enc"] + w["b_enc"]
        return np.where(before > threshold, before, 0)

    compare(one, features)


def test_saevs_batch_top_k_without_a_threshold_keeps_the_largest_of_a_picture(tmp_path: Path) -> None:
    one = load(saev(tmp_path, saev_now("BatchTopK", top_k=3), tensors()))
    assert (one.encode(values()) != 0).sum(dim=(1, 2)).tolist() == [15, 15]


@pytest.mark.parametrize("subtracts", [True, False])
def test_saelens_standard(subtracts: bool, tmp_path: Path) -> None:
    own = tensors()
    w = named(own)
    one = load(saelens(tmp_path, {"architecture": "standard", "apply_b_dec_to_input": subtracts}, own))

    def features(a: np.ndarray) -> np.ndarray:
        return np.maximum((a - subtracts * w["b_dec"]) @ w["W_enc"] + w["b_enc"], 0)

    compare(one, features, lambda a: features(a) @ w["W_dec"] + w["b_dec"])


SAELENS_TOP_K = [
    {"architecture": "topk", "k": 4},
    {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 4}, "sae_lens_version": "3.0.0"},
    {"architecture": "topk", "k": 4, "rescale_acts_by_decoder_norm": True},
]


@pytest.mark.parametrize("settings", SAELENS_TOP_K, ids=str)
def test_saelens_top_k(settings: dict[str, Any], tmp_path: Path) -> None:
    own = tensors()
    w = named(own)
    norms = np.linalg.norm(w["W_dec"], axis=1) if "rescale_acts_by_decoder_norm" in settings else np.ones(FEATURES)

    def features(a: np.ndarray) -> np.ndarray:
        return np.maximum(largest(((a - w["b_dec"]) @ w["W_enc"] + w["b_enc"]) * norms, 4), 0)

    one = load(saelens(tmp_path, settings, own))
    compare(one, features, lambda a: (features(a) / norms) @ w["W_dec"] + w["b_dec"])


def test_saelens_jump_relu_has_a_threshold_for_each_feature(tmp_path: Path) -> None:
    own = tensors("threshold")
    w = named(own)

    def features(a: np.ndarray) -> np.ndarray:
        before = (a - w["b_dec"]) @ w["W_enc"] + w["b_enc"]
        return np.maximum(before, 0) * (before > w["threshold"])

    one = load(saelens(tmp_path, {"architecture": "jumprelu"}, own) / "sae_weights.safetensors")
    compare(one, features)
    other = load(saelens(tmp_path, {"architecture": "jumprelu"}, own | {"threshold": own["threshold"] + 1}))
    assert one.describe() != other.describe()


@pytest.mark.parametrize("write", [saelens, prisma])
def test_gated(write: Callable[..., Path], tmp_path: Path) -> None:
    own = tensors("b_gate", "b_mag", "r_mag")
    w = named(own)

    def features(a: np.ndarray) -> np.ndarray:
        reads = (a - w["b_dec"]) @ w["W_enc"]
        return (reads + w["b_gate"] > 0) * np.maximum(reads * np.exp(w["r_mag"]) + w["b_mag"], 0)

    compare(load(write(tmp_path, {"architecture": "gated"}, own)), features)


def layer_norm(a: np.ndarray) -> tuple[np.ndarray, float, float]:
    deviation = (a - a.mean()).std(ddof=1)
    return (a - a.mean()) / (deviation + 1e-5), deviation, a.mean()


def constant_norm(a: np.ndarray) -> tuple[np.ndarray, float, float]:
    size = np.linalg.norm(a) / CHANNELS**0.5
    return a / size, size, 0.0


@pytest.mark.parametrize("write", [saelens, prisma])
@pytest.mark.parametrize(("name", "normal"), [("layer_norm", layer_norm), ("constant_norm_rescale", constant_norm)])
def test_normalised_inputs(name: str, normal: Callable[..., Any], write: Callable[..., Path], tmp_path: Path) -> None:
    own = tensors()
    w = named(own)

    def features(a: np.ndarray) -> np.ndarray:
        return np.maximum((normal(a)[0] - w["b_dec"]) @ w["W_enc"] + w["b_enc"], 0)

    def back(a: np.ndarray) -> np.ndarray:
        _, size, offset = normal(a)
        return np.asarray((features(a) @ w["W_dec"] + w["b_dec"]) * size + offset)

    one = load(write(tmp_path, {"architecture": "standard", "normalize_activations": name}, own))
    compare(one, features, back)
    dark = torch.zeros(1, CHANNELS, 2, requires_grad=True)
    one.read(dark, torch.tensor([1])).sum().backward()
    assert dark.grad is not None
    assert dark.grad.isfinite().all()


def test_a_factor_that_the_file_lacks(tmp_path: Path) -> None:
    own = tensors()
    w = named(own)
    settings = {"architecture": "standard", "normalize_activations": "expected_average_only_in"}
    path = saelens(tmp_path, settings, own)
    with pytest.raises(UsageError, match=r"target.scale=None: saelens multiplied activations by a factor"):
        load(path)

    def features(a: np.ndarray) -> np.ndarray:
        return np.maximum((2.5 * a - w["b_dec"]) @ w["W_enc"] + w["b_enc"], 0)

    compare(load(path, scale=2.5), features, lambda a: (features(a) @ w["W_dec"] + w["b_dec"]) / 2.5)


def test_a_mean_that_the_file_lacks(tmp_path: Path) -> None:
    """saev's loaders once handed (a - mean) times a factor to the autoencoder."""
    own, mean = tensors(), np.linspace(-1, 2, CHANNELS)
    w = named(own)
    path = saev(tmp_path, SAEV_OLD[0], own)
    np.save(tmp_path / "mean.npy", mean)

    def features(a: np.ndarray) -> np.ndarray:
        return np.maximum((2.5 * (a - mean) - w["b_dec"]) @ w["W_enc"] + w["b_enc"], 0)

    one = load(path, mean=str(tmp_path / "mean.npy"), scale=2.5)
    compare(one, features, lambda a: (features(a) @ w["W_dec"] + w["b_dec"]) / 2.5 + mean)
    np.save(tmp_path / "short.npy", mean[:3])
    for given, message in {"short.npy": r"holds \(1, 3\); one vector of 16", "none.npy": "no such file"}.items():
        with pytest.raises(UsageError, match=f"target.mean=.*{message}"):
            load(path, mean=str(tmp_path / given))
    with pytest.raises(UsageError, match=r"target.scale=0: a number above 0"):
        load(path, scale=0)


def test_a_plain_file_of_torch_save_with_a_threshold_for_each_feature(tmp_path: Path) -> None:
    own = tensors("threshold")
    w = named(own)
    torch.save({"state_dict": own}, tmp_path / "sae.pt")
    names = {"encoder": "W_enc", "encoder_bias": "b_enc", "decoder": "W_dec", "decoder_bias": "b_dec"}
    one = load(tmp_path / "sae.pt", **names, activation="jump_relu", threshold="threshold")

    def features(a: np.ndarray) -> np.ndarray:
        before = (a - w["b_dec"]) @ w["W_enc"] + w["b_enc"]
        return np.where(before > w["threshold"], before, 0)

    compare(one, features, lambda a: features(a) @ w["W_dec"] + w["b_dec"])


def overcomplete() -> dict[str, Tensor]:
    """The state_dict of the library's usual encoder, a linear layer and a batch norm, and of its dictionary."""
    stream = torch.Generator().manual_seed(4)
    layer = {name: torch.rand(FEATURES, generator=stream) for name in ("weight", "bias", "running_mean", "running_var")}
    found = {f"encoder.final_block.1.{name}": tensor for name, tensor in layer.items()}
    found["encoder.final_block.1.num_batches_tracked"] = torch.tensor(7)
    found["encoder.final_block.0.weight"] = torch.randn(FEATURES, CHANNELS, generator=stream)
    found["encoder.final_block.0.bias"] = torch.randn(FEATURES, generator=stream)
    found["dictionary._weights"] = torch.randn(FEATURES, CHANNELS, generator=stream)
    return found | {"dictionary.multiplier": torch.tensor(0.3)}


@pytest.mark.parametrize("kind", ["relu", "topk", "thresholds"])
@pytest.mark.parametrize("normed", [True, False])
def test_overcomplete(kind: str, normed: bool, tmp_path: Path) -> None:
    own = overcomplete()
    if not normed:
        own = {name: tensor for name, tensor in own.items() if "final_block.1" not in name}
    own |= {"thresholds": torch.full((FEATURES,), -1.0)} if kind == "thresholds" else {}
    torch.save(own, tmp_path / "sae.pth")
    w = named(own)

    def features(a: np.ndarray) -> np.ndarray:
        before = w["encoder.final_block.0.weight"] @ a + w["encoder.final_block.0.bias"]
        if normed:
            gain, offset, mean, variance = (
                w[f"encoder.final_block.1.{name}"] for name in ("weight", "bias", "running_mean", "running_var")
            )
            before = (before - mean) / np.sqrt(variance + 1e-5) * gain + offset
        codes = np.maximum(before, 0)
        if kind == "topk":
            return largest(codes, 3)
        return np.where(codes < np.exp(-1.0), 0, codes) if kind == "thresholds" else codes

    said = {"relu": {"activation": "relu"}, "topk": {"activation": "topk", "k": 3}, "thresholds": {}}
    dictionary = w["dictionary._weights"] * np.exp(0.3)
    compare(load(tmp_path / "sae.pth", **said[kind]), features, lambda a: features(a) @ dictionary)
    for changed in ({"activation": "relu"}, {"k": 3}) if kind == "thresholds" else ({},):
        with pytest.raises(UsageError, match=r"leave it out: the file has thresholds|does not say it: one of"):
            load(tmp_path / "sae.pth", **changed)
    torch.save({name: tensor for name, tensor in overcomplete().items() if "running" not in name}, tmp_path / "ln.pth")
    with pytest.raises(UsageError, match=r"target.format=overcomplete: an encoder of one linear layer"):
        load(tmp_path / "ln.pth", activation="relu")


def mistakes(folder: Path) -> dict[str, tuple[Path, dict[str, Any]]]:
    """By its message: a file, and the keys."""
    own, wide = tensors(), tensors() | {"W_enc": torch.ones(8, FEATURES)}
    lens = {"architecture": "standard"}
    cases: dict[str, tuple[Callable[..., Path], dict[str, Any], dict[str, Tensor], dict[str, Any]]] = {
        "has another width: it reads 8 channels, and layer1 has 16": (saelens, lens, wide, {}),
        r"target.format=saelens: .*no tensor b_enc; it has W_dec, W_enc, b_dec": (
            *(saelens, lens, {name: own[name] for name in ("W_enc", "W_dec", "b_dec")}, {}),
        ),
        "target.activation=relu: leave it out: saelens files say it": (saelens, lens, own, {"activation": "relu"}),
        "is architecture transcoder; autoencoders of": (saelens, {"architecture": "transcoder"}, own, {}),
        "architecture None": (saelens, {}, own, {}),
        "activation tanh-relu with": (saelens, lens | {"activation_fn": "tanh-relu"}, own, {}),
        "has no tensor threshold; it has W_dec": (saelens, {"architecture": "jumprelu"}, own, {}),
        "has k=None": (saelens, {"architecture": "topk"}, own, {}),
        "has k=99, and only 24 features": (saelens, {"architecture": "topk", "k": 99}, own, {}),
        "normalize_activations=batch is not": (saelens, lens | {"normalize_activations": "batch"}, own, {}),
        "the file normalises activations itself": (
            *(saelens, lens | {"normalize_activations": "layer_norm"}, own, {"scale": 2.0}),
        ),
        "b_enc holds values that are not finite": (saelens, lens, own | {"b_enc": torch.full((24,), torch.nan)}, {}),
        r"b_dec has the shape \(3,\)": (saelens, lens, own | {"b_dec": torch.ones(3)}, {}),
        "has saev's schema 9; 1 to 5, or no schema, can be read": (saev, saev_now("Relu", 9), own, {}),
        "has saev's activation JumpRelu; Relu": (saev, saev_now("JumpRelu"), own, {}),
        "is a transcoder; autoencoders": (prisma, {"is_transcoder": True}, own, {}),
        "does not begin with saev's line of JSON": (prisma, {}, own, {"format": "saev"}),
        "cfg.json is needed beside the weights": (prisma, {}, own, {"format": "saelens"}),
        "an encoder of one linear layer and a dictionary are read; the file has W_dec": (
            *(prisma, {}, own, {"format": "overcomplete"}),
        ),
        "target.format=saes: one of auto, saev, prisma": (prisma, {}, own, {"format": "saes"}),
        "target.encoder=encoder.weight: no such tensor; the file has W_enc": (prisma, {}, own, {"format": "plain"}),
        "target.activation=None: the file does not say it": (
            *(prisma, {}, own, {"format": "plain", "encoder": "W_enc", "encoder_bias": "b_enc"}),
        ),
    }
    found = {}
    for number, (message, (write, settings, content, keys)) in enumerate(cases.items()):
        (folder / str(number)).mkdir()
        found[message] = write(folder / str(number), settings, content), keys
    return found


def test_mistakes_of_formats(tmp_path: Path) -> None:
    for message, (path, keys) in mistakes(tmp_path).items():
        with pytest.raises(UsageError, match=message):
            load(path, **keys)


class Harmful:
    """What a pickle may hold."""


def test_no_code_of_a_file_runs(tmp_path: Path) -> None:
    path = tmp_path / "sae.pt"
    torch.save({"cfg": Harmful(), "state_dict": tensors()}, path)
    with pytest.raises(UsageError, match="holds pickled objects, which could run code"):
        load(path)
    path.write_bytes(b"nothing")
    with pytest.raises(UsageError, match=r"sae.pt: (is damaged or holds|not a readable)"):
        load(path)


def test_the_reconstruction_is_told_and_a_poor_one_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The pair of a feature and its opposite for each channel is perfect; with another convention it is not."""
    own = load_model(tiny_net(), size=SIZE)
    images = torch.rand(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    eye, shift = torch.eye(CHANNELS), torch.full((CHANNELS,), 3.0)
    pairs = {"W_enc": torch.cat([eye, -eye], dim=1), "W_dec": torch.cat([eye, -eye]), "b_dec": shift}
    pairs["b_enc"] = torch.zeros(2 * CHANNELS)
    old = saev(tmp_path, SAEV_OLD[0], pairs)
    one = load(old)
    assert unexplained(own, "layer1", one, images) == pytest.approx(0, abs=1e-8)
    half = SparseAutoencoder(one.encoder, one.bias, one.shift, decoder=one.decoder * 0.5, decoder_bias=shift)  # type: ignore[operator]
    maps = own.taps(["layer1"])(model_space(images, own))[0]["layer1"].flatten(2).double()
    centred = maps - maps.mean(dim=(0, 2), keepdim=True)
    expected = float((0.5 * (maps - 3)).square().sum() / centred.square().sum())
    assert unexplained(own, "layer1", half, images) == pytest.approx(expected, rel=1e-4)
    for header, warned in ((SAEV_OLD[0], False), (saev_now("Relu"), True)):
        caplog.clear()
        given = [f"target.checkpoint={saev(tmp_path, header, pairs)}", "evaluation=none", "references.cache=false"]
        with caplog.at_level(logging.INFO, logger="vital_exp"):
            visualize(own, ["sae-layer1-5"], references=images, steps=1, overrides=[*given, "batch_size=1"])
        told = [record.getMessage() for record in caplog.records]
        assert any("autoencoder of layer1: 32 features, relu; its reconstruction leaves" in one for one in told), told
        assert any("does not fit the activations of layer1" in one for one in told) is warned
