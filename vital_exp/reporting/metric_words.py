"""What metrics are called on pages, and what each says: one sentence for those that every report has."""

from __future__ import annotations

from vital_exp.models.network_names import network_words

# Title and sentence of a metric by its name without judge; {judge} is who judges.
WORDS = {
    "accuracy_top1": ("recognised by the network itself", "Share of pictures whose class the network puts first."),
    "accuracy_top5": ("in the network's first five", "Share of pictures whose class is among its first five."),
    "transfer_top1": (
        "recognised by {judge}",
        "Share of pictures whose class this network, which took no part, puts first.",
    ),
    "transfer_top5": ("in the first five of {judge}", "Share of pictures whose class is among its first five."),
    "probability": ("probability of the class", "Mean probability of the picture's class, from 0 to 1."),
    "log_probability": ("log-probability of the class", "Mean natural logarithm of that probability, at most 0."),
    "activation_ratio": (
        "activation ratio",
        "The unit's activation on the picture, 1 = the largest on natural images.",
    ),
    "fid": ("FID", "Fréchet distance between features of pictures and of natural images, 0 = the same."),
    "kid": ("KID", "Kernel distance between features of pictures and of natural images, 0 = the same."),
    "mis_pictures": (
        "told apart by {judge} (MIS)",
        "Knowing only the pictures, how surely this network tells an image that drives a unit from one that does not.",
    ),
    "correspondence_auc": (
        "resemblance, seen by {judge}",
        "How often this network finds a picture more like an image of its own unit than like one of another.",
    ),
    "cosy_auc": ("CoSy AUC", "How often the picture drives its unit more than an image of another unit does."),
    "own_unit_first": ("own unit first", "How often the picture's own unit leads all units of the run."),
    "path_similarity": (
        "path similarity",
        "How alike the layers treat a picture and images of its unit: 1 = as two of these, 0 = as images of two units.",
    ),
    "repetition_deviation": (
        "repetition",
        "How many standard deviations of natural images the picture's repetition is away from their mean.",
    ),
    "high_frequency_deviation": (
        "fine grain",
        "How many standard deviations of natural images the picture's high frequencies are away from their mean.",
    ),
    "high_frequency_ratio": ("fine grain ratio", "Energy at high frequencies, 1 = as the unit's natural images."),
    "naming": ("named", "Cosine of the three words that CLIP finds best to the name of the class."),
    "clip_top1": ("recognised by CLIP", "Share of pictures for which CLIP finds the name of the class best."),
    "clip_top5": ("in CLIP's first five", "Share of pictures for which that name is among its first five."),
    "clip_probability": ("CLIP's probability", "Mean probability that CLIP gives the name of the class."),
    "seconds": ("seconds per picture (s)", "Seconds of a batch divided by its pictures."),
    "memory": ("memory (MiB)", "Most memory in use while the pictures were made."),
}
JUDGED = "{judge}"
OF_LAYERS = "path_similarity"  # in its brackets stands a layer


def metric_title(name: str) -> str:
    """Return what a metric is called: transfer_top1[resnet50] is "recognised by ResNet-50"."""
    base, _, judge = name.partition("[")
    if base == OF_LAYERS and judge:
        return f"{WORDS[base][0]}, {judge.removesuffix(']')}"
    who = network_words(judge.removesuffix("]"))
    title = WORDS[base][0] if base in WORDS else base.replace("_", " ")
    if JUDGED in title:
        return title.replace(JUDGED, who or "another network")
    return f"{title}, {who}" if who else title


def metric_meaning(name: str) -> str:
    """Return a sentence that says what a metric is, with its own name; the name alone where there is none."""
    base = name.partition("[")[0]
    return f"{name}: {WORDS[base][1]}" if base in WORDS else name
