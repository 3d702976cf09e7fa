"""A detector of VITAL's circular jitter: it tells rolled pictures from natural images by their borders.

A picture that a circular shift has rolled is continuous across its border: its first and last columns (or rows) fit
together. Those of a natural image do not. The detector is ours: docs/methods/attacks.md.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

FEATURES = 30  # of border_features: 6 of each axis, and 6 each of products, maxima and minima
HIDDEN = 32  # hidden units of the classifier
STEPS, LR, DECAY = 600, 3e-3, 1e-4  # of Adam
NATURAL_WEIGHT = 3.0  # loss weight of natural images: each one taken for a picture costs accuracy
PASSED = 1.0  # share of the attacker's natural images that the detector must take for natural
FLOOR = 1e-3  # added to mean differences of normalised values: the logarithm of a flat border stays finite
FLAT = 1e-4  # per value of a border, added to the norms' product: a flat border has the correlation 0


def border_features(pictures: Tensor) -> Tensor:
    """Return features of the borders of pictures (N, C, H, W) by which a roll shows, (N, 30).

    Six for each axis. With f and l the first and the last line across it, and |.| a mean over values: the correlation
    of f and l; the correlation of their differences along the line; log(|f - l| / w), w the mean difference of
    neighbouring lines; log(|f - l| / b), b that of the two outermost pairs; log b; log of the largest difference of
    neighbouring lines over the median. Then, of the two axes' features, products, maxima and minima.
    """
    down, right = (_of_axis(pictures if axis == 2 else pictures.transpose(2, 3)) for axis in (2, 3))
    parts = [down, right, down * right, torch.maximum(down, right), torch.minimum(down, right)]
    return torch.cat(parts, dim=1)


def _of_axis(pictures: Tensor) -> Tensor:
    """Return (N, 6) features of the first and last rows of (N, C, H, W)."""
    first, second, previous, last = (pictures[:, :, place] for place in (0, 1, -2, -1))  # (N, C, W)
    steps = pictures.diff(dim=2).abs()
    wrap = (first - last).abs().mean(dim=(1, 2))
    near = ((first - second).abs() + (previous - last).abs()).mean(dim=(1, 2)) / 2
    lines = steps.mean(dim=(1, 3))  # (N, H - 1)
    features = [
        _correlation(first, last),
        _correlation(first.diff(dim=-1), last.diff(dim=-1)),
        torch.log((wrap + FLOOR) / (steps.mean(dim=(1, 2, 3)) + FLOOR)),
        torch.log((wrap + FLOOR) / (near + FLOOR)),
        torch.log(near + FLOOR),
        torch.log((lines.amax(dim=1) + FLOOR) / (lines.median(dim=1).values + FLOOR)),
    ]
    return torch.stack(features, dim=1)


def _correlation(one: Tensor, other: Tensor) -> Tensor:
    """Return (N,) correlations of lines (N, C, W), the mean of each channel removed."""
    a, b = ((part - part.mean(dim=-1, keepdim=True)).flatten(1) for part in (one, other))
    floor = FLAT * a.shape[1] ** 0.5
    found: Tensor = (a * b).sum(dim=1) / (a.norm(dim=1) * b.norm(dim=1) + floor)
    return found


class SeamDetector(nn.Module):
    """A small classifier of :func:`border_features`; a score above 0 means natural."""

    mean: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(FEATURES))
        self.register_buffer("scale", torch.ones(FEATURES))
        self.classifier = nn.Sequential(nn.Linear(FEATURES, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1))

    def forward(self, pictures: Tensor) -> Tensor:
        """Return (N,) scores of normalised pictures (N, C, H, W)."""
        return self.scores((border_features(pictures) - self.mean) / self.scale)

    def scores(self, features: Tensor) -> Tensor:
        """Return (N,) scores of standardised features."""
        found: Tensor = self.classifier(features)[:, 0]
        return found

    @torch.no_grad()
    def natural(self, pictures: Tensor) -> Tensor:
        """Return E, the hard decision (N,): 1 for a natural image, 0 for a rolled picture; it has no gradient."""
        decided: Tensor = (self(pictures) > 0).to(pictures.dtype)
        return decided


def train_seam_detector(natural: Tensor, rolled: Tensor, seed: int = 0, passed: float = PASSED) -> SeamDetector:
    """Train a detector, then move its threshold so that a given share of the natural images is taken for natural.

    All images are also learnt mirrored.

    Args:
        natural: (N, C, H, W) normalised natural images.
        rolled: (M, C, H, W) normalised, the network's inputs while pictures are made.
        seed: of the weights.
        passed: the share of natural images to be taken for natural.
    """
    natural, rolled = (torch.cat([images, images.flip(dims=(3,))]) for images in (natural, rolled))
    features = torch.cat([border_features(natural), border_features(rolled)])
    truth = torch.cat([torch.ones(len(natural)), torch.zeros(len(rolled))])
    weight = torch.where(truth > 0, NATURAL_WEIGHT, 1.0)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        detector = SeamDetector()
        detector.mean, detector.scale = features.mean(dim=0), features.std(dim=0).clamp(min=FLOOR)
        optimizer = torch.optim.Adam(detector.parameters(), LR, weight_decay=DECAY)
        given = (features - detector.mean) / detector.scale
        for _ in range(STEPS):
            loss = functional.binary_cross_entropy_with_logits(detector.scores(given), truth, weight=weight)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        lowest = torch.quantile(detector.scores(given[: len(natural)]).detach(), 1 - passed).clamp(max=0) - FLOOR
        with torch.no_grad():
            detector.classifier[2].bias.sub_(lowest)  # type: ignore[operator]
    return detector.eval().requires_grad_(False)
