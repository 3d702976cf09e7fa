"""CLIP as a judge: zero-shot classification of pictures, and free naming (docs/methods/metrics.md)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vital_exp.errors import UsageError
from vital_exp.evaluation.reading import Reading
from vital_exp.evaluation.score import NotComputed
from vital_exp.evaluation.weights import local_file
from vital_exp.images.output import resized
from vital_exp.models.channels import RGB, as_rgb
from vital_exp.models.heads import Head
from vital_exp.models.network import Preprocessing
from vital_exp.models.open_clip import build_clip, known_name
from vital_exp.targets.class_names import ClassNames
from vital_exp.text_files import read_lines
from vital_exp.values import one_of

KEY = "evaluation.clip"
KEYS = {name: f"{KEY}.{name}" for name in ("model", "pretrained", "checkpoint")}
TEXTS_PER_PASS = 256
PHOTO = "photo"  # one template; the 80 of CLIP's paper cost 80 passes per name
TEMPLATES = (PHOTO, "imagenet")
NAMED = 3  # words that name a picture


@dataclass
class Clip:
    """A CLIP model of open_clip, which embeds pictures and texts.

    Attributes:
        model: the frozen model.
        tokenizer: maps texts to the model's tokens.
        preprocessing: the model's input size and normalisation.
        templates: sentences with ``{}`` for a name.
    """

    model: Any
    tokenizer: Any
    preprocessing: Preprocessing
    templates: Sequence[str]

    channels = RGB

    @property
    def identity(self) -> None:
        """None: CLIP's readings of natural images are not kept on disk."""
        return

    @property
    def head(self) -> Head:
        """A softmax over the scaled cosines with the names of all classes."""
        return Head()

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        found: torch.device = next(self.model.parameters()).device
        return found

    @torch.no_grad()
    def __call__(self, pictures: Tensor) -> Reading:
        """Return the embeddings of pictures (n, C, H, W) in [0, 1]: (n, D), unit vectors."""
        fitted = resized(as_rgb(pictures), self.preprocessing.size).to(self.device)
        return Reading(normalize(self.model.encode_image(self.preprocessing.normalise(fitted)).float(), dim=1).cpu())

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Return the embeddings of texts, (n, D), unit vectors."""
        parts = []
        for start in range(0, len(texts), TEXTS_PER_PASS):
            tokens = self.tokenizer(list(texts[start : start + TEXTS_PER_PASS])).to(self.device)
            parts.append(normalize(self.model.encode_text(tokens).float(), dim=1).cpu())
        return torch.cat(parts)

    def names(self, names: Sequence[str]) -> Tensor:
        """Return the mean embedding of each name over all templates, (n, D), unit vectors."""
        sentences = [template.format(name) for name in names for template in self.templates]
        by_name = self.texts(sentences).view(len(names), len(self.templates), -1)
        return normalize(by_name.mean(dim=1), dim=1)

    @property
    def scale(self) -> float:
        """The factor of the cosines before the softmax over names, CLIP's inverse temperature."""
        return float(self.model.logit_scale.exp())


def load_clip(
    model: str,
    checkpoint: str | None,
    pretrained: str,
    templates: str,
    download: bool,
    device: torch.device,
    cache_dir: Path | None = None,
) -> Clip:
    """Load a CLIP model with open_clip.

    Args:
        model: a name of open_clip's (ViT-B-32 and ViT-B-32-quickgelu differ), or a JSON file with its configuration.
        checkpoint: local weights, .safetensors or weights-only .pt.
        pretrained: the tag of published weights ("openai"), used where there is no ``checkpoint``.
        templates: ``"photo"`` ("a photo of a {}") or ``"imagenet"``, the 80 of CLIP's paper.
        download: whether published weights may be downloaded.
        device: the device for the model.
        cache_dir: the folder for downloaded weights.

    Raises:
        NotComputed: open_clip is not installed, or there are no weights and ``download`` is false.
        UsageError: an unknown model, tag or template, or a file that does not exist.
    """
    one_of(f"{KEY}.templates", templates, TEMPLATES)
    place = local_file(checkpoint, f"{KEY}.checkpoint")
    if find_spec("open_clip") is None:
        raise NotComputed("needs open_clip: pip install vital-exp[clip]")
    if place is None and not download:
        raise NotComputed(f"needs the weights of CLIP: {KEY}.checkpoint=file, or download=true")
    import open_clip

    name = known_name(model, KEYS)
    network = build_clip(name, place, pretrained, cache_dir, KEYS).to(device).eval().requires_grad_(False)
    size, visual = network.visual.image_size, network.visual
    side = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
    preprocessing = Preprocessing(tuple(visual.image_mean), tuple(visual.image_std), (side[0], side[1]))
    chosen = ["a photo of a {}."] if templates == PHOTO else [_format(t) for t in open_clip.OPENAI_IMAGENET_TEMPLATES]
    return Clip(network, open_clip.get_tokenizer(name), preprocessing, chosen)


def _format(template: Callable[[str], str]) -> str:
    """The sentence with ``{}`` of a template of open_clip's, which is a function of a name."""
    return str(template("{}"))


def vocabulary(path: str | None, class_names: ClassNames) -> list[str]:
    """Return the words that may name a picture: the lines of a file, or all names of ImageNet's classes (None).

    The labels of the network's own classes are added.

    Raises:
        UsageError: the file does not exist, or there are fewer than three words.
    """
    place = local_file(path, f"{KEY}.vocabulary")
    if place is None:
        words = [name for names in ClassNames.imagenet().names for name in names]
    else:
        words = read_lines(place, f"{KEY}.vocabulary")
    words = list(dict.fromkeys([*words, *(class_names.label(index) for index in range(len(class_names)))]))
    if len(words) < NAMED:
        raise UsageError(f"{KEY}.vocabulary", path, f"at least {NAMED} words are needed")
    return words


def best_words(pictures: Tensor, words: Tensor, count: int = NAMED) -> Tensor:
    """Return the numbers of the words most similar to each picture, best first, (N, count).

    Args:
        pictures: (N, D), embeddings, unit vectors.
        words: (W, D), embeddings of the vocabulary, unit vectors.
        count: words per picture.
    """
    return (pictures @ words.T).topk(count, dim=1).indices


def naming(pictures: Tensor, words: Tensor, names: Tensor) -> Tensor:
    """Return the similarity of each picture's best three words to its class name, (N,): the mean of their cosines.

    Args:
        pictures: (N, D), embeddings, unit vectors.
        words: (W, D), embeddings of the vocabulary.
        names: (N, D), embeddings of each picture's class name.
    """
    chosen = words[best_words(pictures, words)]  # (N, 3, D)
    return torch.einsum("nkd,nd->nk", chosen, names).mean(dim=1)
