"""Settings of single metrics: their weights, and whether these may be downloaded."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class LpipsSettings:
    """LPIPS: the backbone (``alex``, ``vgg`` or ``squeeze``), and a file with its weights or those of a whole LPIPS."""

    net: str = "alex"
    checkpoint: str | None = None


@dataclass(frozen=True)
class ClipSettings:
    """CLIP: arguments of :func:`load_clip`, and a file with the vocabulary of free naming."""

    model: str = "ViT-B-32-quickgelu"
    checkpoint: str | None = None
    pretrained: str = "openai"
    templates: str = "photo"
    vocabulary: str | None = None


@dataclass(frozen=True)
class MetricSettings:
    """Settings of single metrics; the keys of the configuration group ``evaluation``.

    Attributes:
        download: whether missing weights may be downloaded.
        kid_subset_size: pictures in a subset of KID; None: 1000, or all where there are fewer.
        inception: a file with the weights of Inception that torch-fidelity publishes.
        inception_features: the layer of Inception for FID and KID, by its number of channels.
        lpips: see :class:`LpipsSettings`.
        clip: see :class:`ClipSettings`.
    """

    download: bool = False
    kid_subset_size: int | None = None
    inception: str | None = None
    inception_features: int = 2048
    lpips: LpipsSettings = field(default_factory=LpipsSettings)
    clip: ClipSettings = field(default_factory=ClipSettings)
