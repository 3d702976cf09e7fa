"""Train the embedded networks on the drawn image set and write their weights and model card.

Usage: ``python tools/train_embedded.py [--out DIR] [--seed 0] [--names embedded_resnet ...]``
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from vital_exp.errors import UsageError
from vital_exp.models.embedded import EMBEDDED, MEAN, SIZE, STD, build, weights_path
from vital_exp.references.drawn import CLASS_NAMES, draw_set
from vital_exp.whole_files import whole_path

COMMAND = "python tools/train_embedded.py"

# The images for training and testing are drawn from seeds far from 0, so that they hold no reference images, which are
# drawn from small seeds.
TRAINING_SEED = 10_000
HELD_OUT_SEED = 20_000

WARM_UP = 0.1  # share of the steps in which the learning rate rises
LABEL_SMOOTHING = 0.05  # keeps logits moderate, though the network soon classifies all training images

FLIP = 0.25  # probability of mirroring; below one half, since most drawings face one way
TURN = math.radians(12)  # largest rotation, either way
ZOOM = (0.8, 1.2)  # range of the scale
MOVE = 0.2  # largest shift, as a share of half the side
GAIN, OFFSET = 0.25, 0.1  # largest change of each channel's gain and offset, either way
GREY = 0.1  # probability of removing all colour
BLUR = 0.3  # probability of a 3 x 3 mean filter


@dataclass(frozen=True)
class Recipe:
    """How one network is trained.

    Attributes:
        steps: number of batches.
        rate: highest learning rate of AdamW.
        decay: weight decay.
        batch_size: images in a batch.
        noise: largest standard deviation of the noise added to an image, RGB in [0, 1].
        swapped: share of the training images with swapped palettes.
        attack: largest change of a pixel by adversarial training with one gradient-sign step, RGB in [0, 1]; 0: none.
        negative: probability of inverting an image.
        mixed: probability of permuting red, green and blue.
    """

    steps: int
    rate: float
    decay: float
    batch_size: int
    noise: float
    swapped: float
    attack: float = 0.0
    negative: float = 0.0
    mixed: float = 0.0


# The ViT, without the bias of convolutions for outlines, needs more swapped and recoloured images to classify by shape.
# The judge is trained adversarially too, so that optimised noise does not convince it.
RECIPES = {
    "embedded_resnet": Recipe(steps=480, rate=4e-3, decay=0.02, batch_size=128, noise=0.15, swapped=1 / 3),
    "embedded_vit": Recipe(
        steps=900, rate=1.5e-3, decay=0.05, batch_size=64, noise=0.05, swapped=1 / 2, negative=0.15, mixed=0.3
    ),
    "embedded_judge": Recipe(steps=600, rate=4e-3, decay=0.02, batch_size=128, noise=0.25, swapped=1 / 3, attack=0.03),
}


# --- data -----------------------------------------------------------------------------------------------------------


def training_set(count_per_class: int, swapped_share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Draw typical images and a share of swapped ones: (10 * count_per_class, 3, 64, 64) RGB in [0, 1], and labels."""
    swapped = max(1, round(swapped_share * count_per_class))
    typical = max(1, count_per_class - swapped)
    sets = [draw_set(typical, TRAINING_SEED + seed), draw_set(swapped, TRAINING_SEED + seed + 1, "swapped")]
    return torch.cat([images for images, _ in sets]), torch.cat([labels for _, labels in sets])


def batches(images: Tensor, labels: Tensor, recipe: Recipe, stream: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the recipe's shuffled batches; no image comes a second time in a pass over all."""
    size = min(recipe.batch_size, len(images))
    order = torch.empty(0, dtype=torch.long)
    for _ in range(recipe.steps):
        if len(order) < size:
            order = torch.randperm(len(images), generator=stream)
        chosen, order = order[:size], order[size:]
        yield images[chosen], labels[chosen]


def augment(images: Tensor, recipe: Recipe, stream: torch.Generator) -> Tensor:
    """Return images (B, 3, H, W) RGB in [0, 1], each randomly moved, mirrored, recoloured, blurred and with noise."""
    images = _recoloured(_moved(images, stream), recipe, stream)
    return _noisy(_blurred(images, stream), recipe.noise, stream).clamp(0, 1)


def _uniform(count: int, low: float, high: float, stream: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(count, generator=stream)


def _moved(images: Tensor, stream: torch.Generator) -> Tensor:
    count = len(images)
    angle, zoom = _uniform(count, -TURN, TURN, stream), _uniform(count, *ZOOM, stream)
    mirror = torch.where(torch.rand(count, generator=stream) < FLIP, -1.0, 1.0)
    x, y = _uniform(count, -MOVE, MOVE, stream), _uniform(count, -MOVE, MOVE, stream)
    cos, sin = zoom * angle.cos(), zoom * angle.sin()
    maps = torch.stack(
        [torch.stack([mirror * cos, -mirror * sin, x], 1), torch.stack([sin, cos, y], 1)], 1
    )  # (B, 2, 3)
    grid = functional.affine_grid(maps, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def _recoloured(images: Tensor, recipe: Recipe, stream: torch.Generator) -> Tensor:
    count = len(images)
    gain = _uniform(3 * count, 1 - GAIN, 1 + GAIN, stream).view(count, 3, 1, 1)
    offset = _uniform(3 * count, -OFFSET, OFFSET, stream).view(count, 3, 1, 1)
    grey = _chosen(count, GREY, stream)
    if recipe.negative > 0:
        images = torch.where(_chosen(count, recipe.negative, stream), 1 - images, images)
    if recipe.mixed > 0:
        mixed = _chosen(count, recipe.mixed, stream)
        images = torch.where(mixed, images[:, torch.randperm(3, generator=stream)], images)
    return torch.where(grey, images.mean(1, keepdim=True), images) * gain + offset


def _chosen(count: int, probability: float, stream: torch.Generator) -> Tensor:
    """A random choice of images, (count, 1, 1, 1) bool."""
    return torch.rand(count, 1, 1, 1, generator=stream) < probability


def _blurred(images: Tensor, stream: torch.Generator) -> Tensor:
    smooth = functional.avg_pool2d(functional.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    return torch.where(_chosen(len(images), BLUR, stream), smooth, images)


def _noisy(images: Tensor, noise: float, stream: torch.Generator) -> Tensor:
    strength = _uniform(len(images), 0, noise, stream).view(-1, 1, 1, 1)
    return images + strength * torch.randn(images.shape, generator=stream)


def normalised(images: Tensor) -> Tensor:
    """Return images in [0, 1], normalised for the embedded networks."""
    return (images - images.new_tensor(MEAN).view(3, 1, 1)) / images.new_tensor(STD).view(3, 1, 1)


# --- training -------------------------------------------------------------------------------------------------------


def train(name: str, images: Tensor, labels: Tensor, recipe: Recipe, seed: int) -> nn.Module:
    """Train one network from random weights; deterministic in the seed on one machine with one number of threads.

    Args:
        name: the name of an embedded network.
        images: (N, 3, 64, 64) RGB in [0, 1].
        labels: (N,) int64.
        recipe: the settings of the training.
        seed: of the weights, the order and the augmentation.

    Returns:
        The network in evaluation mode.
    """
    with torch.random.fork_rng(devices=[]):  # initialisers use the global generator only
        torch.manual_seed(seed)
        network = build(name).to(memory_format=torch.channels_last).train()
    stream = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(_groups(network, recipe.decay), lr=recipe.rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, recipe.steps))
    progress = tqdm(batches(images, labels, recipe, stream), name, total=recipe.steps, mininterval=2)
    for batch, wanted in progress:
        batch = augment(batch, recipe, stream)
        if recipe.attack > 0:
            batch = _attacked(network, batch, wanted, recipe.attack, stream)
        loss = _loss(network, batch, wanted)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        progress.set_postfix(loss=f"{loss.detach():.3f}", refresh=False)
    return network.eval()


def _groups(network: nn.Module, decay: float) -> list[dict[str, Any]]:
    """Parameter groups of the optimiser: weight decay for matrices and kernels, none for biases and norms."""
    weights = [p for p in network.parameters() if p.ndim > 1]
    return [
        {"params": weights, "weight_decay": decay},
        {"params": [p for p in network.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]


def _rate(step: int, steps: int) -> float:
    """The learning rate as a share of the highest: a linear rise, then half a cosine down to 0."""
    rise = max(1, round(WARM_UP * steps))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def _loss(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    inputs = normalised(images).contiguous(memory_format=torch.channels_last)
    return functional.cross_entropy(network(inputs), labels, label_smoothing=LABEL_SMOOTHING)


def _attacked(network: nn.Module, images: Tensor, labels: Tensor, attack: float, stream: torch.Generator) -> Tensor:
    """Each image after one gradient-sign step of a random size, from a random start (Wong et al., 2020)."""
    reach = attack * torch.rand(len(images), 1, 1, 1, generator=stream)
    change = (reach * (2 * torch.rand(images.shape, generator=stream) - 1)).requires_grad_()
    (gradient,) = torch.autograd.grad(_loss(network, images + change, labels), change)
    change = (change.detach() + 1.25 * reach * gradient.sign()).clamp(-reach, reach)
    return (images + change).clamp(0, 1)


@torch.no_grad()
def accuracy(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the top-1 accuracy on images (N, 3, 64, 64) RGB in [0, 1]."""
    guesses = [network(normalised(batch)).argmax(1) for batch in images.split(250)]
    return (torch.cat(guesses) == labels).float().mean().item()


# --- files ----------------------------------------------------------------------------------------------------------


def save_weights(network: nn.Module, path: Path) -> None:
    """Write the state in half precision (counters unchanged), so that the file is complete or not there."""
    state = {key: _stored(value) for key, value in network.state_dict().items()}
    with whole_path(path) as temporary:
        save_file(state, temporary)


def _stored(value: Tensor) -> Tensor:
    return (value.half() if value.is_floating_point() else value).contiguous()


def load_weights(name: str, path: Path) -> nn.Module:
    """Return the network with the weights of a file, in single precision and evaluation mode."""
    network = build(name)
    network.load_state_dict(load_file(path), strict=True)
    return network.eval()


def card_entry(name: str, path: Path, recipe: Recipe, seed: int, count_per_class: int, held_out: int) -> dict[str, Any]:
    """Measure the stored network on drawings of another seed, and return its entry in the model card."""
    network = load_weights(name, path)
    sets = {kind: draw_set(held_out, HELD_OUT_SEED + seed, kind) for kind in ("typical", "swapped")}
    return {
        "architecture": f"timm {type(network).__name__}",
        "parameters": sum(p.numel() for p in network.parameters()),
        "seed": seed,
        "training_images": 10 * count_per_class,
        **asdict(recipe),
        "held_out_images": 10 * held_out,
        "accuracy": {kind: round(accuracy(network, *drawn), 4) for kind, drawn in sets.items()},
        "bytes": path.stat().st_size,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }


def write_card(folder: Path, entries: dict[str, dict[str, Any]], command: str) -> None:
    """Write model_card.json, keeping the entries of networks that were not trained now, and MODEL_CARD.md from it."""
    path = folder / "model_card.json"
    networks = json.loads(path.read_text(encoding="utf-8"))["networks"] if path.exists() else {}
    for name, entry in entries.items():
        networks[name] = {**entry, "command": command, "torch": torch.__version__, "timm": timm.__version__}
    card = {
        "classes": list(CLASS_NAMES),
        "size": SIZE,
        "mean": list(MEAN),
        "std": list(STD),
        "networks": {name: networks[name] for name in EMBEDDED if name in networks},
    }
    path.write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    (folder / "MODEL_CARD.md").write_text(_card_text(card), encoding="utf-8")


def _card_text(card: dict[str, Any]) -> str:
    columns = (
        "network",
        "architecture",
        "parameters",
        "seed",
        "steps",
        "typical",
        "swapped",
        "held-out images",
        "file",
    )
    rows = [_card_row(name, entry) for name, entry in card["networks"].items()]
    commands = sorted({e["command"] for e in card["networks"].values()})
    return CARD.format(
        classes=", ".join(card["classes"]),
        size=card["size"],
        mean=tuple(card["mean"]),
        std=tuple(card["std"]),
        table="\n".join([_row(columns), "|---" * len(columns) + "|", *rows]),
        commands="\n".join(f"    {command}" for command in commands),
    )


def _card_row(name: str, entry: dict[str, Any]) -> str:
    share = entry["accuracy"]
    training = (f"{entry['parameters']:,}", str(entry["seed"]), str(entry["steps"]))
    testing = (f"{share['typical']:.2%}", f"{share['swapped']:.2%}", f"{entry['held_out_images']:,} of each kind")
    return _row((name, entry["architecture"], *training, *testing, f"{entry['bytes'] / 1e6:.1f} MB"))


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


CARD = """# The embedded networks

Three small networks trained on the package's own drawn image set (`vital_exp.references.drawn`), so that everything
works without a download. `embedded_resnet` and `embedded_vit` are there to be visualised; `embedded_judge`, of a third
architecture, judges pictures made for them.

- Input: {size} x {size} px RGB in [0, 1], normalised by mean {mean} and standard deviation {std}.
- Output: logits of {classes}.
- Trained on typical drawings and on drawings with the palette and the ground of another class (a third; for the ViT a
  half), moved, turned, mirrored, recoloured, blurred and with noise, so that shape decides; the judge on images changed
  against it by a gradient step as well. Weights are stored in half precision.
- Accuracy (the columns typical and swapped) is measured on the stored weights with drawings of another seed; "swapped"
  has every palette and ground replaced by that of another class. Chance is 10 %.

{table}

Made by

{commands}

Not meant for photographs or for any use beyond trying out this package. All figures, the recipe and the hashes of the
files are in `model_card.json`, written by the same command.
"""


# --- command --------------------------------------------------------------------------------------------------------


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    default = weights_path("embedded_resnet").parent
    parser.add_argument("--out", type=Path, default=default, help="folder of the weights and the card")
    parser.add_argument("--seed", type=int, default=0, help="of drawings, weights and order, at least 0")
    parser.add_argument("--names", nargs="+", default=list(EMBEDDED), choices=list(EMBEDDED), help="which networks")
    parser.add_argument("--steps", type=int, help="instead of the recipe's")
    parser.add_argument("--count", type=int, default=1000, help="training images per class")
    parser.add_argument("--held-out", type=int, default=200, help="test images per class, of each palette kind")
    parser.add_argument("--threads", type=int, default=2, help="of torch; another number rounds differently")
    options = parser.parse_args(arguments)
    for key in ("steps", "count", "held_out", "threads"):
        if getattr(options, key) is not None and getattr(options, key) < 1:
            raise UsageError(key, getattr(options, key), "must be at least 1")
    if options.seed < 0:
        raise UsageError("seed", options.seed, "must be at least 0")
    return options


def run(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Train the networks that the options name, write their files and return their entries in the card."""
    options.out.mkdir(parents=True, exist_ok=True)
    entries = {}
    for name in options.names:
        recipe = RECIPES[name] if options.steps is None else replace(RECIPES[name], steps=options.steps)
        images, labels = training_set(options.count, recipe.swapped, options.seed)
        path = options.out / f"{name}.safetensors"
        save_weights(train(name, images, labels, recipe, options.seed), path)
        entries[name] = card_entry(name, path, recipe, options.seed, options.count, options.held_out)
    write_card(options.out, entries, _command(options))
    return entries


def _command(options: argparse.Namespace) -> str:
    """The command that repeats the training, without the folder."""
    steps = [] if options.steps is None else [f"--steps {options.steps}"]
    return " ".join(
        [COMMAND, f"--seed {options.seed}", f"--count {options.count}", f"--threads {options.threads}", *steps]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 2 after a user's mistake."""
    try:
        options = parse(arguments)
        torch.set_num_threads(options.threads)
        for name, entry in run(options).items():
            print(f"{name}: " + ", ".join(f"{kind} {value:.2%}" for kind, value in entry["accuracy"].items()))
    except UsageError as mistake:
        print(mistake, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
