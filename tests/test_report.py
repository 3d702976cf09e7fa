"""vital-report: one table over models, methods and seeds, and a page that a real browser shows."""

from __future__ import annotations

import csv
import json
import re
import shutil
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.chromium import Tab, tab
from vital_exp.commands.hydra_app import MISTAKE, SOME_FAILED
from vital_exp.commands.report import main
from vital_exp.errors import UsageError
from vital_exp.evaluation.pooling import LEAST_PAIRS, compared, pooled
from vital_exp.reporting.combined import combine
from vital_exp.reporting.formats import short
from vital_exp.reporting.sweep import find_runs, read_sweep

pytestmark = pytest.mark.usefixtures("workplace")

HOSTILE = '<b>star</b> & "x" </script>'
CLASSES = 8
# The mean of each method's values, further apart than the noise on them.
LEVELS = {"vital": 0.9, "maco": 0.3, "fourier": 0.89}


def report(*arguments: str) -> int:
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def png(path: Path, seed: int, side: int = 16) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def write_run(
    folder: Path,
    method: str,
    seed: int,
    values: Mapping[str, Mapping[str, float]],
    metrics: Mapping[str, Mapping[str, Any]],
    labels: Sequence[str] = (),
    model: str = "resnet50",
    steps: int = 4,
) -> None:
    """A run folder as vital-visualize leaves it; ``values`` are metrics.csv by target."""
    (folder / ".hydra").mkdir(parents=True)
    config = {"model": {"name": model}, "method": {"name": method}, "seed": seed, "steps": steps}
    (folder / ".hydra/config.yaml").write_text(json.dumps({**config, "target": {"index": "all"}}))
    names = list(values)
    lines = [
        {
            "target": name,
            "label": labels[i] if labels else name,
            "status": "done",
            "activation": 1.0 + i,
            "seconds": 2.0,
        }
        for i, name in enumerate(names)
    ]
    (folder / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "metrics.json").write_text(json.dumps(metrics))
    columns = ["target", *next(iter(values.values()))]
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows({"target": name, **row} for name, row in values.items())
    with (folder / "history.csv").open("w") as file:
        file.write("target,step,alignment,total\n")
        file.writelines(f"{name},{step},{9 - step},{10 - step}\n" for name in names for step in range(steps))


@pytest.fixture
def sweep(workplace: Path) -> Path:
    """Three methods, two seeds, eight classes, 16 px; a value per target and one of the whole run."""
    rng, number = np.random.default_rng(0), 0
    labels = [HOSTILE, *(f"class {index}" for index in range(1, CLASSES))]
    for method, level in LEVELS.items():
        for seed in (0, 1):
            values = {f"class-{i}": {"top1[judge]": level + 0.02 * rng.normal()} for i in range(CLASSES)}
            mean = statistics.fmean(row["top1[judge]"] for row in values.values())
            metrics: dict[str, dict[str, Any]] = {
                "transfer_top1[judge]": {"value": mean, "low": mean - 0.1, "high": mean + 0.1, "n": CLASSES},
                "fid[target]": {"value": 10.0 / level + seed, "low": 5.0, "high": 40.0, "n": CLASSES},
                "clip": {"value": None, "low": None, "high": None, "n": 0, "reason": "not computed: needs weights"},
            }
            folder = workplace / "sweep" / str(number)
            write_run(folder, method, seed, values, metrics, labels)
            for i in range(CLASSES):
                png(folder / "images" / f"class-{i}.png", 10 * i + seed)
                Image.new("RGB", (96 * 6, 96), (i * 30, 90, 90)).save(_references(folder) / f"class-{i}.jpg")
            number += 1
    return workplace / "sweep"


def _references(folder: Path) -> Path:
    (folder / "references").mkdir(exist_ok=True)
    return folder / "references"


# --- numbers --------------------------------------------------------------------------------------------------------


def test_seeds_are_averaged_within_units_before_units_are_resampled() -> None:
    values = {("class-0", 0): 1.0, ("class-0", 1): 3.0, ("class-0_v2", 0): 2.0, ("class-1", 0): 10.0}
    found = pooled(values)
    assert found["value"] == pytest.approx((2 + 10) / 2)
    assert (found["n"], found["units"]) == (4, 2)
    assert (found["low"], found["high"]) == (2, 10)
    alone = pooled({("class-0", seed): float(seed) for seed in range(5)})
    assert (alone["value"], alone["units"]) == (2, 5)  # of one unit, its pictures
    assert pooled({("a", 0): 1.0, ("b", 0): float("nan")})["n"] == 1


def test_methods_are_compared_on_the_targets_and_seeds_both_have() -> None:
    rng = np.random.default_rng(0)
    a = {(f"class-{i}", seed): float(rng.normal()) for i in range(20) for seed in (0, 1)}
    b = {key: value - 0.3 + 0.01 * float(rng.normal()) for key, value in a.items() if key != ("class-3", 1)}
    found = compared(a, b)
    assert found["n"] == 20
    assert found["value"] == pytest.approx(0.3, abs=0.02)
    assert found["significant"]
    assert compared(a, {**b, ("class-99", 0): 5.0})["n"] == 20


def test_few_pairs_are_never_significant() -> None:
    for n in (2, LEAST_PAIRS - 1, LEAST_PAIRS):
        a, b = ({(f"class-{i}", 0): level + 0.01 * i for i in range(n)} for level in (1.0, 0.0))
        assert compared(a, b)["significant"] is (n == LEAST_PAIRS)


def test_the_table_pools_marks_and_compares(sweep: Path) -> None:
    runs = read_sweep(find_runs([sweep]))
    table = combine(runs)
    assert (table.models, table.methods) == (("resnet50",), ("vital", "maco", "fourier"))
    assert table.headlines == ("transfer_top1[judge]", "fid[target]", "seconds")
    cells = {cell.method: cell for cell in table.row("resnet50", "transfer_top1[judge]")}
    own = [value for run in runs if run.method == "vital" for row in run.values.values() for value in row.values()]
    assert cells["vital"].value == pytest.approx(statistics.fmean(map(float, own)))  # type: ignore[arg-type]
    assert (cells["vital"].n, cells["vital"].units, cells["vital"].seeds) == (16, 8, (0, 1))
    best = max(cells.values(), key=lambda cell: cell.value or 0)
    assert best.best
    assert cells["maco"].worse
    assert not cells["maco"].best
    fid = table.row("resnet50", "fid[target]")[0]
    assert fid.value == pytest.approx(10 / 0.9 + 0.5)  # the mean over seeds
    assert (fid.low, fid.high, fid.n) == (5, 40, 16)
    assert not table.row("resnet50", "fid[target]")[1].worse  # two seeds are two pairs
    assert table.missing == {"clip": "not computed: needs weights"}
    pairs = {(c["metric"], c["a"], c["b"]): c for c in table.comparisons}
    assert pairs["transfer_top1[judge]", "vital", "maco"]["significant"]
    assert [(line.model, line.method) for line in table.published][:2] == [("resnet50", "maco"), ("resnet50", "vital")]


def test_runs_that_differ_in_more_than_the_seed_are_told_apart(workplace: Path) -> None:
    for number, steps in enumerate((4, 9)):
        write_run(workplace / f"s/{number}", "vital", 0, {"class-0": {"top1": 1.0}}, {}, steps=steps)
    assert [run.method for run in read_sweep(find_runs(["s"]))] == ["vital (steps=4)", "vital (steps=9)"]


def test_parts_of_other_classes_are_told_apart_by_their_class(workplace: Path) -> None:
    parts = ({"_target_": "a.b.Sort"}, {"_target_": "a.b.Histogram", "bins": 4}, {"_target_": "a.b.Gram"})
    for number, part in enumerate(parts):
        folder = workplace / f"s/{number}"
        write_run(folder, "vital", 0, {"class-0": {"top1": 1.0}}, {})
        config = json.loads((folder / ".hydra/config.yaml").read_text())
        (folder / ".hydra/config.yaml").write_text(json.dumps({**config, "objective": {"alignment": part}}))
    methods = [run.method for run in read_sweep(find_runs(["s"]))]
    assert methods == [f"vital (alignment={name})" for name in ("Sort", "Histogram", "Gram")]


def test_runs_come_in_the_order_of_their_numbers(workplace: Path) -> None:
    for number in (10, 2, 1):
        write_run(workplace / f"s/{number}", "vital", number, {"class-0": {"top1": 1.0}}, {})
    assert [path.name for path in find_runs(["s"])] == ["1", "2", "10"]


# --- files ----------------------------------------------------------------------------------------------------------


def test_the_table_is_written_in_four_formats(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report(f"runs={sweep}", "out=r") == 0
    assert "gallery: r/report.html (48 pictures of 6 runs)" in capsys.readouterr().out
    with Path("r/table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["seed"] for row in rows} == {"all", "0", "1"}
    content = json.loads(Path("r/table.json").read_text())
    assert len(content["rows"]) == len(rows)
    assert content["published"]["note"].startswith("Second-hand")
    assert content["runs"][0] == {**content["runs"][0], "model": "resnet50", "method": "vital", "pictures": 8}
    (entry,) = [
        row for row in content["rows"] if (row["method"], row["metric"], row["seed"]) == ("maco", "fid[target]", "all")
    ]
    markdown = Path("r/table.md").read_text()
    assert f"{short(entry['value'])} ({short(entry['low'])} to {short(entry['high'])})" in markdown
    assert markdown.count("(second-hand)") == 4 * len(content["published"]["lines"])
    assert re.search(r"\| transfer_top1\[judge\] ↑ \| 16 \|.*\| 0\.\d+ \([^|]*\) \* \|", markdown)
    _check_latex(Path("r/table.tex").read_text())
    assert {path.name for path in Path("r/plots").iterdir()} == {
        "resnet50-transfer_top1-judge.svg",
        "resnet50-fid-target.svg",
        "resnet50-seconds.svg",
        "resnet50-transfer_top1-judge-against-seconds.svg",
        "resnet50-fid-target-against-seconds.svg",
    }


def _check_latex(text: str) -> None:
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 2
    body = [line for line in text.splitlines() if not line.startswith("%")]
    assert not re.search(r"(?<!\\)[_%#]", "\n".join(body))
    for table in "\n".join(body).split(r"\begin{tabular}")[1:]:
        columns = len(re.match(r"\{(l+r*)\}", table)[1])  # type: ignore[index]
        rows = [line for line in table.splitlines() if line.endswith(r"\\")]
        assert rows
        assert {len(re.split(r"(?<!\\)&", row)) for row in rows} == {columns}


def test_chosen_metrics_are_shown_and_a_second_report_replaces_the_first(sweep: Path) -> None:
    assert report(f"runs=[{sweep}/0,{sweep}/2]", "metrics=[fid]", "title=Two runs") == 0
    page = Path(sweep / "0/report/report.html")
    assert "<h1>Two runs</h1>" in page.read_text()
    assert "transfer" not in Path(sweep / "0/report/table.md").read_text()
    before = (sweep / "0/report/pictures/000-class-0.png").stat().st_mtime_ns
    assert report(f"runs=[{sweep}/0,{sweep}/2]") == 0
    assert "transfer" in Path(sweep / "0/report/table.md").read_text()
    assert (sweep / "0/report/pictures/000-class-0.png").stat().st_mtime_ns == before


@pytest.mark.parametrize("shown", [True, False])
def test_a_bar_of_pictures_on_a_terminal(
    shown: bool, sweep: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert report(f"runs={sweep}", f"progress={shown}") == 0
    assert ("pictures: " in capsys.readouterr().err) is shown


def test_from_python(sweep: Path) -> None:
    import vital_exp

    made = vital_exp.report([sweep / "0", sweep / "2"], out="r", metrics="transfer_top1")
    assert made.page == Path("r/report.html")
    assert made.table.headlines == ("transfer_top1[judge]",)
    assert made.table.cells["resnet50", "vital", "transfer_top1[judge]"].value == pytest.approx(0.9, abs=0.03)
    with pytest.raises(UsageError, match="at least one"):
        vital_exp.report([])


def test_missing_and_broken_pictures_are_told(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (sweep / "0/images/class-1.png").unlink()
    place = sweep / "1/images/class-2.png"
    place.write_bytes(place.read_bytes()[:60])
    (sweep / "2/metrics.json").unlink()
    assert report(f"runs={sweep}", "out=r") == SOME_FAILED
    out = capsys.readouterr().out
    assert "2 pictures are missing or broken" in out
    assert "class-1.png" in out
    assert "1 of 6 runs have no metrics" in Path("r/report.html").read_text()


MISTAKES = {
    "nothing": ((), ("runs=None", "multirun")),
    "no such folder": (("runs=nowhere",), ("runs=nowhere", "no such folder")),
    "no runs": (("runs=empty",), ("runs=empty", "no run there")),
    "no pictures": (("runs=unfinished",), ("runs=", "no finished picture")),
    "no configuration": (("runs=bare",), ("runs=", "config.yaml")),
    "an unknown metric": (
        ("runs=sweep", "metrics=[accuracy_top2]"),
        ("metrics=accuracy_top2", "did you mean accuracy_top1"),
    ),
    "an unknown key": (("runs=sweep", "metric=[fid]"), ("metric", "did you mean metrics")),
    "no flag": (("runs=sweep", "wandb=yes please"), ("wandb=yes please", "true or false")),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line(mistake: str, workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty").mkdir()
    write_run(workplace / "sweep", "vital", 0, {"class-0": {"top1": 1.0}}, {"accuracy_top1": {"value": 1.0, "n": 1}})
    shutil.copytree("sweep", "bare")
    shutil.rmtree("bare/.hydra")
    shutil.copytree("sweep", "unfinished")
    Path("unfinished/results.jsonl").write_text('{"target": "class-0", "status": "failed"}\n{"torn')
    arguments, words = MISTAKES[mistake]
    assert report(*arguments) == MISTAKE
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("vital-report: ")
    assert all(word in line for word in words), line


@pytest.mark.slow
def test_help_needs_no_torch() -> None:
    import subprocess

    code = (
        "import sys; sys.argv = ['x', '--help']\n"
        "from vital_exp.commands.report import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "vital-report runs=" in done.stdout


# --- the page, in a real browser ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with tab(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def rows(page: Tab) -> list[str]:
    found: list[str] = page.ask("[...document.querySelectorAll('.line.target .about b')].map((b) => b.textContent)")
    return found


def choose(page: Tab, field: str, value: str) -> None:
    page.ask(
        f"(() => {{ const f = document.getElementById('{field}'); f.value = '{value}'; "
        "f.dispatchEvent(new Event('input')); })()"
    )


def test_the_page_filters_sorts_and_opens_a_picture(sweep: Path, chromium: Tab) -> None:
    last = json.loads((sweep / "5/results.jsonl").read_text().splitlines()[-1])
    with (sweep / "5/results.jsonl").open("a") as file:
        file.write(json.dumps({**last, "status": "failed", "error": HOSTILE}) + "\n")
    assert report(f"runs={sweep}", "out=r") == 0
    chromium.open(Path("r/report.html"))
    assert rows(chromium) == [HOSTILE, *(f"class {index}" for index in range(1, CLASSES))]
    assert chromium.ask("document.querySelectorAll('.line.head button').length") == 3
    chromium.ask("document.getElementById('pictures').scrollIntoView()")
    chromium.wait("[...document.querySelectorAll('.line.target img')].slice(0, 4).every((i) => i.naturalWidth > 0)")

    choose(chromium, "find", "class 3")
    assert rows(chromium) == ["class 3"]
    choose(chromium, "find", "")
    chromium.ask("document.querySelector('.chip').click()")
    assert chromium.ask("[...document.querySelectorAll('.line.head button')].map((b) => b.textContent)") == [
        *("maco", "fourier"),
    ]
    chromium.ask("document.querySelector('.chip').click()")
    choose(chromium, "order", "best")
    _check_sorted(sweep, rows(chromium), ("0", "2", "4"))
    choose(chromium, "seed", "1")
    assert chromium.ask("document.querySelectorAll('.blank.failed').length") == 1
    chromium.ask("document.querySelector('.head button').click()")
    _check_sorted(sweep, rows(chromium), ("1",))

    chromium.ask("document.querySelector('button.cell').click()")
    chromium.wait("document.querySelector('dialog .chart') && document.querySelector('dialog pre')")
    assert chromium.ask("document.querySelector('dialog .large').naturalWidth") == 16
    assert chromium.ask("document.querySelector('dialog').textContent").count("transfer_top1[judge]") == 1
    assert '"seed": 1' in chromium.ask("document.querySelector('dialog pre').textContent")
    before = chromium.ask("document.querySelector('dialog p').textContent")
    chromium.ask("document.querySelector('.bar button:nth-child(2)').click()")
    assert chromium.ask("document.querySelector('dialog p').textContent") == before.replace("vital", "maco")
    assert chromium.complaints() == []
    assert all(address.startswith(("file:", "data:")) for address in chromium.requests())
    chromium.ask("document.querySelector('dialog').close()")


def _check_sorted(sweep: Path, shown: Sequence[str], numbers: Sequence[str]) -> None:
    """The labels are in the order of the mean value over these runs, best first."""
    sums: dict[str, float] = {}
    for number in numbers:
        lines = [json.loads(line) for line in (sweep / number / "results.jsonl").read_text().splitlines()]
        labels = {line["target"]: line["label"] for line in lines}
        with (sweep / number / "metrics.csv").open(newline="") as file:
            for row in csv.DictReader(file):
                label = labels[row["target"]]
                sums[label] = sums.get(label, 0) + float(row["top1[judge]"])
    values = [sums[label] for label in shown]
    assert all(first >= second - 1e-3 for first, second in pairwise(values))


TARGETS, METHODS = 1000, 7


@pytest.mark.slow
def test_a_thousand_targets_by_seven_methods_stay_usable(workplace: Path, chromium: Tab) -> None:
    png(workplace / "one.png", 0)
    for number in range(METHODS):
        folder = workplace / f"big/{number}"
        values = {f"class-{i}": {"top1": float((i * number) % 2)} for i in range(TARGETS)}
        write_run(folder, f"method {number}", 0, values, {"accuracy_top1": {"value": 0.5, "n": TARGETS}}, steps=2)
        (folder / "images").mkdir()
        for name in values:
            (folder / "images" / f"{name}.png").hardlink_to(workplace / "one.png")
    assert report("runs=big", "out=r") == 0
    assert len(list(Path("r/pictures").iterdir())) == TARGETS * METHODS
    assert Path("r/report.html").stat().st_size < 3e6
    chromium.open(Path("r/report.html"))
    loaded = [address for address in chromium.requests() if "/pictures/" in address]
    assert len(loaded) < TARGETS  # of 7000: those near the window
    assert len(rows(chromium)) < TARGETS / 4
    ready = chromium.ask("performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd")
    assert ready < 10_000  # ms, on a busy machine
    took = "(() => {{ const start = performance.now(); {act}; return performance.now() - start; }})()"
    act = "const f = document.getElementById('order'); f.value = 'best'; f.dispatchEvent(new Event('input'))"
    assert chromium.ask(took.format(act=act)) < 3_000
    choose(chromium, "find", "class-987")
    assert rows(chromium) == ["class-987"]
    choose(chromium, "find", "")
    made = len(rows(chromium))
    chromium.ask("document.getElementById('end').scrollIntoView()")
    chromium.wait(f"document.querySelectorAll('.line.target').length > {made}")
    chromium.wait("[...document.querySelectorAll('.line.target img')].some((i) => i.naturalWidth > 0)")
    assert chromium.complaints() == []


def test_how_pictures_are_recognised_is_no_warning(workplace: Path) -> None:
    for name, words in (("usual", "softmax over the classes"), ("one", "sigmoid of the class's logit")):
        write_run(workplace / name / "0", "vital", 0, {"class-0": {"top1": 1.0}}, {}, model=name)
        png(workplace / name / "0/images/class-0.png", 0)
        known = {"recognised_by": words, "output": "logits"}
        (workplace / name / "0/provenance.json").write_text(json.dumps(known))
    assert report("runs=[usual,one]", "out=r") == 0
    page = Path("r/report.html").read_text()
    assert "one: recognised by the sigmoid of the class&#39;s logit" in page
    assert "usual: recognised by" not in page
