"""Keys that have no effect because of the values of other keys: the rules of each command, and a one-line warning.

Such a key is no mistake: a sweep may go over options of which only some read the key. Imports no torch: the caller
passes the function that looks up metrics (``vital_exp.evaluation.metrics.chosen``).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from vital_exp.errors import UsageError
from vital_exp.image_folders import names_file
from vital_exp.recorded_config import recorded_config
from vital_exp.run_folders import is_sweep

# Names of the metrics that read a setting.
CLIP_METRICS, NAMING, LPIPS, KID = ("clip", "naming"), ("naming",), ("lpips_diversity",), ("kid",)
CLASSES = "class"  # the kind of target without a layer

logger = logging.getLogger(__name__)


class MetricNeeds(Protocol):
    """The attributes of a metric that the rules read; see :class:`vital_exp.evaluation.metrics.Metric`."""

    @property
    def name(self) -> str:
        """The metric's name."""
        ...

    @property
    def over(self) -> str:
        """``once``, ``judges`` or ``spaces``: computed once, with each judge, or in each feature space."""
        ...

    @property
    def classes(self) -> bool:
        """Whether the targets must be classes."""
        ...


# Returns the metrics with the given names, or all metrics for None; raises UsageError.
Chosen = Callable[[Any], Sequence[MetricNeeds]]


class Asked:
    """A configuration, and the keys that the user gave.

    Args:
        content: the composed configuration, as nested dicts.
        given: the dotted keys that the user gave.
        chosen: returns the metrics with the given names.
    """

    def __init__(self, content: Mapping[str, object], given: Iterable[str], chosen: Chosen) -> None:
        self.content, self.given, self.chosen = content, frozenset(given), chosen

    def __call__(self, key: str) -> Any:
        """Return the value of a dotted key; None where there is none."""
        return value_at(self.content, key)

    @cached_property
    def hidden(self) -> bool:
        """Whether the targets are known to be hidden units."""
        kind = self("target.kind")
        if kind is None and isinstance(self("run"), str):
            with suppress(UsageError):  # the reader of the run folder reports this mistake
                kind = (recorded_config(Path(self("run")).expanduser(), "run").get("target") or {}).get("kind")
        return kind not in (None, CLASSES, "circuit")

    @cached_property
    def metrics(self) -> list[MetricNeeds]:
        """The metrics that are computed; with a wrong name all metrics, since the evaluation reports the mistake."""
        given = self("metrics") if "metrics" in self.content else self("evaluation.metrics")
        try:
            found = self.chosen(given)
        except UsageError:
            found = self.chosen(None)
        return [metric for metric in found if not (metric.classes and self.hidden)]

    @property
    def uses_judges(self) -> bool:
        """Whether a metric is computed with each judge, or in each judge's feature space."""
        return any(metric.over != "once" for metric in self.metrics)

    @property
    def uses_spaces(self) -> bool:
        """Whether a metric is computed in feature spaces."""
        return any(metric.over == "spaces" for metric in self.metrics)

    def uses(self, names: Sequence[str]) -> bool:
        """Whether at least one of the named metrics is computed."""
        return any(metric.name in names for metric in self.metrics)


@dataclass(frozen=True)
class Rule:
    """The condition under which some keys have no effect.

    Attributes:
        keys: dotted keys; ``*`` matches any characters.
        idle: whether the keys have no effect in a configuration.
        why: the reason, in a few words.
    """

    keys: tuple[str, ...]
    idle: Callable[[Asked], bool]
    why: str


def _network_of(source: str) -> Callable[[Asked], bool]:
    return lambda asked: asked("model.source") not in (None, *source.split())


def _scores(asked: Asked) -> bool:
    """Whether metrics are computed at all."""
    if asked("answers") is not None or asked("evaluation.enabled") is False:
        return False
    return not (asked("study") and isinstance(asked("run"), str) and is_sweep(Path(asked("run")).expanduser()))


def _unread(name: str) -> Callable[[Asked], bool]:
    """Whether metrics are computed, and a property of ``Asked`` is false for them."""
    return lambda asked: _scores(asked) and not getattr(asked, name)


def _none_of(names: Sequence[str]) -> Callable[[Asked], bool]:
    return lambda asked: _scores(asked) and not asked.uses(names)


def _weight_is_given(term: str) -> Callable[[Asked], bool]:
    """Whether the model's weight of a prior is unused: the objective lacks the term, or the term has its own weight."""
    return lambda asked: asked(f"objective.{term}") is None or asked(f"objective.{term}.weight") is not None


def _aligns_nothing(asked: Asked) -> bool:
    """Whether no term of the objective takes its layers from the model."""
    terms = (asked("objective") or {}).values()
    return asked("target.kind") != "circuit" and not any({"layers", "layer"} & set(term) for term in terms)


def _logger_is(*names: str) -> Callable[[Asked], bool]:
    """Whether the logger's class is one of the names; an empty name stands for no logger."""
    return lambda asked: str(asked("logger._target_") or "").rpartition(".")[2] in names


def _unless(key: str, *values: object) -> Callable[[Asked], bool]:
    return lambda asked: asked(key) not in values


def _is(key: str, *values: object) -> Callable[[Asked], bool]:
    return lambda asked: asked(key) in values


def _has(key: str) -> Callable[[Asked], bool]:
    return lambda asked: not _is_nothing(asked(key))


def _lacks(key: str) -> Callable[[Asked], bool]:
    return lambda asked: _is_nothing(asked(key))


def _is_nothing(value: object) -> bool:
    """Whether a value is None, false or empty."""
    return value is None or value is False or (isinstance(value, (str, Sequence, Mapping)) and not value)


def _without_facets(asked: Asked) -> bool:
    """Whether references are not clustered."""
    return asked("references.facets") in (None, 1)


def _finds_by_embedding(asked: Asked) -> bool:
    """Whether CLIP looks for units: always for words, and for an image with ``find_by=embedding``."""
    query = asked("find")
    return query is not None and (asked("find_by") == "embedding" or not names_file(str(query)))


def _of_a_transformers_folder(asked: Asked) -> bool:
    return asked("model.source") == "transformers" and Path(str(asked("model.name"))).expanduser().is_dir()


# For the commands that cannot prune the network.
DENSE = Rule(
    ("model.sparsify", "model.sparsity", "model.sparsify_images"), lambda asked: True, "only vital-visualize prunes it"
)
MODEL = (
    Rule(("model.sparsity", "model.sparsify_images"), _lacks("model.sparsify"), "model.sparsify prunes nothing"),
    Rule(("model.factory",), _network_of("python"), "only model.source=python has a factory"),
    Rule(("model.weights",), _network_of("torchvision open_clip"), "this source has no choice of published weights"),
    Rule(("model.pretrained",), _is("model.source", "python"), "a python factory makes its own weights"),
    Rule(("model.pretrained",), _of_a_transformers_folder, "the weights are those of the folder"),
)
# Keys that only some metrics read: keys of the group evaluation, and the commands' own keys of the same meaning.
METRICS = (
    Rule(("judges", "evaluation.judges"), _unread("uses_judges"), "the metrics use no judge"),
    Rule(("evaluation.features",), _unread("uses_spaces"), "the metrics use no feature space"),
    Rule(
        ("evaluation.inception", "evaluation.inception_features"),
        _unread("uses_spaces"),
        "the metrics use no feature space",
    ),
    Rule(("evaluation.kid_subset_size",), _none_of(KID), "kid is not computed"),
    Rule(("evaluation.lpips.*",), _none_of(LPIPS), "lpips_diversity is not computed"),
    Rule(("evaluation.clip.vocabulary",), _none_of(NAMING), "naming is not computed"),
    Rule(("evaluation.clip.*",), _none_of(CLIP_METRICS), "neither clip nor naming is computed"),
)
REFERENCES = (
    Rule(("references.root",), _is("references.source", "embedded"), "the drawn images come with the package"),
    Rule(
        tuple(f"references.{key}" for key in ("index", "region", "window", "patch.*")),
        _unless("references.source", "mined"),
        "only references=mined reads it",
    ),
    Rule(
        ("references.patch.*",), _is("references.region", "image", "window"), "only references.region=patch has patches"
    ),
    Rule(
        ("references.window", "references.enlarge"),
        _is("references.region", "image", "patch"),
        "only references.region=window has windows",
    ),
    Rule(("references.embedding",), _without_facets, "references.facets=1 clusters nothing"),
    Rule(
        ("references.candidates",),
        lambda asked: _without_facets(asked) and asked("references.source") != "mined",
        "only references=mined and references.facets read it",
    ),
    Rule(
        ("references.candidates",),
        lambda asked: _without_facets(asked) and asked("references.region") in ("image", "window"),
        "only references.region=patch and references.facets read it",
    ),
    Rule(
        ("references.candidates",),
        lambda asked: _without_facets(asked) and not _is_nothing(asked("references.index")),
        "the index has its own",
    ),
)
FOUND_CONCEPTS = ("method", "count", "class", "importance", "seed", "patches", "explained")
CHECKS = {  # each check of vital-audit, and the keys that it does not read
    "path_similarity": (
        *("methods", "steps", "views", "seed", "judges", "targets", "decoy", "aim", "overrides"),
        *("snapshots.*", "detector.*", "tuning.*"),
    ),
    "fooling_circuit": ("layer", "aim", "tuning.*"),
    "silent_units": ("aim", "snapshots.*", "detector.*", "tuning.*"),
    "slingshot": ("layer", "snapshots.*", "detector.*"),
    "proxpulse": ("layer", "aim", "snapshots.*", "detector.*"),
    "diversion": ("layer", "aim", "snapshots.*", "detector.*", "tuning.*"),
    "circuit_breaker": ("decoy", "aim", "snapshots.*", "detector.*"),
    "theory": (
        *("methods", "views", "judges", "decoy", "layer", "aim", "overrides"),
        *("snapshots.*", "detector.*", "tuning.*"),
    ),
}
OF_CHANNELS = ("channels", "pooling", "class", "relevance_method", "patches", "directions", "sae", "autoencoder.*")
OF_UNITS = ("layers", *OF_CHANNELS, "k", "patch.*", "sheets", "overlays", "naming.*", "batch_size", "save_every")
FINDS = ("find_by", "find_count")
ALL_OF_UNITS = (*OF_UNITS, "model.*", "find", *FINDS)

RULES: Mapping[str, Sequence[Rule]] = {
    "visualize": (
        Rule(("evaluation.*",), _is("evaluation.enabled", False), "evaluation=none"),
        *METRICS,
        *MODEL,
        *REFERENCES,
        Rule(
            ("relevance.every",),
            _is("relevance.method", "none", "correlation"),
            "this relevance reads references alone",
        ),
        Rule(("image.grow_until",), _lacks("image.grow_from"), "image.grow_from=null: pictures do not grow"),
        Rule(("model.total_variation",), _weight_is_given("total_variation"), "no term of the objective asks for it"),
        Rule(("model.l2",), _weight_is_given("l2"), "no term of the objective asks for it"),
        Rule(("model.layers", "model.layer_weights"), _aligns_nothing, "no term of the objective aligns layers"),
        Rule(
            ("movie", "checkpoint_every", "resume", "pictures_every", "log_targets", "logger.*"),
            lambda asked: "out" in asked.content and asked("out") is None,  # only visualize() has out
            "without out=folder nothing is written",
        ),
        Rule(
            ("target.variations",),  # the term interpolation reads it too
            lambda asked: "out" in asked.content and asked("objective.interpolation") is None,
            'in Python each target is named: "class:star_v2"',
        ),
        Rule(("views_per_pass",), _is("views", 1), "views=1"),
        Rule(("image.scale",), _has("image.size"), "image.size is given"),
        Rule(("pictures_every",), _logger_is("", "CSVLogger"), "this logger takes no pictures"),
        Rule(("trainer.log_every_n_steps", "log_targets"), _logger_is(""), "logger=none"),
        Rule(
            tuple(f"target.{key}" for key in FOUND_CONCEPTS),
            _has("target.concepts"),
            "target.concepts names concepts that are found",
        ),
        Rule(
            ("target.importance", "target.explained"),
            lambda asked: asked("target.kind") == "concept" and asked("target.class") is None,
            "importance is for a class, target.class",
        ),
        Rule(
            ("target.k",),
            lambda asked: (
                asked("target.activation") in ("relu", "jump_relu")
                or (asked("target.activation") == "batch_topk" and asked("target.threshold") is not None)
            ),
            "target.activation does not read it",
        ),
        Rule(
            tuple(f"target.{key}" for key in ("encoder", "encoder_bias", "decoder", "decoder_bias")),
            lambda asked: asked("target.format") in ("saev", "prisma", "saelens", "overcomplete"),
            "target.format names the tensors",
        ),
        Rule(
            ("target.threshold",),
            lambda asked: asked("target.activation") in ("relu", "topk"),
            "target.activation does not read it",
        ),
    ),
    "evaluate": (
        Rule(("project", "offline"), _lacks("wandb"), "nothing is sent: wandb=true"),
        Rule(
            ("judges", "metrics", "model.*", "references.*", "study", "evaluation.judges", "evaluation.metrics"),
            _has("answers"),
            "answers=... reads answers back and scores nothing else",
        ),
        Rule(
            ("judges", "metrics", "model.*", "references.*", "download", "evaluation.*"),
            lambda asked: asked("answers") is None and not _scores(asked),
            "study=true of a folder of runs scores none of them",
        ),
        *(
            Rule((f"evaluation.{key}",), lambda asked, key=key: key in asked.given, f"{key}=... is given")  # type: ignore[misc]
            for key in ("judges", "metrics", "download")
        ),
        *METRICS,
        *MODEL,
        *REFERENCES,
        Rule(
            tuple(f"references.{key}" for key in ("count", "seed", "size", "cache")),
            lambda asked: asked("references.source") == "folder" and asked("references.root") is None,
            "the references are those of the run, or none: references.root=folder names others",
        ),
        Rule(
            ("study_targets", "study_seed"),
            lambda asked: not asked("study") or asked("answers") is not None,
            "no study is written: study=true",
        ),
        Rule(("pattern", "targets"), _has("run"), "a run folder knows its targets"),
        Rule(("pattern",), _has("targets"), "targets=... names every picture's target"),
    ),
    "mine": (
        DENSE,
        Rule(ALL_OF_UNITS, _has("spectrum"), "spectrum=... asks no network"),
        Rule(("images",), lambda asked: isinstance(asked("spectrum"), str), "spectrum=... names its own folder"),
        Rule(("spectrum_size",), _lacks("spectrum"), "no spectrum is asked for: spectrum=true"),
        Rule(OF_CHANNELS, _has("concepts"), "concepts=... finds its own directions"),
        Rule(
            ("patch.*",),
            lambda asked: asked("patches") is False and not asked("concepts"),
            "patches=false",
        ),
        Rule(
            ("class", "relevance_method"), _unless("pooling", "relevance"), "only pooling=relevance ranks for a class"
        ),
        Rule(("autoencoder.*",), _lacks("sae"), "no autoencoder is named: sae=file"),
        Rule(("sae", "autoencoder.*"), _has("directions"), "directions=... are mined"),
        Rule(("overlays",), _is("sheets", False), "sheets=false"),
        Rule(FINDS, _lacks("find"), "nothing is looked for: find=words or find=file"),
        Rule(("naming.method", "naming.penalty"), _lacks("naming.words"), "no words are asked for: naming.words=true"),
        Rule(("naming.penalty",), _unless("naming.method", "splice"), "only naming.method=splice has a penalty"),
        Rule(("naming.formula_length",), _lacks("naming.labels"), "no labels are asked for: naming.labels=true"),
        Rule(("naming.clip.vocabulary",), _lacks("naming.words"), "no words are asked for: naming.words=true"),
        Rule(
            ("naming.clip.*", "naming.download"),
            lambda asked: not asked("naming.words") and not _finds_by_embedding(asked),
            "CLIP is asked for by naming.words=true, find=words or find_by=embedding",
        ),
        Rule(
            ("concepts.importance", "concepts.explained"),
            lambda asked: bool(asked("concepts")) and asked("concepts.class") is None,
            "importance is for a class, concepts.class",
        ),
        *MODEL,
    ),
    "report": (Rule(("project", "offline"), _lacks("wandb"), "nothing is sent: wandb=true"),),
    "atlas": (
        DENSE,
        Rule(
            (
                "model.*",
                "images",
                "layers",
                "units",
                "refresh",
                "sae",
                "pictures",
                "steps",
                "facets",
                "overrides",
                "judge",
            ),
            _has("compare"),
            "compare=... mines nothing",
        ),
        Rule(("autoencoder.*",), _lacks("sae"), "no autoencoder is named: sae=file"),
        Rule(("steps", "judge"), _is("pictures", "none"), "method=none makes no pictures"),
        Rule(("naming.clip.*", "naming.download"), _lacks("naming.words"), "no words are asked for: naming.words=true"),
        Rule(("project", "offline"), _lacks("wandb"), "nothing is sent: wandb=true"),
    ),
    "audit": tuple(Rule(keys, _is("check.name", check), f"check={check} reads none") for check, keys in CHECKS.items()),
}


def keys_of(overrides: Iterable[str]) -> list[str]:
    """Return the dotted keys of overrides that add or set a value."""
    return [text.partition("=")[0].lstrip("+") for text in overrides if not text.startswith("~")]


def value_at(content: Mapping[str, object], key: str) -> Any:
    """Return the value of a dotted key in nested dicts; None where there is none."""
    node: Any = content
    for name in key.split("."):
        node = node.get(name) if isinstance(node, Mapping) else None
    return node


def flat_keys(options: Mapping[str, object], prefix: str = "") -> list[str]:
    """Return the dotted keys of nested options."""
    found = []
    for name, value in options.items():
        found += flat_keys(value, f"{prefix}{name}.") if isinstance(value, Mapping) else [f"{prefix}{name}"]
    return found


def without_effect(command: str, content: Mapping[str, object], given: Iterable[str], chosen: Chosen) -> dict[str, str]:
    """Return the keys that the user gave and that have no effect, each with the reason.

    Args:
        command: the command's name, ``"visualize"``.
        content: the composed configuration, as nested dicts.
        given: dotted keys that the user gave.
        chosen: returns the metrics with the given names; called only if a key's effect depends on the metrics.
    """
    asked = Asked(content, given, chosen)
    if asked("list") is not None:
        return {}
    found: dict[str, str] = {}
    for key in dict.fromkeys(given):
        if _is_nothing(asked(key)):
            continue
        rules = (rule for rule in RULES[command] if any(fnmatch(key, pattern) for pattern in rule.keys))
        rule = next((rule for rule in rules if rule.idle(asked)), None)
        if rule is not None:
            found[key] = rule.why
    return found


def tell_without_effect(command: str, content: Mapping[str, object], given: Iterable[str], chosen: Chosen) -> None:
    """Log a one-line warning with the keys that :func:`without_effect` finds, if there are any."""
    reasons: dict[str, list[str]] = {}
    for key, why in without_effect(command, content, list(given), chosen).items():
        reasons.setdefault(why, []).append(key)
    if reasons:
        parts = (f"{', '.join(keys)} ({why})" for why, keys in reasons.items())
        logger.warning("without effect: %s", "; ".join(parts))
