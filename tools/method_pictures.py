"""Make the pictures of the method pages: ``python tools/method_pictures.py [beginning of a name]``.

All use drawn images and the embedded network. There is a strip for each method, distance and parameterisation (three
classes), each term whose effect is visible, each option of random transforms (one drawn image, and its views in seven
steps), each way to compute relevance (one drawn image of each of four classes), and each attack (the decoy, and
pictures before and after). The attacks take some twenty minutes on one CPU core, all others ten.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.transforms.functional import to_pil_image

from vital_exp import audit, load_model, visualize
from vital_exp.config import compose_config
from vital_exp.config_tree import options_of
from vital_exp.evaluation import artefacts
from vital_exp.images.output import to_uint8
from vital_exp.images.randomness import RandomStreams
from vital_exp.references.drawn import CLASS_NAMES as DRAWN
from vital_exp.references.drawn import draw
from vital_exp.relevance import relevance_maps
from vital_exp.setup.parts import transform_of
from vital_exp.targets.selection import parse_target
from vital_exp.targets.unit import Target

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "images"
NETWORK = "embedded_resnet"
CLASSES = ("star", "fish", "house")
SIDE, GAP = 128, 4  # px
BRIGHT = 0.95  # quantile of relevance from which on a position is shown undimmed
RULES = ("lrp", "lrp_restricted", "attn_lrp", "guided_backprop", "gradient_x_activation")
UNIT, READ = "layer3:5", "layer2"  # a hidden unit, and the layer whose relevance is shown
CHANNELS = ("layer3:0", "layer3:5", "layer3:12")
AMOUNTS = ("-2sd", "off", "+2sd")  # of steering
THEMES = ("fish", "heart", "mushroom")
LAYERS = ("conv1", "layer1", "layer2", "layer3", "layer4")
VARIATIONS, STATIONS = 4, 5  # variations of a channel; pictures between two classes
# Weights of priors, chosen so that the effect is visible.
PRIORS = {"total_variation": 0.1, "l1": 1e-3, "l2": 0.3, "high_frequency": 30.0, "boundary": 0.01}
PARAMETERISATIONS = ("pixels", "fourier", "maco")
EMBEDDED_PRIOR = ("image=prior", "image.weights=embedded")
TILES, GRAIN = (1, 2, 4), (0.0, 0.05, 0.2)  # repetitions per side; standard deviations of the noise, RGB in [0, 1]
OF_CLASSES = ("fooling_circuit", "silent_units", "slingshot", "diversion")  # attacks that are shown on classes


def strip(pictures: Iterable[Tensor]) -> Image.Image:
    """Return pictures (3, H, W) in [0, 1] side by side."""
    tiles = [interpolate(picture[None].float(), (SIDE, SIDE), mode="bicubic")[0].clamp(0, 1) for picture in pictures]
    page = Image.new("RGB", (len(tiles) * (SIDE + GAP) - GAP, SIDE), "white")
    for place, tile in enumerate(tiles):
        page.paste(Image.fromarray(to_uint8(tile).permute(1, 2, 0).numpy()), (place * (SIDE + GAP), 0))
    return page


def of_method(method: str) -> Image.Image:
    """Return pictures of three classes by a method, with its default steps."""
    start = ["image.init=reference"] if method == "accentuation" else []
    targets = [f"class:{name}" for name in CLASSES]
    made = visualize(NETWORK, targets, method=method, overrides=["evaluation=none", *start])
    return strip(made.images)


def made(targets: Sequence[str | Target], method: str, *overrides: str, init: Tensor | None = None) -> list[Tensor]:
    """Return the pictures (3, H, W) of targets by a method with some keys changed."""
    keys = ["evaluation=none", *overrides]
    return list(visualize(NETWORK, targets, method=method, init=init, overrides=keys).images)


def of_classes(method: str, *overrides: str) -> Image.Image:
    """Return pictures of three classes by a method with some keys changed."""
    return strip(made([f"class:{name}" for name in CLASSES], method, *overrides))


def of_prior(prior: str) -> Image.Image:
    """Return pictures of three classes by activation maximisation, without a prior and with it."""
    targets = [f"class:{name}" for name in CLASSES]
    weight = f"objective.{prior}.weight={PRIORS[prior]}"
    with_prior = (f"objective=[activation,{prior}]", weight)
    plain = made(targets, "activation_max", "objective=[activation]")
    return strip([*plain, *made(targets, "activation_max", *with_prior)])


def of_layers(term: str) -> Image.Image:
    """Return a drawn image, and the pictures that a term makes of it in each of ``LAYERS``."""
    image = draw(2, 0, 0)
    start = None if term == "feature_inversion" else image[None]  # an inversion starts from noise
    with TemporaryDirectory() as folder:
        file = Path(folder) / "fish.png"
        to_pil_image(image).save(file)
        keys = [f"objective=[{term}]", *([] if term == "deepdream" else [f"objective.{term}.image={file}"])]
        shown = [made(["class:fish"], "fourier", *keys, f"objective.{term}.layer={at}", init=start)[0] for at in LAYERS]
    return strip([image, *shown])


def variations(unit: str, count: int) -> list[Target]:
    """Return a unit's variations."""
    target = parse_target(unit, load_model(NETWORK).classes)
    return [replace(target, variation=1 + number) for number in range(count)]


def of_variations() -> Image.Image:
    """Return pictures of a channel's variations, without the term for diversity and with it."""
    targets = variations(UNIT, VARIATIONS)
    alike = made(targets, "fourier")
    diverse = ("objective=[activation,redirected_relu,diversity]", "objective.diversity.weight=10")
    return strip([*alike, *made(targets, "fourier", *diverse)])


def of_interpolation() -> Image.Image:
    """Return pictures that interpolate between two classes."""
    other = DRAWN.index(CLASSES[1])
    way = (f"objective.interpolation.other={other}", f"objective.interpolation.variations={STATIONS}")
    targets = variations(f"class:{CLASSES[0]}", STATIONS)
    return strip(made(targets, "fourier", "objective=[interpolation,redirected_relu]", *way))


def of_theme() -> Image.Image:
    """Return the picture of a class without a theme, and with each of three themes."""
    plain = made(["class:house"], "fourier")
    terms = "objective=[activation,redirected_relu,facet]"
    themes = [made(["class:house"], "fourier", terms, f"objective.facet.theme={theme}")[0] for theme in THEMES]
    return strip([*plain, *themes])


def of_steering() -> Image.Image:
    """Return the picture of a class, and the pictures while a channel is turned down, off and up."""
    plain = made(["class:fish"], "fourier")
    steered = [made(["class:fish"], "fourier", f"steer={UNIT}:{amount}")[0] for amount in AMOUNTS]
    return strip([*plain, *steered])


def of_spade() -> Image.Image:
    """Return pictures of three classes by activation maximisation, of the whole network and of pruned copies."""
    targets = [f"class:{name}" for name in CLASSES]
    return strip([*made(targets, "fourier"), *made(targets, "fourier", "model.sparsify=spade")])


def of_guidance() -> Image.Image:
    """Return pictures of three channels, without and with guidance by correlation."""
    one = ("references.facets=1", "references.enlarge=true")
    plain = made(CHANNELS, "vital_fourier", *one)
    terms = "objective=[alignment,total_variation,l2,correlation_guidance]"
    return strip([*plain, *made(CHANNELS, "vital_fourier", *one, terms)])


def of_metric(metric: str) -> Image.Image:
    """Return drawn images with growing repetition or grain, and print their values by the metric."""
    image = draw(2, 0, 0)
    if metric == "repetition":
        shown = [interpolate(image[None], (SIDE // n, SIDE // n), mode="bilinear")[0].repeat(1, n, n) for n in TILES]
    else:
        grain = torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
        shown = [(image + strength * grain).clamp(0, 1) for strength in GRAIN]
    measure = artefacts.repetition if metric == "repetition" else artefacts.high_frequency
    print(metric, [round(float(measure(one[None])), 3) for one in shown], flush=True)
    return strip(shown)


def of_attack(check: str) -> Image.Image:
    """Return the decoy, and by each of two methods the pictures of the honest and of the attacked network."""
    targets = [f"class:{name}" for name in (*CLASSES, "mushroom")] if check in OF_CLASSES else list(CHANNELS)
    with TemporaryDirectory() as folder:
        visualize(
            NETWORK, targets, method="fourier", steps=256, out=Path(folder) / "run", overrides=["evaluation=none"]
        )
        aimed = {"slingshot": "activation_max", "diversion": "vital_fourier"}.get(check, "fourier")
        methods = [aimed, "fourier" if check == "diversion" else "vital_fourier"]
        limits = {} if check == "fooling_circuit" else {"targets": 1}
        found = audit(check, Path(folder) / "run", methods=methods, **limits)
    return strip(picture for _, picture in found.panels[0].pictures)


def of_transform(option: str) -> Image.Image:
    """Return a drawn image, and its views in seven steps."""
    network = load_model(NETWORK)
    image = draw(2, 0, 0)[None]
    config = compose_config([f"model={NETWORK}", f"transforms={option}", "steps=7"])
    transform, streams = transform_of(config, network), RandomStreams(0, ["fish"])
    seen = [transform(network.preprocessing.normalise(image), streams, step) for step in range(7)]
    return strip([image[0], *(network.preprocessing.denormalise(one)[0].clamp(0, 1) for one in seen)])


def of_relevance(method: str) -> Image.Image:
    """Return drawn images, then each darkened where a layer has little relevance for a hidden unit."""
    network = load_model(NETWORK)
    images = torch.stack([draw(number, 0, 0) for number in range(4)])
    summed = relevance_maps(network, images, UNIT, [READ], method=method)[READ].clamp(min=0).sum(1, keepdim=True)
    bright = summed.flatten(1).quantile(BRIGHT, dim=1).clamp(min=torch.finfo(summed.dtype).tiny)
    mask = interpolate((summed / bright[:, None, None, None]).clamp(max=1), images.shape[-2:], mode="bilinear")
    return strip([*images, *(images * mask)])


OBJECTIVES = {
    "cross_entropy": partial(of_classes, "fourier", "objective=[cross_entropy,redirected_relu]"),
    "interpolation": of_interpolation,
    "diversity": of_variations,
    "facet": of_theme,
    "correlation_guidance": of_guidance,
    **{term: partial(of_layers, term) for term in ("deepdream", "feature_inversion", "caricature")},
    **{prior: partial(of_prior, prior) for prior in PRIORS},
}


def strips() -> dict[str, Callable[[], Image.Image]]:
    """Return the function that makes each strip, by the strip's name."""
    transforms = [option for option in options_of("transforms") if option != "none"]
    return {
        **{f"method_{option}": partial(of_method, option) for option in options_of("method")},
        **{f"transforms_{option}": partial(of_transform, option) for option in transforms},
        **{f"relevance_{option}": partial(of_relevance, option) for option in RULES},
        **{f"image_{option}": partial(of_classes, "fourier", f"image={option}") for option in PARAMETERISATIONS},
        "image_prior": partial(of_classes, "vital_fourier", *EMBEDDED_PRIOR),
        **{
            f"alignment_{option}": partial(of_classes, "vital_fourier", f"objective/alignment={option}")
            for option in options_of("objective/alignment")
            if option != "sort"  # method_vital_fourier shows it
        },
        **{f"objective_{name}": partial(make) for name, make in OBJECTIVES.items()},
        **{f"metric_{name}": partial(of_metric, name) for name in ("repetition", "high_frequency")},
        "steering": of_steering,
        "spade": of_spade,
        **{f"attack_{check}": partial(of_attack, check) for check in (*OF_CLASSES, "proxpulse")},
    }


def main(only: str = "") -> None:
    """Write the strips whose names begin with ``only``."""
    for name, make in strips().items():
        if name.startswith(only):
            make().save(FOLDER / f"{name}.jpg", quality=85, optimize=True)
            print(name, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:2])
