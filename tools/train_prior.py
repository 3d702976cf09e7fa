"""Train the embedded prior, a small variational autoencoder, on the drawn image set and write its weights.

Usage: ``python tools/train_prior.py [--out DIR] [--seed 0] [--steps 2400]``

About ten minutes of one processor core. Beside the weights it writes ``embedded_prior.json`` with what was measured.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from vital_exp.images.embedded_prior import EmbeddedAutoencoder, weights_path
from vital_exp.references.drawn import CLASS_NAMES, draw_set

TRAINING_SEED, HELD_OUT_SEED = 10_000, 20_000  # far from 0, for references are drawn from small seeds
IMAGES = 600  # of each class
HELD_OUT = 30  # of each class
SWAPPED = 1 / 3  # share of images with another class's palette and ground
MIRRORED = 0.25  # share of a batch
BATCH, RATE, DECAY, LONGEST_GRADIENT = 32, 2e-3, 0.01, 1.0
# Share of the steps in which the weight of the divergence rises to 1; with the full weight from the start, the
# posterior collapses.
WARM_UP = 0.3
# Scale of the Laplace distribution about the decoder's picture in [-1, 1], 2.5 % of the range. It weighs the error
# against the divergence of the latents from N(0, I).
SPREAD = 0.05


def images(seed: int, count: int) -> Tensor:
    """Return drawn images (N, 3, 64, 64) in [-1, 1], typical and swapped."""
    swapped = round(count * SWAPPED)
    parts = [draw_set(count - swapped, seed)[0], draw_set(swapped, seed + 1, "swapped")[0]]
    return torch.cat(parts) * 2 - 1


def loss_of(
    model: EmbeddedAutoencoder, pictures: Tensor, generator: torch.Generator, share: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the negative evidence lower bound per pixel value, times SPREAD, the mean absolute error, and the nats."""
    mean, log_variance = model.posterior(pictures)
    latents = mean + (log_variance / 2).exp() * torch.randn(mean.shape, generator=generator)
    error = (model.decode(latents).sample - pictures).abs().mean()
    nats = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum() / len(pictures)
    return error + share * SPREAD * nats / pictures[0].numel(), error, nats


def train(steps: int, seed: int, count: int = IMAGES) -> EmbeddedAutoencoder:
    """Return the trained autoencoder."""
    torch.manual_seed(seed)
    model = EmbeddedAutoencoder().to(memory_format=torch.channels_last)
    generator = torch.Generator().manual_seed(seed)
    pictures = images(TRAINING_SEED, count)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.1)
    began = time.process_time()
    for step in range(steps):
        batch = pictures[torch.randint(len(pictures), (BATCH,), generator=generator)]
        mirrored = torch.rand(BATCH, generator=generator) < MIRRORED
        batch = torch.where(mirrored[:, None, None, None], batch.flip(3), batch)
        batch = batch.to(memory_format=torch.channels_last)
        loss, error, nats = loss_of(model, batch, generator, min(1.0, step / (WARM_UP * steps)))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), LONGEST_GRADIENT)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == steps - 1:
            took = time.process_time() - began
            print(f"{step:5d} {took:6.0f} s  loss {loss:.4f}  error {error:.4f}  {nats:.0f} nats", flush=True)
    return model.eval()


@torch.no_grad()
def measured(model: EmbeddedAutoencoder) -> dict[str, float]:
    """Return the errors of held-out images."""
    held_out = images(HELD_OUT_SEED, HELD_OUT)
    latents = model.encode(held_out).latents
    made = model.decode(latents).sample
    return {
        "mean absolute error of held-out images, RGB in [0, 1]": float(functional.l1_loss(made, held_out) / 2),
        "standard deviation of the latents' means": float(latents.std()),
    }


def main() -> None:
    """Train the prior, measure it, and write its files."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--out", type=Path, default=weights_path().parent, help="folder of the two files")
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--steps", type=int, default=2400)
    given = arguments.parse_args()
    torch.set_num_threads(1)  # another number rounds differently
    began = time.process_time()
    model = train(given.steps, given.seed)
    given.out.mkdir(parents=True, exist_ok=True)
    weights = given.out / weights_path().name
    save_file({name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}, weights)
    found = {
        "made by": f"python tools/train_prior.py --seed {given.seed} --steps {given.steps}",
        "images": f"drawn set, seed {TRAINING_SEED}, {IMAGES} of each of {len(CLASS_NAMES)} classes",
        "processor seconds": round(time.process_time() - began),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        **measured(model),
        "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
    }
    weights.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
