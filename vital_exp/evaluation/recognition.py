"""Recognition: whether the network itself and judges recognise the target class in its picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite

import torch
from torch import Tensor

from vital_exp.errors import UsageError
from vital_exp.evaluation.intervals import bootstrap_mean
from vital_exp.evaluation.score import Score
from vital_exp.images.output import resized
from vital_exp.models.channels import GREY, RGB
from vital_exp.models.heads import NONE, SIGMOID, Head
from vital_exp.models.network import VisionNetwork
from vital_exp.targets.class_names import ClassNames
from vital_exp.targets.unit import Target

TOP = 5
PREDICTED = "predicted"  # the column of metrics.csv with the most probable classes
UNPREFIXED = ("probability", "activation_ratio")  # columns whose metric has the column's name
PICTURES_PER_PASS = 16
SOFTMAX_HEAD = Head()
NOT_FINITE = "its logits of every picture are NaN"  # the reason where a network with a head recognises nothing


@torch.no_grad()
def logits(network: VisionNetwork, pictures: Tensor) -> Tensor:
    """Return the logits (N, classes), float32 on the CPU, of pictures (N, C, H, W) in [0, 1], at the input size."""
    fitted = resized(pictures, network.preprocessing.size).to(network.device)
    chunks = [network(chunk).float().cpu() for chunk in fitted.split(PICTURES_PER_PASS)]
    return torch.cat(chunks)


def check_judge(judge: VisionNetwork, network: VisionNetwork, key: str = "evaluation.judges") -> None:
    """Raise UsageError unless a judge has as many classes as the network, and takes its pictures."""
    if len(judge.classes) != len(network.classes):
        problem = f"the judge has {len(judge.classes)} classes, the network {len(network.classes)}"
        raise UsageError(key, judge.name, problem)
    asked, own = judge.preprocessing.channels, network.preprocessing.channels
    if asked != own and not {asked, own} <= {GREY, RGB}:
        problem = f"the judge takes pictures of {asked} channels, and the pictures of {network.name} have {own}"
        raise UsageError(key, judge.name, problem)


def recognition(
    network: VisionNetwork, judges: Mapping[str, VisionNetwork], targets: Sequence[Target], pictures: Tensor
) -> list[dict[str, float | int | str]]:
    """Return one row per class target: what the network recognises in its picture, then what each judge does.

    Columns: target, activation (the class's logit), top1 and top5 (1 or 0), probability, predicted (the five most
    probable classes); ``top1[judge]`` and so on for each judge. A network with ``head=none`` has only the activation.

    Args:
        network: the network that the pictures were made for.
        judges: other networks with the same classes, by name.
        targets: class targets.
        pictures: (N, C, H, W) in [0, 1].
    """
    index = torch.tensor([target.index for target in targets])
    own = logits(network, pictures)
    rows: list[dict[str, float | int | str]] = [
        {"target": target.name, "activation": float(value)}
        for target, value in zip(targets, own.gather(1, index[:, None])[:, 0], strict=True)
    ]
    opinions = {"": (own, network.head)}
    opinions |= {f"[{name}]": (logits(judge, pictures), judge.head) for name, judge in judges.items()}
    for suffix, (scores, head) in opinions.items():
        for part, values in verdicts(scores, index, head).items() if head.kind != NONE else ():
            for row, value in zip(rows, values.tolist(), strict=True):
                if isfinite(value):
                    row[f"{part}{suffix}"] = value
        for row, text in zip(rows, predicted(scores, head, network.class_names), strict=True):
            if text:
                row[f"{PREDICTED}{suffix}"] = text
    return rows


def predicted(scores: Tensor, head: Head, names: ClassNames | None) -> list[str]:
    """Return the at most five most probable classes of each picture in words, ``"star 0.973; heart 0.012"``.

    The text is empty for a single output, for outputs that are not scores of classes, and for NaN.

    Args:
        scores: (N, classes) logits.
        head: softmax or sigmoid.
        names: the class names.
    """
    count = scores.shape[1]
    if names is None or head.kind == NONE or count < 2:
        return [""] * len(scores)
    values, classes = head.probabilities(scores).topk(min(TOP, count), dim=1)
    return [
        "; ".join(f"{names.label(int(i))} {float(p):.3f}" for p, i in zip(*pair, strict=True))
        if pair[0].isfinite().all()
        else ""
        for pair in zip(values, classes, strict=True)
    ]


def first_predicted(text: str) -> tuple[str, str]:
    """Return the most probable class and its probability, from a text of :func:`predicted`."""
    name, _, probability = text.partition("; ")[0].rpartition(" ")
    return name, probability


def verdicts(scores: Tensor, index: Tensor, head: Head = SOFTMAX_HEAD) -> dict[str, Tensor]:
    """Return top-1 and top-5 accuracy of each picture's class, each 1 or 0, and the class's probability.

    A class counts as recognised (top1) if all other classes score less, and as among five (top5) if at most four others
    score as much or more: where all scores are equal, nothing is recognised. With a sigmoid, the class's probability
    must also be above one half; for a single output, that is a logit above 0.

    Args:
        scores: (N, classes) logits.
        index: (N,), the class of each picture.
        head: softmax or sigmoid.

    Returns:
        ``{"top1", "top5", "probability"}``, each (N,), NaN for a picture with a NaN score; top5 only with more than
        five classes.

    Examples:
        >>> import torch
        >>> from vital_exp.evaluation.recognition import verdicts
        >>> verdicts(torch.tensor([[2.0, 0.0], [0.0, 0.0]]), torch.tensor([0, 0]))["top1"]  # a tie recognises nothing
        tensor([1, 0], dtype=torch.int32)
    """
    own = scores.gather(1, index[:, None])
    rank = (scores >= own).sum(dim=1) - 1  # other classes that score no less than the target
    there = head.says_yes(own)[:, 0] if head.kind == SIGMOID else torch.ones_like(rank, dtype=torch.bool)
    found = {"top1": ((rank < 1) & there).int()}
    if scores.shape[1] > TOP:
        found["top5"] = ((rank < TOP) & there).int()
    found["probability"] = head.probabilities(scores).gather(1, index[:, None])[:, 0]
    broken = scores.isnan().any(dim=1)
    if not broken.any():
        return found
    return {part: values.float().masked_fill(broken, torch.nan) for part, values in found.items()}


def unjudged(
    network: VisionNetwork, judges: Mapping[str, VisionNetwork], rows: Sequence[Mapping[str, float | int | str]]
) -> dict[str, dict[str, float | int | str | None]]:
    """Return the entries of metrics.json of networks that recognise nothing, each with the reason."""
    found = {}
    for suffix, one in {"": network, **{f"[{name}]": judge for name, judge in judges.items()}}.items():
        if not any(f"top1{suffix}" in row for row in rows):
            reason = Score.missing(one.head.unjudged or NOT_FINITE)
            found[f"transfer{suffix}" if suffix else "accuracy"] = reason.entry()
    return found


def summarise(rows: Sequence[Mapping[str, float | int | str]]) -> dict[str, dict[str, float | int]]:
    """Return each metric's mean over the targets with its interval, as in metrics.json.

    ``accuracy_top1`` is the network's, ``transfer_top1[judge]`` a judge's; likewise for top5. ``activation_ratio`` is
    that of hidden units.
    """
    metrics = {}
    for column in dict.fromkeys(column for row in rows for column in row):
        if column in ("target", "activation") or column.startswith(PREDICTED):
            continue
        name, bracket, judge = column.partition("[")
        if name not in UNPREFIXED:
            name = f"{'transfer' if bracket else 'accuracy'}_{name}"
        metrics[f"{name}{bracket}{judge}"] = bootstrap_mean([float(row[column]) for row in rows if column in row])
    return metrics
