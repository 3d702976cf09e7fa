"""vital-report: gather the runs of a sweep into one table and one page."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from vital_exp.commands.hydra_app import run_app
from vital_exp.config import plain
from vital_exp.configuration import Configuration
from vital_exp.errors import UsageError

COMMAND = "report"
SHOWN = 5  # pictures named in a message


def main(arguments: list[str] | None = None) -> None:
    """Run the command."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    given = [argument for argument in given if not argument.startswith("hydra.run.dir=")]
    # The report goes beside its runs; Hydra would create a folder for it.
    run_app("vital-report", COMMAND, report_job, ["hydra.run.dir=.", "hydra/job_logging=stdout", *given])


def report_job(config: Configuration) -> int:
    """Write one report; return the number of pictures that could not be read."""
    content = plain(config)
    places = _places(content["runs"])
    from vital_exp.reporting.report import write_report

    out = Path(content["out"]).expanduser() if content["out"] else places[0] / "report"
    report = write_report(places, out, content["metrics"], content["title"], content["progress"])
    for name in ("table.csv", "table.md", "table.tex", "table.json", "comparisons.csv"):
        print(f"table: {out / name}")
    _tell_unreadable(report.unreadable)
    if content["share"]:
        from vital_exp.reporting.share import write_shared

        print(f"to share: {write_shared(places, out, content['metrics'], content['title'], content['progress'])}")
    if content["wandb"]:
        from vital_exp.reporting.dashboard import log_report

        for line in log_report(report, content["project"], content["offline"]):
            print(line, flush=True)
    pictures, runs = sum(len(run.run.done) for run in report.runs), len(report.runs)
    counted = f"{pictures} {'picture' if pictures == 1 else 'pictures'} of {runs} {'run' if runs == 1 else 'runs'}"
    print(f"gallery: {report.page} ({counted})")
    print(f"next: open {report.page} in a browser")
    return len(report.unreadable)


def _places(runs: object) -> list[Path]:
    given = runs if isinstance(runs, list) else [runs]
    places = [Path(place).expanduser() for place in given if isinstance(place, str) and place]
    if not given or len(places) < len(given):
        raise UsageError("runs", runs, "a folder of run folders, multirun/<date>/<time>, or a list of them")
    return places


def _tell_unreadable(unreadable: Sequence[str]) -> None:
    if unreadable:
        more = f" and {len(unreadable) - SHOWN} more" if len(unreadable) > SHOWN else ""
        lost = "1 picture is" if len(unreadable) == 1 else f"{len(unreadable)} pictures are"
        print(f"{lost} missing or broken: {', '.join(unreadable[:SHOWN])}{more}")


if __name__ == "__main__":
    main()
