"""Rebuild references and read-out from the configuration that a run folder has recorded. Only this module does so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vital_exp.config import plain
from vital_exp.configuration import Configuration
from vital_exp.models.network import VisionNetwork
from vital_exp.recorded_config import RECORDED, recorded_config
from vital_exp.references.base import References
from vital_exp.setup.problem import readout_of, references_of
from vital_exp.targets.readout import Readout
from vital_exp.targets.unit import Target


@dataclass(frozen=True)
class RunRecord:
    """The configuration that a run folder has recorded.

    Attributes:
        folder: the run folder.
        config: the recorded configuration.
    """

    folder: Path
    config: Configuration

    @classmethod
    def of(cls, folder: Path) -> RunRecord:
        """Read the configuration of a run folder that has one (:meth:`is_there`).

        Raises:
            UsageError: the configuration cannot be read, or lacks a group.
        """
        return cls(folder, recorded_config(folder, "run", ("model", "references")))

    @staticmethod
    def is_there(folder: Path) -> bool:
        """Whether a folder has recorded a configuration."""
        return (folder / RECORDED).is_file()

    @property
    def model(self) -> dict[str, Any]:
        """The keys of the group ``model``, as a dict."""
        keys: dict[str, Any] = plain(self.config)["model"]
        return keys

    @property
    def method(self) -> str:
        """The method's name; ``"pictures"`` if none is recorded."""
        method = plain(self.config).get("method") or {}
        return str(method.get("name", "pictures"))

    def references(self, network: VisionNetwork, targets: Sequence[Target], **keys: object) -> References:
        """Return the references of targets by the run's configuration, without a progress bar.

        Args:
            network: the run's network.
            targets: classes, or units of one layer.
            keys: values that replace recorded ones; ``__`` stands for the dot: ``references__count=50``.

        Raises:
            UsageError: the images no longer exist.
        """
        return references_of(self.config.with_keys(**{"progress": False, **keys}), network, targets)

    def readout(self, network: VisionNetwork, targets: Sequence[Target]) -> Readout:
        """Return the read-out of the run's targets, directions included."""
        return readout_of(self.config, network, targets)
