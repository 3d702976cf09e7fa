"""What an audit is of: a run folder's network, targets, pictures and natural images."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from vital_exp.attacks.natural import NaturalImages, natural_images
from vital_exp.config import plain, set_keys
from vital_exp.errors import UsageError
from vital_exp.evaluation.pictures import run_pictures
from vital_exp.images.output import in_unit
from vital_exp.models.loading import build_network
from vital_exp.models.model_config import ModelConfig
from vital_exp.models.named import model_config
from vital_exp.models.network import VisionNetwork
from vital_exp.recorded_config import RECORDED, recorded_config
from vital_exp.references.base import References
from vital_exp.runs.same_network import warn_of_change
from vital_exp.setup.parts import cache_dir
from vital_exp.setup.problem import references_of
from vital_exp.targets.unit import Target

NOT_THERE = "no natural images to compare with"


@dataclass(frozen=True)
class RecordedRun:
    """A run folder as an audit needs it.

    Attributes:
        folder: of the run.
        config: as it was composed.
        model: what the network was built from.
        network: built again, on the CPU.
        targets: of the finished pictures.
        pictures: (N, 3, H, W) float32 RGB in [0, 1], as their files hold them.
        references: natural images of the targets.
    """

    folder: Path
    config: DictConfig
    model: ModelConfig
    network: VisionNetwork
    targets: list[Target]
    pictures: Tensor
    references: References

    @classmethod
    def of(cls, folder: str | Path, count: int, root: str | None = None) -> RecordedRun:
        """Read a run folder.

        Args:
            folder: of vital-visualize.
            count: natural images wanted of each target.
            root: a folder of natural images in place of the run's own.

        Raises:
            UsageError: no run there, one of objects handed over in Python, or without natural images.
        """
        folder = Path(folder).expanduser()
        if not (folder / RECORDED).is_file():
            problem = "no .hydra/config.yaml there; a run folder of vital-visualize holds one"
            raise UsageError("run", folder, problem if folder.is_dir() else "no such folder")
        config = recorded_config(folder, "run", ("model", "references"))
        model = _model(config, folder)
        network = build_network(model, cache_dir(config))
        warn_of_change(folder, network)
        shown = run_pictures(folder, network.class_names, network.preprocessing)
        references = _references(config, network, shown.targets, count, root, folder)
        return cls(folder, config, model, network, shown.targets, in_unit(shown.pixels), references)

    @property
    def name(self) -> str:
        """The method's name and the folder's."""
        method = plain(self.config).get("method") or {}
        return f"{method.get('name', 'pictures')} ({self.folder.name})"

    def own_images(self, target: Target, count: int) -> Tensor:
        """Return up to ``count`` natural images of a target, (M, C, H, W)."""
        return torch.stack(list(islice(self.references.images(target), count)))

    def natural(self, count: int) -> NaturalImages:
        """Return natural images with their classes: the run's classes, or for hidden units all there are.

        Raises:
            UsageError: a network without logits, or fewer than two classes.
        """
        _ = self.network.classes
        classes = sorted({target.index for target in self.targets if target.kind == "class"})
        source = self.references
        if not classes:
            source = _class_references(self.config, self.network, count, self.folder)
            classes = source.class_indices() or []
        return natural_images(source, classes, count)


def _model(config: DictConfig, folder: Path) -> ModelConfig:
    model = model_config(config)
    if model.source == "python" and not model.factory:
        raise UsageError("run", folder, "its network was handed over in Python: call vital_exp.attacks from there")
    return model


def _references(
    config: DictConfig, network: VisionNetwork, targets: list[Target], count: int, root: str | None, folder: Path
) -> References:
    """The run's references, as many as wanted."""
    config = OmegaConf.create(plain(config))
    if root is not None:
        set_keys(config, references__source="folder" if targets[0].layer is None else "mined", references__root=root)
    elif config.references.source == "tensors":
        raise UsageError("run", folder, f"{NOT_THERE}: its references were tensors; give images=folder")
    elif config.references.source == "folder" and not config.references.get("root"):
        raise UsageError("run", folder, f"{NOT_THERE}: it was made without references; give images=folder")
    set_keys(config, references__count=count, progress=False)
    return references_of(config, network, targets)


def _class_references(config: DictConfig, network: VisionNetwork, count: int, folder: Path) -> References:
    """Natural images by class for a run of hidden units, from the folder in which theirs were mined."""
    content: dict[str, Any] = plain(config)
    root = content["references"].get("root")
    embedded = content["model"]["source"] == "embedded" and root is None
    if root is None and not embedded:
        raise UsageError("run", folder, f"{NOT_THERE}: give images=folder, one sub-folder per class")
    content["references"] |= {"source": "embedded" if embedded else "folder", "count": count}
    return references_of(OmegaConf.create(content), network)
