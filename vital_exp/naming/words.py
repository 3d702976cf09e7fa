"""Words for units: the words of a vocabulary that CLIP finds nearest to a unit's strongest patches."""

from __future__ import annotations

from collections.abc import Sequence

from vital_exp.configuration import Configuration
from vital_exp.errors import UsageError
from vital_exp.evaluation.clip import NAMED, Clip, best_words, load_clip, vocabulary
from vital_exp.evaluation.score import NotComputed
from vital_exp.mining.images import ImageFolder
from vital_exp.mining.index import Index
from vital_exp.models.network import VisionNetwork
from vital_exp.naming.embeddings import unit_embeddings
from vital_exp.targets.class_names import ClassNames


def unit_words(index: Index, folder: ImageFolder, clip: Clip, words: Sequence[str]) -> dict[tuple[str, int], list[str]]:
    """Return the best words of each unit of an index, the nearest to its strongest patches (or images) first.

    Args:
        index: a finished index.
        folder: the images of the index.
        clip: embeds images and words.
        words: the vocabulary, at least three words.
    """
    embedded = clip.names(words)  # (W, D)
    best = best_words(unit_embeddings(index, folder, clip), embedded, NAMED).tolist()
    return {unit: [words[place] for place in places] for unit, places in zip(index.units(), best, strict=True)}


def clip_and_words(config: Configuration, network: VisionNetwork, key: str, value: object) -> tuple[Clip, list[str]]:
    """Return the CLIP model that the group ``naming`` of a configuration names, and the vocabulary.

    Args:
        config: the configuration of vital-mine or vital-atlas.
        network: the network whose units are named.
        key, value: the configuration key that needs CLIP, and its value; an error blames them.

    Raises:
        UsageError: CLIP's weights are not on disk and not to be downloaded, or another key is wrong.
    """
    keys = dict(config.naming.clip)
    words = vocabulary(keys.pop("vocabulary"), network.class_names or ClassNames([]))
    try:
        clip = load_clip(**keys, download=config.naming.download, device=network.device, cache_dir=config.cache)
    except NotComputed as error:
        needed = str(error).replace("evaluation.clip", "naming.clip").replace("download=true", "naming.download=true")
        raise UsageError(key, value, needed) from None
    except UsageError as error:
        raise UsageError(error.key.replace("evaluation.", "naming."), error.value, error.problem) from None
    return clip, words
