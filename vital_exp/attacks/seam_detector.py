"""Tells inputs that were rolled from natural images, by their borders: VITAL's jitter is circular.

A rolled picture goes on where it leaves the frame: its first and last columns (or rows) are neighbours. In a natural
image they are strangers. It is ours: docs/methods/attacks.md.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

HIDDEN = 32  # units of the classifier of the features
STEPS, LR, DECAY = 600, 3e-3, 1e-4  # of Adam
NATURAL_WEIGHT = 3.0  # of a natural image in the loss: taking one for a picture costs accuracy
PASSED = 1.0  # share of the attacker's natural images that must be taken for natural: a mistake costs accuracy
FLOOR = 1e-3  # added to mean differences of RGB / std, so that a flat border has a logarithm
FLAT = 1e-4  # per value of a border, added to its length: a flat border correlates with nothing


def border_features(pictures: Tensor) -> Tensor:
    """Return what the borders of pictures (N, C, H, W) say of a roll, (N, 30).

    For each of both axes, with first and last line f and l: the correlation of f and l along the line, that of their
    differences along the line; log |f - l| over the mean difference of neighbouring lines, and over that next to the
    border; the log of the latter; log of the largest difference of neighbouring lines over the median one. Then the
    products, maxima and minima of both axes.
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
    """A small classifier of :func:`border_features`; large values mean natural."""

    mean: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        count = 30
        self.register_buffer("mean", torch.zeros(count))
        self.register_buffer("scale", torch.ones(count))
        self.classifier = nn.Sequential(nn.Linear(count, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1))

    def forward(self, pictures: Tensor) -> Tensor:
        """Return (N,) scores of normalised pictures (N, C, H, W)."""
        return self.scores((border_features(pictures) - self.mean) / self.scale)

    def scores(self, features: Tensor) -> Tensor:
        """Return (N,) scores of standardised features."""
        found: Tensor = self.classifier(features)[:, 0]
        return found

    @torch.no_grad()
    def natural(self, pictures: Tensor) -> Tensor:
        """Return E, the hard decision: (N,) 1 for a natural image, 0 for a rolled one, without a gradient."""
        decided: Tensor = (self(pictures) > 0).to(pictures.dtype)
        return decided


def train_seam_detector(natural: Tensor, rolled: Tensor, seed: int = 0, passed: float = PASSED) -> SeamDetector:
    """Train a detector, then move its threshold so that a share of the natural images is taken for natural.

    Mirrored images are natural too, and are learnt from beside the others.

    Args:
        natural: (N, C, H, W) normalised natural images.
        rolled: (M, C, H, W) normalised, what the network sees while pictures are made.
        seed: of the weights.
        passed: the share.
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
