"""Fine-tune a CIFAR ResNet-20 a little on two classes, and ask which units that has changed.

    python examples/what_fine_tuning_changed.py cifar10 cifar10_resnet20.safetensors outputs/fine_tuning

Writes the fine-tuned weights, two atlases (images and numbers of all stages, without pictures), and the page of
their comparison. All weights are trained. ``--only 3 17`` lets training change no more than these channels of the last
convolution: the comparison must then name them first.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from my_network import resnet
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # as vital_exp normalises unless told otherwise
LAYERS, LAST = "layer1,layer2,layer3", "layer3.2.conv2.weight"
IMAGES, BATCH = 200, 64  # of each of the two classes; in a step


def images_of(folder: Path, classes: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Return normalised images (N, 3, 32, 32) of some classes, and the number of each image's class."""
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    paths = [path for name in classes for path in sorted((folder / name).iterdir())[:IMAGES]]
    pixels = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths])
    rgb = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
    return (rgb - mean) / std, torch.tensor([names.index(path.parent.name) for path in paths])


def fine_tune(options: argparse.Namespace) -> nn.Module:
    """Return the network after some steps on two classes, all of it or some channels of its last convolution."""
    network = resnet(depth=20)
    network.load_state_dict(load_file(options.weights))
    network.eval()  # running statistics stay as they are
    trained = [dict(network.named_parameters())[LAST]] if options.only else list(network.parameters())
    pictures, labels = images_of(options.train or options.data, options.classes)
    stream, optimizer = torch.Generator().manual_seed(0), torch.optim.SGD(trained, options.lr)
    for _ in range(options.steps):
        batch = torch.randint(len(pictures), (BATCH,), generator=stream)
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(pictures[batch]), labels[batch]).backward()
        if options.only:
            gradient = trained[0].grad
            assert gradient is not None
            gradient[[channel for channel in range(len(gradient)) if channel not in options.only]] = 0
        optimizer.step()
    return network


def main(arguments: Sequence[str] | None = None) -> None:
    """Fine-tune, make both atlases, compare them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="a folder of images, one folder per class")
    parser.add_argument("weights", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--train", type=Path, help="a folder of other images to train on")
    parser.add_argument("--classes", nargs=2, default=["cat", "dog"])
    parser.add_argument("--only", nargs="*", type=int, default=[])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--lr", type=float, default=0.003)
    parser.add_argument("--layers", default=LAYERS)
    parser.add_argument("--method", default="none", help="of the pictures of both atlases")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    tuned = options.out / "fine_tuned.safetensors"
    network = fine_tune(options)
    save_file(network.state_dict(), tuned)
    for name, weights in (("before", options.weights), ("after", tuned)):
        atlas(options, weights, options.out / name)
    compared = f"compare=[{options.out / 'before'},{options.out / 'after'}]"
    run(compared, f"hydra.run.dir={options.out / 'compared'}")


def atlas(options: argparse.Namespace, weights: Path, out: Path) -> None:
    """Make the atlas of some layers."""
    factory = Path(__file__).resolve().with_name("my_network.py")
    model = [f"model.factory={factory}:resnet", "model.arguments={depth: 20}", f"model.checkpoint={weights}"]
    run(
        "model=python",
        "model.size=32",
        *model,
        f"images={options.data}",
        f"layers=[{options.layers}]",
        f"method={options.method}",
        "facets=1",
        "map=pca",
        f"hydra.run.dir={out}",
    )


def run(*arguments: str) -> None:
    """Run vital-atlas."""
    subprocess.run([sys.executable, "-m", "vital_exp", "atlas", *arguments, "progress=false"], check=True)


if __name__ == "__main__":
    main()
