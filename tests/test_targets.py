"""Class names, class selections and the spellings of a target."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from vital_exp.errors import UsageError
from vital_exp.targets.class_names import ClassNames
from vital_exp.targets.selection import class_targets, parse_target
from vital_exp.targets.unit import Target

TEN = ClassNames.numbered(10)


@pytest.fixture(scope="module")
def imagenet() -> ClassNames:
    return ClassNames.imagenet()


def test_imagenet_names(imagenet: ClassNames) -> None:
    assert len(imagenet) == 1000
    assert [imagenet.label(i) for i in (0, 207, 217, 999)] == [
        "tench",
        "golden retriever",
        "English springer",
        "toilet tissue",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "golden retriever",
        "Golden_Retriever",
        " GOLDEN-RETRIEVER ",
        "goldenretriever",
        "n02099601",
        "N02099601",
        "207",
        "0207",
    ],
)
def test_find_takes_every_way_to_name_a_class(imagenet: ClassNames, text: str) -> None:
    assert imagenet.find(text) == 207


def test_find_takes_synonyms(imagenet: ClassNames) -> None:
    assert imagenet.find("Tinca tinca") == 0
    assert imagenet.find("man eating shark") == 2


@pytest.mark.parametrize(("text", "first", "second"), [("crane", 134, 517), ("Maillot", 638, 639), ("panda", 387, 388)])
def test_an_ambiguous_name_is_refused_with_both_indices(
    imagenet: ClassNames, text: str, first: int, second: int
) -> None:
    with pytest.raises(UsageError, match=f"{first}.*{second}"):
        imagenet.find(text)


def test_a_label_comes_before_the_same_synonym_of_another_class(imagenet: ClassNames) -> None:
    assert imagenet.lookup("missile") == (657,)  # 744 is "projectile, missile"


def test_every_unambiguous_label_finds_its_class(imagenet: ClassNames) -> None:
    found = [imagenet.lookup(imagenet.label(i)) for i in range(1000)]
    assert all(i in classes for i, classes in enumerate(found))
    assert sum(len(classes) > 1 for classes in found) == 6  # crane, maillot and cardigan, twice each


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("golden retreiver", "golden retriever"),
        ("1000", "from 0 to 999"),
        ("-1", "from 0 to 999"),
        ("", "1000 classes"),
        ("9" * 5000, "1000 classes"),
        ("²", "1000 classes"),
    ],
)
def test_unknown_names_say_what_is_allowed(imagenet: ClassNames, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        imagenet.find(text, key="targets")
    assert caught.value.key == "targets"


def test_names_of_ones_own() -> None:
    names = ClassNames(
        ["zebra", ("cat", "house cat"), 'a "quoted"\nname', "🦓", "-", "tench, Tinca tinca", "Caf\u00e9"]
    )
    assert [names.find(t) for t in ("Zebra", "house_cat", 'A "quoted"\nName', "🦓", "-", "tinca tinca")] == [*range(6)]
    assert names.find("cafe\u0301") == 6  # the decomposed accent of another file system
    assert names.label(5) == "tench, Tinca tinca"
    assert ClassNames([7, "eight"]).label(0) == "7"  # type: ignore[list-item]


def test_a_name_of_digits_comes_before_an_index_in_lookup() -> None:
    names = ClassNames(["0", "1", "10", "2"])  # ten folders in alphabetical order look like this
    assert names.find("10") == 2
    assert names.find("2") == 3
    assert names.find("3") == 3


@pytest.mark.parametrize("bad", ["cat", [()]])
def test_names_that_are_no_names(bad: object) -> None:
    with pytest.raises(UsageError):
        ClassNames(bad)  # type: ignore[arg-type]


def test_ids_must_be_as_many_as_names() -> None:
    with pytest.raises(UsageError):
        ClassNames(["a", "b"], ["n1"])


def test_numbered() -> None:
    assert TEN.label(3) == "class 3"
    assert TEN.find("class_3") == 3
    assert TEN.is_numbered
    assert not ClassNames(["a"]).is_numbered
    with pytest.raises(UsageError, match="no classes"):
        ClassNames.numbered(0).label(0)


# Selections.


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        (3, [3]),
        ("3", [3]),
        ([4, 2, 4], [4, 2]),
        (["4", "class 2", 4], [4, 2]),
        ("0-4,7,9-9", [0, 1, 2, 3, 4, 7, 9]),
        (" 2 - 4 , 1 ", [2, 3, 4, 1]),
        ("5-5", [5]),
        (["8-9", "0-1"], [8, 9, 0, 1]),
        ("all", list(range(10))),
        ("class 5", [5]),
        ("class 5, class_1", [5, 1]),
        (range(2), [0, 1]),
    ],
)
def test_class_targets(selection: object, expected: list[int]) -> None:
    targets = class_targets(selection, TEN)  # type: ignore[arg-type]
    assert [target.index for target in targets] == expected
    assert all(target.kind == "class" and target.label == f"class {target.index}" for target in targets)


def test_all_means_the_available_classes() -> None:
    assert [target.index for target in class_targets("all", TEN, available=[7, 2])] == [2, 7]
    assert [target.index for target in class_targets("1", TEN, available=[7, 2])] == [1]


def test_a_name_with_a_comma_is_one_class() -> None:
    assert [t.index for t in class_targets("Paris, Texas", ClassNames(["Paris", "Paris, Texas", "Texas"]))] == [1]


def test_variations_follow_their_class() -> None:
    names = [target.name for target in class_targets("1-2", TEN, variations=2)]
    assert names == ["class-1", "class-1_v2", "class-2", "class-2_v2"]


@pytest.mark.parametrize(
    "selection", [10, -1, "10", "-1", "0-10", "0-999999999", "4-2", "", [], "1,,2", 2.0, None, True, [None], "dog"]
)
def test_bad_selections(selection: object) -> None:
    with pytest.raises(UsageError) as caught:
        class_targets(selection, TEN)  # type: ignore[arg-type]
    assert caught.value.key == "target.index"


def test_out_of_range_says_how_many_classes() -> None:
    with pytest.raises(UsageError, match="10 classes"):
        class_targets(10, TEN)


def test_nothing_available_is_an_error() -> None:
    with pytest.raises(UsageError, match="selects no class"):
        class_targets("all", TEN, available=[])


def test_variations_below_one() -> None:
    with pytest.raises(UsageError, match=r"target\.variations"):
        class_targets(1, TEN, variations=0)


# Spellings.

NUMBERS = st.integers(0, 99_999)
LAYERS = st.text("abcXYZ019._", min_size=1, max_size=12)


@st.composite
def units(draw: st.DrawFn) -> Target:
    kind = draw(st.sampled_from(["class", "channel", "neuron", "direction"]))
    variation = draw(st.integers(1, 12))
    if kind == "class":
        return Target("class", draw(st.integers(0, 9)), variation=variation)
    position = draw(st.tuples(NUMBERS, NUMBERS)) if kind == "neuron" else None
    return Target(kind, draw(NUMBERS), draw(LAYERS), position, variation)


@given(units())
def test_safe_names_round_trip(target: Target) -> None:
    assert parse_target(target.name, TEN) == target


@given(units())
def test_colon_spellings_round_trip(target: Target) -> None:
    assume(target.kind != "direction")  # has none
    head = target.layer or "class"
    position = "@{},{}".format(*target.position) if target.position else ""
    variation = f"_v{target.variation}" if target.variation > 1 else ""
    assert parse_target(f"{head}:{target.index}{position}{variation}", TEN) == target


@given(st.text(max_size=20) | st.from_regex(r"(class|neuron|channel)?[-:.@,0-9_v]*", fullmatch=True))
def test_any_text_is_a_target_or_a_usage_error(text: str) -> None:
    try:
        target = parse_target(text, TEN)
    except UsageError:
        return
    assert target.kind in {"class", "channel", "neuron", "direction"}


def test_class_spellings_carry_the_label(imagenet: ClassNames) -> None:
    for spelling in ("class:207", "class:golden retriever", "class:n02099601", "class-207", "class: Golden_Retriever "):
        target = parse_target(spelling, imagenet)
        assert (target, target.label) == (Target("class", 207), "golden retriever")


def test_digits_are_always_the_index() -> None:
    names = ClassNames(["0", "1", "10", "2"])
    assert parse_target("class:2", names).index == 2
    assert [t.index for t in class_targets("2", names)] == [2]


def test_layers_with_hyphens_and_colons() -> None:
    assert parse_target("a:b:3", TEN) == Target("channel", 3, "a:b")
    assert parse_target("neuron-my-net.1-4-5-6", TEN) == Target("neuron", 4, "my-net.1", (5, 6))


def test_a_target_passes_through(imagenet: ClassNames) -> None:
    target = Target("class", 5000)
    assert parse_target(target, imagenet) is target


@pytest.mark.parametrize(
    "spelling",
    [
        "",
        "207",
        "layer4",
        "layer4:",
        ":3",
        "layer4:-3",
        "layer4:1@7",
        "layer4:x",
        "class:10",
        "class-10",
        "class:",
        207,
    ],
)
def test_bad_spellings(spelling: object) -> None:
    with pytest.raises(UsageError) as caught:
        parse_target(spelling, TEN)  # type: ignore[arg-type]
    assert caught.value.key == "targets"


@pytest.mark.skipif("VITAL_TEST_DATA" not in os.environ, reason="needs the real data")
def test_imagenet_order_agrees_with_the_data_set(imagenet: ClassNames) -> None:
    listed = json.loads((Path(os.environ["VITAL_TEST_DATA"]) / "data" / "imagenet_classes.json").read_text())
    assert all(imagenet.find(wnid) == entry["index"] for wnid, entry in listed.items())
    assert all(imagenet.label(entry["index"]) == entry["name"] for entry in listed.values())
