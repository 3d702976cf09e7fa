"""Networks, readers and readings of natural images that the runs of a sweep share while they are scored."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from vital_exp.evaluation.evidence import Load
from vital_exp.evaluation.kept_readings import KeptReading
from vital_exp.evaluation.reading import PictureReader
from vital_exp.evaluation.score import NotComputed
from vital_exp.evaluation.weights import Spec, network_if_there
from vital_exp.models.identity import begin_call
from vital_exp.models.network import VisionNetwork

Kind = TypeVar("Kind", VisionNetwork, PictureReader)


@dataclass
class Shared:
    """Loads each network, each reader and each kept reading once.

    Attributes:
        cache_dir: the folder of downloaded weights.
        download: whether missing weights may be downloaded.
        readings: readings of natural images, by the file that keeps them.
    """

    cache_dir: Path
    download: bool
    readings: dict[Path, KeptReading] = field(default_factory=dict)
    _networks: dict[str, VisionNetwork | NotComputed] = field(default_factory=dict)
    _views: dict[str, PictureReader | NotComputed] = field(default_factory=dict)

    def network(self, spec: Spec, key: str) -> VisionNetwork:
        """Return a network by name, or by the keys of the group ``model``.

        Raises:
            UsageError: an unknown name or key, or weights that cannot be loaded.
            NotComputed: the weights are missing, and ``download`` is false.
        """
        name = json.dumps(spec, sort_keys=True, default=str)
        if name not in self._networks:
            try:
                network = network_if_there(spec, self.cache_dir, self.download, key)
                begin_call(network, self.cache_dir)
                self._networks[name] = network
            except NotComputed as error:
                self._networks[name] = error
        return _there(self._networks[name])

    def views(self, load: Mapping[str, Load]) -> dict[str, Load]:
        """Return the loading functions of views, wrapped so that all runs together load each view once."""
        return {name: lambda name=name, one=one: self._view(name, one) for name, one in load.items()}  # type: ignore[misc]

    def _view(self, name: str, load: Load) -> PictureReader:
        if name not in self._views:
            try:
                self._views[name] = load()
            except NotComputed as error:
                self._views[name] = error
        return _there(self._views[name])


def _there(found: Kind | NotComputed) -> Kind:
    if isinstance(found, NotComputed):
        raise found
    return found
