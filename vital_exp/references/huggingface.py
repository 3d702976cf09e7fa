"""Hugging Face datasets, from disk (parquet, arrow, WebDataset tars, folders) or the hub, become image folders."""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from PIL import Image

from vital_exp.errors import UsageError
from vital_exp.image_folders import DATASET
from vital_exp.references.listed import CLASS_ORDER, folder_name
from vital_exp.values import whole_number
from vital_exp.whole_files import whole_folder

KEYS = ("name", "split", "image", "label", "most", "download")
UNSET = ("None", "null")  # values of a configuration key that is not set
FORMAT = 2  # version of the written folders; folders of earlier versions are written anew
DEFAULT_MOST = 20_000  # images, unless ``most`` says otherwise
# The library's loader for each suffix.
BUILDERS = {".parquet": "parquet", ".arrow": "arrow", ".tar": "webdataset"}
LABELS = ("label", "labels", "class", "cls", "target")  # names of the label column; the first that exists is taken
SUFFIXES = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp", "GIF": ".gif", "TIFF": ".tif", "BMP": ".bmp", "MPO": ".jpg"}

logger = logging.getLogger(__name__)


def dataset_folder(spelling: str, cache_dir: Path, key: str) -> Path:
    """Return a folder in the cache with the images of a dataset, one sub-folder per class; it is written once.

    Image files are written unchanged and in the order of the dataset. No code of the dataset runs.

    Args:
        spelling: ``hf:place?split=train&image=img&label=label&most=20000``. The place is a .parquet, .arrow or .tar
            file, a folder of such files, a folder written by ``save_to_disk``, or with ``download=true`` a dataset of
            the hub. Unless named, the image column is the only column of images, and the label column is the first of
            LABELS that exists.
        cache_dir: the cache.
        key: the configuration key that an error names.

    Raises:
        UsageError: the library is not installed, the place, split or column does not exist, or downloads are off.
    """
    if find_spec("datasets") is None:
        raise UsageError(key, spelling, 'the library datasets is needed: pip install "vital-exp[data]"')
    place, _, query = spelling.removeprefix(DATASET).partition("?")
    if place in UNSET:
        raise UsageError("references.dataset", None, "a file, a folder, or the name of a dataset of the hub is needed")
    options = {name: value for name, value in parse_qsl(query) if value not in UNSET}
    if unknown := next((name for name in options if name not in KEYS), None):
        raise UsageError(key, spelling, f"{unknown} is not an option of a dataset: one of {', '.join(KEYS)}", KEYS)
    most = whole_number(f"{key} ({spelling}), most", _number(options.get("most", DEFAULT_MOST)), 1)
    state = json.dumps([FORMAT, place, sorted(options.items()), _state(Path(place).expanduser())])
    folder = cache_dir / "datasets" / hashlib.sha256(state.encode()).hexdigest()[:24]
    if not folder.is_dir():
        rows, names = _rows(place, options, spelling, key, cache_dir)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with whole_folder(folder) as temporary:
            written = _write(rows, temporary, most)
            if not written:
                raise UsageError(key, spelling, "has no images")
            if names:
                (temporary / CLASS_ORDER).write_text(json.dumps([folder_name(name) for name in names]), "utf-8")
        logger.info("%s: %d images written to %s", spelling, written, folder)
    return folder


def _number(value: object) -> object:
    return int(value) if isinstance(value, str) and value.isdecimal() else value


def _state(place: Path) -> list[tuple[str, int, int]]:
    """Return the name, size and time of each file of a dataset on disk, for its hash."""
    files = sorted(place.rglob("*")) if place.is_dir() else [place]
    return [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()]


def _rows(
    place: str, options: Mapping[str, str], spelling: str, key: str, cache_dir: Path
) -> tuple[Iterator[tuple[dict[str, Any] | None, str]], list[str] | None]:
    """Return each row's undecoded image and class folder, and the class names in the order of the labels, if any."""
    import datasets

    try:
        dataset = _opened(place, options, key, spelling, cache_dir)
    except UsageError:
        raise
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UsageError(key, spelling, f"cannot be read: {reason}") from error
    features = dict(dataset.features or dataset._resolve_features().features)
    image = _image_column(features, options.get("image"), spelling, key)
    label = _label_column(features, options.get("label"), spelling, key)
    if isinstance(features[image], datasets.Image):
        dataset = dataset.cast_column(image, datasets.Image(decode=False))
    names = getattr(features[label], "names", None) if label else None
    return ((row[image], _class_of(row, label, names)) for row in dataset), names


def _opened(place: str, options: Mapping[str, str], key: str, spelling: str, cache_dir: Path) -> Any:
    """Return the dataset as a stream of rows, in the order of the dataset."""
    import datasets

    local, split = Path(place).expanduser(), options.get("split", "train")
    if not local.exists():
        if options.get("download", "").lower() != "true":
            raise UsageError(key, spelling, "no such file or folder; download=true fetches a dataset of the hub")
        return datasets.load_dataset(place, options.get("name"), split=split, streaming=True)
    if (local / "state.json").is_file() or (local / "dataset_dict.json").is_file():
        dataset = datasets.load_from_disk(str(local))
        if isinstance(dataset, Mapping):
            if split not in dataset:
                raise UsageError(key, spelling, f"has no split {split}: {', '.join(dataset)}", list(dataset))
            dataset = dataset[split]
        return dataset.to_iterable_dataset()
    files = sorted(local.rglob("*")) if local.is_dir() else [local]
    builder = next((BUILDERS[file.suffix] for file in files if file.suffix in BUILDERS), None)
    if builder is None:
        problem = f"holds no {', '.join(BUILDERS)}; a folder of images is given without {DATASET}"
        raise UsageError(key, spelling, problem)
    candidates = files if local.is_file() else _split_files(local, options.get("split"), key, spelling)
    chosen = [str(file) for file in candidates if BUILDERS.get(file.suffix) == builder]
    keys = {"data_files": {split: chosen}, "split": split, "streaming": True, "cache_dir": str(cache_dir / "datasets")}
    return datasets.load_dataset(builder, **keys)


def _split_files(folder: Path, asked: str | None, key: str, spelling: str) -> list[Path]:
    """Return the files of a split (default: train), which the library recognises by their names."""
    from datasets.data_files import get_data_patterns, resolve_pattern

    base = str(folder.resolve())
    patterns = {str(name): globs for name, globs in get_data_patterns(base).items()}
    split = asked or ("train" if "train" in patterns else next(iter(patterns)))
    if split not in patterns:
        raise UsageError(key, spelling, f"has no split {split}: {', '.join(patterns)}", list(patterns))
    return sorted({Path(file) for pattern in patterns[split] for file in resolve_pattern(pattern, base)})


def _image_column(features: Mapping[str, Any], asked: str | None, spelling: str, key: str) -> str:
    import datasets

    if asked is not None:
        if asked not in features:
            raise UsageError(key, spelling, f"has no column {asked}: {', '.join(features)}", list(features))
        if not (isinstance(features[asked], datasets.Image) or _is_file(features[asked])):
            raise UsageError(key, spelling, f"the column {asked} holds no images")
        return asked
    columns = [name for name, feature in features.items() if isinstance(feature, datasets.Image) or _is_file(feature)]
    if len(columns) != 1:
        several = f"several columns of images, {', '.join(columns)}" if columns else "no column of images"
        raise UsageError(key, spelling, f"has {several}; image=column names one of {', '.join(features)}")
    return columns[0]


def _is_file(feature: object) -> bool:
    """Whether a column holds the bytes and the path of a file, as image columns of plain parquet files do."""
    return isinstance(feature, Mapping) and set(feature) == {"bytes", "path"}


def _label_column(features: Mapping[str, Any], asked: str | None, spelling: str, key: str) -> str | None:
    if asked is not None and asked not in features:
        raise UsageError(key, spelling, f"has no column {asked}: {', '.join(features)}", list(features))
    label = asked or next((name for name in LABELS if name in features), None)
    if label is not None and not hasattr(features[label], "dtype"):
        raise UsageError(key, spelling, f"the column {label} holds several values for an image: one class is needed")
    return label


def _class_of(row: Mapping[str, Any], label: str | None, names: list[str] | None) -> str:
    """Return the folder name of a row's class; ``""`` for a row without a class, which a ClassLabel column marks -1."""
    value = None if label is None else row[label]
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, bool):
        value = int(value)
    if value is None or names is None or not isinstance(value, int):
        return "" if value is None else folder_name(str(value))
    return folder_name(names[value]) if value >= 0 else ""


def _write(rows: Iterator[tuple[dict[str, Any] | None, str]], folder: Path, most: int) -> int:
    """Write at most ``most`` images unchanged, without decoding them; return how many were written."""
    written, empty = 0, 0
    for number, (image, name) in enumerate(rows):
        if written == most:
            logger.warning("the first %d images of the dataset are taken; most=... takes more", most)
            break
        if image is None or not (image.get("bytes") or image.get("path")):
            empty += 1
            continue
        content = image.get("bytes") or Path(image["path"]).read_bytes()
        parent = folder / name if name else folder
        parent.mkdir(exist_ok=True)
        (parent / f"{number:08d}{_suffix(content)}").write_bytes(content)
        written += 1
    if empty:
        logger.warning("%d rows of the dataset have no image", empty)
    return written


def _suffix(content: bytes) -> str:
    """Return the suffix of an image's format; .png for other content, which is reported when the file is read."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            return SUFFIXES.get(str(image.format), ".png")
    except OSError:
        return ".png"
