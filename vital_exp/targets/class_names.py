"""The names of a network's classes, and the search for a class by what a person calls it."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from vital_exp.errors import UsageError

# A decimal number of any sign; more digits than this never number a class.
INTEGER = re.compile(r"[+-]?[0-9]{1,18}")


def as_integer(text: str) -> int | None:
    """Return the number that ``text`` spells in decimal digits, or None when it is a word."""
    return int(text) if INTEGER.fullmatch(text.strip()) else None


def _key(text: str) -> str:
    """Return ``text`` without case, spaces, underscores and hyphens; they stay if nothing else would be left."""
    folded = unicodedata.normalize("NFC", text).casefold()  # macOS stores file names with decomposed accents
    return re.sub(r"[\s_-]+", "", folded) or folded


@dataclass(frozen=True)
class ClassNames:
    """One entry per class of a network: its names and, for ImageNet, its WordNet id.

    Attributes:
        names: per class a name, or a sequence of synonyms, the first of which is the label. The string
            "tench, Tinca tinca" is one label; a search also finds its parts.
        wordnet_ids: per class an id such as "n02099601"; None where there are none.

    Raises:
        UsageError: the names are one string, a class has no name, or there are not as many ids as names.

    Examples:
        >>> from vital_exp.targets.class_names import ClassNames
        >>> names = ClassNames([["golden retriever", "retriever"], "tabby cat"], ["n02099601", "n02123045"])
        >>> names.find("Golden_Retriever"), names.find("n02123045")
        (0, 1)
        >>> names.label(1)
        'tabby cat'
    """

    names: Sequence[str | Sequence[str]]
    wordnet_ids: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.names, str):
            raise UsageError("class_names", self.names, "must be a list with one name per class")
        names = tuple((n,) if isinstance(n, str) else _texts(n) for n in self.names)
        ids = None if self.wordnet_ids is None else tuple(map(str, self.wordnet_ids))
        if ids is not None and len(ids) != len(names):
            raise UsageError("class_names", len(names), f"names come with {len(ids)} WordNet ids: one each is needed")
        object.__setattr__(self, "names", names)
        object.__setattr__(self, "wordnet_ids", ids)

    @classmethod
    def imagenet(cls) -> ClassNames:
        """Return the 1000 ImageNet classes in their usual order, with synonyms and WordNet ids (timm's data)."""
        from timm.data import ImageNetInfo

        info = ImageNetInfo("imagenet-1k")
        return cls([names.split(", ") for names in info.label_descriptions()], info.label_names())  # type: ignore[no-untyped-call]

    @classmethod
    def numbered(cls, count: int) -> ClassNames:
        """Return names for ``count`` classes that have none: "class 0", "class 1", ..."""
        return cls([f"class {index}" for index in range(count)])

    @property
    def is_numbered(self) -> bool:
        """Whether the names are the numbers of :meth:`numbered`, not words."""
        return self == ClassNames.numbered(len(self))

    def __len__(self) -> int:
        return len(self.names)

    def label(self, index: int) -> str:
        """Return the first name of a class.

        Raises:
            UsageError: there is no such class.
        """
        return self.names[self.check(index)][0]

    def check(self, index: int, key: str = "target.index") -> int:
        """Return ``index`` if it is a class.

        Raises:
            UsageError: it is not; the message names ``key`` and the number of classes.
        """
        if not 0 <= index < len(self):
            raise UsageError(key, index, self._allowed())
        return index

    def lookup(self, text: str) -> tuple[int, ...]:
        """Return every class that ``text`` can mean, ascending: none, one, or several that share a name.

        Digits mean a class with that very name, else the class of that index. Words mean the classes with that label,
        else the classes with that synonym or WordNet id.
        """
        number = as_integer(text)
        if number is not None:
            named = tuple(i for i, names in enumerate(self.names) if text.strip() in names)
            return named or ((number,) if 0 <= number < len(self) else ())
        key = _key(text)
        return self._labels.get(key) or self._synonyms.get(key, ())

    def find(self, text: str, key: str = "target.index") -> int:
        """Return the class that ``text`` names: a name, a synonym, a WordNet id or a decimal index.

        Case, spaces, underscores and hyphens do not matter.

        Raises:
            UsageError: no class has that name (the nearest names are suggested), or several have (all are listed).
        """
        matches = self.lookup(text)
        if len(matches) == 1:
            return matches[0]
        if matches:
            choices = " or ".join(f"{i} ({', '.join(self.names[i])})" for i in matches)
            raise UsageError(key, text, f"several classes have this name; give the index: {choices}")
        if as_integer(text) is not None:
            raise UsageError(key, text, self._allowed())
        options = [name for names in self.names for name in names]
        raise UsageError(key, text, f"is not a class name; {self._allowed()}", options)

    def _allowed(self) -> str:
        if not len(self):
            return "this network has no classes"
        ids = ", a WordNet id" if self.wordnet_ids else ""
        if len(self) == 1:
            return f"this network has 1 class: give its name{ids} or its index, 0"
        return f"this network has {len(self)} classes: give a name{ids} or an index from 0 to {len(self) - 1}"

    @cached_property
    def _labels(self) -> dict[str, tuple[int, ...]]:
        return _table([[names[0]] for names in self.names])

    @cached_property
    def _synonyms(self) -> dict[str, tuple[int, ...]]:
        """All spellings of the classes: names, synonyms, the parts of names with commas, WordNet ids."""
        spellings = [[part for name in names for part in (name, *name.split(","))] for names in self.names]
        for words, wordnet_id in zip(spellings, self.wordnet_ids or (), strict=False):
            words.append(wordnet_id)
        return _table(spellings)


def _texts(names: Sequence[str]) -> tuple[str, ...]:
    """Return the synonyms of one class as text; a name may be a number in YAML."""
    texts = tuple(map(str, names)) if isinstance(names, Sequence) else (str(names),)
    if not texts:
        raise UsageError("class_names", "[]", "every class needs a name")
    return texts


def _table(spellings: list[list[str]]) -> dict[str, tuple[int, ...]]:
    """Return for each spelling the classes that have it."""
    table: dict[str, tuple[int, ...]] = {}
    for index, words in enumerate(spellings):
        for key in dict.fromkeys(map(_key, words)):
            table[key] = (*table.get(key, ()), index)
    return table
