"""Checkpoints that hold more than the network, or less, or are no checkpoints: the right weights, or one line."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from tests.test_hostile_input import one_line
from tests.tiny import TinyNet, cifar_resnet20, tiny_net
from vital_exp.api import load_model
from vital_exp.errors import UsageError
from vital_exp.models.checkpoints import load_checkpoint
from vital_exp.models.loading import build_network
from vital_exp.models.model_config import ModelConfig
from vital_exp.weights_files import read_tensors

Weights = dict[str, Tensor]


def under(prefix: str, weights: Mapping[str, Tensor]) -> Weights:
    return {f"{prefix}{name}": value for name, value in weights.items()}


def other(weights: Mapping[str, Tensor]) -> Weights:
    """The same network after more steps."""
    return {name: value + 1 for name, value in weights.items()}


def optimiser() -> dict[str, Any]:
    network = tiny_net()
    adam = torch.optim.Adam(network.parameters())
    network(torch.rand(1, 3, 8, 8)).sum().backward()
    adam.step()
    return adam.state_dict()


def averaged() -> Weights:
    return dict(AveragedModel(tiny_net()).state_dict())


HEAD = {"weight": torch.ones(4, 16), "bias": torch.ones(4)}
# What training scripts save: the network and what must be left out.
FILES: dict[str, Callable[[Weights], dict[str, Any]]] = {
    "criterion": lambda w: {**under("model.", w), **under("criterion.", HEAD)},
    "optimiser": lambda w: {"model": w, "optimizer": optimiser(), "epoch": 3, "best": torch.tensor(0.9)},
    "Lightning": lambda w: {
        "state_dict": {**under("net.", w), **under("loss.net.", HEAD)},
        "optimizer_states": [optimiser()],
    },
    "SWA": lambda w: {**under("module.", w), "n_averaged": torch.tensor(7)},
    "SWA beside": lambda w: {"state_dict": w, "swa": averaged()},
    "EMA dict": lambda w: {"state_dict": w, "state_dict_ema": other(w)},
    "EMA first": lambda w: {"model_ema": other(w), "model": w},
    "EMA beside": lambda w: {"state_dict": {**under("ema.module.", other(w)), **under("module.", w)}},
    "camel case": lambda w: {"netEMA": other(w), "net": w},
    "MoCo": lambda w: {
        **under("module.encoder_k.", other(w)),
        **under("module.encoder_q.", w),
        "module.queue": torch.ones(3),
    },
    "BYOL": lambda w: {**under("target_net.", other(w)), **under("online_net.", w), **under("predictor.", HEAD)},
    "DINO": lambda w: {"teacher": under("backbone.", other(w)), "student": under("module.backbone.", w)},
    "nested": lambda w: {"model": {"state_dict": w}, "args": {"lr": 0.1}},
    "compiled": lambda w: under("_orig_mod.module.", w),
    "compiled inside": lambda w: {"checkpoint": {"model": under("module._orig_mod.", w)}, "ema": None},
    "same twice": lambda w: {"last": w, "model": dict(w)},
    "anything": lambda w: {"a": {"b.c": under("my_wrapped.d.", w)}, "x": [torch.ones(1)]},
    "a list": lambda w: {"states": [{"step": torch.ones(1)}, w]},
}


class Wrapped(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.model = network


# Networks that give every name a prefix of their own.
WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "plain": lambda network: network,
    "model.": Wrapped,
    "module.": nn.DataParallel,
    "0.": nn.Sequential,
    "module.model.": lambda network: nn.DataParallel(Wrapped(network)),
}


def check_loaded(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    state = network.state_dict()
    assert len(state) == len(weights)
    assert all(torch.equal(mine, value) for mine, value in zip(state.values(), weights.values(), strict=True))


@pytest.mark.parametrize("form", FILES)
def test_the_network_is_found_in_whatever_holds_it(form: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    weights = tiny_net().state_dict()
    torch.save(FILES[form](weights), tmp_path / "all.pth")
    for wrap in WRAPPERS.values():
        network = wrap(TinyNet())
        caplog.clear()
        load_checkpoint(network, tmp_path / "all.pth")
        check_loaded(network, weights)
        beside = set(read_tensors(tmp_path / "all.pth")) != {
            n for n in read_tensors(tmp_path / "all.pth") if _is_own(n)
        }
        assert len(caplog.records) == beside
        assert all("\n" not in record.getMessage() for record in caplog.records)


def _is_own(name: str) -> bool:
    """Whether a tensor of FILES is the network's own: of no copy, and no other thing."""
    plain = not {"ema", "EMA", "k", "target", "teacher", "swa", "last"} & set(
        name.replace("EMA", ".EMA").replace("_", ".").split(".")
    )
    return plain and name.endswith(tuple(tiny_net().state_dict())) and not name.startswith("loss")


COPIES = {
    "EMA dict": ("state_dict_ema", "state_dict_ema."),
    "EMA first": ("model_ema",),
    "EMA beside": ("ema", "ema.module", "state_dict.ema", "state_dict.ema.module."),
    "camel case": ("netEMA",),
    "MoCo": ("encoder_k", "module.encoder_k"),
    "BYOL": ("target_net.",),
    "DINO": ("teacher", "teacher.backbone"),
}


@pytest.mark.parametrize("form", COPIES)
def test_the_key_takes_another_place(form: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    weights = tiny_net().state_dict()
    torch.save(FILES[form](weights), tmp_path / "all.pth")
    load_checkpoint(TinyNet(), tmp_path / "all.pth")
    assert "model.checkpoint_key=" in caplog.text  # the copies are named
    for key in COPIES[form]:
        for wrap in (WRAPPERS["plain"], WRAPPERS["model."]):
            network = wrap(TinyNet())
            load_checkpoint(network, tmp_path / "all.pth", key)
            check_loaded(network, other(weights))


def test_the_key_is_a_key_of_the_configuration_and_of_python(tmp_path: Path) -> None:
    weights = tiny_net().state_dict()
    torch.save({"model": weights, "7": other(weights)}, tmp_path / "all.pth")
    asked: dict[str, Any] = {"factory": "tests.tiny:tiny_net", "checkpoint": str(tmp_path / "all.pth"), "size": 32}
    check_loaded(build_network(ModelConfig(source="python", checkpoint_key=7, **asked)).module, other(weights))
    loaded = load_model(TinyNet(), size=32, checkpoint=tmp_path / "all.pth", checkpoint_key="model")
    check_loaded(loaded.module, weights)
    for call in (
        lambda: load_model(TinyNet(), checkpoint_key="ema"),
        lambda: load_model("embedded_resnet", checkpoint_key="ema"),
    ):
        with pytest.raises(UsageError) as caught:
            call()
        one_line(caught.value, "model.checkpoint_key=ema", "checkpoint, which is not given")


WEIGHTS = dict(tiny_net().state_dict())
# Files, the key that is asked for, and what the one line says.
REFUSED: dict[str, tuple[dict[str, Any], str | None, tuple[str, ...]]] = {
    "a typo": ({"model": WEIGHTS, "model_ema": WEIGHTS}, "modelema", ("checkpoint_key=modelema", "mean model_ema")),
    "no such place": ({"model": WEIGHTS, "ema": WEIGHTS}, "swa", ("checkpoint_key=swa", "holds ema, model")),
    "an optimiser": ({"model": WEIGHTS, "optimizer": optimiser()}, "optimizer", ("key=optimizer", "lacks conv1")),
    "two plain ones": ({"a": WEIGHTS, "b": other(WEIGHTS)}, None, ("several networks", "checkpoint_key: a, b")),
    "an ensemble": ({"models": [WEIGHTS, other(WEIGHTS)]}, None, ("several networks", "models.0, models.1")),
    "a part": ({"model": {n: v for n, v in WEIGHTS.items() if n != "fc.bias"}}, None, ("under model", "lacks fc.bias")),
    "two halves": (
        {"a": dict(list(WEIGHTS.items())[:4]), "b": dict(list(WEIGHTS.items())[4:])}, None, ("another network", "lacks")
    ),
    "a wider classifier": ({"net": dict(tiny_net(9).state_dict())}, None, ("fc.weight (9, 16) instead of (4, 16)",)),
    "one layer more": ({**WEIGHTS, "layer1.2.weight": torch.ones(2)}, None, ("has unknown layer1.2.weight",)),
    "one layer more, wrapped": ({**under("m.", WEIGHTS), "m.fc.scale": torch.ones(2)}, None, ("has unknown fc.scale",)),
    "quantised": ({n: v.to(torch.int8) for n, v in WEIGHTS.items()}, None, ("holds int8 in conv1.weight", "float32")),
    "eight bits": ({n: v.to(torch.float8_e4m3fn) for n, v in WEIGHTS.items()}, None, ("float8_e4m3fn", "quantised")),
    "sparse": ({**WEIGHTS, "fc.weight": WEIGHTS["fc.weight"].to_sparse()}, None, ("sparse", "fc.weight")),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_in_one_line(case: str, tmp_path: Path) -> None:
    content, key, words = REFUSED[case]
    torch.save(content, tmp_path / "all.pth")
    network = TinyNet()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(UsageError) as caught:
        load_checkpoint(network, tmp_path / "all.pth", key)
    one_line(caught.value, "model.checkpoint", *words)
    check_loaded(network, before)  # nothing partial


def test_a_deeper_network_of_the_family_is_refused(tmp_path: Path) -> None:
    """Its checkpoint has every name of the shallower one, with the same shapes."""
    deeper = cifar_resnet20().state_dict()
    shallow = {name: value for name, value in deeper.items() if ".2." not in name}
    network = cifar_resnet20()
    for stage in (network.layer1, network.layer2, network.layer3):
        del stage[2]  # type: ignore[union-attr]
    torch.save(deeper, tmp_path / "deeper.pth")
    with pytest.raises(UsageError, match=r"has unknown layer1\.2\."):
        load_checkpoint(network, tmp_path / "deeper.pth")
    torch.save(shallow, tmp_path / "own.pth")
    load_checkpoint(network, tmp_path / "own.pth")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_precision_becomes_the_networks_own(dtype: torch.dtype, tmp_path: Path) -> None:
    stored = {name: value.to(dtype) for name, value in WEIGHTS.items()}  # the counter too
    save_file(stored, tmp_path / "half.safetensors", metadata={"format": "pt"})
    network = TinyNet()
    load_checkpoint(network, tmp_path / "half.safetensors")
    check_loaded(network, {name: value.to(WEIGHTS[name].dtype) for name, value in stored.items()})


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.second.weight = self.first.weight


def test_one_name_of_a_shared_tensor_is_enough(tmp_path: Path) -> None:
    weights = Tied().state_dict()
    for absent in ("first.weight", "second.weight"):
        kept = {name: value.clone() for name, value in weights.items() if name != absent}
        save_file(kept, tmp_path / "tied.safetensors")
        network = Tied()
        load_checkpoint(network, tmp_path / "tied.safetensors")
        check_loaded(network, weights)
    torch.save({**weights, "second.weight": weights["first.weight"] + 1}, tmp_path / "untied.pth")
    with pytest.raises(UsageError, match=r"different values for first\.weight and second\.weight"):
        load_checkpoint(Tied(), tmp_path / "untied.pth")


def sharded(folder: Path, **changes: str) -> Path:
    names = list(WEIGHTS)
    parts = {f"part-{number}.safetensors": names[number::2] for number in range(2)}
    for part, own in parts.items():
        save_file({name: WEIGHTS[name] for name in own}, folder / part)
    places = {name: part for part, own in parts.items() for name in own}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {**places, **changes}}))
    return index


def test_weights_in_several_files(tmp_path: Path) -> None:
    network = TinyNet()
    load_checkpoint(network, sharded(tmp_path))
    check_loaded(network, WEIGHTS)
    for changes, word in (
        ({"fc.bias": "part-2.safetensors"}, "not beside it"),
        ({"fc.extra": "part-0.safetensors"}, "hold"),
    ):
        with pytest.raises(UsageError) as caught:
            load_checkpoint(TinyNet(), sharded(tmp_path, **changes))
        one_line(caught.value, "model.checkpoint=", word)
    with pytest.raises(UsageError, match="lacks"):
        load_checkpoint(TinyNet(), tmp_path / "part-0.safetensors")


def save_script(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated
        torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), path)


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:1\n"
OTHER_FILES: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "npz": (lambda path: np.savez(path, a=np.ones(3)), "w.npz", "NumPy"),
    "npy named pth": (lambda path: path.write_bytes(b"\x93NUMPY" + bytes(99)), "w.pth", "NumPy"),
    "Keras": (lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(99)), "w.bin", "Keras"),
    "Keras, new": (lambda path: path.write_bytes(b"PK" + bytes(99)), "w.keras", "Keras"),
    "ONNX": (lambda path: path.write_bytes(bytes(range(99))), "w.onnx", "ONNX"),
    "LFS": (lambda path: path.write_text(LFS), "w.pth", "git lfs pull"),
    "page": (lambda path: path.write_text("<!DOCTYPE html><html>"), "w.safetensors", "web page"),
    "TorchScript": (save_script, "w.pt", "TorchScript"),
    "folder": (lambda path: save_file(WEIGHTS, path / "n.safetensors"), "folder", "name the file in it, n.safetensors"),
    "index of nothing": (lambda path: path.write_text("[]"), "w.index.json", "no weight_map"),
}  # fmt: skip


@pytest.mark.parametrize("case", OTHER_FILES)
def test_files_of_other_kinds_are_told_in_one_line(case: str, tmp_path: Path) -> None:
    write, name, word = OTHER_FILES[case]
    (tmp_path / "folder").mkdir()
    write(tmp_path / name)
    with pytest.raises(UsageError) as caught:
        load_checkpoint(TinyNet(), tmp_path / name)
    one_line(caught.value, "model.checkpoint=", word)


def test_a_safetensors_file_by_any_name(tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / "pytorch_model.bin")
    torch.save(WEIGHTS, tmp_path / "model.safetensors")
    for name in ("pytorch_model.bin", "model.safetensors"):
        network = TinyNet()
        load_checkpoint(network, tmp_path / name)
        check_loaded(network, WEIGHTS)
