"""A composed configuration: plain values that nobody changes, recorded and read back as they are."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from vital_exp.config import compose_config, plain
from vital_exp.configuration import Configuration
from vital_exp.errors import UsageError
from vital_exp.recorded_config import as_yaml, record_config, recorded_config, recorded_overrides

TEXTS = ["1e5", "yes", "y", "null", "~", "0x1F", "1_000", "a: b", "é", "", "${oc.env:HOME}", "nan", "-.5", "2026-01-01"]


def test_another_value_is_another_configuration() -> None:
    config = compose_config([])
    other = config.with_keys(references__count=3, image__size=[8, 9], model__arguments__depth=4)
    assert (config.references.count, config.image.size, config.model.arguments) == (50, None, {})
    assert (other.references.count, other.image.size, other.model.arguments.depth) == (3, [8, 9], 4)
    with pytest.raises(AttributeError, match="a configuration is not changed"):
        config.steps = 3
    with pytest.raises(AttributeError, match="a configuration is not changed"):
        config.image.size = 3
    with pytest.raises(AttributeError, match="stepz"):
        _ = config.stepz


def test_a_part_is_copied_before_somebody_changes_it() -> None:
    config = compose_config(["evaluation.judges=[embedded_judge]"])
    plain(config)["evaluation"]["judges"].append("another")
    assert config.evaluation.judges == ["embedded_judge"]


def test_copies_are_equal() -> None:
    config = compose_config(["target.index=[1,2]"])
    assert config == copy.deepcopy(config) == pickle.loads(pickle.dumps(config)) == plain(config)
    assert config != config.with_keys(steps=1)


@pytest.mark.parametrize("group", [{"seed": 0}, 7, None])
def test_a_group_that_somebody_has_edited_is_told(group: Any) -> None:
    with pytest.raises(UsageError, match=r"^references="):
        _ = Configuration({"references": group}).references


def test_what_is_recorded_is_read_as_it_was(tmp_path: Path) -> None:
    config = compose_config(["optimizer.lr=1e-8"]).with_keys(model__class_names=TEXTS)
    record_config(config, tmp_path, ["steps=3", "a=${b}"])
    assert recorded_config(tmp_path, "run") == config
    assert recorded_overrides(tmp_path) == ["steps=3", "a=${b}"]
    assert recorded_overrides(tmp_path / "elsewhere") == []


def test_other_readers_take_the_texts_for_texts(tmp_path: Path) -> None:
    (tmp_path / "texts.yaml").write_text(as_yaml({"texts": TEXTS, "again": TEXTS}))
    read = OmegaConf.to_container(OmegaConf.load(tmp_path / "texts.yaml"))
    assert read == {"texts": TEXTS, "again": TEXTS}
