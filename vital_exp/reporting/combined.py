"""The table over models, methods and seeds: pooled values with intervals, and which are best or significantly worse."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from vital_exp.errors import UsageError
from vital_exp.evaluation.metrics import RATIOS, higher_is_better
from vital_exp.evaluation.pooling import WHOLE, Values, compared, pooled, pooled_ratios
from vital_exp.evaluation.table import column_of
from vital_exp.reporting.published import Published, published_lines
from vital_exp.reporting.sweep import SweepRun
from vital_exp.values import is_number

ALL = "all"
PER_RUN = ("seconds", "memory")  # one value per run: they are measured of batches, not of pictures
PARTS = ("kid", "path_similarity[")  # shown on request alone, for another headline covers them
# Metrics that a table shows first, in this order, by the part of their name before the bracket.
HEADLINES = (
    *(
        "accuracy_top1",
        "transfer_top1",
        "activation_ratio",
        "own_unit_first",
        "fid",
        "kid",
        "clip_top1",
        "clip_top5",
        "clip_probability",
        "naming",
    ),
    *("mis_pictures", "correspondence_auc", "cosy_auc", "path_similarity", "repetition_deviation"),
    *(
        "high_frequency_deviation",
        "high_frequency_ratio",
        "study_rating",
        "study_correspondence",
        "study_naming",
        "seconds",
        "memory",
    ),
)


@dataclass(frozen=True)
class Cell:
    """One number of the table: a metric of a model's pictures by a method.

    Attributes:
        model, method, metric: their names.
        value, low, high: the pooled value and its 95 % interval; None where there is none.
        n: number of values that are pooled; ``units``: number of different units among them.
        seeds: the runs' seeds.
        per_seed: each run's entry of metrics.json, by seed.
        values: by target and seed.
        best: whether no method has a better value.
        worse: whether it is significantly worse than the best, by the paired bootstrap.
        reason: why there is no value, or a remark.
    """

    model: str
    method: str
    metric: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0
    units: int = 0
    seeds: tuple[int, ...] = ()
    per_seed: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    values: Values = field(default_factory=dict)
    best: bool = False
    worse: bool = False
    reason: str | None = None


@dataclass(frozen=True)
class CombinedTable:
    """The table over all runs.

    Attributes:
        models, methods: names, in the order of the runs.
        metrics: names of all metrics with a value, those of ``HEADLINES`` first.
        headlines: the metrics that are shown first.
        cells: by (model, method, metric).
        comparisons: one dict per model, metric and pair of methods, over the targets and seeds that both have.
        published: the paper's figures for these methods.
        missing: metrics without a value in any run, with the reason.
        unmade: "method, model" of methods that made no picture of a model, with the reason.
        unscored: run folders without metrics.
    """

    models: tuple[str, ...]
    methods: tuple[str, ...]
    metrics: tuple[str, ...]
    headlines: tuple[str, ...]
    cells: Mapping[tuple[str, str, str], Cell]
    comparisons: Sequence[Mapping[str, Any]]
    published: Sequence[Published]
    missing: Mapping[str, str]
    unmade: Mapping[str, str]
    unscored: Sequence[str]

    def row(self, model: str, metric: str) -> list[Cell]:
        """Return a metric's cells for a model, one per method; a cell without a run has no value."""
        empty = (Cell(model, method, metric) for method in self.methods)
        return [self.cells.get((model, cell.method, metric), cell) for cell in empty]

    def entries(self, model: str, method: str) -> dict[str, dict[str, Any]]:
        """Return the entries of a model and method by metric, in the form of metrics.json."""
        parts = ("value", "low", "high", "n", "reason")
        own = {metric: cell for (*key, metric), cell in self.cells.items() if key == [model, method]}
        return {metric: {part: getattr(cell, part) for part in parts} for metric, cell in own.items()}

    def methods_of(self, model: str) -> list[str]:
        """Return the methods of a model's runs."""
        return [method for method in self.methods if any(key[:2] == (model, method) for key in self.cells)]


def direction(metric: str) -> bool | None:
    """Return whether higher is better; None for a metric that only describes, or that we do not know."""
    try:
        return higher_is_better(metric)
    except KeyError:
        return None


def combine(runs: Sequence[SweepRun], metrics: Sequence[str] | str | None = None) -> CombinedTable:
    """Pool the runs of each model and method over their seeds and targets.

    A metric with a value per target is pooled over units, and methods are compared on the same targets and seeds. A
    metric of a whole run (FID) is averaged over seeds; its interval is the mean of the runs' intervals.

    Args:
        runs: the runs of a sweep.
        metrics: the headlines, names with or without their brackets; "all"; None: ``HEADLINES``.

    Raises:
        UsageError: no run has one of the metrics.
    """
    names = _metric_names(runs)
    cells: dict[tuple[str, str, str], Cell] = {}
    for model, method in dict.fromkeys((run.model, run.method) for run in runs):
        own = [run for run in runs if (run.model, run.method) == (model, method)]
        cells |= {(model, method, metric): _cell(own, metric) for metric in names if _measured(own, metric)}
    models = tuple(dict.fromkeys(run.model for run in runs))
    methods = tuple(dict.fromkeys(run.method for run in runs))
    comparisons = list(_comparisons(cells, models, methods, names))
    marked = _marked(cells, models, names, comparisons)
    computed = [name for name in names if any(k[2] == name and c.value is not None for k, c in marked.items())]
    missing = {name: _reason(runs, name) for name in names if name not in computed}
    return CombinedTable(
        *(models, methods, tuple(computed), _headlines(computed, metrics, missing), marked, comparisons),
        published=published_lines(method.partition(" (")[0] for method in methods),
        missing=missing,
        unmade={f"{run.method}, {run.model}": run.run.unmade for run in runs if run.run.unmade},
        unscored=[run.folder.name for run in runs if not run.run.metrics and run.run.done],
    )


def _metric_names(runs: Sequence[SweepRun]) -> list[str]:
    """The names of all metrics of any run, headlines first; names that differ in brackets alone stand together."""
    names = list(dict.fromkeys(name for run in runs for name in (*run.run.metrics, *_recorded(run))))
    rank = {name: place for place, name in enumerate(HEADLINES)}
    return sorted(names, key=lambda name: rank.get(_base(name), len(rank)))


def _recorded(run: SweepRun) -> list[str]:
    """The metrics of ``PER_RUN`` that a run recorded; they need no evaluation."""
    return [key for key in PER_RUN if any(isinstance(result.get(key), (int, float)) for result in run.run.done)]


def _base(metric: str) -> str:
    return metric.partition("[")[0]


def _headlines(
    computed: Sequence[str], asked: Sequence[str] | str | None, missing: Mapping[str, str]
) -> tuple[str, ...]:
    if asked == ALL:
        return tuple(computed)
    if asked is None:
        return tuple(name for name in computed if _base(name) in HEADLINES and not name.startswith(PARTS))
    chosen: list[str] = []
    for name in [asked] if isinstance(asked, str) else map(str, asked):
        found = [one for one in computed if name in (one, _base(one))]
        if not found and not any(name in (one, _base(one)) for one in missing):
            options = [*computed, *missing]
            raise UsageError("metrics", name, "no run has this metric; metrics=all shows all that there are", options)
        chosen += found
    return tuple(dict.fromkeys(chosen))


def _measured(runs: Sequence[SweepRun], metric: str) -> bool:
    return any(metric in run.run.metrics or metric in _recorded(run) for run in runs)


def _cell(runs: Sequence[SweepRun], metric: str) -> Cell:
    model, method = runs[0].model, runs[0].method
    entries = {run.seed: _entry(run, metric) for run in runs if metric in run.run.metrics}
    values = {key: value for run in runs for key, value in _values(run, metric).items()}
    reasons = [str(entry["reason"]) for entry in entries.values() if entry.get("reason")]
    known = Cell(
        *(model, method, metric),
        seeds=tuple(sorted({run.seed for run in runs})),
        per_seed=entries,
        values=values,
        reason=reasons[0] if reasons else None,
    )
    if not values:
        return known
    of_runs = all(target == WHOLE for target, _ in values) and metric not in PER_RUN
    pool = pooled_ratios if metric in RATIOS else pooled
    entry = _whole(entries) if of_runs else pool(values)
    return Cell(**{**vars(known), **entry})


def _values(run: SweepRun, metric: str) -> dict[tuple[str, int], float]:
    """The metric's value for each target, or else that of the whole run."""
    column, done = column_of(metric), {result["target"]: result for result in run.run.done}
    found = {(target, run.seed): _number(row.get(column)) for target, row in run.values.items() if target in done}
    found = {key: value for key, value in found.items() if math.isfinite(value)}
    if not found and metric in _recorded(run):
        found = {(target, run.seed): _number(result.get(metric)) for target, result in done.items()}
    if found and metric in PER_RUN:
        found = {(WHOLE, run.seed): sum(found.values()) / len(found)}
    whole = _number(_entry(run, metric).get("value"))
    return found or ({(WHOLE, run.seed): whole} if math.isfinite(whole) else {})


def _entry(run: SweepRun, metric: str) -> Mapping[str, Any]:
    return run.run.metrics.get(metric, {})


def _number(value: object) -> float:
    return float(value) if is_number(value) else math.nan


def _whole(entries: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """The means of the runs' values and bounds: the interval shows the sampling of pictures, not of seeds."""
    there = [entry for entry in entries.values() if math.isfinite(_number(entry.get("value")))]
    found: dict[str, Any] = {}
    for part in ("value", "low", "high"):
        numbers = [_number(entry.get(part)) for entry in there]
        found[part] = sum(numbers) / len(numbers) if all(map(math.isfinite, numbers)) else None
    return {**found, "n": sum(int(entry.get("n") or 0) for entry in there), "units": 0}


def _comparisons(
    cells: Mapping[tuple[str, str, str], Cell], models: Sequence[str], methods: Sequence[str], metrics: Sequence[str]
) -> Iterable[dict[str, Any]]:
    for model in models:
        for metric in metrics:
            own = [cell for method in methods if (cell := cells.get((model, method, metric))) and cell.values]
            for first, second in combinations(own, 2):
                found = compared(first.values, second.values)
                if found["n"]:
                    yield {"model": model, "metric": metric, "a": first.method, "b": second.method, **found}


def _marked(
    cells: Mapping[tuple[str, str, str], Cell],
    models: Sequence[str],
    metrics: Sequence[str],
    comparisons: Iterable[Mapping[str, Any]],
) -> dict[tuple[str, str, str], Cell]:
    """The cells, with the best of each row and those significantly worse marked."""
    sure = {(c["model"], c["metric"], c["a"], c["b"]) for c in comparisons if c["significant"]}
    marked = dict(cells)
    for model in models:
        for metric in metrics:
            row = [cell for key, cell in cells.items() if (key[0], key[2]) == (model, metric) and cell.values]
            higher = direction(metric)
            if higher is None or len(row) < 2:
                continue
            top = (max if higher else min)(float(cell.value or 0) for cell in row)
            leaders = [cell.method for cell in row if cell.value == top]
            for cell in row:
                worse = cell.method not in leaders and any(
                    (model, metric, *pair) in sure
                    for leader in leaders
                    for pair in ((leader, cell.method), (cell.method, leader))
                )
                key = (model, cell.method, metric)
                marked[key] = Cell(**{**vars(cell), "best": cell.method in leaders, "worse": worse})
    return marked


def _reason(runs: Sequence[SweepRun], metric: str) -> str:
    found = (str(_entry(run, metric).get("reason") or "") for run in runs)
    return next(filter(None, found), "not computed")
