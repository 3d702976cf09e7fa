"""Verdicts of networks on a picture, in words: "recognised by ViT-Tiny: yes"."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vital_exp.evaluation.recognition import PREDICTED
from vital_exp.models.network_names import network_words
from vital_exp.reporting.pages import format_number
from vital_exp.values import is_number

FIRST, AMONG_FIVE, PROBABILITY = "top1", "top5", "probability"
COLUMNS = (FIRST, AMONG_FIVE, PROBABILITY, PREDICTED)
ITSELF = "itself"


@dataclass(frozen=True)
class Verdict:
    """One network's verdict on a picture.

    Attributes:
        by: words for the network.
        name: the network's name; empty for the network that the picture was made for.
        recognised: whether the picture's class comes first; None where it is not recorded.
        detail: the most probable classes, or the probability of the picture's class; empty where neither is recorded.
    """

    by: str
    name: str
    recognised: bool | None
    detail: str

    @property
    def answer(self) -> str:
        """Yes, no, or a dash."""
        return "–" if self.recognised is None else "yes" if self.recognised else "no"


def verdicts(scores: Mapping[str, object]) -> list[Verdict]:
    """Return each network's verdict on a picture, in the order of the columns of metrics.csv."""
    judges = dict.fromkeys(judge for column in scores for base, judge in [_split(column)] if base in COLUMNS)
    found = (_verdict(scores, judge) for judge in judges)
    return [verdict for verdict in found if verdict.recognised is not None or verdict.detail]


def in_verdicts(column: str) -> bool:
    """Whether the verdicts hold a column of metrics.csv."""
    return _split(column)[0] in COLUMNS


def _verdict(scores: Mapping[str, object], judge: str) -> Verdict:
    first, five, probability, predicted = (scores.get(f"{base}[{judge}]" if judge else base) for base in COLUMNS)
    parts = [str(predicted)] if predicted else []
    if is_number(probability) and not predicted:
        parts.append(f"probability {format_number(probability)}")
    recognised = bool(float(first) >= 0.5) if is_number(first) else None
    if recognised is False and is_number(five) and float(five) >= 0.5:
        parts.append("its class is among the first five")
    return Verdict(network_words(judge) if judge else ITSELF, judge, recognised, "; ".join(parts))


def _split(column: str) -> tuple[str, str]:
    base, _, judge = column.partition("[")
    return base, judge.removesuffix("]")
