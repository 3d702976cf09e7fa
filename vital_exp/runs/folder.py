"""The run folder: finished results stay on disk, and no incomplete file looks finished."""

from __future__ import annotations

import csv
import io
import json
import os
import weakref
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vital_exp.config import content_hash, picture_config
from vital_exp.configuration import Configuration
from vital_exp.errors import UsageError
from vital_exp.images.output import ARRAY, as_image, in_unit, masked_picture, read_picture, stored, to_uint8
from vital_exp.models.channels import GREY, RGB, as_rgb
from vital_exp.recorded_config import MISTAKE_FILE, RECORDED, record_config, recorded_config
from vital_exp.run_folders import RESULTS, read_results
from vital_exp.runs.checkpoints import Checkpoints
from vital_exp.runs.locks import append, hold
from vital_exp.runs.movies import SUFFIXES, write_film
from vital_exp.targets.unit import Target
from vital_exp.whole_files import whole_file, write_json

KEY = "hydra.run.dir"
DIFFERENCES_SHOWN = 4
RESULT_KEYS = ("target", "label", "status", "loss", "activation", "seconds", "error")  # of results.jsonl, at least
NETWORK = ".hydra/network.json"  # the identity of the network
HASH = ".hydra/content_hash"  # the configuration's hash, by which a sweep finds the folder of a job


class RunFolder:
    """A folder that holds the pictures of one configuration; one job of one or several ranks writes into it.

    Args:
        path: the folder; made if it does not exist.
        config: the composed configuration.
        overrides: the user's overrides, recorded beside the configuration.
        joins: whether another rank of the same job has opened the folder already.
        shares: whether several jobs of the same configuration may write into the folder, each its own targets. Such
            jobs open the folder one after another.

    Raises:
        UsageError: the folder cannot be written, holds a run of another configuration, holds a run although ``resume``
            is false, or is in use by another job.
    """

    def __init__(
        self,
        path: Path,
        config: Configuration,
        overrides: Sequence[str] = (),
        joins: bool = False,
        shares: bool = False,
    ) -> None:
        self.path = path
        self.images = path / "images"
        self.checkpoints = Checkpoints(path / "checkpoints")
        self.preview = config.model.get("preview")
        try:
            self._open(config, overrides, joins, shares)
        except OSError as error:
            raise UsageError(KEY, path, f"the folder cannot be written ({error.strerror or error})") from error

    def _open(self, config: Configuration, overrides: Sequence[str], joins: bool, shares: bool) -> None:
        self.checkpoints.folder.mkdir(parents=True, exist_ok=True)
        lock = self.checkpoints.folder / "lock"
        handle = self._held(lock, exclusive=not joins)
        second = handle is None and shares
        handle = self._held(lock, exclusive=False) if second else handle
        if handle is None:
            problem = "another job is writing there: let it finish, or choose another folder"
            raise UsageError(KEY, self.path, problem)
        self._release = weakref.finalize(self, os.close, handle)
        if second:
            _check_same(recorded_config(self.path, KEY), config, self.path)
        elif not joins:
            self._check_and_mend(config, overrides)
            hold(lock, handle, exclusive=False)  # other ranks, and jobs that share the folder, may open it now

    @staticmethod
    def _held(lock: Path, exclusive: bool) -> int | None:
        """Lock the file and return its handle; None if another job's lock prevents it."""
        try:
            return hold(lock, exclusive=exclusive)
        except BlockingIOError:
            return None

    def close(self) -> None:
        """Release the lock, so that other jobs may write into the folder."""
        self._release()

    def _check_and_mend(self, config: Configuration, overrides: Sequence[str]) -> None:
        path = self.path
        if (path / RECORDED).is_file() and self._begun():
            if not config.resume:
                raise UsageError("resume", False, f"{path} holds a run already: choose another {KEY}, or resume=true")
            _check_same(recorded_config(path, KEY), config, path)
        else:
            self._start(config, overrides)
        self._mend()

    def _begun(self) -> bool:
        """Whether the folder holds the result of a target, or a checkpoint of a batch."""
        results = self.path / RESULTS
        return results.is_file() and (self.checkpoints.exist() or results.stat().st_size > 0)

    def _start(self, config: Configuration, overrides: Sequence[str]) -> None:
        """Record the configuration. The file results.jsonl, written last, marks the folder as a run."""
        for stale in ("history.csv", "provenance.json", NETWORK, MISTAKE_FILE):  # from a start that made no picture
            (self.path / stale).unlink(missing_ok=True)
        self.images.mkdir(parents=True, exist_ok=True)
        record_config(config, self.path, overrides)
        with whole_file(self.path / HASH) as file:
            file.write(content_hash(config))
        with whole_file(self.path / RESULTS):
            pass

    def _mend(self) -> None:
        """Remove incomplete lines, results that are not done, history rows of their targets, and temporary files."""
        for half in list(self.path.glob("**/.*.part")):
            half.unlink()
        results = [result for result in self.results() if result.get("status") == "done"]  # failed ones are tried again
        lines = (self.path / RESULTS).read_bytes().splitlines(keepends=True)
        if len(lines) != len(results) or any(not line.endswith(b"\n") for line in lines):
            with whole_file(self.path / RESULTS) as file:
                file.writelines(json.dumps(result) + "\n" for result in results)
        finished = {result["target"] for result in results}
        history = self.path / "history.csv"
        if history.is_file() and self._history_targets(history) - finished:
            with history.open(newline="", encoding="utf-8", errors="replace") as old, whole_file(history) as file:
                for number, line in enumerate(old):
                    if number == 0 or (line.endswith("\n") and line.split(",", 1)[0] in finished):
                        file.write(line)

    @staticmethod
    def _history_targets(history: Path) -> set[str]:
        with history.open(encoding="utf-8", errors="replace") as file:
            next(file, None)
            return {line.split(",", 1)[0] for line in file}

    def results(self, names: Collection[str] | None = None) -> list[dict[str, Any]]:
        """Return each finished or failed target's last result, in the order of first results, without invalid lines.

        Args:
            names: names of targets; None: all targets.
        """

        def counts(line: object) -> bool:
            wanted = names is None or (isinstance(line, dict) and str(line.get("target")) in names)
            return wanted and self._is_result(line)

        return read_results(self.path, counts)[0]

    def _is_result(self, line: object) -> bool:
        """Whether a line has all keys of a result and, if its status is done, its picture files exist."""
        if not isinstance(line, dict) or not set(RESULT_KEYS) <= set(line) or not _is_file_name(line["target"]):
            return False
        if line["status"] == "done":
            pictures = [self.images / f"{line['target']}{kind}.png" for kind in ("", "_masked")]
            return isinstance(line["loss"], dict) and "total" in line["loss"] and all(map(Path.is_file, pictures))
        return bool(line["status"] == "failed")

    def save_picture(self, target: Target, picture: Tensor, mask: Tensor) -> str:
        """Write a picture (C, H, W) and its transparency map (1, H, W), both in [0, 1]; return the relative path.

        A picture that is neither grey nor RGB is also saved as an array, .npy (C, H, W) float32; its PNG files show
        three of its channels.
        """
        shown = picture
        if picture.shape[0] not in (GREY, RGB):
            with whole_file(self.images / f"{target.name}{ARRAY}", binary=True) as file:
                np.save(file, stored(picture).numpy(), allow_pickle=False)
            shown = as_rgb(picture, self.preview)
        _save_png(self.images / f"{target.name}.png", to_uint8(shown))
        _save_png(self.images / f"{target.name}_masked.png", to_uint8(masked_picture(shown, mask)))
        return f"images/{target.name}.png"

    def save_film(self, target: Target, frames: list[Tensor], kind: str) -> None:
        """Write the frames of a target's optimisation, (3, H, W) uint8 each, as an animation."""
        path = self.path / "movies" / f"{target.name}.{SUFFIXES[kind]}"
        path.parent.mkdir(exist_ok=True)
        with whole_file(path, binary=True) as file:
            write_film(file, frames, kind)

    def load_picture(self, name: str) -> tuple[Tensor, Tensor]:
        """Read a finished target's picture (C, H, W) and transparency map (1, H, W), float32 in [0, 1]."""
        with Image.open(self.images / f"{name}_masked.png") as image:
            mask = in_unit(torch.from_numpy(np.array(image.getchannel("A")))[None])
        return read_picture(self.images / f"{name}.png"), mask

    def append_result(self, result: Mapping[str, Any]) -> None:
        """Append one line to results.jsonl; the target's picture must be on disk already."""
        append(self.path / RESULTS, json.dumps(result) + "\n")

    def append_history(self, target: Target, terms: Mapping[str, Sequence[float]]) -> None:
        """Append one row per step of a target to history.csv: the value of each term."""
        columns = zip(*terms.values(), strict=True)
        rows = [[target.name, step, *(f"{v:.7g}" for v in row)] for step, row in enumerate(columns)]
        append(self.path / "history.csv", _csv_text(rows), header=_csv_text([["target", "step", *terms]]))

    def load_history(self) -> dict[str, dict[str, list[float]]]:
        """Return the recorded terms of every finished target: {target: {term: values by step}}.

        Raises:
            UsageError: the file cannot be parsed.
        """
        try:
            return self._read_history()
        except (AttributeError, KeyError, TypeError, ValueError, csv.Error) as error:
            problem = f"history.csv there cannot be read ({type(error).__name__}: {error})"
            raise UsageError(KEY, self.path, problem) from error

    def _read_history(self) -> dict[str, dict[str, list[float]]]:
        path = self.path / "history.csv"
        history: dict[str, dict[str, list[float]]] = {}
        if path.is_file():
            with path.open(newline="", encoding="utf-8") as file:
                for row in csv.DictReader(file):
                    terms = history.setdefault(row.pop("target"), {})
                    row.pop("step")
                    for term, value in row.items():
                        terms.setdefault(term, []).append(float(value))
        return history

    def save_references(self, target: Target, images: Iterable[Tensor], side: int = 96) -> None:
        """Write references of a target, (C, H, W) each, as a strip of tiles of ``side`` px, for the gallery."""
        tiles = [as_image(to_uint8(as_rgb(one, self.preview).clamp(0, 1))).resize((side, side)) for one in images]
        if not tiles:
            return
        strip = Image.new("RGB", (side * len(tiles), side))
        for number, tile in enumerate(tiles):
            strip.paste(tile, (number * side, 0))
        path = self.path / "references" / f"{target.name}.jpg"
        path.parent.mkdir(exist_ok=True)
        with whole_file(path, binary=True) as file:
            strip.save(file, format="JPEG", quality=88)

    def save_json(self, name: str, content: object) -> None:
        """Write a JSON file atomically."""
        write_json(self.path / name, content)

    def save_mistake(self, error: UsageError) -> None:
        """Record why the run made no picture; the table of a sweep shows this text in place of numbers."""
        with whole_file(self.path / MISTAKE_FILE) as file:
            file.write(f"{error}\n")

    def load_json(self, name: str) -> Any:
        """Return a JSON file's content; None if the file does not exist.

        Raises:
            UsageError: the file is not JSON.
        """
        path = self.path / name
        try:
            return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        except (ValueError, RecursionError) as error:
            raise UsageError(KEY, self.path, f"{name} there cannot be read ({error})") from error


def job_folder(place: Path, config: Configuration) -> Path:
    """Return the run folder of a sweep's job: an existing folder of the same configuration, else a new one.

    Args:
        place: the folder named by the job's number. If another configuration has it, the name gets the job's hash.
        config: the composed configuration.
    """
    own = content_hash(config)
    found = [path.parents[1] for path in sorted(place.parent.glob(f"*/{HASH}")) if path.read_text() == own]
    if found:
        return found[0]
    return place.with_name(f"{place.name}-{own}") if (place / HASH).is_file() else place


def _csv_text(rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _is_file_name(name: object) -> bool:
    return isinstance(name, str) and name not in ("", ".", "..") and Path(name).name == name


def _save_png(path: Path, picture: Tensor) -> None:
    with whole_file(path, binary=True) as file:
        as_image(picture).save(file, format="PNG")


def _check_same(recorded: Mapping[str, Any], config: Configuration, path: Path) -> None:
    old, new = picture_config(recorded), picture_config(config)
    differing = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    if differing:
        shown = ", ".join(f"{k} ({old.get(k)} there, {new.get(k)} now)" for k in differing[:DIFFERENCES_SHOWN])
        more = f" and {len(differing) - DIFFERENCES_SHOWN} more" if len(differing) > DIFFERENCES_SHOWN else ""
        raise UsageError(KEY, path, f"holds a run of another configuration; it differs in {shown}{more}")
