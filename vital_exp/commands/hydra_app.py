"""Run a Hydra app the way every command does: one line for a mistake, and exit codes that mean something."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from vital_exp.config import check_added_keys, config_dir, explain, without_plus
from vital_exp.errors import UsageError

MISTAKE = 2  # exit code of a user's mistake
SOME_FAILED = 3  # exit code when targets failed and the others went on
INTERRUPTED = 130  # exit code after Ctrl-C, the shell's convention


def run_app(command: str, config_name: str, job: Callable[[DictConfig], int], arguments: Sequence[str]) -> None:
    """Run ``job`` on the configuration the arguments compose, once or, with ``-m``, for each of a sweep; then exit.

    Args:
        command: the command's name, put before a message.
        config_name: the primary configuration.
        job: returns the number of failed targets.
        arguments: the command line without the program's name.
    """
    failures: list[int] = []

    def run_job(config: DictConfig) -> int:
        failed = job(config)
        failures.append(failed)
        return failed  # a plain number: the launcher keeps what a job returns alive during the later jobs

    arguments = [without_plus(argument) for argument in arguments]
    sys.argv = [command, *arguments]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises instead of printing a traceback and exiting with 1
    try:
        check_added_keys(arguments)
        hydra.main(version_base="1.3", config_path=str(config_dir()), config_name=config_name)(run_job)()
    except UsageError as error:
        _end(command, str(error), MISTAKE)
    except (HydraException, OmegaConfBaseException) as error:
        _end(command, str(explain(error, arguments)), MISTAKE)
    except OSError as error:
        _end(command, f"{error.filename or 'hydra.run.dir'}: {error.strerror or error}", MISTAKE)
    except KeyboardInterrupt:
        _end(command, "interrupted; the same command with the same hydra.run.dir goes on from there", INTERRUPTED)
    sys.exit(SOME_FAILED if any(failures) else 0)


def _end(command: str, message: str, code: int) -> None:
    sys.stdout.flush()
    print(f"{command}: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)
