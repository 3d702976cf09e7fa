"""The run that an audit reads: a run folder's network, targets, pictures and natural images."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from vital_exp.attacks.natural import NaturalImages, natural_images
from vital_exp.errors import UsageError
from vital_exp.evaluation.pictures import run_pictures
from vital_exp.images.output import in_unit
from vital_exp.models.loading import build_network
from vital_exp.models.model_config import ModelConfig
from vital_exp.models.network import VisionNetwork
from vital_exp.references.base import References
from vital_exp.runs.recorded import RunRecord
from vital_exp.runs.same_network import warn_of_change
from vital_exp.targets.unit import Target

NOT_THERE = "no natural images to compare with"


@dataclass(frozen=True)
class RecordedRun:
    """A run folder as an audit needs it.

    Attributes:
        folder: the run folder.
        record: the run's recorded configuration.
        model: the configuration of the network.
        network: the network, built again on the CPU.
        targets: the targets of the finished pictures.
        pictures: (N, C, H, W) float32 in [0, 1], as saved in their files.
        references: natural images of the targets.
    """

    folder: Path
    record: RunRecord
    model: ModelConfig
    network: VisionNetwork
    targets: list[Target]
    pictures: Tensor
    references: References

    @classmethod
    def of(cls, folder: str | Path, count: int, root: str | None = None) -> RecordedRun:
        """Read a run folder.

        Args:
            folder: a run folder of vital-visualize.
            count: the number of natural images for each target.
            root: a folder of natural images in place of the run's references.

        Raises:
            UsageError: the folder holds no run, the run's network was an object in Python, or there are no natural
                images.
        """
        folder = Path(folder).expanduser()
        if not RunRecord.is_there(folder):
            problem = "no .hydra/config.yaml there; a run folder of vital-visualize holds one"
            raise UsageError("run", folder, problem if folder.is_dir() else "no such folder")
        record = RunRecord.of(folder)
        model = _model(record)
        network = build_network(model, record.config.cache)
        warn_of_change(folder, network)
        shown = run_pictures(folder, network.class_names, network.preprocessing)
        references = _references(record, network, shown.targets, count, root)
        return cls(folder, record, model, network, shown.targets, in_unit(shown.pixels), references)

    @property
    def name(self) -> str:
        """The method's name, with the folder's where they differ."""
        method, folder = self.record.method, self.folder.name
        return method if folder == method else f"{method} ({folder})"

    def own_images(self, target: Target, count: int) -> Tensor:
        """Return up to ``count`` natural images of a target, (M, C, H, W)."""
        return torch.stack(list(islice(self.references.images(target), count)))

    def natural(self, count: int) -> NaturalImages:
        """Return natural images with their classes: the run's classes or, for hidden units, all classes of the images.

        Raises:
            UsageError: the network has no logits, or there are fewer than two classes.
        """
        _ = self.network.classes
        classes = sorted({target.index for target in self.targets if target.kind == "class"})
        source = self.references
        if not classes:
            source = _class_references(self.record, self.network, count)
            classes = source.class_indices() or []
        return natural_images(source, classes, count)


def _model(record: RunRecord) -> ModelConfig:
    model = ModelConfig(**record.model)
    if model.source == "python" and not model.factory:
        raise UsageError(
            "run", record.folder, "its network was handed over in Python: call vital_exp.attacks from there"
        )
    return model


def _references(
    record: RunRecord, network: VisionNetwork, targets: list[Target], count: int, root: str | None
) -> References:
    """The run's references, ``count`` per target, or those of the folder ``root``."""
    own, other = record.config.references, {}
    if root is not None:
        source = "folder" if targets[0].layer is None else "mined"
        other = {"references__source": source, "references__root": root}
    elif own.source == "tensors":
        raise UsageError("run", record.folder, f"{NOT_THERE}: its references were tensors; give images=folder")
    elif own.source == "folder" and not own.root:
        raise UsageError("run", record.folder, f"{NOT_THERE}: it was made without references; give images=folder")
    return record.references(network, targets, references__count=count, **other)


def _class_references(record: RunRecord, network: VisionNetwork, count: int) -> References:
    """Natural images by class for a run of hidden units, from the folder that the run's references were mined in."""
    root = record.config.references.root
    embedded = record.config.model.source == "embedded" and root is None
    if root is None and not embedded:
        raise UsageError("run", record.folder, f"{NOT_THERE}: give images=folder, one sub-folder per class")
    source = "embedded" if embedded else "folder"
    return record.references(network, (), references__source=source, references__count=count)
