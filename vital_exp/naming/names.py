"""The names of mined units: the table names.csv, and a line for each unit on the page."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vital_exp.naming.formulas import Formula
from vital_exp.naming.labels import LabelScores
from vital_exp.whole_files import whole_file

TABLE = "names.csv"
Unit = tuple[str, int]


@dataclass(frozen=True)
class Names:
    """The names of units.

    Attributes:
        units: (layer, channel), in the order of the index.
        words: the words of each unit, by unit; empty if CLIP was not asked for.
        labels: the scores of labels, by layer; empty if labels were not asked for.
        formulas: a formula for each unit, by layer; empty if formulas were not asked for.
    """

    units: Sequence[Unit]
    words: Mapping[Unit, Sequence[str]] = field(default_factory=dict)
    labels: Mapping[str, LabelScores] = field(default_factory=dict)
    formulas: Mapping[str, Sequence[Formula]] = field(default_factory=dict)

    def _place(self, unit: Unit) -> int:
        return [number for layer, number in self.units if layer == unit[0]].index(unit[1])

    def note(self, unit: Unit) -> str:
        """Return the names of a unit in one line."""
        parts = [", ".join(self.words[unit])] if unit in self.words else []
        if unit[0] in self.labels:
            label, auc, _ = self.labels[unit[0]].best(self._place(unit))
            parts.append(f"tells {label} (AUC {auc:.2f})")
        if unit[0] in self.formulas:
            formula = self.formulas[unit[0]][self._place(unit)]
            parts.append(f"{formula.text} (AUC {formula.auc:.2f})")
        return "; ".join(parts)

    def write(self, out: Path) -> Path:
        """Write ``out/names.csv``: one row per unit and label, each unit's best label first; return the file's path."""
        path = out / TABLE
        with whole_file(path) as file:
            table = csv.writer(file)
            columns = ["layer", "channel", "words", "label", "invert_auc", "cosy_mad"]
            table.writerow([*columns, "formula", "formula_auc"] if self.formulas else columns)
            for unit in self.units:
                words = " | ".join(self.words.get(unit, ()))
                table.writerows([*unit, words, *scores, *self._formula(unit)] for scores in self._scores(unit))
        return path

    def _formula(self, unit: Unit) -> list[str]:
        if not self.formulas:
            return []
        formula = self.formulas[unit[0]][self._place(unit)]
        return [formula.text, f"{formula.auc:.4f}"]

    def _scores(self, unit: Unit) -> list[list[object]]:
        scores = self.labels.get(unit[0])
        if scores is None:
            return [["", "", ""]]
        place = self._place(unit)
        order = scores.auc[place].argsort()[::-1]
        return [[scores.labels[i], f"{scores.auc[place, i]:.4f}", f"{scores.mad[place, i]:.4f}"] for i in order]
