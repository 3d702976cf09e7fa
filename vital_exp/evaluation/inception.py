"""The Inception network of the published FID, as torch-fidelity builds it."""

from __future__ import annotations

import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vital_exp.evaluation.reading import Reading
from vital_exp.evaluation.score import NotComputed
from vital_exp.evaluation.weights import hub_file, local_file
from vital_exp.images.output import to_uint8
from vital_exp.models.channels import RGB
from vital_exp.models.heads import Head
from vital_exp.weights_files import read_tensors

KEY = "evaluation.inception"
LOGITS = "logits_unbiased"
# Channels of the layers whose pooled features torch-fidelity returns; the published FID uses the last layer.
FEATURES = (64, 192, 768, 2048)
PUBLISHED = FEATURES[-1]


class InceptionReader:
    """Reads the features of one layer and the 1008 logits of Inception, which resizes to 299 px as TensorFlow 1 did.

    Args:
        extractor: torch-fidelity's feature extractor.
        device: the device for it.
    """

    identity = None
    channels = RGB
    head = Head()  # a softmax over its 1008 logits

    def __init__(self, extractor: Any, device: torch.device) -> None:
        self.extractor, self.device = extractor.to(device), device

    @torch.no_grad()
    def __call__(self, pictures: Tensor) -> Reading:
        """Return the features and logits of pictures (n, 3, H, W) in [0, 1]."""
        features, logits = self.extractor(to_uint8(pictures).to(self.device))
        return Reading(features.float().cpu(), logits.float().cpu())


def load_inception(
    checkpoint: str | None, download: bool, device: torch.device, features: int = PUBLISHED
) -> InceptionReader:
    """Return the Inception network, with weights from a local file, from torch.hub's cache, or downloaded.

    Args:
        checkpoint: a local file of the weights that torch-fidelity publishes, .pth or .safetensors.
        download: whether the weights may be downloaded.
        device: the device for the network.
        features: the layer to read, by its number of channels: one of ``FEATURES``.

    Raises:
        NotComputed: torch-fidelity is not installed, or there are no weights and ``download`` is false.
        UsageError: the file does not exist, or reading it would run code.
    """
    place = local_file(checkpoint, KEY)
    if find_spec("torch_fidelity") is None:
        raise NotComputed("needs torch-fidelity: pip install torch-fidelity")
    from torch_fidelity import feature_extractor_inceptionv3 as fidelity

    if place is None:
        cached = hub_file(Path(fidelity.URL_INCEPTION_V3).name)
        place = cached if cached.is_file() else None
    if place is None and not download:
        raise NotComputed(f"needs the weights of Inception: {KEY}=file.pth, or download=true")
    build, asked = fidelity.FeatureExtractorInceptionV3, [str(features), LOGITS]
    if place is None:
        return InceptionReader(build("inception", asked), device)
    with tempfile.TemporaryDirectory() as folder:
        # torch-fidelity unpickles the file it is given, so it gets a copy whose tensors were read without running code.
        safe = Path(folder) / "weights.pth"
        torch.save(read_tensors(place, KEY), safe)
        extractor = build("inception", asked, feature_extractor_weights_path=str(safe))
    return InceptionReader(extractor, device)
