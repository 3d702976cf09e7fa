"""Settings of single metrics: where their weights are, and whether they may be fetched."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class LpipsSettings:
    """LPIPS: ``alex``, ``vgg`` or ``squeeze``, and the weights of that backbone or of the whole metric."""

    net: str = "alex"
    checkpoint: str | None = None


@dataclass(frozen=True)
class ClipSettings:
    """CLIP: a model of open_clip or a JSON file, its weights or their tag, templates, the words of free naming."""

    model: str = "ViT-B-32-quickgelu"
    checkpoint: str | None = None
    pretrained: str = "openai"
    templates: str = "photo"
    vocabulary: str | None = None


@dataclass(frozen=True)
class MetricSettings:
    """Settings of single metrics; the keys of the configuration group ``evaluation``.

    Attributes:
        download: fetch weights that are not there.
        kid_subset_size: pictures in a subset of KID; None: 1000, or as many as there are.
        inception: the weights of Inception, as torch-fidelity publishes them.
        inception_features: how many features the layer of Inception has that FID and KID read.
        lpips, clip: see there.
    """

    download: bool = False
    kid_subset_size: int | None = None
    inception: str | None = None
    inception_features: int = 2048
    lpips: LpipsSettings = field(default_factory=LpipsSettings)
    clip: ClipSettings = field(default_factory=ClipSettings)
