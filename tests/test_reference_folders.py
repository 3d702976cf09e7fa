"""Reference images from folders and from tensors."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vital_exp.errors import UsageError
from vital_exp.references.base import References
from vital_exp.references.decoding import fit, load_rgb
from vital_exp.references.folder import FolderReferences, ReferenceWarning
from vital_exp.references.tensors import TensorReferences
from vital_exp.targets.class_names import ClassNames
from vital_exp.targets.unit import Target

NAMES = ClassNames([("cat", "house cat"), "dog", "tree frog"], ["n00000001", "n00000002", "n00000003"])
CAT, DOG, FROG = (Target("class", index, label=NAMES.label(index)) for index in range(3))
CHANNEL = Target("channel", 5, "layer3")


def fill(folder: Path, count: int, first: int = 0, suffix: str = ".png") -> Path:
    """Write one-coloured images; the red value is the number of the image, so that each is known by its pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"{number:03}{suffix}")
    return folder


def references(root: Path, names: ClassNames = NAMES, count: int = 4, **options: Any) -> FolderReferences:
    return FolderReferences(root, names, count=count, size=8, resize=8, **options)


def numbers(images: Iterable[torch.Tensor]) -> list[int]:
    """The numbers of the images, from their red values."""
    return [round(float(image[0, 0, 0]) * 255) for image in images]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for first, name in ((0, "cat"), (20, "dog"), (40, "tree_frog")):
        fill(tmp_path / name, 10, first)
    return tmp_path


def test_a_class_gets_its_own_images(tree: Path) -> None:
    source: References = references(tree, count=10)
    assert sorted(numbers(source.images(DOG))) == list(range(20, 30))
    assert source.class_indices() == [0, 1, 2]
    assert all(image.shape == (3, 8, 8) and image.dtype == torch.float32 for image in source.images(CAT))


@pytest.mark.parametrize(
    "folder", ["Tree-Frog", "TREE FROG", "n00000003", "N00000003", "2", "002", "n00000003-green_one"]
)
def test_ways_to_name_a_class_folder(tmp_path: Path, folder: str) -> None:
    fill(tmp_path / folder, 2)
    assert references(tmp_path).class_indices() == [2]


def test_folders_of_one_class_are_merged(tmp_path: Path) -> None:
    fill(tmp_path / "cat", 3)
    fill(tmp_path / "House_Cat" / "deeper" / "still", 3, first=3, suffix=".PNG")
    assert sorted(numbers(references(tmp_path, count=6).images(CAT))) == list(range(6))


def test_alphabetical_order_when_the_counts_match(tmp_path: Path) -> None:
    for number, name in enumerate(("zeta", "alpha", "mu")):
        fill(tmp_path / name, 2, first=10 * number)
    source = references(tmp_path, ClassNames.numbered(3), count=2)
    assert source.class_indices() == [0, 1, 2]
    assert sorted(numbers(source.images(Target("class", 0)))) == [10, 11]
    assert source.class_names == ClassNames(["alpha", "mu", "zeta"])


def test_alphabetical_order_against_real_names_is_told(tmp_path: Path) -> None:
    for name in ("zeta", "alpha", "mu"):
        fill(tmp_path / name, 2)
    source = references(tmp_path)
    with pytest.warns(ReferenceWarning, match='"alpha" is class 0 "cat"'):
        assert source.class_indices() == [0, 1, 2]
    assert source.class_names == NAMES


def test_folders_that_are_no_classes_are_an_error_for_classes_only(tmp_path: Path) -> None:
    fill(tmp_path / "holiday", 3)
    fill(tmp_path / "birthday", 3)
    source = references(tmp_path)
    for ask in (source.class_indices, lambda: source.images(CAT), lambda: source.fingerprint(CAT)):
        with pytest.raises(UsageError, match=r"references\.root.*birthday.*holiday.*2 folders, 3 classes"):
            ask()
    assert len(list(source.images(CHANNEL))) == 4


def test_classes_without_names_are_told_how_to_get_them(tmp_path: Path) -> None:
    for name in ("no", "yes"):
        fill(tmp_path / name, 2)
    with pytest.raises(UsageError, match=r"2 folders, 1 classes\); model\.class_names=\[\.\.\.\] gives"):
        references(tmp_path, ClassNames.numbered(1)).class_indices()


def test_a_folder_that_is_no_class_among_others_is_told(tree: Path) -> None:
    fill(tree / "dgo", 2)
    (tree / "notes").mkdir()
    source = references(tree)
    with pytest.warns(ReferenceWarning, match="dgo") as caught:
        source.class_indices()
    assert "notes" not in str(caught[0].message)  # it has no images


def test_an_ambiguous_folder_is_told_with_its_classes(tmp_path: Path) -> None:
    fill(tmp_path / "crane", 2)
    with pytest.raises(UsageError, match=r"crane.*0 or 1"):
        references(tmp_path, ClassNames(["crane", "crane", "dog"])).class_indices()


def test_folders_numbered_from_one_are_refused(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        fill(tmp_path / str(number), 2)
    with pytest.raises(UsageError, match=r'"3".*0 to 2'):
        references(tmp_path).class_indices()


def test_a_flat_root_serves_every_target(tmp_path: Path) -> None:
    fill(tmp_path, 10)
    (tmp_path / "empty").mkdir()
    source = references(tmp_path, count=10)
    assert source.class_indices() is None
    for target in (CAT, DOG, CHANNEL):
        assert sorted(numbers(source.images(target))) == list(range(10))


def test_hidden_targets_draw_on_the_whole_tree(tree: Path) -> None:
    assert sorted(numbers(references(tree, count=30).images(CHANNEL))) == [*range(10), *range(20, 30), *range(40, 50)]


def test_the_choice_depends_on_seed_and_target_alone(tree: Path) -> None:
    chosen = numbers(references(tree).images(DOG))
    source = references(tree)
    list(source.images(CAT))
    assert numbers(source.images(DOG)) == chosen
    assert numbers(references(tree, seed=1).images(DOG)) != chosen
    assert numbers(references(tree, count=2).images(DOG)) == chosen[:2]
    assert numbers(source.images(Target("class", 1, variation=2))) == chosen
    assert numbers(source.images(CHANNEL)) != numbers(source.images(Target("channel", 6, "layer3")))


def test_fewer_images_than_asked(tree: Path) -> None:
    with pytest.warns(ReferenceWarning, match="class-1: 10 references, fewer than references.count=50"):
        assert len(list(references(tree, count=50).images(DOG))) == 10


def test_corrupt_images_are_named_and_replaced(tree: Path) -> None:
    for number in range(100, 140):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tree / "cat" / f"{number}.png")
    source = references(tree, count=40)
    chosen = numbers(source.images(CAT))
    bad = tree / "cat" / f"{chosen[3]:03}.png"
    bad.write_bytes(b"no image")
    with pytest.warns(ReferenceWarning, match=rf"class-0: 1 corrupt.*cat/{bad.name}"):
        replaced = numbers(source.images(CAT))
    assert replaced[:-1] == chosen[:3] + chosen[4:]
    assert len(replaced) == 40


def test_many_corrupt_images_are_an_error(tree: Path) -> None:
    for number in (3, 4):
        (tree / "cat" / f"00{number}.png").write_bytes(b"")
    with pytest.raises(UsageError, match=r"2 of the 10 images for class-0 are corrupt.*00[34]\.png.*00[34]\.png"):
        list(references(tree, count=10).images(CAT))
    assert len(list(references(tree, count=10).images(DOG))) == 10


def test_a_tenth_corrupt_is_still_used(tree: Path) -> None:
    (tree / "cat" / "004.png").write_bytes(b"")
    with pytest.warns(ReferenceWarning) as caught:
        assert len(list(references(tree, count=10).images(CAT))) == 9
    assert len(caught) == 2  # the corrupt one, and fewer than asked


def test_images_are_decoded_one_at_a_time(tree: Path) -> None:
    source = references(tree)
    stream = source.images(CAT)
    first = next(iter(stream))
    for path in (tree / "cat").iterdir():
        path.unlink()
    assert first.shape == (3, 8, 8)
    with pytest.raises(UsageError, match="corrupt"):
        next(iter(stream))


def test_a_class_without_images(tree: Path) -> None:
    names = ClassNames(["cat", "dog", "tree frog", "tree fork"])
    source = references(tree, names)
    with pytest.raises(UsageError, match=r'references\.root=.*class 3 "tree fork".*tree frog'):
        source.images(Target("class", 3))
    assert source.class_indices() == [0, 1, 2]


def test_an_empty_class_folder_is_no_class_with_images(tree: Path) -> None:
    (tree / "dog" / "nothing").mkdir()
    for path in (tree / "dog").glob("*.png"):
        path.unlink()
    source = references(tree)
    assert source.class_indices() == [0, 2]
    with pytest.raises(UsageError, match="no images of class 1"):
        source.fingerprint(DOG)


@pytest.mark.parametrize("case", ["missing", "empty", "file", "text"])
def test_roots_without_images(tmp_path: Path, case: str) -> None:
    root = tmp_path / case
    if case == "file":
        root.write_bytes(b"x")
    elif case != "missing":
        (root / "cat").mkdir(parents=True)
    if case == "text":
        (root / "cat" / "a.txt").write_text("x")
        (root / "cat" / "._a.png").write_text("x")
        (root / ".cache").mkdir()
        (root / ".cache" / "a.png").write_text("x")
    with pytest.raises(UsageError) as caught:
        references(root)
    assert caught.value.key == "references.root"


@pytest.mark.parametrize(
    ("option", "value"), [("count", 0), ("size", 0), ("size", (8, 0)), ("resize", 0), ("interpolation", "cubic")]
)
def test_bad_options(tree: Path, option: str, value: object) -> None:
    with pytest.raises(UsageError) as caught:
        FolderReferences(tree, NAMES, **{option: value})  # type: ignore[arg-type]
    assert caught.value.key == f"references.{option}"


def test_links_to_a_folder_above_end(tree: Path) -> None:
    (tree / "cat" / "loop").symlink_to(tree, target_is_directory=True)
    (tree / "dog" / "gone.png").symlink_to(tree / "nowhere.png")
    assert len(list(references(tree, count=10).images(CAT))) == 10
    assert len(list(references(tree, count=10).images(DOG))) == 10


def test_odd_names_do_no_harm(tmp_path: Path) -> None:
    odd = ["quo\"te's", "new\nline", "🦓", "comma, dot.", "bad\udcff" if sys.platform != "darwin" else "bad"]
    for number, name in enumerate(odd):
        fill(tmp_path / name, 2, first=2 * number)
        (tmp_path / name / f"{name}.png").write_bytes(b"broken")
    source = references(tmp_path, ClassNames.numbered(5), count=2)
    labels = [source.class_names.label(index) for index in range(5)]
    assert all(label.isprintable() for label in labels)
    for index in range(5):
        source.fingerprint(Target("class", index))
        with warnings.catch_warnings(record=True):  # the broken one is over a tenth when it comes up
            warnings.simplefilter("always")
            try:
                list(source.images(Target("class", index)))
            except UsageError as error:
                str(error).encode()


def test_fingerprints(tree: Path) -> None:
    source = references(tree)
    before = source.fingerprint(CAT)
    assert before == references(tree).fingerprint(CAT) != source.fingerprint(DOG)
    assert source.fingerprint(Target("class", 0, variation=3)) == before
    changes: list[dict[str, Any]] = [{"seed": 1}, {"count": 5}, {"interpolation": "bicubic"}]
    for options in changes:
        assert references(tree, **options).fingerprint(CAT) != before
    assert FolderReferences(tree, NAMES, count=4, size=8, resize=None).fingerprint(CAT) != before
    first = tree / "cat" / f"{numbers(source.images(CAT))[0]:03}.png"
    os.utime(first, ns=(1, 1))
    assert references(tree).fingerprint(CAT) != before


def test_a_fingerprint_decodes_nothing(tree: Path) -> None:
    for path in (tree / "cat").iterdir():
        path.write_bytes(b"broken")
    assert references(tree).fingerprint(CAT)


# Tensors.


def test_one_tensor_for_all_targets() -> None:
    tensor = torch.linspace(-1, 2, 2 * 3 * 4 * 5, dtype=torch.float64).reshape(2, 3, 4, 5).requires_grad_()
    source: References = TensorReferences(tensor, NAMES)
    images = list(source.images(CHANNEL))
    assert source.class_indices() is None
    assert torch.equal(torch.stack(images), tensor)  # not clamped, not cast
    assert images[0].dtype == torch.float64
    assert not images[0].requires_grad


def test_a_tensor_per_target() -> None:
    cat, channel = torch.zeros(1, 3, 2, 2), torch.ones(2, 3, 2, 2)
    source = TensorReferences({"class:house cat": cat, CHANNEL: channel}, NAMES)
    assert source.class_indices() == [0]
    assert len(list(source.images(CHANNEL))) == 2
    assert len(list(source.images(Target("class", 0, variation=2)))) == 1
    with pytest.raises(UsageError, match=r"references=class-1: .*class-0, channel-layer3-5"):
        source.images(DOG)


def test_tensor_fingerprints() -> None:
    tensor = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    versions = [tensor, tensor + 1e-6, tensor.double(), tensor.half(), tensor.bfloat16(), tensor.reshape(2, 3, 2, 8)]
    prints = [TensorReferences(version, NAMES).fingerprint(CAT) for version in versions]
    assert len(set(prints)) == len(versions)
    strided = tensor.transpose(2, 3).contiguous().transpose(2, 3)
    assert TensorReferences(strided, NAMES).fingerprint(CAT) == prints[0]


@pytest.mark.parametrize("shape", [(3, 4, 4), (0, 3, 4, 4), (2, 1, 4, 4), (2, 4, 4, 3), (2, 3, 0, 4)])
def test_wrong_shapes_are_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError) as caught:
        TensorReferences(torch.zeros(shape), NAMES)
    assert str(shape) in str(caught.value)


@pytest.mark.parametrize("bad", [np.zeros((1, 3, 2, 2)), torch.zeros(1, 3, 2, 2, dtype=torch.uint8), {"class:0": None}])
def test_what_is_no_tensor_of_floats(bad: object) -> None:
    with pytest.raises(UsageError):
        TensorReferences(bad, NAMES)  # type: ignore[arg-type]


# Real images.

REAL = pytest.mark.skipif("VITAL_TEST_DATA" not in os.environ, reason="needs the real data")


def data(name: str) -> Path:
    return Path(os.environ["VITAL_TEST_DATA"]) / "data" / name


@REAL
def test_imagenette_by_wordnet_id() -> None:
    source = FolderReferences(data("imagenette"), ClassNames.imagenet(), count=3)
    assert source.class_indices() == [0, 217, 482, 491, 497, 566, 569, 571, 574, 701]
    images = list(source.images(Target("class", 701)))
    files = [load_rgb(path) for path in (data("imagenette") / "n03888257").iterdir()]
    known = [fit(file, 224, 256) for file in files]
    assert all(any(torch.equal(image, other) for other in known) for image in images)
    with pytest.raises(UsageError, match=r'class 1 "goldfish"'):
        source.images(Target("class", 1))


@REAL
def test_the_imagenet_sample_has_every_class() -> None:
    source = FolderReferences(data("imagenet-sample"), ClassNames.imagenet(), count=1, size=64, resize=64)
    assert source.class_indices() == list(range(1000))
    assert all(next(iter(source.images(Target("class", index)))).shape == (3, 64, 64) for index in range(0, 1000, 50))


@REAL
def test_cifar_by_name_or_in_alphabetical_order() -> None:
    words = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    for names in (ClassNames(words), ClassNames.numbered(10)):
        source = FolderReferences(data("cifar10") / "train", names, count=5, size=32, resize=None)
        assert source.class_indices() == list(range(10))
        assert [source.class_names.label(index) for index in range(10)] == words
        assert len(list(source.images(Target("class", 9)))) == 5
