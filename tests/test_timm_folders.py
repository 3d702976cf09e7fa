"""Networks that timm saved into a folder, or published: read back from disk, nothing fetched, no code run."""

from __future__ import annotations

import json
import logging
import pickle
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import timm
import torch
from timm.models import save_for_hf
from torch import Tensor, nn

from tests.tiny import ON_CPU, SHORT, command
from vital_exp import load_model
from vital_exp.errors import UsageError
from vital_exp.evaluation.weights import weights_there
from vital_exp.models.hub import RETRIES, retries_told_once
from vital_exp.models.loading import build_network
from vital_exp.models.model_config import ModelConfig
from vital_exp.models.named import named_network
from vital_exp.models.network import VisionNetwork

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
INPUT = {"mean": MEAN, "std": STD, "crop_pct": 1.0, "interpolation": "bilinear", "input_size": (3, 48, 48)}
NAMES = {"label_names": ["n1", "n2", "n3"], "label_descriptions": {"n1": "cat", "n2": "dog", "n3": "fox"}}
REVISION = "0" * 40


def rgb() -> Tensor:
    return torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))


def small() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network: nn.Module = timm.create_model("resnet10t", num_classes=3, stem_width=8)
    return network.eval()


def saved(folder: Path, safe: bool = True) -> Path:
    """A small network as timm saves it for the hub."""
    save_for_hf(small(), str(folder), dict(NAMES), safe_serialization=safe, data_config=dict(INPUT))
    return folder


def published(cache: Path) -> str:
    """The same in a cache of the hub, as its own tools lay it out; returns its name there."""
    repository = cache / "models--owner--name"
    saved(repository / "snapshots" / REVISION)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(REVISION)
    return "hf-hub:owner/name"


def check(network: VisionNetwork) -> None:
    """The network is the saved one, with its own input and class names."""
    own = network.preprocessing
    assert (own.mean, own.std, own.size) == (MEAN, STD, (48, 48))
    assert [network.classes.label(i) for i in range(3)] == ["cat", "dog", "fox"]
    torch.testing.assert_close(network(rgb()), small()(own.normalise(rgb())))


@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "weights-only pickle"])
def test_a_folder_that_timm_saved(tmp_path: Path, safe: bool) -> None:
    folder = saved(tmp_path / "it's mine", safe)
    check(load_model(f"local-dir:{folder}"))
    config = ModelConfig(name=f"local-dir:{folder}", pretrained=False)
    assert not torch.equal(build_network(config)(rgb()), load_model(f"local-dir:{folder}")(rgb()))  # random weights
    weights = next(path for path in folder.iterdir() if path.suffix != ".json")
    moved = shutil.move(weights, tmp_path / weights.name)
    check(load_model(f"local-dir:{folder}", checkpoint=moved))
    assert load_model(f"local-dir:{folder}", checkpoint=moved, class_names=list("abc")).classes.label(1) == "b"
    with pytest.raises(UsageError, match=r"model\.class_names=2 names: the network has 3 classes"):
        load_model(f"local-dir:{folder}", checkpoint=moved, class_names=list("ab"))


def test_a_name_of_the_hub_reads_the_cache_and_fetches_only_if_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    config = ModelConfig(name=published(tmp_path))
    check(build_network(config, tmp_path))
    assert weights_there(config, tmp_path)
    missing = ModelConfig(name="hf-hub:owner/other")
    assert not weights_there(missing, tmp_path)
    with pytest.raises(UsageError, match=r"model\.name=hf-hub:owner/other.*cannot be had.*model\.checkpoint=file"):
        build_network(missing, tmp_path)

    def fetched(*_arguments: object, **_keys: object) -> None:
        raise AssertionError("something was fetched")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetched)
    with pytest.raises(UsageError, match=r"not in the cache: model\.pretrained=true downloads it"):
        build_network(ModelConfig(name="hf-hub:owner/other", pretrained=False), tmp_path)


def test_a_judge_without_weights_is_blamed_as_a_judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    words = r"^evaluation\.judges=hf-hub:a/b: .*; give {source: timm, name: hf-hub:a/b, checkpoint: file}$"
    with pytest.raises(UsageError, match=words):
        named_network("hf-hub:a/b", tmp_path, "evaluation.judges")
    with pytest.raises(UsageError, match=r"^evaluation\.judges\.checkpoint=/none: "):
        named_network({"source": "timm", "name": "resnet10t", "checkpoint": "/none"}, tmp_path, "evaluation.judges")


def test_a_hub_that_does_not_answer_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    with warnings.catch_warnings(record=True, action="always") as told, retries_told_once():
        for attempt in range(3):
            logging.getLogger(RETRIES).warning("Retrying in %d s", attempt)
    assert [str(one.message).partition(";")[0] for one in told] == ["Hugging Face's hub does not answer"]
    assert not caplog.records


def edited(folder: Path, **keys: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    kept = {key: value for key, value in {**config, **keys}.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(kept))


class Code:
    """Would run code when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return print, ("run",)


def without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def with_code(folder: Path) -> None:
    without_weights(folder)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"weight": Code()}))


MISTAKES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda folder: (folder / "config.json").unlink(), r"holds no config\.json"),
    "no JSON object": (lambda folder: (folder / "config.json").write_text("[1]"), "is not a JSON object"),
    "no weights": (without_weights, r"holds no weights \(model\.safetensors, .*model\.checkpoint=file"),
    "code": (with_code, "could run code"),
    "of transformers": (lambda folder: edited(folder, architecture=None, model_type="vit"), "model=transformers"),
    "no architecture": (lambda folder: edited(folder, architecture=None), "names no architecture of timm$"),
    "unknown architecture": (lambda folder: edited(folder, architecture="resnet10x"), "this version of timm does not"),
    "other weights": (lambda folder: edited(folder, architecture="resnet18"), "its weights do not fit resnet18: .*"),
    "unknown argument": (lambda folder: edited(folder, model_args={"padd": 1}), r"does not take them.*padd"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_in_a_folder(mistake: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spoil, words = MISTAKES[mistake]
    spoil(saved(tmp_path))
    with pytest.raises(UsageError, match=words):
        load_model(f"local-dir:{tmp_path}")
    assert "run" not in capsys.readouterr().out


def test_mistakes_in_a_name(tmp_path: Path) -> None:
    for name, words in {
        "local-dir:no/such": r"model\.name=local-dir:no/such: no such folder",
        "hf-hub:": "hf-hub:owner/name",
    }.items():
        with pytest.raises(UsageError, match=words):
            load_model(name)
    for name, words in {"owner/name": "hf-hub:owner/name", str(tmp_path): f"local-dir:{tmp_path}"}.items():
        with pytest.raises(UsageError, match=words):
            build_network(ModelConfig(name=name))


def test_the_command_takes_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved(tmp_path / "net")
    model = ("model=timm", f"model.name=local-dir:{tmp_path / 'net'}")
    assert command(*model, "list=layers") == 0
    assert "layer4" in capsys.readouterr().out
    run = (
        *SHORT[1:],
        *ON_CPU,
        *model,
        "target.index=dog",
        f"hydra.run.dir={tmp_path / 'run'}",
        "references.source=embedded",
    )
    assert command(*run, "dry_run=true") == 0
    assert command(*run) == 0
    assert (tmp_path / "run" / "results.jsonl").read_text().count("dog") >= 1
    assert command(*run) == 0  # done already
