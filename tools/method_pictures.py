"""Make the pictures of the method pages: ``python tools/method_pictures.py [beginning of a name]``.

All are of drawn images and the embedded network: one strip for each method (three classes), each choice of random
transforms (one drawn image, and as the network sees it in seven steps),
and the ways to compute relevance (one drawn image of each of four classes). Five minutes of one CPU core.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from vital_exp import load_model, visualize
from vital_exp.config import compose_config
from vital_exp.config_tree import options_of
from vital_exp.images.output import to_uint8
from vital_exp.images.randomness import RandomStreams
from vital_exp.references.drawn import draw
from vital_exp.relevance import relevance_maps
from vital_exp.setup.parts import transform_of

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "images"
NETWORK = "embedded_resnet"
CLASSES = ("star", "fish", "house")
SIDE, GAP = 128, 4  # px
BRIGHT = 0.95  # the share of positions that are less relevant than what is shown undimmed
RULES = ("lrp", "lrp_restricted", "guided_backprop", "gradient_x_activation")
UNIT, READ = "layer3:5", "layer2"  # a hidden unit, and the layer whose relevance is drawn


def strip(pictures: Iterable[Tensor]) -> Image.Image:
    """Return pictures (3, H, W) in [0, 1] side by side."""
    tiles = [interpolate(picture[None].float(), (SIDE, SIDE), mode="bicubic")[0].clamp(0, 1) for picture in pictures]
    page = Image.new("RGB", (len(tiles) * (SIDE + GAP) - GAP, SIDE), "white")
    for place, tile in enumerate(tiles):
        page.paste(Image.fromarray(to_uint8(tile).permute(1, 2, 0).numpy()), (place * (SIDE + GAP), 0))
    return page


def of_method(method: str) -> Image.Image:
    """Return three classes by a method, with its own steps."""
    start = ["image.init=reference"] if method == "accentuation" else []
    targets = [f"class:{name}" for name in CLASSES]
    made = visualize(NETWORK, targets, method=method, overrides=["evaluation=none", *start])
    return strip(made.images)


def of_transform(option: str) -> Image.Image:
    """Return a drawn image as it is, and as the network sees it in seven steps."""
    network = load_model(NETWORK)
    image = draw(2, 0, 0)[None]
    config = compose_config([f"model={NETWORK}", f"transforms={option}", "steps=7"])
    transform, streams = transform_of(config, network), RandomStreams(0, ["fish"])
    seen = [transform(network.preprocessing.normalise(image), streams, step) for step in range(7)]
    return strip([image[0], *(network.preprocessing.denormalise(one)[0].clamp(0, 1) for one in seen)])


def of_relevance(method: str) -> Image.Image:
    """Return drawn images, each darkened where a layer's features do not matter for a hidden unit."""
    network = load_model(NETWORK)
    images = torch.stack([draw(number, 0, 0) for number in range(4)])
    summed = relevance_maps(network, images, UNIT, [READ], method=method)[READ].clamp(min=0).sum(1, keepdim=True)
    bright = summed.flatten(1).quantile(BRIGHT, dim=1).clamp(min=torch.finfo(summed.dtype).tiny)
    mask = interpolate((summed / bright[:, None, None, None]).clamp(max=1), images.shape[-2:], mode="bilinear")
    return strip([*images, *(images * mask)])


def main(only: str = "") -> None:
    """Write the strips whose names begin with ``only``."""
    for name, make in (
        *((f"method_{option}", (of_method, option)) for option in options_of("method")),
        *((f"transforms_{option}", (of_transform, option)) for option in options_of("transforms") if option != "none"),
        *((f"relevance_{option}", (of_relevance, option)) for option in RULES),
    ):
        if name.startswith(only):
            make[0](make[1]).save(FOLDER / f"{name}.jpg", quality=85, optimize=True)
            print(name, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:2])
