"""Options without effect beside the others are told, in one line, by every command and by the Python functions."""

from __future__ import annotations

from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

import vital_exp
from tests.tiny import ON_CPU, SHORT, command, exit_code
from vital_exp import no_effect
from vital_exp.commands import evaluate
from vital_exp.config import compose_config, plain
from vital_exp.config_tree import known_keys
from vital_exp.errors import UsageError
from vital_exp.evaluation.metrics import chosen
from vital_exp.no_effect import RULES, flat_keys, keys_of, tell_without_effect, without_effect

CLASS_RUN, UNIT_RUN, SWEEP = "class_run", "unit_run", "sweep"


@cache
def composed(command: str, *choices: str) -> dict[str, Any]:
    """The configuration of a command with some options of its groups."""
    return plain(compose_config(choices, command))


def idle(command: str, *arguments: str) -> set[str]:
    """The keys without effect among arguments; those with a group's name choose its option."""
    choices = tuple(text for text in arguments if "." not in text.split("=")[0] and text.split("=")[0] in GROUPS)
    settings = [text for text in arguments if text not in choices]
    config = OmegaConf.create(composed(command, *choices))
    config.merge_with_dotlist(settings)
    content = OmegaConf.to_container(config, resolve=True)
    return set(without_effect(command, content, keys_of(settings), chosen))


GROUPS = ("model", "method", "target", "image", "logger", "evaluation", "references", "concepts", "check")
EVALUATE, VISUALIZE, MINE, AUDIT = "evaluate", "visualize", "mine", "audit"
CLIP = "evaluation.clip.checkpoint=clip.safetensors"
WITHOUT_EFFECT = [
    (VISUALIZE, "relevance.every=2", "method=vital_fourier", "target=channel"),
    (EVALUATE, "judges=[a]", "metrics=[accuracy]"),
    (EVALUATE, "judges=[a]", "metrics=[repetition,seconds]"),
    (EVALUATE, "judges=[a]", "metrics=[accuracy,transfer]", f"run={UNIT_RUN}"),
    (EVALUATE, "evaluation.features=[a]", "metrics=[accuracy,transfer]"),
    (EVALUATE, CLIP, "metrics=[accuracy]"),
    (EVALUATE, CLIP, "metrics=[clip,mis]", f"run={UNIT_RUN}"),
    (EVALUATE, "evaluation.clip.vocabulary=words.txt", "metrics=[clip]"),
    (EVALUATE, "evaluation.lpips.checkpoint=alex.pth", "metrics=[clip]"),
    (EVALUATE, "evaluation.kid_subset_size=5", "metrics=[fid]"),
    (EVALUATE, "evaluation.inception=weights.pth", "metrics=[clip]"),
    (EVALUATE, "study_targets=3", f"run={CLASS_RUN}"),
    (EVALUATE, "study_seed=3", f"run={CLASS_RUN}"),
    (EVALUATE, "judges=[a]", "study=true", f"run={SWEEP}"),
    (EVALUATE, "judges=[a]", "answers=a.json", f"run={CLASS_RUN}"),
    (EVALUATE, "pattern=x.png", f"run={CLASS_RUN}"),
    (EVALUATE, "targets=t.csv", f"run={CLASS_RUN}"),
    (EVALUATE, "references.count=7", f"run={CLASS_RUN}"),
    (EVALUATE, "references.root=photos", "references.source=embedded"),
    (VISUALIZE, "evaluation.judges=[a]", "evaluation=none"),
    (VISUALIZE, "evaluation.judges=[a]", "target=channel", "model=resnet50"),
    (VISUALIZE, "evaluation.judges=[a]", "evaluation.metrics=[accuracy]"),
    (VISUALIZE, "evaluation.features=[a]", "evaluation=basic"),
    (VISUALIZE, CLIP, "evaluation=basic"),
    (VISUALIZE, "references.index=index.sqlite", "references.source=folder", "target=channel"),
    (VISUALIZE, "references.root=photos", "references.source=embedded"),
    (VISUALIZE, "references.patch.size=32", "references.region=image", "target=channel"),
    (VISUALIZE, "references.candidates=9", "references.index=index.sqlite", "target=channel"),
    (VISUALIZE, "references.candidates=9", "references.region=window", "target=channel"),
    (VISUALIZE, "references.candidates=9", "target=class"),
    (VISUALIZE, "references.window=0.5", "references.region=image", "target=channel"),
    (VISUALIZE, "references.patch.size=32", "references.region=window", "target=channel"),
    (VISUALIZE, "references.embedding=resnet50", "target=channel"),
    (VISUALIZE, "views_per_pass=1"),
    (VISUALIZE, "image.scale=2", "image.size=64"),
    (VISUALIZE, "pictures_every=5", "logger=csv"),
    (VISUALIZE, "trainer.log_every_n_steps=5", "logger=none"),
    (VISUALIZE, "model.factory=a.py:f", "model=timm"),
    (VISUALIZE, "model.weights=V1", "model=timm"),
    (VISUALIZE, "model.l2=0.1", "method=fourier"),
    (VISUALIZE, "model.total_variation=0.1", "method=deep_inversion"),
    (VISUALIZE, "model.layers=[layer4]", "method=activation_max"),
    (VISUALIZE, "target.class=star", "target.concepts=concepts", "target=concept"),
    (VISUALIZE, "target.explained=3", "target=concept"),
    (VISUALIZE, "target.k=3", "target.activation=relu", "target=sae"),
    (VISUALIZE, "target.encoder=W", "target.format=saev", "target=sae"),
    (VISUALIZE, "target.threshold=3", "target.activation=topk", "target=sae"),
    (MINE, "naming.clip.checkpoint=clip.safetensors", "naming.words=false"),
    (MINE, "naming.clip.checkpoint=clip.safetensors", "find=photo.png"),
    (MINE, "naming.clip.vocabulary=words.txt", "find=striped fur"),
    (MINE, "find_count=3"),
    (MINE, "find=striped fur", "spectrum=true"),
    (MINE, "spectrum_size=64"),
    (MINE, "layers=[layer4]", "spectrum=true"),
    (MINE, "images=photos", "spectrum=other"),
    (MINE, "channels=0-3", "concepts=nmf"),
    (MINE, "patch.size=32", "patches=false"),
    (MINE, "naming.method=splice"),
    (MINE, "naming.penalty=0.3", "naming.words=true"),
    (MINE, "naming.formula_length=2"),
    (MINE, "concepts.explained=3", "concepts=nmf"),
    (AUDIT, "tuning.steps=3", "check=silent_units"),
    (AUDIT, "snapshots.seeds=1", "check=slingshot"),
    (AUDIT, "judges=[a]", "check=path_similarity"),
    (AUDIT, "layer=conv1", "check=proxpulse"),
    (AUDIT, "aim=alignment", "check=proxpulse"),
    (AUDIT, "tuning.steps=3", "check=diversion"),
    (AUDIT, "decoy=star", "check=circuit_breaker"),
    (AUDIT, "methods=[maco]", "check=theory"),
    ("report", "project=mine", "wandb=false"),
    ("report", "offline=true"),
]
WITH_EFFECT = [
    (VISUALIZE, "relevance.every=2", "method=vital", "target=channel"),
    (VISUALIZE, "references.candidates=9", "references.facets=auto", "references.index=i.sqlite", "target=channel"),
    (VISUALIZE, "references.candidates=9", "references.facets=2", "target=class"),
    (VISUALIZE, "references.window=0.5", "references.region=window", "target=channel"),
    (VISUALIZE, "references.embedding=resnet50", "references.facets=2", "target=class"),
    (EVALUATE, "judges=[a]", "metrics=[accuracy,transfer]", f"run={CLASS_RUN}"),
    (EVALUATE, "judges=[a]", "metrics=[fid]", f"run={UNIT_RUN}"),
    (EVALUATE, "judges=[]", "metrics=[accuracy]"),
    (EVALUATE, "judges=[a]", "evaluation.features=[a]", CLIP, "pattern=x.png"),
    (EVALUATE, "study=true", "study_targets=3", "judges=[a]", f"run={CLASS_RUN}"),
    (EVALUATE, "judges=[a]", f"run={SWEEP}"),
    (EVALUATE, "references.root=photos", "references.count=7", f"run={CLASS_RUN}"),
    (VISUALIZE, "evaluation.judges=[a]", "model.layers=[layer4]", "references.root=photos", "model=resnet50"),
    (VISUALIZE, "evaluation.judges=[a]", "evaluation=full", "target=channel"),
    (VISUALIZE, "views_per_pass=2", "views=4", "image.scale=2", "model.checkpoint=a.pth"),
    (VISUALIZE, "references.index=index.sqlite", "references.root=photos", "target=channel"),
    (VISUALIZE, "pictures_every=5", "trainer.log_every_n_steps=5", "logger=wandb"),
    (VISUALIZE, "target.k=3", "target.activation=batch_topk", "target=sae"),
    (MINE, "layers=[layer4]", "channels=0-3", "patch.size=32", "directions=d.npy"),
    (MINE, "concepts.class=star", "concepts.explained=3", "patch.size=32", "layers=[layer4]", "concepts=nmf"),
    (MINE, "naming.clip.checkpoint=clip.safetensors", "find=striped fur", "find_count=3", "concepts=nmf"),
    (MINE, "naming.clip.checkpoint=clip.safetensors", "find=photo.png", "find_by=embedding"),
    (AUDIT, "tuning.steps=3", "check=slingshot"),
    (AUDIT, "layer=conv1", "check=path_similarity"),
    ("report", "project=mine", "offline=true", "wandb=true"),
]


@pytest.fixture(autouse=True)
def workplace(workplace: Path) -> Path:
    for name, kind in ((CLASS_RUN, "class"), (UNIT_RUN, "channel"), (f"{SWEEP}/0", "class")):
        (workplace / name / ".hydra").mkdir(parents=True)
        (workplace / name / "results.jsonl").write_text("")
        (workplace / name / ".hydra/config.yaml").write_text(f"target: {{kind: {kind}}}\n")
    return workplace


@pytest.mark.parametrize("case", WITHOUT_EFFECT, ids=" ".join)
def test_an_option_without_effect_is_found(case: tuple[str, ...]) -> None:
    assert idle(*case) == {case[1].split("=")[0]}


@pytest.mark.parametrize("case", WITH_EFFECT, ids=" ".join)
def test_an_option_with_an_effect_is_not(case: tuple[str, ...]) -> None:
    assert not idle(*case)


@pytest.mark.parametrize("name", RULES)
def test_every_rule_is_of_keys_that_are_there(name: str) -> None:
    known = known_keys(name)
    for rule in RULES[name]:
        assert any(fnmatch(key, pattern) for pattern in rule.keys for key in known), rule.keys


def test_it_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    tell_without_effect("report", {"wandb": False, "project": "a", "offline": True}, ["project", "offline"], chosen)
    assert [record.getMessage() for record in caplog.records] == [
        "without effect: project, offline (nothing is sent: wandb=true)"
    ]
    assert flat_keys({"a": {"b": 1}, "c": 2}) == ["a.b", "c"]


def test_variations_are_no_key_in_python_where_each_target_is_named() -> None:
    content = {"out": None, "objective": {"activation": {}}, "target": {"variations": 3}}
    assert set(without_effect("visualize", content, ["target.variations"], chosen)) == {"target.variations"}
    between = {**content, "objective": {"interpolation": {}}}
    assert without_effect("visualize", between, ["target.variations"], chosen) == {}


def test_commands_and_functions_tell_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(*SHORT, *ON_CPU, "evaluation.judges=[embedded_judge]", "hydra.run.dir=made") == 0
    assert "without effect: evaluation.judges (evaluation=none)" in capsys.readouterr().out
    said: list[str] = []
    monkeypatch.setattr(no_effect.logger, "warning", lambda text, *values: said.append(text % values))
    judged = "judges (the metrics use no judge)"

    arguments = ("run=made", "metrics=[accuracy]", "judges=[embedded_judge]", "trainer.accelerator=cpu")
    assert exit_code(evaluate.main, *arguments) == 0
    vital_exp.evaluate("made", metrics=["accuracy"], judges=["embedded_judge"], pattern="{name}.png")
    vital_exp.evaluate("made", metrics=["accuracy", "transfer"], judges=["embedded_judge"])
    with pytest.raises(UsageError):
        vital_exp.audit("path_similarity", "nowhere", judges=["a"], tuning={"steps": 3})
    assert said == [
        f"without effect: {judged}",
        f"without effect: {judged}; pattern (a run folder knows its targets)",
        "without effect: judges, tuning.steps (check=path_similarity reads none)",
    ]
