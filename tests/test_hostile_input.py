"""Input that is wrong on purpose: each case is answered in one line, and nothing lands outside the run folder."""

from __future__ import annotations

import json
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from tests.tiny import tiny_net
from vital_exp.config import compose_config
from vital_exp.errors import UsageError
from vital_exp.models.checkpoints import load_checkpoint
from vital_exp.models.named import load_model
from vital_exp.recorded_config import recorded_config
from vital_exp.references.decoding import CorruptImageError, load_rgb
from vital_exp.reporting.gallery import write_gallery
from vital_exp.reporting.sweep import read_sweep
from vital_exp.runs.folder import RunFolder
from vital_exp.runs.recorded import RunRecord
from vital_exp.setup import checks
from vital_exp.targets.class_names import ClassNames
from vital_exp.targets.directions import load_directions
from vital_exp.targets.selection import class_targets, parse_target
from vital_exp.targets.unit import Target

CLASSES = ClassNames(["star", "heart", "<b>bold</b>", "../../etc/passwd", "7", "a/b", "new\nline", "🦊"])


class Harmful:
    """Unpickled, it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


def line_of(target: str, label: str) -> dict[str, object]:
    """A line of results.jsonl."""
    known = {"target": target, "label": label, "status": "done", "loss": {"total": 0.5}}
    return {**known, "activation": 1.0, "seconds": 1.0, "error": None}


def one_line(error: Exception, *words: str) -> None:
    text = str(error)
    assert text.isprintable(), text
    assert all(word in text for word in words), text


# Files. Each is written by its function; then come words of the answer.


def png(width: int, height: int, depth: int = 8, kind: int = 2, pixels: bytes = b"") -> bytes:
    """A PNG file of any claims."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


IMAGES: dict[str, tuple[bytes, str]] = {
    "empty file": (b"", "cannot identify"),
    "text": (b"no picture", "cannot identify"),
    "html": (b"<html><img src=x onerror=alert(1)>", "cannot identify"),
    "a picture's first bytes": (png(8, 8)[:20], ""),
    "no pixels": (png(8, 8), ""),
    "zero width": (png(0, 8), ""),
    "zero height": (png(8, 0), ""),
    "a bomb": (png(60_000, 60_000), "decompression bomb"),
    "a bomb of grey": (png(2**31 - 1, 2**31 - 1, 8, 0), ""),
    "a strange depth": (png(8, 8, 7), ""),
    "pickled": (pickle.dumps({"a": 1}), "cannot identify"),
    "zeros": (bytes(4096), "cannot identify"),
}


@pytest.mark.parametrize("case", IMAGES)
def test_image_files(case: str, tmp_path: Path) -> None:
    content, word = IMAGES[case]
    path = tmp_path / "pho\nto <b>.png"
    path.write_bytes(content)
    with pytest.raises(CorruptImageError) as caught:
        load_rgb(path)
    one_line(caught.value, word)


@pytest.mark.parametrize("kind", ["16 bit", "animated", "one pixel", "palette", "float"])
def test_odd_images_that_are_images(kind: str, tmp_path: Path) -> None:
    grey = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    image = {
        "16 bit": Image.fromarray((grey * 65535).astype(np.uint16)),
        "float": Image.fromarray(grey),
        "one pixel": Image.new("RGB", (1, 1), "red"),
    }.get(kind, Image.new("P", (8, 8), 3))
    path = tmp_path / ("a.tiff" if kind == "float" else "a.gif" if kind == "animated" else "a.png")
    frames = [Image.new("P", (8, 8), colour) for colour in (5, 9)]
    image.save(path, **({"save_all": True, "append_images": frames} if kind == "animated" else {}))
    assert load_rgb(path).mode == "RGB"
    assert load_rgb(path).size == image.size


def _zip_of_nothing(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../../outside", "x")


CHECKPOINTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "harmful": (lambda path: torch.save({"w": Harmful(path.with_name("written"))}, path), "could run code"),
    "harmful pickle": (lambda path: path.write_bytes(pickle.dumps(Harmful(path.with_name("written")))), "could run"),
    "a whole module": (lambda path: torch.save(tiny_net(), path), "could run code"),
    "a list": (lambda path: torch.save([1, 2], path), "holds list"),
    "no weights": (lambda path: torch.save({"a": 1}, path), "holds no weights"),
    "another network's": (lambda path: torch.save({"<script>": torch.zeros(1)}, path), "lacks"),
    "other shapes": (lambda path: torch.save(tiny_net(5).state_dict(), path), "instead of"),
    "empty": (lambda path: path.write_bytes(b""), ""),
    "noise": (lambda path: path.write_bytes(bytes(range(256)) * 8), ""),
    "a zip that leaves its folder": (_zip_of_nothing, ""),
}


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_checkpoints(case: str, tmp_path: Path) -> None:
    write, word = CHECKPOINTS[case]
    path = tmp_path / "weights.pth"
    write(path)
    with pytest.raises(UsageError) as caught:
        load_checkpoint(tiny_net(), path)
    one_line(caught.value, "model.checkpoint=", word)
    assert not (tmp_path / "written").exists()
    assert not (tmp_path.parent / "outside").exists()


DIRECTIONS: dict[str, tuple[Callable[[Path], object], str]] = {
    "objects": (lambda path: np.save(path, np.array([Harmful(path)], dtype=object), allow_pickle=True), "cannot be"),
    "nan": (lambda path: np.save(path, np.array([[np.nan, 1.0]])), "not finite"),
    "zero": (lambda path: np.save(path, np.zeros((1, 4))), "zero"),
    "no rows": (lambda path: np.save(path, np.zeros((0, 4))), "(K, C)"),
    "text": (lambda path: np.save(path, np.array(["a"])), "cannot be"),
    "not numpy's": (lambda path: path.write_bytes(b"\x93NUMPY"), "cannot be"),
}


@pytest.mark.parametrize("case", DIRECTIONS)
def test_directions(case: str, tmp_path: Path) -> None:
    write, word = DIRECTIONS[case]
    path = tmp_path / "vectors.npy"
    write(path)
    with pytest.raises(UsageError) as caught:
        load_directions(str(path))
    one_line(caught.value, "target.vectors=", word)


def test_several_tensors_need_a_name(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1, 2), "b": torch.ones(1, 2)}, tmp_path / "v.safetensors")
    with pytest.raises(UsageError, match="file#name"):
        load_directions(f"{tmp_path / 'v.safetensors'}#<b>")


# Words.

TARGETS = (
    *("", "   ", "class:", "class:9999999999999999999", "class:-1", "class:nobody", "class-99", "class:../../etc"),
    *("layer4:", "layer4:x", "layer4:1@", "layer4:1@1", "layer4:1@-1,0", "neuron-a-1", "<script>", "\0", "a\nb"),
    *("class:star_v0", "class:\N{RIGHT-TO-LEFT OVERRIDE}rats", "class:star;rm -rf /", "${oc.env:HOME}", "🦊"),
)


@pytest.mark.parametrize("spelling", TARGETS)
def test_target_spellings(spelling: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_target(spelling, CLASSES)
    one_line(caught.value, "targets=")


@pytest.mark.parametrize(
    "index",
    ["1-0", "0-99", "-1", "1e3", "0x1", "1.5", "star,,heart", ",", "all,1", [], [None], [True], [[1]], {"a": 1}],
)
def test_class_selections(index: object) -> None:
    with pytest.raises(UsageError) as caught:
        class_targets(index, CLASSES)  # type: ignore[arg-type]
    one_line(caught.value, "target.index=")


OVERRIDES: dict[str, tuple[str, ...]] = {
    "seed=${oc.env:HOME}": ("seed=", "whole number"),
    "seed=${oc.env:NOBODY_SET_THIS}": ("NOBODY_SET_THIS",),
    "seed=${nothing}": ("nothing",),
    "seed=${seed}": ("seed",),
    "seed=${evil:1}": ("evil",),
    "seed=${": ("key=value",),
    "steps=1e400": ("steps=", "whole number"),
    "steps=nan": ("steps=", "whole number"),
    "steps=99999999999999999999999": ("steps=", "at most"),
    "seed=99999999999999999999999": ("seed=", "at most"),
    "batch_size=-1": ("batch_size=-1",),
    "batch_size=true": ("batch_size=True",),
    "cache_dir=": ("cache_dir=", "a folder"),
    "model.arguments=[1]": ("model.arguments",),
    "objective=../model/timm": ("objective", "one of"),
    "+image.__class__=1": ("__class__",),
    "steps=\n1": ("steps",),
    "a.b.c.d.e=1": ("a.b.c.d.e=1",),
    "=": ("key=value",),
    "\x1b[31msteps=1": ("steps",),
}


@pytest.mark.parametrize("override", OVERRIDES)
def test_overrides(override: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOBODY_SET_THIS", raising=False)
    with pytest.raises(UsageError) as caught:
        checks.check_numbers(compose_config(["model=embedded_resnet", override]))
    one_line(caught.value, *OVERRIDES[override])


# Names in a run folder.

NAMES = (
    *("../../../etc/passwd", "/absolute", "a/b\\c", "..", "'; DROP TABLE runs; --", '"quoted"'),
    "<script>alert(1)</script>",
    *("new\nline", "tab\there", "🦊", "a" * 300, "CON", "-rf", "\N{RIGHT-TO-LEFT OVERRIDE}gnp.", "&amp;"),
    "{{ 7 * 7 }}",
)


@pytest.mark.parametrize("name", NAMES)
def test_names_of_layers_and_classes_stay_inside_the_run_folder_and_are_escaped(name: str, tmp_path: Path) -> None:
    target = Target("channel", 3, layer=name, label=name)
    folder = RunFolder(tmp_path / "run", compose_config(["model=embedded_resnet"]))
    folder.save_picture(target, torch.rand(3, 4, 4), torch.rand(1, 4, 4))
    folder.append_history(target, {"total": [1.0, 0.5]})
    folder.append_result(line_of(target.name, name))
    folder.close()
    assert [one["target"] for one in folder.results()] == [target.name]
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert {path.parent for path in (tmp_path / "run").rglob("*.png")} == {tmp_path / "run" / "images"}
    page = write_gallery(tmp_path / "run").read_text()
    assert "<script>alert" not in page
    assert "49" not in page.split("<title>")[1].split("</title>")[0]


WHOLE = '"label": "", "activation": 1, "seconds": 1, "error": null'
LINES = {
    "not JSON": "{target: class-1}",
    "a number": "7",
    "a list": '["class-1"]',
    "null": "null",
    "no target": '{"status": "done"}',
    "a target that is a number": '{"target": 1, "status": "done"}',
    "a target that is a list": '{"target": [], "status": "done"}',
    "no status": '{"target": "class-1"}',
    "an unknown status": '{"target": "class-1", "status": "perhaps"}',
    "done without a picture": f'{{"target": "class-1", "status": "done", "loss": {{"total": 1}}, {WHOLE}}}',
    "a path": f'{{"target": "../../../etc/passwd", "status": "failed", "loss": null, {WHOLE}}}',
    "nan": '{"target": "class-1", "status": "done", "loss": NaN, "seconds": NaN}',
    "binary": "\x00\ufffd\x1b",
    "torn": '{"target": "class-1", "status": "do',
    "deep": "[" * 5000,
}


@pytest.mark.parametrize("case", LINES)
def test_results_edited_by_hand(case: str, tmp_path: Path) -> None:
    """A line that cannot be true does not count as finished, and the gallery opens all the same."""
    config = compose_config(["model=embedded_resnet"])
    folder = RunFolder(tmp_path / "run", config)
    target = Target("class", 0, label="star")
    folder.save_picture(target, torch.rand(3, 4, 4), torch.rand(1, 4, 4))
    folder.append_result(line_of("class-0", "star"))
    folder.close()
    with (tmp_path / "run" / "results.jsonl").open("a") as file:
        file.write(LINES[case] + "\n")
    write_gallery(tmp_path / "run")
    again = RunFolder(tmp_path / "run", config)
    again.close()
    assert [result["target"] for result in again.results()] == ["class-0"]
    (line,) = (tmp_path / "run" / "results.jsonl").read_text().splitlines()
    assert json.loads(line)["target"] == "class-0"
    assert not list(tmp_path.glob("etc*"))


RECORDS = {
    "broken": "{[",
    "empty": "",
    "a list": "[1, 2]",
    "binary": "\x00",
    "a number": "7",
    "code": "model: !!python/object/apply:os.system [exit]",
    "deep": "[" * 5000,
}


@pytest.mark.parametrize("case", RECORDS)
def test_a_recorded_configuration_edited_by_hand_is_told(case: str, tmp_path: Path) -> None:
    config = compose_config(["model=embedded_resnet"])
    RunFolder(tmp_path, config).append_result(line_of("class-0", "star"))
    (tmp_path / ".hydra" / "config.yaml").write_text(RECORDS[case])
    with pytest.raises(UsageError, match=r"hydra\.run\.dir=") as caught:
        RunFolder(tmp_path, config)
    one_line(caught.value, "config.yaml")


def test_a_recorded_configuration_learns_nothing_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run folder from elsewhere is data: its interpolations are text, in messages and in pages."""
    monkeypatch.setenv("A_SECRET", "hunter2")
    asked = "${oc.env:A_SECRET}"
    config = compose_config(["model=embedded_resnet"])
    folder = RunFolder(tmp_path, config)
    folder.save_picture(Target("class", 0, label=asked), torch.rand(3, 4, 4), torch.rand(1, 4, 4))
    folder.append_result(line_of("class-0", asked))
    folder.close()
    path = tmp_path / ".hydra" / "config.yaml"
    path.write_text(path.read_text().replace("name: embedded_resnet", f"name: {asked}"))
    assert recorded_config(tmp_path, "run").model.name == asked
    (run,) = read_sweep([tmp_path])
    assert run.model == asked
    assert "hunter2" not in write_gallery(tmp_path).read_text()
    with pytest.raises(UsageError, match=r"model\.name") as caught:
        RunFolder(tmp_path, config)
    one_line(caught.value, asked)


@pytest.mark.parametrize("keys", [{}, {"references__count": 3}])
def test_references_that_a_run_recorded_learn_nothing_of_the_environment(
    keys: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder's name is text for evaluation and audit too, which take the references that a run recorded."""
    monkeypatch.setenv("A_SECRET", "hunter2")
    RunFolder(tmp_path, compose_config(["model=embedded_resnet", "references=folder"])).close()
    path = tmp_path / ".hydra" / "config.yaml"
    before = path.read_text()
    path.write_text(before.replace("root: null", "root: ${oc.env:A_SECRET}"))
    assert path.read_text() != before
    with pytest.raises(UsageError, match=r"references\.root") as caught:
        RunRecord.of(tmp_path).references(load_model("embedded_resnet"), [Target("class", 0)], **keys)
    one_line(caught.value, "${oc.env:A_SECRET}")


@pytest.mark.parametrize("text", ["{", "", "\x00", "[" * 5000])
def test_a_recorded_origin_edited_by_hand_is_told(text: str, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, compose_config(["model=embedded_resnet"]))
    (tmp_path / "provenance.json").write_text(text)
    with pytest.raises(UsageError) as caught:
        folder.load_json("provenance.json")
    one_line(caught.value, "provenance.json")


@pytest.mark.parametrize("rows", ["target,step,total\nclass-0,0,much", "a,b\n1,2", "target,step\nclass-0,0,1"])
def test_a_history_edited_by_hand_is_told(rows: str, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, compose_config(["model=embedded_resnet"]))
    (tmp_path / "history.csv").write_text(rows)
    with pytest.raises(UsageError) as caught:
        folder.load_history()
    one_line(caught.value, "history.csv")


# Anything.


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.text(max_size=40), st.from_regex(r"(class|[a-z.0-9]{1,9})[:-][^\n]{0,12}", fullmatch=True)))
@example("class:0_v2")
def test_any_text_is_a_target_or_a_mistake(text: str) -> None:
    try:
        target = parse_target(text, CLASSES)
    except UsageError as error:
        one_line(error)
        return
    assert set(target.name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
    assert Path(target.name).name == target.name
    assert parse_target(target.name, CLASSES).name == target.name


KEYS = ("steps", "seed", "batch_size", "target.index", "trainer.devices", "image.size", "model.layers", "nonsense", "")
VALUES = st.one_of(
    st.text(max_size=12), st.integers(), st.floats(), st.sampled_from(["[", "{a:1}", "${seed}", "'", "a,b"])
)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(("", "+", "++", "~")), st.sampled_from(KEYS), VALUES)
def test_any_override_composes_or_is_a_mistake(sign: str, key: str, value: object) -> None:
    try:
        checks.check_numbers(compose_config(["model=embedded_resnet", f"{sign}{key}={value}"]))
    except UsageError as error:
        one_line(error)
