"""vital-audit: check how far the pictures of a run can be trusted."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig

from vital_exp.commands.hydra_app import run_app
from vital_exp.commands.imports import uncollected
from vital_exp.config import plain
from vital_exp.configuration import Configuration
from vital_exp.errors import UsageError
from vital_exp.terminal_tables import wrapped

COMMAND = "audit"
# Configuration keys that are no settings of the checks.
NO_SETTINGS = ("run", "check", "cache_dir")


def main(arguments: list[str] | None = None) -> None:
    """Run the command."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not any(re.match(r"\+*run=", argument) for argument in given):
        given = ["hydra.run.dir=.", "hydra/job_logging=stdout", *given]  # a mistake, which needs no folder
    run_app("vital-audit", COMMAND, audit_job, given)


def audit_job(config: Configuration) -> int:
    """Run one check; return the number of failed targets, always 0."""
    content: dict[str, Any] = plain(config)
    run = content["run"]
    runs = [run] if isinstance(run, str) else run
    if not runs:
        raise UsageError("run", run, "a run folder of vital-visualize is needed, or a list of them")
    with uncollected():
        from vital_exp.attacks.audit import audit

    out = Path(HydraConfig.get().runtime.output_dir)
    settings = {key: value for key, value in content.items() if key not in NO_SETTINGS}
    found = audit(content["check"]["name"], runs, out, **settings)
    print("\n".join(map(wrapped, found.verdicts)))
    print(f"report: {out / 'report.html'} (audit.csv and audit.json beside it)")
    print(f"next: open {out / 'report.html'} in a browser")
    return 0


if __name__ == "__main__":
    main()
