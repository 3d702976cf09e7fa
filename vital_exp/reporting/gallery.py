"""The gallery of a run folder: report.html, one file that opens offline."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup
from PIL import Image

from vital_exp.data_uris import data_uri
from vital_exp.errors import UsageError
from vital_exp.evaluation.readability import numbers_of, readable
from vital_exp.evaluation.recognition import PREDICTED, first_predicted
from vital_exp.models.network_names import network_title
from vital_exp.recorded_config import MISTAKE_FILE
from vital_exp.reporting.charts import MAX_POINTS, TOTAL, Curve, line_colour, loss_chart, read_curves, undrawn
from vital_exp.reporting.facets import by_unit, facet_members, facet_title, facet_words, is_facet, labelled
from vital_exp.reporting.metric_words import metric_meaning, metric_title
from vital_exp.reporting.pages import environment, format_duration
from vital_exp.reporting.readable import Readable, side_by_side
from vital_exp.reporting.verdicts import Verdict, in_verdicts, verdicts
from vital_exp.run_folders import RESULTS, is_run, read_results
from vital_exp.values import number_or_none
from vital_exp.whole_files import write_whole

# Bytes of PNG pictures up to which the page embeds the files themselves. The pictures of a larger run are embedded as
# WebP, so that a browser still opens the page.
EMBED_BYTES = 48_000_000
# Quality (0-100) and longest side (px) of the WebP pictures: they hardly differ from the PNGs, at a sixth of the bytes.
WEBP_QUALITY, WEBP_SIDE = 90, 512
# Pictures up to this width in px get narrower cards: enlarged less, their pixels show less.
SMALL_SIDE = 96
METRICS_SHOWN = 10  # metrics of classes that the page shows unfolded: two lines on a wide screen
# The column of metrics.csv that holds whether the network itself recognised a picture.
RECOGNISED = "top1"


@dataclass(frozen=True)
class Embedded:
    """A picture in the page: a data: URI and its size in px."""

    src: str
    width: int
    height: int


@dataclass(frozen=True)
class FinalTerm:
    """One loss term of a target at the last step, the colour of its line (empty without one), and a note on it."""

    name: str
    value: object
    colour: str
    note: str


@dataclass(frozen=True)
class Card:
    """One target on the page."""

    name: str
    label: str
    title: str
    facet: str
    members: list[str]
    failed: bool
    error: str
    picture: Embedded | None
    masked: Embedded | None
    references: Embedded | None
    recognised: bool | None
    taken_for: str
    verdicts: list[Verdict]
    facts: list[tuple[str, object]]
    terms: list[FinalTerm]
    chart: Markup
    sort: dict[str, float]


@dataclass(frozen=True)
class UnitCards:
    """One unit on the page: its picture, or the pictures of its facets."""

    name: str
    title: str
    words: str
    by_facet: bool
    cards: Iterator[Card]


@dataclass
class Run:
    """The content of a run folder; parts that the folder does not hold are empty."""

    folder: Path
    results: list[dict[str, Any]]
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    scores: dict[str, dict[str, object]] = field(default_factory=dict)
    curves: dict[str, Curve] = field(default_factory=dict)
    config: str = ""
    provenance: str = ""
    mistake: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def objective(self) -> str:
        """The objective in words; empty where it is not recorded."""
        return str(_json_object(self.provenance).get("objective") or "")

    @property
    def recognised_by(self) -> str:
        """How the network's outputs became probabilities, in words; empty where it is not recorded."""
        recorded = _json_object(self.provenance)
        entry, words = recorded.get("output"), str(recorded.get("recognised_by") or "")
        return f"{words}; logits: {entry}" if words and entry else words

    @property
    def without_classes(self) -> bool:
        """Whether the network has no classes."""
        recorded = _json_object(self.provenance)
        return "classes" in recorded and recorded["classes"] is None

    @property
    def unmade(self) -> str:
        """Why the run made no picture; empty where it made one, or the reason is not recorded."""
        return "" if self.done else self.mistake

    @property
    def done(self) -> list[dict[str, Any]]:
        """The lines of results.jsonl of targets with a picture."""
        return [result for result in self.results if result.get("status") != "failed"]

    @property
    def seconds(self) -> float:
        """Seconds of all targets together."""
        return sum(s for s in (number_or_none(result.get("seconds")) for result in self.results) if s is not None)

    @property
    def of_hidden_units(self) -> bool:
        """Whether the targets are units of a hidden layer."""
        return any(result.get("layer") for result in self.results)

    @property
    def readable(self) -> Readable | None:
        """The table of readability; None for classes, and where nothing was measured."""
        table = side_by_side({"": self.metrics}) if self.of_hidden_units else None
        return table if table and table.lines else None

    @property
    def other_metrics(self) -> dict[str, dict[str, Any]]:
        """The metrics that :attr:`readable` does not show."""
        shown = numbers_of(readable(self.metrics)) if self.of_hidden_units else set()
        return {name: entry for name, entry in self.metrics.items() if name not in shown}

    @property
    def first_metrics(self) -> dict[str, dict[str, Any]]:
        """Those of :attr:`other_metrics` above the pictures: all, or the first that have a value."""
        everything = self.other_metrics
        if len(everything) <= METRICS_SHOWN:
            return everything
        computed = [(name, entry) for name, entry in everything.items() if entry.get("value") is not None]
        return dict(computed[:METRICS_SHOWN])

    @property
    def further_metrics(self) -> dict[str, dict[str, Any]]:
        """Those of :attr:`other_metrics` that the page folds, so that the pictures stay near its beginning."""
        return {name: entry for name, entry in self.other_metrics.items() if name not in self.first_metrics}

    @property
    def recognised(self) -> list[bool]:
        """For each finished target that was judged, whether the network itself recognised it."""
        verdicts = (_verdict(self.scores.get(result["target"], {})) for result in self.done)
        return [verdict for verdict in verdicts if verdict is not None]

    @property
    def first_failed(self) -> str:
        """The first target without a picture; empty where all have one."""
        return next((result["target"] for result in self.results if result.get("status") == "failed"), "")

    @property
    def by_facet(self) -> bool:
        """Whether any picture is of a facet."""
        return any(map(is_facet, self.results))

    def common(self, key: str) -> object:
        """Return the value of ``key`` that all targets share, for the page's head; None where the targets differ."""
        values = {repr(result.get(key)) for result in self.results}
        return self.results[0].get(key) if len(values) == 1 else None


def write_gallery(folder: Path) -> Path:
    """Write ``folder/report.html``, the page of a run folder, and return its path.

    Only results.jsonl is needed; the page shows all other parts that the folder holds. It is written under another name
    and then renamed, so that readers never see a part of it. It loads nothing from elsewhere.

    Args:
        folder: a run folder.

    Raises:
        UsageError: the folder has no results.jsonl.
    """
    run = read_run(Path(folder))
    made = environment()
    made.filters.update(words=metric_title, meaning=metric_meaning)
    page = made.get_template("gallery.html")
    config = _config_names(run.config)
    chunks = page.generate(run=run, units=_units(run), count=len(run.results), small=_is_small(run), **config)
    return write_whole(run.folder / "report.html", chunks)


def read_run(folder: Path, curve_points: int = MAX_POINTS) -> Run:
    """Return the content of a run folder without its pictures; ``notes`` names the parts that could not be read.

    Args:
        folder: the run folder.
        curve_points: points kept of each loss curve.

    Raises:
        UsageError: the folder has no results.jsonl.
    """
    if not is_run(folder):
        raise UsageError("run", folder, f"no {RESULTS} there; a run folder holds one")
    notes: list[str] = []
    return Run(
        folder=folder,
        results=_read_results(folder, notes),
        metrics=_read_metrics(folder / "metrics.json", notes),
        scores=_read_scores(folder / "metrics.csv"),
        curves=read_curves(folder / "history.csv", curve_points) if (folder / "history.csv").is_file() else {},
        config=_read_text(folder / ".hydra" / "config.yaml"),
        provenance=_read_text(folder / "provenance.json"),
        mistake=_read_text(folder / MISTAKE_FILE).strip(),
        notes=notes,
    )


# Reading


def _read_text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _read_results(folder: Path, notes: list[str]) -> list[dict[str, Any]]:
    results, broken, lines = read_results(folder)
    if broken:
        notes.append(f"{broken} of {lines} lines of {RESULTS} could not be read and are left out")
    return results


def _read_metrics(path: Path, notes: list[str]) -> dict[str, dict[str, Any]]:
    text = _read_text(path)
    metrics = _json_object(text)
    if text and not metrics:
        notes.append(f"{path.name} could not be read and is left out")
    return {name: entry if isinstance(entry, dict) else {"value": entry} for name, entry in metrics.items()}


def _read_scores(path: Path) -> dict[str, dict[str, object]]:
    """Return {target: {column: number or text}} of metrics.csv, without empty cells."""
    rows = csv.DictReader(io.StringIO(_read_text(path).replace("\0", "")), restkey="", restval="")
    return {
        row["target"]: {key: _parse(cell) for key, cell in row.items() if key and key != "target" and cell}
        for row in rows
        if row.get("target")
    }


def _config_names(config: str) -> dict[str, str]:
    """Return the names of model and method in a composed configuration (empty without one), and of the references."""
    try:
        tree = yaml.safe_load(config)
    except Exception:  # people may edit the file, and the page does not need its names
        tree = None
    groups = tree if isinstance(tree, dict) else {}
    named = {key: groups.get(key) for key in ("model", "method", "references")}
    model, method, references = (one if isinstance(one, dict) else {"name": one} for one in named.values())
    return {
        "model": str(model.get("name") or network_title(str(model.get("factory") or ""))),
        "method": str(method.get("name") or ""),
        "references": _references_name(references),
    }


def _references_name(references: dict[Any, Any]) -> str:
    """Return the caption of the reference images."""
    source = references.get("source")
    mined_of_drawn = source == "mined" and references.get("root") is None and references.get("index") is None
    drawn = source == "embedded" or mined_of_drawn
    kind = "drawn" if drawn else "real"
    if source != "mined":
        return f"{kind} reference images"
    part = {"patch": "patches of ", "window": "windows of "}.get(str(references.get("region")), "")
    return f"{part}{kind} images that drive the unit most"


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _parse(text: str) -> object:
    try:
        return float(text)
    except ValueError:
        return text


def _verdict(scores: dict[str, object]) -> bool | None:
    value = number_or_none(scores.get(RECOGNISED))
    return None if value is None else value >= 0.5


def _taken_for(scores: dict[str, object]) -> str:
    """The most probable class of a picture, "as bell cote, 0.412"; empty where it is not recorded."""
    text = scores.get(PREDICTED)
    return "as {}, {}".format(*first_predicted(text)) if isinstance(text, str) else ""


# Cards


def _units(run: Run) -> Iterator[UnitCards]:
    """Yield the units. Cards are made one by one while the page is written, so that memory holds few pictures."""
    compress = sum(path.stat().st_size for path in (run.folder / "images").glob("*.png")) > EMBED_BYTES
    for unit in by_unit(run.results):
        cards = (_card(run, dict(result), compress) for result in unit.results)
        yield UnitCards(unit.name, unit.title, unit.words, unit.by_facet, cards)


def _is_small(run: Run) -> bool:
    """Whether the run's first picture is small."""
    pictures = (embed(run.folder / "images", f"{result['target']}.png", False) for result in run.done)
    first = next((picture for picture in pictures if picture), None)
    return first is not None and first.width <= SMALL_SIDE


def _card(run: Run, result: dict[str, Any], compress: bool) -> Card:
    name = result["target"]
    label = labelled(result)
    failed = result.get("status") == "failed"
    scores = run.scores.get(name, {})
    terms = _terms(result, run.curves.get(name))
    total = next((term.value for term in terms if term.name == TOTAL), None)
    keys = {"activation": result.get("activation"), "loss": total, "seconds": result.get("seconds")}
    return Card(
        name=name,
        label=label,
        title=facet_title(result) if is_facet(result) else label,
        facet=facet_words(result),
        members=facet_members(result),
        failed=failed,
        error=str(result.get("error") or "no reason was recorded") if failed else "",
        picture=None if failed else embed(run.folder / "images", f"{name}.png", compress),
        masked=None if failed else embed(run.folder / "images", f"{name}_masked.png", compress),
        references=embed(run.folder / "references", f"{name}.jpg", False),
        recognised=None if failed else _verdict(scores),
        taken_for=_taken_for(scores),
        verdicts=[] if failed else verdicts(scores),
        facts=_facts(run, result) + [(key, value) for key, value in scores.items() if _is_fact(key)],
        terms=terms,
        chart=_chart(run.curves.get(name), label),
        sort={key: number for key, value in keys.items() if (number := number_or_none(value)) is not None},
    )


def embed(folder: Path, name: str, compress: bool) -> Embedded | None:
    """Return a picture of a folder; None where it is missing or broken, or its name is more than a file name."""
    path = folder / name
    if path.name != name or not path.is_file():
        return None
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as image:
            size, mime = image.size, Image.MIME[image.format or "PNG"]
            data, mime = (_webp(image), "image/webp") if compress else (path.read_bytes(), mime)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    return Embedded(data_uri(data, mime), *size)


def _webp(image: Image.Image) -> bytes:
    picture = image.convert("RGBA" if "A" in image.getbands() else "RGB")
    picture.thumbnail((WEBP_SIDE, WEBP_SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=WEBP_QUALITY)
    return buffer.getvalue()


def _facts(run: Run, result: dict[str, Any]) -> list[tuple[str, object]]:
    """Return the numbers under a picture: those that are recorded, and not already in the page's head."""
    facts = [("activation", result.get("activation"))]
    facts += [(key, result.get(key)) for key in ("steps", "seed") if run.common(key) is None]
    seconds = number_or_none(result.get("seconds"))
    facts.append(("share of the batch's time", None if seconds is None else format_duration(seconds)))
    return [(key, value) for key, value in facts if value is not None]


def _is_fact(column: str) -> bool:
    """Whether a column of metrics.csv is shown under the picture as a number."""
    return column != "activation" and not in_verdicts(column)


def _terms(result: dict[str, Any], curve: Curve | None) -> list[FinalTerm]:
    """Return the loss terms at the last step, as recorded or else as in the curve; the total comes last."""
    last = {term: values[-1] for term, values in curve.series().items()} if curve else {}
    recorded = result.get("loss")
    values: dict[str, object] = {**last, **recorded} if isinstance(recorded, dict) else dict(last)
    notes = undrawn(curve) if curve else {}
    names = sorted(values, key=lambda term: term == TOTAL)
    colours = {name: line_colour(curve, name, notes) for name in last} if curve else {}
    return [FinalTerm(name, values[name], colours.get(name, ""), notes.get(name, "")) for name in names]


def _chart(curve: Curve | None, label: str) -> Markup:
    if curve is None or not curve.points:
        return Markup("")
    # The chart escapes all text from files itself.
    return Markup(loss_chart(curve, f"Loss of {label} over {curve.points[-1][0]:.0f} steps"))
