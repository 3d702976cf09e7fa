"""Every configuration composes and names things that exist."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hydra.utils import get_class

from vital_exp.attacks.settings import AuditSettings
from vital_exp.config import canonical, compose_config, picture_config, plain
from vital_exp.config_mistakes import select
from vital_exp.config_tree import config_dir, groups, options_of
from vital_exp.configuration import Configuration
from vital_exp.errors import UsageError
from vital_exp.models.libraries import SOURCES
from vital_exp.models.model_config import ModelConfig
from vital_exp.models.named import model_config, named_config
from vital_exp.references.base import PER_TARGET
from vital_exp.setup import checks

ROOT = Path(__file__).resolve().parents[1]


@cache
def composed(override: str) -> Configuration:
    """The configuration of one override, composed once for all tests here."""
    return compose_config([override])


def override_of(group: str, option: str) -> str:
    return f"{group}=[{option}]" if group == "objective" else f"{group}={option}"


OPTIONS = [(group, option) for group in groups() for option in options_of(group) if not option.startswith("_")]
EXPERIMENTS = options_of("experiment")
WITHOUT_DOWNLOAD = [name for name in EXPERIMENTS if composed(f"experiment={name}").model.source == "embedded"]
NAMED_MODELS = [name for name in options_of("model") if composed(f"model={name}").model.layers]
# What the engine hands over itself when it builds these.
HANDED_OVER = {
    "image": {"preprocessing", "size", "streams", "init"},
    "objective": {"problem"},
    "optimizer": {"params"},
    "trainer": {"max_steps", "max_epochs", "devices"},
    "logger": {"save_dir"},
}
# Keys of a group that something else than its _target_ reads.
READ_ELSEWHERE = {"image": {"size", "scale", "init", "grow_from", "grow_until"}, "optimizer": {"warmup", "schedule"}}


def built_nodes(config: Configuration) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (dotted key, node) of everything in a configuration that says what it builds."""

    def walk(node: object, key: str) -> Iterator[tuple[str, dict[str, Any]]]:
        if isinstance(node, dict):
            if node.get("_target_"):
                yield key, node
            for name, child in node.items():
                yield from walk(child, f"{key}.{name}" if key else name)

    yield from walk(plain(config), "")


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_composes(group: str, option: str) -> None:
    config = composed(override_of(group, option))
    assert "???" not in picture_config(config).values()
    checks.check_numbers(config)
    model_config(config)  # knows every key of the group model


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_what_an_option_builds_exists_and_takes_its_keys(group: str, option: str) -> None:
    for key, node in built_nodes(composed(override_of(group, option))):
        room = key.split(".")[0]
        given = {name for name in node if name != "_target_"} - READ_ELSEWHERE.get(room, set())
        signature = inspect.signature(get_class(node["_target_"]))
        takes_any = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
        assert takes_any or given <= set(signature.parameters), f"{key}: {given - set(signature.parameters)}"
        needed = {p.name for p in signature.parameters.values() if p.default is p.empty and p.kind is not p.VAR_KEYWORD}
        assert needed <= given | HANDED_OVER.get(room, set()), key


@pytest.mark.parametrize("method", options_of("method"))
@pytest.mark.parametrize("model", ["resnet50", "vit_b_32", "timm"])
def test_methods_and_models_combine(method: str, model: str) -> None:
    config = compose_config([f"model={model}", f"method={method}"])
    assert config.method.name == method
    assert config.references.source == "folder"  # the drawn images belong to the embedded networks alone
    assert config.objective
    if method.startswith("vital"):
        assert {"alignment", "total_variation", "l2"} <= set(config.objective)


def test_a_part_of_a_method_can_be_chosen_by_itself() -> None:
    config = compose_config(["method=vital", "image=fourier", "transforms=none", "steps=7", "optimizer.lr=0.5"])
    assert config.image._target_.endswith("Fourier")
    assert plain(config)["transforms"] == {}
    assert (config.steps, config.optimizer.lr) == (7, 0.5)


def test_the_keys_of_a_model_are_those_the_code_knows() -> None:
    keys = yaml.safe_load((config_dir() / "model/_keys.yaml").read_text())
    assert keys == {**vars(ModelConfig()), "arguments": {}}


@pytest.mark.parametrize("name", NAMED_MODELS)
def test_a_named_model_has_the_layers_its_configuration_lists(name: str) -> None:
    model = composed(f"model={name}").model
    assert len(model.layers) == len(model.layer_weights)
    if model.source == "torchvision":
        from torchvision.models import get_model, get_model_weights

        assert model.weights in [weights.name for weights in get_model_weights(model.name)]
        with torch.device("meta"):
            module = get_model(model.name, weights=None)
    else:
        import timm

        assert timm.is_model_pretrained(model.name)
        with torch.device("meta"):
            module = timm.create_model(model.name)
    assert set(model.layers) <= {key for key, _ in module.named_modules()}


def test_every_source_of_networks_has_a_configuration() -> None:
    assert {composed(f"model={name}").model.source for name in options_of("model")} == set(SOURCES)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_composes(name: str) -> None:
    config = composed(f"experiment={name}")
    checks.check_numbers(config)
    for judge in config.evaluation.judges:
        assert not isinstance(judge, str) or judge in options_of("model")


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_job_of_an_experiment_composes(name: str) -> None:
    swept = yaml.safe_load((config_dir() / f"experiment/{name}.yaml").read_text()).get("hydra", {})
    params = swept.get("sweeper", {}).get("params", {})
    for job in jobs_of({key: str(values).split(",") for key, values in params.items()}):
        config = compose_config([f"experiment={name}", *(f"{key}={value}" for key, value in job.items())])
        for key, value in job.items():  # what the sweep chooses wins over the experiment
            if key == "method":
                assert config.method.name == value
            elif "/" not in key and key not in groups():
                assert str(select(config, key)) == value


def jobs_of(params: Mapping[str, list[str]]) -> Iterator[dict[str, str]]:
    """Yield every combination of options of groups, and in these every value of the other keys, each in its turn."""
    chosen = {key: values for key, values in params.items() if key in groups()}
    others = {key: values for key, values in params.items() if key not in groups()}
    combined = list(product(*chosen.values()))
    for number in range(max(len(combined), *(len(values) for values in others.values()), 1)):
        options = dict(zip(chosen, combined[number % len(combined)], strict=True))
        yield options | {key: values[number % len(values)] for key, values in others.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", WITHOUT_DOWNLOAD)
def test_every_experiment_that_needs_no_download_runs(name: str, tmp_path: Path) -> None:
    from vital_exp.runs.folder import RunFolder
    from vital_exp.setup.request import Request
    from vital_exp.visualization.run import Visualization

    short = ["steps=2", "target.index=0", "references.count=2", f"cache_dir={tmp_path}/cache", "progress=false"]
    request = Request.from_config(compose_config([f"experiment={name}", *short, "trainer.accelerator=cpu"]))
    folder = RunFolder(tmp_path / "run", request.config)
    pictures = Visualization(request, folder=folder).run()
    assert [result["status"] for result in pictures.results] == ["done"]
    assert bool(pictures.metrics) == request.config.evaluation.enabled


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("model=resnet51", "resnet50"),
        ("method=vitall", "vital"),
        ("stepz=3", "steps"),
        ("target.indx=3", "target.index"),
        ("+references.rot=photos", "references.root"),
        ("model.argumants.depth=3", "model.arguments"),
        ("logger=wandbb", "wandb"),
    ],
)
def test_a_typo_is_one_line_with_the_nearest_spelling(override: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        compose_config([override])
    message = str(caught.value)
    key, _, value = override.lstrip("+").partition("=")
    assert "\n" not in message
    assert key in message
    assert value in message
    assert hint in message.split("did you mean")[1]


def test_how_many_references_a_target_has_is_said_once() -> None:
    """The number stands in the code once; the files of the configuration repeat it."""
    mined = compose_config(["method=fourier", "target=channel"]).references
    assert composed("method=fourier").references.count == mined.count == mined.candidates == PER_TARGET
    assert compose_config([], "audit").count == AuditSettings().count == PER_TARGET


def test_a_value_may_hold_a_number_sign() -> None:
    assert compose_config(["target=direction", "target.vectors=a.safetensors#3"])["target"].vectors == "a.safetensors#3"
    assert canonical("target.vectors=a#1,b#2") == "target.vectors='a#1','b#2'"
    assert canonical("target.vectors='a#1'") == "target.vectors='a#1'"


def test_no_file_chooses_between_one_run_and_several() -> None:
    for path in config_dir().rglob("*.yaml"):
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        assert "mode" not in content.get("hydra", {}), path  # -m does


@pytest.mark.parametrize("name", options_of("model"))
def test_a_network_by_its_name_is_the_one_of_its_configuration(name: str) -> None:
    assert named_config(name) == model_config(composed(f"model={name}"))
