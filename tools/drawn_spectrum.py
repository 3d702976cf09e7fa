"""Measure the Fourier magnitude of the drawn image set and write the file of the package.

Usage: ``python tools/drawn_spectrum.py [FILE]``
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from vital_exp.images.spectrum import EMBEDDED_FILE, TENSOR, magnitudes
from vital_exp.references.drawn import REVISION, draw_set

IMAGES_PER_CLASS = 400  # 4,000 images: each entry has a standard error of about 1 %
SEED = 30_000  # far from the seeds of references, training and testing


def drawn_magnitude(count_per_class: int = IMAGES_PER_CLASS, seed: int = SEED) -> torch.Tensor:
    """Return the mean magnitude of drawn images in decorrelated colours, (3, 64, 33) float32."""
    images, _ = draw_set(count_per_class, seed)
    return magnitudes(images.double()).mean(dim=0).float()


def main(path: Path = EMBEDDED_FILE) -> None:
    """Measure the magnitude and write it to a file."""
    described = {"images": f"{10 * IMAGES_PER_CLASS} drawn", "seed": str(SEED), "revision": str(REVISION)}
    save_file({TENSOR: drawn_magnitude().contiguous()}, path, metadata=described)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))
