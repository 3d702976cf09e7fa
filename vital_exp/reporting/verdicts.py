"""What networks take a picture for, in words: recognised by ViT-Tiny: yes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vital_exp.evaluation.recognition import PREDICTED
from vital_exp.models.network_names import network_words
from vital_exp.reporting.pages import format_number
from vital_exp.values import is_number

FIRST, AMONG_FIVE, PROBABILITY = "top1", "top5", "probability"
TOLD = (FIRST, AMONG_FIVE, PROBABILITY, PREDICTED)
ITSELF = "itself"


@dataclass(frozen=True)
class Verdict:
    """What one network says of a picture.

    Attributes:
        by: who, for people.
        name: the network's own name; empty of the one the picture was made with.
        recognised: whether the picture's class comes first; None where that is not recorded.
        detail: the most probable classes, or the probability of the picture's own; empty where neither is known.
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
    """Return what each network says of a picture, in the order of the columns of metrics.csv."""
    judges = dict.fromkeys(judge for column in scores for base, judge in [_split(column)] if base in TOLD)
    found = (_verdict(scores, judge) for judge in judges)
    return [verdict for verdict in found if verdict.recognised is not None or verdict.detail]


def is_told(column: str) -> bool:
    """Whether :func:`verdicts` says what is in a column of metrics.csv."""
    return _split(column)[0] in TOLD


def _verdict(scores: Mapping[str, object], judge: str) -> Verdict:
    first, five, probability, predicted = (scores.get(f"{base}[{judge}]" if judge else base) for base in TOLD)
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
