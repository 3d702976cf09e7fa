"""Run a Hydra app the way every command does: one line for a mistake, and exit codes that mean something."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from vital_exp.config import canonical, compose_config, config_dir
from vital_exp.config_mistakes import check_overrides, explain
from vital_exp.errors import UsageError

MISTAKE = 2  # exit code of a user's mistake
SOME_FAILED = 3  # exit code when targets failed and the others went on
INTERRUPTED = 130  # exit code after Ctrl-C, the shell's convention


class JobEnded(Exception):
    """A job in another process (Hydra's joblib and submitit launchers) ended with an exit code other than 0."""


def run_app(command: str, config_name: str, job: Callable[[DictConfig], int], arguments: Sequence[str]) -> None:
    """Run ``job`` on the configuration the arguments compose, once or, with ``-m``, for each of a sweep; then exit.

    A mistake in one job of a sweep is told when that job ends, and the others run all the same.

    Args:
        command: the command's name, put before a message.
        config_name: the primary configuration.
        job: returns the number of failed targets.
        arguments: the command line without the program's name.
    """
    codes: list[int] = []
    process = os.getpid()

    def run_job(config: DictConfig) -> int:
        code = _exit_code(command, config_name, job, config)
        if code and os.getpid() != process:
            raise JobEnded(code)
        codes.append(code)
        return code  # a plain number: the launcher keeps what a job returns, or raises, alive during the later jobs

    overrides = [canonical(argument, config_name) for argument in arguments if _is_override(argument)]
    # Flags first: argparse takes the overrides on one side of them only.
    sys.argv = [command, *(argument for argument in arguments if not _is_override(argument)), *overrides]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises instead of printing a traceback and exiting with 1
    try:
        check_overrides(overrides, compose_config, config_name)
        hydra.main(version_base="1.3", config_path=str(config_dir()), config_name=config_name)(run_job)()
    except JobEnded as end:
        codes.append(end.args[0])
    except (UsageError, HydraException, OmegaConfBaseException) as error:
        codes.append(_tell(command, _mistake(error, overrides, config_name)))
    except OSError as error:
        key = "hydra.sweep.dir" if {"-m", "--multirun"} & set(arguments) else "hydra.run.dir"
        codes.append(_tell(command, f"{key}={error.filename}: the folder cannot be made ({error.strerror})"))
    except KeyboardInterrupt:
        message = "interrupted; the same command with the same hydra.run.dir goes on from there"
        codes.append(_tell(command, message, INTERRUPTED))
    sys.exit(next((code for code in (INTERRUPTED, MISTAKE, SOME_FAILED) if code in codes), 0))


def _exit_code(command: str, config_name: str, job: Callable[[DictConfig], int], config: DictConfig) -> int:
    """Run one job and tell its mistake, if it has one."""
    settings = HydraConfig.get()
    name = f"{command}: job {settings.job.num}" if settings.mode == RunMode.MULTIRUN else command
    try:
        return SOME_FAILED if job(config) else 0
    except (UsageError, HydraException, OmegaConfBaseException) as error:
        return _tell(name, _mistake(error, settings.overrides.task, config_name))
    except OSError as error:
        folders = {"cache_dir": str(config.cache_dir), "hydra.run.dir": settings.runtime.output_dir}
        return _tell(name, _file_problem(error, folders))


def _is_override(argument: str) -> bool:
    return argument.startswith("~") or ("=" in argument and not argument.startswith("-"))


def _file_problem(error: OSError, folders: dict[str, str]) -> str:
    """Say which file could not be written or read, and the key of the folder it is in."""
    place = str(error.filename or "")
    key = next((key for key, folder in folders.items() if place.startswith(os.path.expanduser(folder))), "file")
    return f"{key}={place}: {error.strerror or error}"


def _mistake(error: Exception, overrides: Sequence[str], config_name: str) -> str:
    return str(error if isinstance(error, UsageError) else explain(error, overrides, config_name))


def _tell(name: str, message: str, code: int = MISTAKE) -> int:
    sys.stdout.flush()
    print(f"{name}: {' '.join(message.split())}", file=sys.stderr)
    return code
