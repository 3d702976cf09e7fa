"""vital-evaluate: score a run folder, all runs of a sweep, or any folder of pictures."""

from __future__ import annotations

import os
import re
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig

from vital_exp.commands.hydra_app import run_app
from vital_exp.commands.imports import uncollected
from vital_exp.config import plain
from vital_exp.configuration import Configuration
from vital_exp.errors import UsageError
from vital_exp.recorded_config import record_config
from vital_exp.run_folders import find_runs, is_run
from vital_exp.terminal_tables import wrapped

if TYPE_CHECKING:
    with uncollected():
        from vital_exp.evaluation.table import Evaluation
        from vital_exp.runs.evaluate import Evaluations

COMMAND = "evaluate"


def main(arguments: list[str] | None = None) -> None:
    """Run the command."""
    given = [_quoted(argument) for argument in (sys.argv[1:] if arguments is None else arguments)]
    if any(re.match(r"\+*run=", argument) for argument in given):
        # All output goes to the run folder itself; Hydra would create it where the path is mistyped.
        given = [argument for argument in given if not argument.startswith("hydra.run.dir=")]
        given = ["hydra.run.dir=.", "hydra/job_logging=stdout", *given]
    run_app("vital-evaluate", COMMAND, evaluate_job, given)


def _quoted(argument: str) -> str:
    """Quote a name pattern, whose braces Hydra would parse as a mapping."""
    key, _, value = argument.partition("=")
    if key.lstrip("+") != "pattern" or value[:1] in ("'", '"'):
        return argument
    return f"{key}='{value}'"


def evaluate_job(config: Configuration) -> int:
    """Score the pictures of one job; return the number of pictures that could not be read."""
    if config.study or config.answers is not None:
        return _study(config)
    return _score(config)


def _score(config: Configuration) -> int:
    place, out = _places(config)
    with uncollected():
        from vital_exp.evaluation.pictures import unreadable_text
        from vital_exp.runs.evaluate import Evaluations

    table = _evaluated(config, place)
    if isinstance(table, Evaluations):
        from vital_exp.reporting.sweep import read_sweep
        from vital_exp.reporting.sweep_summary import methods_text

        count = "1 run" if len(table) == 1 else f"{len(table)} runs"
        print(f"\n{methods_text(read_sweep(list(table), 'run'))}")
        print(f"metrics: metrics.json, metrics.csv and report.html of {count} in {out}\nnext: vital-report runs={out}")
        return len(table.failed) + sum(len(one.unreadable) for one in table.values())
    if config.pictures is not None:
        record_config(config, out)
        table.save(out)
    else:
        _keep(table, out)
    print(table)
    _send(config, out, table)
    if table.unreadable:
        print(unreadable_text(dict(table.unreadable), len(table.unreadable) + len(table.targets)))
    print(f"metrics: {out / 'metrics.json'} and metrics.csv")
    if config.pictures is None:
        print(f"gallery: {out / 'report.html'}\nnext: vital-report runs={out}")
    return len(table.unreadable)


def _keep(table: Evaluation, run: Path) -> None:
    """Write the metrics of a run, and its page with these metrics."""
    from vital_exp.reporting.gallery import write_gallery

    table.save(run)
    write_gallery(run)


def _send(config: Configuration, run: Path, found: Evaluation) -> None:
    """Send the metrics of a run to Weights & Biases, if wandb=true."""
    if config.wandb:
        from vital_exp.reporting.scores_dashboard import log_scores

        print(log_scores(run, found, config.project, config.offline), flush=True)


def _tell(sweep: Path, config: Configuration, run: Path, found: Evaluation | UsageError) -> None:
    """Write the metrics of one run of a sweep and print them in a line."""
    name = os.path.relpath(run, sweep.resolve())
    if isinstance(found, UsageError):
        print(wrapped(f"{name}: not scored: {found}"), flush=True)
        return
    _keep(found, run)
    count, lost = len(found.targets), len(found.unreadable)
    unread = f", {lost} could not be read" if lost else ""
    print(wrapped(f"{name}: {found.line()} ({count} {'picture' if count == 1 else 'pictures'}{unread})"), flush=True)
    _send(config, run, found)


def _study(config: Configuration) -> int:
    """Write the study of a run or a folder of runs, or read its answers back. A single run is scored too."""
    from vital_exp.reporting.study_page import write_study
    from vital_exp.reporting.sweep import read_sweep

    if config.run is None:
        raise UsageError("run", None, "a study needs a run folder, or a folder of run folders")
    root = Path(config.run).expanduser()
    runs, out = find_runs([root], "run"), root / "study"
    if config.answers is not None:
        return _answers(config, out)
    unreadable = _score(config) if is_run(root) else 0
    page = write_study(read_sweep(runs, "run"), out, config.study_targets, config.study_seed)
    print(f"study: {page} (its codes: {page.with_name('key.json')}; answers=file reads answers back)")
    return unreadable


def _answers(config: Configuration, out: Path) -> int:
    """Add people's answers to the metrics of the runs."""
    from vital_exp.evaluation.study import read_answers, read_key, study_tables
    from vital_exp.runs.evaluate import settings_of

    content: dict[str, Any] = plain(config)
    given = content["answers"] if isinstance(content["answers"], list) else [content["answers"]]
    answers = read_answers([Path(place).expanduser() for place in given], read_key(out))
    settings = settings_of({**content["evaluation"], "download": content["download"]})
    for run, table in study_tables(answers, out, settings, Path(content["cache_dir"]).expanduser()).items():
        _keep(table, run)
        print(f"{run}\n{table}")
    people = len({answer.participant for answer in answers})
    print(f"study: {len(answers)} answers of {people} {'person' if people == 1 else 'people'}")
    return 0


def _places(config: Configuration) -> tuple[Path, Path]:
    """The folder of the pictures, and the folder for the table."""
    if config.pictures is not None:
        return Path(config.pictures).expanduser(), Path(HydraConfig.get().runtime.output_dir)
    run = Path(config.run).expanduser()
    return run, run


def _evaluated(config: Configuration, place: Path) -> Evaluation | Evaluations:
    with uncollected():
        from vital_exp.runs.evaluate import evaluate, settings_of

    content: dict[str, Any] = plain(config)
    group = content["evaluation"]
    return evaluate(
        place,
        judges=content["judges"],
        metrics=content["metrics"],
        model=content.get("model"),
        pattern=content["pattern"],
        targets=content["targets"],
        features=group["features"],
        settings=settings_of({**group, "download": content["download"]}),
        config=config,
        folder_of_pictures=True if config.pictures is not None else None,
        tell=partial(_tell, place, config),
        progress=config.progress,
    )


if __name__ == "__main__":
    main()
