"""Images from where people have them: lists of files, and datasets of Hugging Face's library."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.tiny import SHORT, command, exit_code, image_folder, tiny_net
from vital_exp import load_model, visualize
from vital_exp.commands import mine
from vital_exp.errors import UsageError
from vital_exp.references.folder import FolderReferences
from vital_exp.setup.image_root import image_root
from vital_exp.targets.class_names import ClassNames
from vital_exp.targets.unit import Target

CLASSES = ("star", "heart")
ROWS = [(name, number) for number in range(4) for name in CLASSES]


def content(name: str, number: int) -> bytes:
    pixels = np.random.default_rng([len(name), number]).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def as_parquet(place: Path) -> str:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))})
    rows = {
        "image": [{"bytes": content(*row), "path": None} for row in ROWS],
        "label": [CLASSES.index(n) for n, _ in ROWS],
    }
    datasets.Dataset.from_dict(rows, features=features).to_parquet(place / "train.parquet")
    return f"hf:{place / 'train.parquet'}"


def as_saved(place: Path) -> str:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"photo": datasets.Image(), "class": datasets.Value("string")})
    rows = {"photo": [{"bytes": content(*row), "path": None} for row in ROWS], "class": [name for name, _ in ROWS]}
    datasets.DatasetDict({"test": datasets.Dataset.from_dict(rows, features=features)}).save_to_disk(place / "saved")
    return f"hf:{place / 'saved'}?split=test"


def as_tar(place: Path) -> str:
    pytest.importorskip("datasets")
    with tarfile.open(place / "shard.tar", "w") as tar:
        for number, row in enumerate(ROWS):
            for suffix, data in (("png", content(*row)), ("txt", row[0].encode())):
                entry = tarfile.TarInfo(f"{number:04d}.{suffix}")
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
    return f"hf:{place / 'shard.tar'}?label=txt"


def as_list(place: Path) -> str:
    lines = ["path,class"]
    for number, row in enumerate(ROWS):
        (place / f"{number}.png").write_bytes(content(*row))
        lines.append(f"{number}.png,{row[0]}")
    (place / "images.csv").write_text("\n".join(lines))
    return str(place / "images.csv")


FORMS: dict[str, Callable[[Path], str]] = {"parquet": as_parquet, "saved": as_saved, "tar": as_tar, "list": as_list}


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")  # inside the library's own code
@pytest.mark.parametrize("form", FORMS)
def test_images_and_classes_are_those_of_the_source(form: str, tmp_path: Path) -> None:
    spelling = FORMS[form](tmp_path)
    folder = image_root(spelling, tmp_path / "cache")
    for name in CLASSES:
        files = sorted((folder / name).iterdir())
        assert [file.read_bytes() for file in files] == [content(*row) for row in ROWS if row[0] == name]
    assert image_root(spelling, tmp_path / "cache") == folder  # found, not written again
    names = ClassNames(CLASSES)
    prints = [FolderReferences(folder, names, 4).fingerprint(Target("class", 1)) for _ in range(2)]
    assert prints[0] == prints[1]
    assert len(list(FolderReferences(folder, names, 4, size=32).images(Target("class", 1)))) == 4


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
def test_commands_read_them(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spelling = as_parquet(workplace)
    asked = (*SHORT, "logger=none", "evaluation=none", "trainer.accelerator=cpu")
    own = ("references=huggingface", f"references.dataset={workplace}/train.parquet", "target.index=heart")
    assert command(*asked[:2], *asked[3:], *own, "hydra.run.dir=run") == 0, capsys.readouterr().err
    assert Path("run/images/class-1.png").is_file()
    mined = ("model=embedded_resnet", f"images='{spelling}'", "layers=[layer4]", "channels=0", "k=3", "progress=false")
    assert exit_code(mine.main, *mined, "patches=false", "trainer.accelerator=cpu", "hydra.run.dir=mined") == 0
    listed = (*SHORT, f"references.root={as_list(workplace)}", "references=folder", "evaluation=none", "logger=none")
    assert command(*listed, "trainer.accelerator=cpu", "hydra.run.dir=listed") == 0, capsys.readouterr().err


def test_lists_of_every_form(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = image_folder(tmp_path / "photos", ["a"], count=20)
    files = sorted(root.rglob("*.png"))
    (tmp_path / "paths.txt").write_text("\n".join(map(str, [*files, tmp_path / "gone.png"])))
    folder = image_root(tmp_path / "paths.txt", tmp_path / "cache")
    assert len(list(folder.iterdir())) == 20
    assert "1 of 21 images are missing" in caplog.text
    (tmp_path / "one.csv").write_text("path,class\n" + "\n".join(f"{file},{n}" for n, file in enumerate(files[:4], 1)))
    asked = ["steps=1", f"cache_dir={tmp_path / 'cache'}"]
    with pytest.raises(UsageError, match=r'references\.root=.*one\.csv: no class of this network is known by "4"'):
        visualize(load_model(tiny_net(), size=32), "class:1", references=tmp_path / "one.csv", overrides=asked)
    (tmp_path / "table.tsv").write_text("label\timage\n" + "\n".join(f"a/b\t{file}" for file in files))
    assert len(list((image_root(tmp_path / "table.tsv", tmp_path / "cache") / "a b").iterdir())) == 20


MISTAKES = {
    "empty.csv": ("path,class\n", "lists no images"),
    "columns.csv": ("name,kind\na,b\n", "needs a column path or image or file or filename, and has name, kind"),
    "missing.csv": ("path\na.png\nb.png\n", "2 of its 2 images are missing"),
}


@pytest.mark.parametrize(("name", "case"), MISTAKES.items(), ids=MISTAKES)
def test_mistakes_in_lists(name: str, case: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / name).write_text(case[0])
    with pytest.raises(UsageError, match=f"{name}: {case[1]}"):
        image_root(tmp_path / name, tmp_path)


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
def test_mistakes_in_datasets(tmp_path: Path) -> None:
    place, saved = as_parquet(tmp_path), as_saved(tmp_path)
    (tmp_path / "folder").mkdir()
    for spelling, told in {
        "hf:None?split=train": "references.dataset=None: a file, a folder, or the name of a dataset",
        "hf:nobody/nothing": "no such file or folder; download=true fetches a dataset of the hub",
        f"{place}?image=photo": "has no column photo: image, label",
        f"{place}?label=name": "has no column name: image, label",
        f"{place}?colour=red": "colour is not an option of a dataset",
        f"{saved[:-4]}rest": "has no split rest: test",
        f"{place}?most=0": "most=0",
        f"hf:{tmp_path / 'folder'}": "holds no .parquet, .arrow, .tar; a folder of images is given without hf:",
    }.items():
        with pytest.raises(UsageError, match=told.replace(".", r"\.")):
            image_root(spelling, tmp_path / "cache")


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
def test_a_dataset_without_images(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"text": ["a"], "label": [0]}).to_parquet(tmp_path / "text.parquet")
    with pytest.raises(UsageError, match=r"has no column of images; image=column names one of text, label"):
        image_root(f"hf:{tmp_path / 'text.parquet'}", tmp_path / "cache")


def test_without_the_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("vital_exp.references.huggingface.find_spec", lambda _: None)
    with pytest.raises(UsageError, match=r'the library datasets is needed: pip install "vital-exp\[data\]"'):
        image_root("hf:photos.parquet", tmp_path)


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
def test_rows_without_a_class_or_an_image(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    datasets = pytest.importorskip("datasets")
    kinds = {
        "image": datasets.Image(),
        "label": datasets.ClassLabel(names=list(CLASSES)),
        "number": datasets.Value("float64"),
    }
    image = {"bytes": content("star", 0), "path": None}
    kinds["many"] = datasets.Sequence(datasets.Value("int64"))
    rows = {"image": [image, image, None], "label": [1, -1, 0], "number": [3.0, None, 10.0], "many": [[1], [2], [3]]}
    datasets.Dataset.from_dict(rows, features=datasets.Features(kinds)).to_parquet(tmp_path / "rows.parquet")

    def found(spelling: str) -> list[str]:
        folder = image_root(spelling, tmp_path / "cache")
        return sorted(str(file.relative_to(folder)) for file in folder.rglob("*.png"))

    place = f"hf:{tmp_path / 'rows.parquet'}"
    assert found(place) == ["00000001.png", "heart/00000000.png"]  # -1, as of a test split, is not the last class
    assert "1 rows of the dataset have no image" in caplog.text
    assert found(f"{place}?label=number") == ["00000001.png", "3/00000000.png"]
    with pytest.raises(UsageError, match="the column many holds several values for an image"):
        image_root(f"{place}?label=many", tmp_path / "cache")
    with pytest.raises(UsageError, match="the column number holds no images"):
        image_root(f"{place}?image=number", tmp_path / "cache")


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
def test_classes_without_names_have_the_order_of_the_labels(tmp_path: Path) -> None:
    """As of Fashion-MNIST: label 0 is the first of its names, which are not sorted."""
    folder = image_root(as_parquet(tmp_path), tmp_path / "cache")
    references = FolderReferences(folder, ClassNames.numbered(2), 4, size=32)
    assert [references.class_folders(index) for index in (0, 1)] == [[name] for name in CLASSES]
    assert [references.class_names.label(index) for index in (0, 1)] == list(CLASSES)


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
def test_a_folder_of_several_splits(tmp_path: Path) -> None:
    spelling = as_parquet(tmp_path)
    place = tmp_path / "test_data" / "data"
    place.mkdir(parents=True)
    for split in ("train", "test"):
        (place / f"{split}-00000-of-00001.parquet").write_bytes(Path(spelling[3:]).read_bytes())
    for split in ("", "?split=train", "?split=test"):
        folder = image_root(f"hf:{place.parent}{split}", tmp_path / "cache")
        assert len(list(folder.rglob("*.png"))) == len(ROWS)  # those of one split, not of both
    with pytest.raises(UsageError, match="has no split validation: train, test"):
        image_root(f"hf:{place.parent}?split=validation", tmp_path / "cache")
