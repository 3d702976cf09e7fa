"""Titles of metrics on pages, and for the usual ones a sentence that explains them."""

from __future__ import annotations

from vital_exp.models.network_names import network_words

# Title and sentence of a metric, by its name without the judge in brackets; {judge} stands for the judge.
WORDS = {
    "accuracy_top1": ("recognised by the network itself", "Share of pictures whose class the network puts first."),
    "accuracy_top5": ("in the network's first five", "Share of pictures whose class is among its first five."),
    "transfer_top1": ("recognised by {judge}", "Share of pictures whose class this judge puts first."),
    "transfer_top5": ("in the first five of {judge}", "Share of pictures whose class is among its first five."),
    "crops_top1": ("crops recognised by {judge}", "Share of a picture's sixteen crops that are recognised."),
    "crops_any_top1": (
        "any crop recognised by {judge}",
        "Share of pictures of which at least one of sixteen crops is recognised.",
    ),
    "crops_probability": ("probability of the class in crops", "Mean probability of the class in a picture's crops."),
    "probability": ("probability of the class", "Mean probability of the picture's class, from 0 to 1."),
    "log_probability": ("log-probability of the class", "Mean natural logarithm of that probability, at most 0."),
    "activation_ratio": (
        "activation ratio",
        "The picture's activation in its unit over the largest of natural images.",
    ),
    "fid": ("FID", "Fréchet distance between features of pictures and of natural images, 0 = the same."),
    "kid": ("KID", "Kernel distance between features of pictures and of natural images, 0 = the same."),
    "mis_pictures": (
        "told apart by {judge} (MIS)",
        "From the pictures alone, how surely this network tells an image that drives a unit from one that does not.",
    ),
    "correspondence_auc": (
        "resemblance, seen by {judge}",
        "How often this network finds a picture more similar to an image of its own unit than to one of another unit.",
    ),
    "cosy_auc": ("CoSy AUC", "How often the picture drives its unit more than an image of another unit does."),
    "own_unit_first": ("own unit first", "How often a picture drives its own unit most, of all units of the run."),
    "path_similarity": (
        "path similarity",
        "How similarly the layers process a picture and images of its unit: 1 = as two images of the unit, 0 = as "
        "images of two units.",
    ),
    "repetition_deviation": (
        "repetition",
        "Distance of the picture's repetition from the mean of natural images, in standard deviations.",
    ),
    "high_frequency_deviation": (
        "fine grain",
        "Distance of the picture's high-frequency energy from the mean of natural images, in standard deviations.",
    ),
    "high_frequency_ratio": (
        "fine grain ratio",
        "The picture's high-frequency energy over that of its unit's natural images.",
    ),
    "naming": ("named", "Mean cosine of the three words that CLIP finds best with the name of the class."),
    "clip_top1": ("recognised by CLIP", "Share of pictures for which CLIP ranks the name of the class first."),
    "clip_top5": ("in CLIP's first five", "Share of pictures for which CLIP ranks the name among the first five."),
    "clip_probability": ("CLIP's probability", "Mean probability that CLIP gives the name of the class."),
    "seconds": ("seconds per picture (s)", "Seconds of a batch divided by the number of its pictures."),
    "memory": ("memory (MiB)", "Largest memory in use while the pictures were made."),
}
JUDGED = "{judge}"
OF_CLASSIFIERS = ("crops_top1", "crops_any_top1")  # metrics of the network itself where no judge is in brackets
OF_LAYERS = "path_similarity"  # the metric with a layer in brackets in place of a judge


def metric_title(name: str) -> str:
    """Return the title of a metric: that of transfer_top1[resnet50] is "recognised by ResNet-50"."""
    base, _, judge = name.partition("[")
    if base == OF_LAYERS and judge:
        return f"{WORDS[base][0]}, {judge.removesuffix(']')}"
    who = network_words(judge.removesuffix("]"))
    title = WORDS[base][0] if base in WORDS else base.replace("_", " ")
    if JUDGED in title:
        return title.replace(JUDGED, who or ("the network itself" if base in OF_CLASSIFIERS else "another network"))
    return f"{title}, {who}" if who else title


def metric_meaning(name: str) -> str:
    """Return a metric's name and the sentence that explains it; the name alone where there is no sentence."""
    base = name.partition("[")[0]
    return f"{name}: {WORDS[base][1]}" if base in WORDS else name
