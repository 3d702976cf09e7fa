"""The settings of an audit: the keys of vital-audit beside ``run``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vital_exp.attacks.detector import DetectorTraining
from vital_exp.attacks.fine_tuning import FineTuning
from vital_exp.config import options_of
from vital_exp.errors import UsageError
from vital_exp.references.base import PER_TARGET
from vital_exp.values import number, one_of, whole_number

AIMS = ("activation", "alignment")  # the loss whose gradients a slingshot changes

# Allowed values of the trainings' settings: the least whole number, and the range of a number.
WHOLE: Mapping[str, Mapping[str, int]] = {
    "detector": {"epochs": 1, "least_updates": 0, "batch_size": 2},
    "tuning": {"steps": 1, "batch_size": 1, "seed": 0},
}
RANGES: Mapping[str, Mapping[str, tuple[float, float]]] = {
    "detector": {"lr": (0, 10), "momentum": (0, 1), "weight_decay": (0, 1)},
    "tuning": {"lr": (0, 10), "preservation": (0, 1)},
}


@dataclass(frozen=True)
class Snapshots:
    """The snapshots of runs that a detector is trained and tested on.

    Attributes:
        every: steps between snapshots; None: snapshots at the steps 4, 6, 8, 11 ... 512.
        steps: the number of steps of each run.
        seeds: runs per method for training; one more run is held out.
        least_units: units to train on; channels of the last two layers are added to the classes up to this number
            (ours: the published set has hundreds of classes; from a few, the detector learns their colours rather than
            the look of pictures).
        methods: options of the group ``method``.
        held_out: share of the targets whose pictures are held out.
    """

    every: int | None = None
    steps: int = 512
    seeds: int = 2
    least_units: int = 72
    methods: Sequence[str] = ("fourier",)
    held_out: float = 0.2

    def __post_init__(self) -> None:
        _check_methods(self.methods, "snapshots.methods")
        for key in ("every", "steps", "seeds"):
            value = getattr(self, key)
            if value is not None or key != "every":
                whole_number(f"snapshots.{key}", value, 1)
        whole_number("snapshots.least_units", self.least_units)
        number("snapshots.held_out", self.held_out, above=0, below=1, allowed="a share between 0 and 1")


@dataclass(frozen=True)
class AuditSettings:
    """The settings of all checks; each check reads some of them.

    Attributes:
        count: natural images per target or class.
        images: a folder of natural images in place of the run's references.
        methods: methods whose pictures of the attacked and the honest network are compared.
        steps: steps of these pictures; None: the default of each method.
        overrides: further overrides of these pictures, the same for all methods, ``["transforms=lucid"]``.
        views: the most views of a picture per step; None: the default of each method (MACO's: 6).
        seed: of all random numbers.
        judges: other networks of the same classes: names, or the keys of the group ``model``.
        targets: how many of the run's targets, the first ones; None: all.
        decoy: an image file or a class; None: the class that lies half of all classes behind the first target's.
        layer: for silent units, the convolution (None: the last suitable one); for path similarity, the layers (None:
            all convolutions and linear layers); for the circuit breaker, the layers of the circuit (None: the aligned
            layers below the unit).
        aim: the loss whose gradients a slingshot changes, one of ``AIMS``: the unit's activation, or VITAL's loss.
        snapshots: see :class:`Snapshots`.
        detector: see :class:`DetectorTraining`.
        tuning: see :class:`FineTuning`.
    """

    count: int = PER_TARGET
    images: str | None = None
    methods: Sequence[str] = ("fourier", "maco", "vital_fourier")
    steps: int | None = 256
    overrides: Sequence[str] = ()
    views: int | None = 2
    seed: int = 0
    judges: Sequence[str | Mapping[str, Any]] = ()
    targets: int | None = None
    decoy: str | None = None
    layer: str | Sequence[str] | None = None
    aim: str = AIMS[0]
    snapshots: Snapshots = field(default_factory=Snapshots)
    detector: DetectorTraining = field(default_factory=DetectorTraining)
    tuning: FineTuning = field(default_factory=FineTuning)

    def __post_init__(self) -> None:
        _check_methods(self.methods, "methods")
        one_of("aim", self.aim, AIMS)
        if isinstance(self.overrides, str) or not all(isinstance(one, str) and "=" in one for one in self.overrides):
            raise UsageError("overrides", self.overrides, "a list of overrides of vital-visualize, [transforms=lucid]")
        for key, least in (("count", 2), ("steps", 1), ("views", 1), ("targets", 1), ("seed", 0)):
            value = getattr(self, key)
            if value is not None or key in ("count", "seed"):
                whole_number(key, value, least)
        for name, least_of in WHOLE.items():
            for key, least in least_of.items():
                whole_number(f"{name}.{key}", getattr(getattr(self, name), key), least)
        for name, limits in RANGES.items():
            for key, (low, high) in limits.items():
                value = getattr(getattr(self, name), key)
                number(f"{name}.{key}", value, low, high, allowed=f"a number from {low:g} to {high:g}")

    @classmethod
    def of(cls, keys: Mapping[str, Any]) -> AuditSettings:
        """Return the settings that plain keys give.

        Raises:
            UsageError: an unknown key, or a value that is not allowed.
        """
        parts = {"snapshots": Snapshots, "detector": DetectorTraining, "tuning": FineTuning}
        keys = {name: _built(parts[name], name, value) if name in parts else value for name, value in keys.items()}
        settings: AuditSettings = _built(cls, "", keys)
        return settings


def _built(kind: Any, name: str, keys: Any) -> Any:
    allowed = list(kind.__dataclass_fields__)
    for key in keys:
        if key not in allowed:
            raise UsageError(f"{name}.{key}".lstrip("."), keys[key], "no such key", allowed)
    return kind(**keys)


def _check_methods(methods: Sequence[str], key: str) -> None:
    known = options_of("method")
    if isinstance(methods, str) or not methods:
        raise UsageError(key, methods, f"a list of methods, [{','.join(known[:3])}]")
    for method in methods:
        one_of(key, method, known)
