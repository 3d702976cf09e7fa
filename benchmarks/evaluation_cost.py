"""Cost of vital-evaluate against the forward passes it needs: all metrics of many pictures, on embedded networks.

    python benchmarks/evaluation_cost.py                 # 1,000 pictures, 500 natural images
    python benchmarks/evaluation_cost.py --pictures 200

Needed is one pass of each picture and each natural image through the network and through the judge, in batches of the
same size. The benchmark counts the images that pass through each network, and times the evaluation against those passes
alone. Exit code 1 if the evaluation makes more than 1.2 times the passes needed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor, nn

from vital_exp import load_model
from vital_exp.evaluation.metrics import chosen
from vital_exp.evaluation.pictures import PictureSet
from vital_exp.evaluation.recognition import PICTURES_PER_PASS
from vital_exp.evaluation.settings import MetricSettings
from vital_exp.images.output import to_uint8
from vital_exp.models.network import VisionNetwork
from vital_exp.references.drawn import CLASS_NAMES, DrawnReferences, draw_set
from vital_exp.runs.evaluate import evaluate_pictures
from vital_exp.targets.unit import Target

CLASSES = len(CLASS_NAMES)
GOAL = 1.2  # times the passes needed
PICTURES, PER_CLASS = 1000, 50
SEED = 9  # of the pictures; not the references'


def counted(network: VisionNetwork, counts: Counter[str]) -> None:
    """Count the pictures that enter a network."""

    def count(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        counts[network.name] += len(inputs[0])

    network.module.register_forward_pre_hook(count)


@torch.no_grad()
def seconds_of_passes(networks: list[VisionNetwork], images: Tensor) -> float:
    """Return the seconds of one pass of all images through each network."""
    started = time.perf_counter()
    for network in networks:
        for part in images.split(PICTURES_PER_PASS):
            network(part)
    return time.perf_counter() - started


def measured(pictures: int) -> dict[str, float]:
    """Evaluate drawn images as if they were pictures; return counts and seconds."""
    networks = [load_model("embedded_resnet"), load_model("embedded_judge")]
    variations = pictures // CLASSES
    images, _ = draw_set(variations, SEED)
    targets = [Target("class", c, variation=v + 1) for c in range(CLASSES) for v in range(variations)]
    references = DrawnReferences(count=PER_CLASS)
    needed = len(targets) + CLASSES * PER_CLASS
    bare = seconds_of_passes(networks, torch.cat([images, torch.stack([*references.images(targets[0])] * CLASSES)]))
    counts: Counter[str] = Counter()
    for network in networks:
        counted(network, counts)
    started = time.perf_counter()
    table = evaluate_pictures(
        *(
            networks[0],
            PictureSet(targets, to_uint8(images)),
            references,
            networks[1:],
            chosen("all"),
            (),
            MetricSettings(),
        ),
        Path("nowhere"),
    )
    whole = time.perf_counter() - started
    return {
        "pictures": len(targets),
        "natural images": CLASSES * PER_CLASS,
        "networks": len(networks),
        "numbers in the table": sum(score.value is not None for score in table.scores.values()),
        "passes needed": needed * len(networks),
        "passes made": sum(counts.values()),
        "passes made / needed": sum(counts.values()) / (needed * len(networks)),
        "seconds of the passes alone": bare,
        "seconds of the evaluation": whole,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=PICTURES)
    found = measured(parser.parse_args().pictures)
    print(json.dumps(found, indent=2))
    sys.exit(found["passes made / needed"] > GOAL)


if __name__ == "__main__":
    main()
