"""Train the embedded prior, a small variational autoencoder, on the drawn image set and write its folder.

Usage: ``python tools/train_prior.py [--out DIR] [--seed 0] [--steps 1500]``
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional

from vital_exp.references.drawn import CLASS_NAMES, draw_set

TRAINING_SEED, HELD_OUT_SEED = 10_000, 20_000  # far from 0, for references are drawn from small seeds
IMAGES = 200  # of each class
SWAPPED = 1 / 3  # share of images with another class's palette and ground
BATCH, RATE = 12, 2e-3
# Share of the steps in which the weight of the divergence rises to 1; with the full weight from the start, the
# posterior collapses.
WARM_UP = 0.4
# Scale of the Laplace distribution about the decoder's picture in [-1, 1], 2.5 % of the range. It weighs the error
# against the divergence of the latents from N(0, I).
SPREAD = 0.05
ARCHITECTURE: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (8, 24, 48, 64),
    "layers_per_block": 1,
    "latent_channels": 8,
    "norm_num_groups": 8,
    "sample_size": 64,
    "mid_block_add_attention": False,
}


def images(seed: int, count: int) -> Tensor:
    """Return drawn images (N, 3, 64, 64) in [-1, 1], typical and swapped."""
    swapped = round(count * SWAPPED)
    parts = [draw_set(count - swapped, seed)[0], draw_set(swapped, seed + 1, "swapped")[0]]
    return torch.cat(parts) * 2 - 1


def loss_of(model: Any, pictures: Tensor, generator: torch.Generator, share: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return the negative evidence lower bound per pixel value, times SPREAD, and the mean absolute error."""
    latent = model.encode(pictures).latent_dist
    noise = torch.randn(latent.mean.shape, generator=generator)
    error = (model.decode(latent.mean + latent.std * noise).sample - pictures).abs().mean()
    divergence = 0.5 * (latent.mean.square() + latent.var - 1 - latent.logvar).sum() / pictures.numel()
    return error + share * SPREAD * divergence, error


def train(steps: int, seed: int) -> Any:
    """Return the trained autoencoder."""
    torch.manual_seed(seed)
    model: Any = AutoencoderKL(**ARCHITECTURE)
    generator = torch.Generator().manual_seed(seed)
    pictures = images(TRAINING_SEED, IMAGES)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.1)
    began = time.time()
    for step in range(steps):
        batch = pictures[torch.randint(len(pictures), (BATCH,), generator=generator)]
        mirrored = torch.rand(BATCH, generator=generator) < 0.25
        batch = torch.where(mirrored[:, None, None, None], batch.flip(3), batch)
        loss, error = loss_of(model, batch, generator, min(1.0, step / (WARM_UP * steps)))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == steps - 1:
            print(f"{step:5d} {time.time() - began:6.0f} s  loss {loss:.4f}  error {error:.4f}", flush=True)
    return model.eval()


@torch.no_grad()
def finish(model: Any, seed: int) -> dict[str, object]:
    """Set diffusers' scaling factor, 1 over the latents' standard deviation; return the figures of the prior."""
    held_out = images(HELD_OUT_SEED, 30)
    latents = model.encode(held_out).latent_dist.mean
    model.register_to_config(scaling_factor=float(1 / latents.std()))
    made = model.decode(latents).sample
    return {
        "made by": "python tools/train_prior.py",
        "images": f"drawn set, seed {TRAINING_SEED}, {IMAGES} of each of {len(CLASS_NAMES)} classes",
        "seed": seed,
        "parameters": sum(p.numel() for p in model.parameters()),
        "mean absolute error of held-out images, RGB in [0, 1]": float(functional.l1_loss(made, held_out) / 2),
    }


def main() -> None:
    """Train the prior, measure it, and write its folder."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--out", type=Path, default=Path("vital_exp/images/embedded_prior"))
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--steps", type=int, default=1500)
    given = arguments.parse_args()
    model = train(given.steps, given.seed)
    measured = finish(model, given.seed) | {"steps": given.steps}
    model.half().save_pretrained(given.out, safe_serialization=True)
    (given.out / "measured.json").write_text(json.dumps(measured, indent=1) + "\n")
    print(json.dumps(measured, indent=1))


if __name__ == "__main__":
    main()
