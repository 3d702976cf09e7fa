"""Networks by the names of the configuration group ``model``, or timm's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from vital_exp.config import compose_config, config_dir, options_of, plain
from vital_exp.errors import UsageError, nearest
from vital_exp.models.loading import ModelConfig, build_network
from vital_exp.models.network import Recipe, VisionNetwork


def model_overrides(name: str, key: str = "model") -> list[str]:
    """Return the overrides that choose a network: an option of the group ``model``, else a timm network.

    Raises:
        UsageError: neither has that name.
    """
    if name in options_of("model"):
        return [f"model={name}"]
    import timm

    if timm.is_model(name):
        return ["model=timm", f"model.name={name}"]
    known = [*options_of("model"), *timm.list_models()]
    raise UsageError(key, name, "neither an option of the group model nor a network of timm", known)


def model_config(config: DictConfig) -> ModelConfig:
    """Return the group ``model`` of a composed configuration."""
    return ModelConfig(**plain(OmegaConf.create({"model": config.model}))["model"])


def own_recipe(config: ModelConfig) -> Recipe:
    """Return the part of a recipe that differs from the named configuration of its network: what was asked for.

    A named configuration is for class units; hidden units take other weights and priors (docs/methods/vital.md) unless
    the user says otherwise.
    """
    asked = config.recipe
    for option in options_of("model"):
        file = OmegaConf.load(config_dir() / "model" / f"{option}.yaml")
        assert isinstance(file, DictConfig)
        keys = plain(file)
        if (keys.get("source"), keys.get("name")) == (config.source, config.name):
            own = ModelConfig(**{key: keys[key] for key in vars(Recipe()) if key in keys}).recipe
            return replace(asked, **{key: None for key, value in vars(own).items() if value == getattr(asked, key)})
    return asked


def named_config(name: str, key: str = "model") -> ModelConfig:
    """Return the configuration of a network by its name: an option of the group ``model``, else a timm network's.

    Raises:
        UsageError: neither has that name.
    """
    if name not in options_of("model"):
        return model_config(compose_config(model_overrides(name, key)))
    # An option as its file says: to compose a whole configuration is far slower.
    keys, own = (OmegaConf.load(config_dir() / "model" / f"{file}.yaml") for file in ("_keys", name))
    assert isinstance(own, DictConfig)
    del own["defaults"]
    return model_config(OmegaConf.create({"model": OmegaConf.merge(keys, own)}))


def named_network(spec: str | Mapping[str, Any], cache_dir: Path | None = None, key: str = "model") -> VisionNetwork:
    """Build a network from a name, or from the keys of the group ``model`` (a judge in a configuration).

    Raises:
        UsageError: an unknown name or key; see also :func:`build_network`.
    """
    if isinstance(spec, str):
        return build_network(named_config(spec, key), cache_dir)
    if not isinstance(spec, Mapping):
        raise UsageError(key, spec, "a name, or the keys of the group model")
    allowed: Sequence[str] = list(ModelConfig.__dataclass_fields__)
    for name in spec:
        if name not in allowed:
            near = nearest(name, allowed)
            hint = f" (did you mean {' or '.join(near)}?)" if near else ""
            raise UsageError(f"{key}.{name}", spec[name], f"no such key of a model{hint}")
    return build_network(ModelConfig(**spec), cache_dir)
