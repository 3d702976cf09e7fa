"""Runs the Hydra app of every command: a mistake is one line, and exit codes say how the command ended."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from vital_exp.commands.announcement import announcement
from vital_exp.commands.help_text import asks_for_help, help_text
from vital_exp.commands.outer_ranks import outer_ranks
from vital_exp.commands.sweep_lines import print_sweep
from vital_exp.commands.warnings_once import warnings_once
from vital_exp.config import canonical, compose_config, config_dir, normalised, plain
from vital_exp.config_mistakes import check_overrides, check_words, explain
from vital_exp.config_tree import VISUALIZE
from vital_exp.configuration import Configuration
from vital_exp.errors import UsageError
from vital_exp.no_effect import MetricNeeds, keys_of, tell_without_effect
from vital_exp.recorded_config import MISTAKE_FILE
from vital_exp.run_folders import is_run
from vital_exp.setup.checks import check_early

MISTAKE = 2  # exit code of a user's mistake
SOME_FAILED = 3  # exit code when some targets failed
INTERRUPTED = 130  # exit code after Ctrl-C, the shell's convention
BROKEN_PIPE = 141  # exit code after SIGPIPE, the shell's convention
# Hydra's flags; argparse accepts abbreviations of them too.
FLAGS = (
    *("--help", "--hydra-help", "--version", "--cfg", "--resolve", "--package", "--run", "--multirun", "--info"),
    *("--shell-completion", "--config-path", "--config-name", "--config-dir", "--experimental-rerun"),
    *("-h", "-c", "-p", "-r", "-m", "-sc", "-cp", "-cn", "-cd", "-i"),
)
HOW_TO_RESUME = "interrupted; the same command with the same hydra.run.dir goes on from there"


logger = logging.getLogger(__name__)


class JobEnded(Exception):
    """A job in another process (of Hydra's joblib or submitit launcher) ended with an exit code other than 0.

    Its arguments are the code and the folder of the sweep.
    """


class Value(float):
    """The value that a job returns to a sweeper, which optimises it over configurations."""


Job = Callable[[Configuration], "int | Value"]


def run_app(command: str, config_name: str, job: Job, arguments: Sequence[str]) -> None:
    """Run ``job`` on the configuration that the arguments compose, or, with ``-m``, on each of a sweep; then exit.

    A mistake in one job of a sweep is reported when the job ends; the other jobs run nevertheless.

    Args:
        command: the command's name, which precedes messages.
        config_name: the name of the primary configuration.
        job: maps the checked configuration to the number of failed targets, or, if none failed, to a value.
        arguments: the command line without the program's name.
    """
    with _sigterm_as_ctrl_c():
        sys.exit(_run_app(command, config_name, job, arguments))


def _run_app(command: str, config_name: str, job: Job, arguments: Sequence[str]) -> int:
    codes: list[int] = []
    process = os.getpid()

    def run_job(config: DictConfig) -> float:
        _stay()
        with warnings_once():
            code = _exit_code(command, config_name, job, config)
        if isinstance(code, Value):
            return float(code)
        if code and (os.getpid() != process or config.get("sweep_metric")):
            raise JobEnded(code, str(HydraConfig.get().sweep.dir))
        codes.append(code)
        return code  # a plain number, since the launcher keeps what jobs return or raise in memory for the whole sweep

    unknown = next((argument for argument in arguments if not _is_known(argument)), None)
    if unknown is not None:
        return _tell(command, f"{unknown}: no such flag; keys are given without dashes, steps=3 (see --help)")
    overrides = [canonical(argument, config_name) for argument in arguments if _is_override(argument)]
    # Flags come first, because argparse accepts overrides on one side of them only.
    sys.argv = [command, *(argument for argument in arguments if not _is_override(argument)), *overrides]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises instead of printing a traceback and exiting with 1
    try:
        if asks_for_help(arguments):
            print(help_text(config_name, arguments))
        elif "--version" in arguments:
            print(f"{command} {metadata.version('vital-exp')}")
        else:
            check_words(arguments, config_name)
            check_overrides(overrides, compose_config, config_name)
            hydra.main(version_base="1.3", config_path=str(config_dir()), config_name=config_name)(run_job)()
        sys.stdout.flush()
    except JobEnded as end:
        codes.append(end.args[0])
        if config_name == VISUALIZE:
            print_sweep(Path(end.args[1]))
    except (UsageError, HydraException, OmegaConfBaseException) as error:
        codes.append(_tell(command, _mistake(error, overrides, config_name)))
    except BrokenPipeError:
        codes.append(_reader_gone())
    except OSError as error:
        key = "hydra.sweep.dir" if {"-m", "--multirun"} & set(arguments) else "hydra.run.dir"
        codes.append(_tell(command, f"{key}={error.filename}: the folder cannot be made ({error.strerror})"))
    except KeyboardInterrupt as interruption:
        codes.append(_tell(command, str(interruption) or HOW_TO_RESUME, INTERRUPTED))
    return next((code for code in (INTERRUPTED, BROKEN_PIPE, MISTAKE, SOME_FAILED) if code in codes), 0)


def _stay() -> None:
    """Work in the folder where the command was started, for relative paths in the configuration start there."""
    settings = HydraConfig.get()
    if settings.job.chdir:
        os.chdir(settings.runtime.cwd)  # Hydra changes back by itself
        _tell_of_chdir()


@cache
def _tell_of_chdir() -> None:
    place = "relative paths start at the folder where the command was started, and all output goes to the run folder"
    logger.warning("hydra.job.chdir=true has no effect: %s", place)


@contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    """Handle SIGTERM, with which schedulers end a job, like Ctrl-C."""

    def interrupted(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupted)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _metrics(names: Any) -> Sequence[MetricNeeds]:
    """Return metrics by name; torch is imported at the first call."""
    from vital_exp.evaluation.metrics import chosen

    return chosen(names)


def _exit_code(command: str, config_name: str, job: Job, config: DictConfig) -> int | Value:
    """Run one job and report its mistake, if it has one; return an exit code, or the job's value."""
    settings = HydraConfig.get()
    sweep = settings.mode == RunMode.MULTIRUN
    name = f"{command}: job {settings.job.num}" if sweep else command
    rank, ranks = outer_ranks()
    everywhere = False
    try:
        checked = normalised(config, config_name)
        check_early(checked, config_name, files=ranks == 1)
        if rank == 0:
            content = plain(checked)
            _announce(content, config_name)
            tell_without_effect(config_name, content, keys_of(settings.overrides.task), _metrics)
        outcome = job(checked)
        return outcome if isinstance(outcome, Value) else SOME_FAILED if outcome else 0
    except (UsageError, HydraException, OmegaConfBaseException) as error:
        everywhere = getattr(error, "everywhere", False)
        code = MISTAKE if everywhere and rank else _tell(name, _mistake(error, settings.overrides.task, config_name))
        if sweep:
            _note_mistake(Path(settings.runtime.output_dir), _mistake(error, settings.overrides.task, config_name))
        elif not any(key.startswith("hydra.run.dir=") for key in settings.overrides.hydra):
            _remove_unused(Path(settings.runtime.output_dir))
    except BrokenPipeError:
        return _reader_gone()
    except OSError as error:
        folders = {"cache_dir": str(config.cache_dir), "hydra.run.dir": settings.runtime.output_dir}
        code = _tell(name, _file_problem(error, folders))
    except KeyboardInterrupt as interruption:
        if rank:
            sys.exit(INTERRUPTED)
        key, folder = ("sweep", settings.sweep.dir) if sweep else ("run", settings.runtime.output_dir)
        reason = str(interruption) or "interrupted"
        raise KeyboardInterrupt(f"{reason}; the same command with hydra.{key}.dir={folder} goes on") from interruption
    if ranks > 1 and not everywhere:
        sys.exit(code)  # otherwise the other ranks would wait for this one in the next job
    return code


def _announce(content: Mapping[str, object], config_name: str) -> None:
    line = announcement(content, config_name)
    if line:
        print(line, flush=True)


def _note_mistake(folder: Path, mistake: str) -> None:
    """Write down why a job of a sweep made nothing, for the closing table of the sweep and the report."""
    if folder.is_dir() and not is_run(folder):
        with suppress(OSError):
            (folder / MISTAKE_FILE).write_text(mistake, encoding="utf-8")


def _remove_unused(folder: Path) -> None:
    """Remove outputs/<date>/<time>, which Hydra creates before a job, if it holds nothing but an empty log."""
    with suppress(OSError):  # parents with other runs stay
        if any(path.is_dir() or path.stat().st_size for path in folder.iterdir()):
            return
        for path in folder.iterdir():
            path.unlink()
        for path in (folder, *folder.parents[:2]):
            path.rmdir()


def _is_override(argument: str) -> bool:
    return argument.startswith("~") or ("=" in argument and not argument.startswith("-"))


def _is_known(argument: str) -> bool:
    flag = argument.split("=")[0]
    return not flag.startswith("-") or any(known.startswith(flag) for known in FLAGS) or flag[:2] in FLAGS


def _file_problem(error: OSError, folders: dict[str, str]) -> str:
    """Return a message with the file that could not be written or read, and the key of its folder."""
    place = str(error.filename or folders["hydra.run.dir"])
    key = next((key for key, folder in folders.items() if place.startswith(os.path.expanduser(folder))), "file")
    return f"{key}={place}: {error.strerror or error}"


def _mistake(error: Exception, overrides: Sequence[str], config_name: str) -> str:
    return str(error if isinstance(error, UsageError) else explain(error, overrides, config_name))


def _reader_gone() -> int:
    """Discard all further output, because its reader (``| head``) has ended. Return the exit code."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return BROKEN_PIPE


def _tell(name: str, message: str, code: int = MISTAKE) -> int:
    sys.stdout.flush()
    print(f"{name}: {' '.join(message.split())}", file=sys.stderr)
    return code
