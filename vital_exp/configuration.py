"""A composed configuration as immutable values. Imports neither torch nor Hydra.

A group whose keys are always the same is a dataclass; a group whose keys depend on the option is a mapping.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from vital_exp.errors import UsageError

Group = TypeVar("Group")


class Keys(Mapping[str, Any]):
    """An immutable mapping of keys to plain values, which are attributes too.

    Args:
        content: numbers, texts, lists and mappings.
    """

    _content: Mapping[str, Any]

    def __init__(self, content: Mapping[str, Any]) -> None:
        self.__dict__["_content"] = content

    def __getitem__(self, key: str) -> Any:
        value = self._content[key]
        return Keys(value) if isinstance(value, Mapping) else value

    def __iter__(self) -> Iterator[str]:
        return iter(self._content)

    def __len__(self) -> int:
        return len(self._content)

    def __repr__(self) -> str:
        return repr(self._content)

    def __getattr__(self, key: str) -> Any:
        try:
            return self[key]
        except KeyError:
            raise AttributeError(key) from None

    def __setattr__(self, key: str, value: object) -> None:
        raise AttributeError(f"{key}: a configuration is not changed; with_keys makes another")

    def __reduce__(self) -> tuple[type[Keys], tuple[Mapping[str, Any]]]:
        return type(self), (self._content,)


def plain(node: Mapping[str, Any]) -> dict[str, Any]:
    """Return a deep copy of a configuration, or of a part, as nested dicts and lists."""
    return {key: plain(value) if isinstance(value, Mapping) else deepcopy(value) for key, value in node.items()}


@dataclass(frozen=True)
class ReferenceKeys:
    """The group ``references``. A key that the source does not have is None, or has its default.

    Attributes:
        source: ``"embedded"``, ``"folder"`` or ``"mined"``; ``"tensors"`` for tensors passed in Python.
        count: number of references per target.
        seed: seed of the random choice of references.
        size: side in px, or [height, width]; None: the network's input.
        facets: number of facets per unit, or ``"auto"``.
        embedding: name or keys of the network that embeds images for facets; None: the network itself.
        cache: whether the statistics of references are cached on disk.
        candidates: number of images from which references or facets are chosen; ``"auto"`` is for mined references.
        root: the folder of natural images.
        loader: the user's function that reads image files.
        index: the folder of an existing index.
        region: what mined references show: ``"window"``, ``"patch"`` or ``"image"``.
        window: the kind of window.
        enlarge: whether windows are enlarged to the network's input size, or ``"auto"``.
        patch: size, overlap and search of patches.
    """

    source: str
    count: int
    seed: int
    size: int | Sequence[int] | None = None
    facets: int | str = 1
    embedding: str | Mapping[str, Any] | None = None
    cache: bool = True
    candidates: int | str | None = None
    root: str | None = None
    loader: str | None = None
    index: str | None = None
    region: str | None = None
    window: str = "auto"
    enlarge: bool | str = True
    patch: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TargetKeys:
    """The keys of the group ``target`` that several kinds share, and the keys of circuits.

    Attributes:
        kind: ``"class"``, ``"channel"``, ...
        index: number, name, list, range or ``"all"``.
        layer: the layer of hidden units.
        position: [row, column] of a neuron, or the name of tokens.
        variations: number of pictures per unit.
        concepts: a file of concepts, or its folder.
        unit, layers, levels, width, ablation_images: the keys of a circuit.
    """

    kind: str
    index: object = None
    layer: str | None = None
    position: object = None
    variations: int = 1
    concepts: str | None = None
    unit: str | None = None
    layers: str | Sequence[str] | None = None
    levels: int = 0
    width: int = 0
    ablation_images: int = 0


@dataclass(frozen=True)
class TrainerKeys:
    """The keys of the group ``trainer`` that the engine reads.

    Attributes:
        accelerator: ``"auto"``, ``"cpu"``, ``"gpu"``, ...
        devices: a number, a list of GPUs, or ``"auto"``.
        num_nodes: number of machines.
        precision: numerical precision of the optimisation steps.
        log_every_n_steps: number of steps between two logged losses.
    """

    accelerator: str
    devices: int | str | list[int]
    num_nodes: int = 1
    precision: str | None = None
    log_every_n_steps: int = 1


class Configuration(Keys):
    """The composed configuration of a command, without Hydra's own keys.

    Examples:
        >>> from vital_exp.config import compose_config
        >>> config = compose_config(["steps=7"])
        >>> config.steps, config["steps"], config.references.count
        (7, 7, 50)
        >>> config.with_keys(references__count=3).references.count
        3
    """

    @cached_property
    def references(self) -> ReferenceKeys:
        """The group ``references``."""
        return self._group(ReferenceKeys, "references")

    @cached_property
    def target(self) -> TargetKeys:
        """The group ``target``."""
        return self._group(TargetKeys, "target")

    @cached_property
    def trainer(self) -> TrainerKeys:
        """The group ``trainer``."""
        return self._group(TrainerKeys, "trainer")

    @property
    def cache(self) -> Path:
        """The folder of ``cache_dir``."""
        return Path(self["cache_dir"]).expanduser()

    def with_keys(self, **values: object) -> Configuration:
        """Return a copy with other values of dotted keys; ``__`` stands for the dot."""
        content = plain(self)
        for key, value in values.items():
            *groups, name = key.split("__")
            node = content
            for group in groups:
                node = node.setdefault(group, {})
            node[name] = value
        return Configuration(content)

    def _group(self, kind: type[Group], name: str) -> Group:
        """Return a group as a dataclass.

        Raises:
            UsageError: the group is no mapping or lacks a key, for example after an edit of a recorded configuration.
        """
        given = self._content[name]
        if not isinstance(given, Mapping):
            raise UsageError(name, given, "a group of keys")
        known = {field.name: given[field.name] for field in fields(kind) if field.name in given}  # type: ignore[arg-type]
        try:
            return kind(**known)
        except TypeError as error:
            raise UsageError(name, dict(given), f"the recorded group is not complete ({error})") from error
