"""CLIP models of open_clip, built from local or published weights and wrapped as vision networks with a text tower."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from vital_exp.errors import UsageError
from vital_exp.models.checkpoints import load_checkpoint
from vital_exp.models.network import Preprocessing
from vital_exp.text_files import MARKS, read_json
from vital_exp.weights_places import KEY

# The keys of the group ``model`` that a mistake in a name, a tag or a checkpoint is blamed on.
MODEL_KEYS: Mapping[str, str] = {"model": "model.name", "pretrained": "model.weights", "checkpoint": "model.checkpoint"}


class ClipNetwork(nn.Module):
    """The image tower of a CLIP model as a network that returns embeddings, and its text tower.

    Args:
        clip: open_clip's model.
        tokenizer: turns a list of texts into the model's tokens.

    Attributes:
        clip: the model; the image tower's layers are ``clip.visual...``.
        num_classes: 0, since its output is an embedding.
    """

    num_classes = 0

    def __init__(self, clip: nn.Module, tokenizer: Callable[[list[str]], Tensor]) -> None:
        super().__init__()
        self.clip = clip
        self._tokenizer = tokenizer

    def forward(self, pictures: Tensor) -> Tensor:
        """Return the embeddings (N, D) of normalised pictures (N, 3, H, W), not scaled to length 1."""
        embeddings: Tensor = self.clip.encode_image(pictures)  # type: ignore[operator]
        return embeddings

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Return the embeddings of texts, (K, D) of length 1, on the CPU."""
        device = next(self.clip.parameters()).device
        tokens = self._tokenizer(list(texts)).to(device)
        return normalize(self.clip.encode_text(tokens).float(), dim=1).cpu()  # type: ignore[operator]


def clip_network(
    name: str,
    checkpoint: str | None,
    weights: str | None,
    cache_dir: Path | None,
    checkpoint_key: str | int | None = None,
) -> tuple[ClipNetwork, Preprocessing]:
    """Return a CLIP model as a vision network with its preprocessing.

    Args:
        name: open_clip's name of the model, or a JSON file with its configuration.
        checkpoint: local weights, .safetensors or weights-only .pt.
        weights: the tag of published weights, which are fetched into ``cache_dir``. Without tag and checkpoint the
            weights are random.
        cache_dir: where fetched weights go.
        checkpoint_key: where in the file the weights are.

    Raises:
        UsageError: open_clip is not installed; an unknown model or tag; weights that are not there or do not fit.
    """
    if find_spec("open_clip") is None:
        raise UsageError("model", "open_clip", "needs open_clip: pip install vital-exp[clip]")
    import open_clip

    name = known_name(name, MODEL_KEYS)
    place = None if checkpoint is None else Path(checkpoint).expanduser()
    clip = build_clip(name, place, weights, cache_dir, MODEL_KEYS, checkpoint_key)
    size, visual = clip.visual.image_size, clip.visual
    height, width = size if isinstance(size, (tuple, list)) else (size, size)
    own = Preprocessing(
        tuple(visual.image_mean), tuple(visual.image_std), (height, width), min(height, width), "bicubic"
    )
    return ClipNetwork(clip, open_clip.get_tokenizer(name)), own


def known_name(model: str, keys: Mapping[str, str]) -> str:
    """Return the name of a model; a configuration file is registered with open_clip under the file's name.

    Raises:
        UsageError: no such file or model.
    """
    import open_clip

    if model.endswith(".json"):
        place = Path(model).expanduser()
        if not place.is_file():
            raise UsageError(keys["model"], model, "no such file")
        read_json(place, keys["model"])
        if place.read_bytes().startswith(tuple(mark for mark, _ in MARKS)):
            problem = "begins with a byte order mark, which open_clip cannot read: save it as plain UTF-8"
            raise UsageError(keys["model"], model, problem)
        open_clip.add_model_config(place)
        model = place.stem
    if model not in open_clip.list_models():
        raise UsageError(keys["model"], model, "no such model in open_clip", open_clip.list_models())
    return model


def build_clip(
    name: str,
    checkpoint: Path | None,
    pretrained: str | None,
    cache_dir: Path | None,
    keys: Mapping[str, str],
    checkpoint_key: str | int | None = None,
) -> Any:
    """Build a model of open_clip with the weights of a file, of a published tag, or else with random weights.

    Raises:
        UsageError: an unknown tag, or the weights of another model.
    """
    import open_clip

    if checkpoint is None and pretrained is not None:
        tags = open_clip.list_pretrained_tags_by_model(name)
        if pretrained not in tags:
            raise UsageError(keys["pretrained"], pretrained, f"open_clip has {', '.join(tags) or 'none'}", tags)
        return open_clip.create_model(name, pretrained=pretrained, cache_dir=cache_dir and str(cache_dir))
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)  # "No pretrained weights loaded": the checkpoint is loaded below
    try:
        network = open_clip.create_model(name, pretrained=None)
    finally:
        logging.disable(previous)
    if checkpoint is not None:
        try:
            load_checkpoint(network, checkpoint, checkpoint_key)
        except UsageError as error:
            key = keys["checkpoint"] if error.key == KEY else error.key
            raise UsageError(key, error.value, f"{error.problem} (the network is {name})", error.options) from error
    return network
