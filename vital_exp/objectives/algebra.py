"""Sums of terms in Python, by operators: ``term("activation") + 0.5 * term("diversity", layer="layer3")``."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hydra.core.override_parser.types import Quote, QuotedString

from vital_exp.config_tree import known_keys, options_of
from vital_exp.errors import UsageError
from vital_exp.values import number, one_of

GROUP = "objective"


@dataclass(frozen=True)
class _Weighted:
    """One option of the group ``objective``, with its weight and its other keys."""

    name: str
    choice: str  # "kl_gaussian" of "alignment/kl_gaussian"; "" for an option without a group below it
    weight: float | None  # None for a gradient rule, which is no term of the sum
    options: tuple[tuple[str, object], ...]


@dataclass(frozen=True)
class Sum:
    """A weighted sum of terms: ``visualize`` takes its ``overrides``, and ``str`` returns its caption.

    Operators return new sums. A term without a written weight has the weight 1, whatever the configuration's default.
    """

    terms: tuple[_Weighted, ...]

    def __add__(self, other: Sum) -> Sum:
        """Return the sum of both."""
        if twice := {term.name for term in self.terms} & {term.name for term in other.terms}:
            raise UsageError(GROUP, twice.pop(), "is in the sum already: each option once")
        return Sum(self.terms + other.terms)

    def __mul__(self, factor: float) -> Sum:
        """Return the sum with all weights multiplied."""
        number(GROUP, factor, allowed="terms are multiplied by numbers")
        scaled = (None if term.weight is None else term.weight * factor for term in self.terms)
        return Sum(tuple(replace(term, weight=weight) for term, weight in zip(self.terms, scaled, strict=True)))

    __rmul__ = __mul__

    def __neg__(self) -> Sum:
        """Return the sum with the opposite weights."""
        return self * -1

    def __sub__(self, other: Sum) -> Sum:
        """Return the difference."""
        return self + -other

    def __str__(self) -> str:
        """Return the sum in words: ``alignment + 0.5 diversity``."""
        named = ((f"{term.name}/{term.choice}" if term.choice else term.name, term.weight) for term in self.terms)
        return caption({name: weight for name, weight in named if weight is not None})

    @property
    def overrides(self) -> list[str]:
        """The sum as overrides: ``visualize(model, targets, overrides=total.overrides)``."""
        lines = [f"{GROUP}=[{','.join(term.name for term in self.terms)}]"]
        for term in self.terms:
            lines += [f"{GROUP}/{term.name}={term.choice}"] if term.choice else []
            settings = {**({} if term.weight is None else {"weight": term.weight}), **dict(term.options)}
            lines += [f"{GROUP}.{term.name}.{key}={_written(value)}" for key, value in settings.items()]
        return lines


def term(name: str, **options: object) -> Sum:
    """Return one term (or gradient rule), an option of the configuration group ``objective``.

    Args:
        name: of the option; ``"alignment/kl_gaussian"`` names an option of the group ``objective/alignment``.
        options: values of the option's keys. Multiplication sets the weight.

    Raises:
        UsageError: no such option.

    Examples:
        >>> from vital_exp.objectives.algebra import term
        >>> total = term("activation") + 0.5 * term("diversity", layer="layer3")
        >>> print(total)
        activation + 0.5 diversity
        >>> total.overrides[1:3]
        ['objective.activation.weight=1.0', 'objective.diversity.weight=0.5']
    """
    option, _, choice = name.partition("/")
    one_of(GROUP, option, options_of(GROUP))
    if choice:
        one_of(f"{GROUP}/{option}", choice, options_of(f"{GROUP}/{option}"))
    weight = 1.0 if f"{GROUP}.{option}.weight" in known_keys() else None
    return Sum((_Weighted(option, choice, weight, tuple(options.items())),))


def caption(weights: dict[str, float]) -> str:
    """Return a weighted sum in words: ``alignment + 0.5 diversity - total_variation``.

    Examples:
        >>> from vital_exp.objectives.algebra import caption
        >>> caption({"alignment": 1.0, "diversity": 0.5, "l2": -1.0})
        'alignment + 0.5 diversity - l2'
    """
    words = ""
    for name, weight in weights.items():
        sign = " - " if weight < 0 else " + "
        size = "" if abs(weight) == 1 else f"{abs(weight):g} "
        words += (sign if words else "-" * (weight < 0)) + size + name
    return words


def _written(value: object) -> str:
    """Return a value in the syntax of overrides."""
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(_written, value))}]"
    if isinstance(value, str):
        return QuotedString(value, Quote.single).with_quotes()
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return repr(value)
