"""Sparse autoencoders from files: plain files, whose tensors the user names, and the formats of known libraries."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vital_exp.errors import UsageError
from vital_exp.targets.autoencoder import (
    ACTIVATIONS,
    AS_IT_IS,
    BATCH_TOP_K,
    JUMP_RELU,
    KEY,
    TOP_K,
    SparseAutoencoder,
)
from vital_exp.targets.directions import load_directions
from vital_exp.targets.overcomplete_autoencoders import FORMAT as OVERCOMPLETE
from vital_exp.targets.overcomplete_autoencoders import as_plain, is_overcomplete
from vital_exp.targets.published_autoencoders import FORMATS, SAELENS, autoencoder_tensors, detect, load_published
from vital_exp.values import is_number, number, one_of, whole_number

AUTO, PLAIN = "auto", "plain"


def load_autoencoder(keys: Mapping[str, Any], channels: int) -> SparseAutoencoder:
    """Load the autoencoder that the keys of ``target=sae`` name; no code of a file is run.

    Args:
        keys: layer, checkpoint, format, mean, scale, and for a plain file encoder, encoder_bias, decoder, decoder_bias,
            activation, k, threshold.
        channels: the number of the layer's channels.

    Raises:
        UsageError: no such file or tensor, tensors of another width, a file of another format or one that would run
            code, an unknown activation, a k out of range.
    """
    asked = one_of("target.format", keys["format"], (AUTO, *FORMATS, OVERCOMPLETE, PLAIN))
    path = _path(keys["checkpoint"], asked)
    form = (detect(path) or PLAIN) if asked == AUTO else asked
    if form in (PLAIN, OVERCOMPLETE):
        tensors = autoencoder_tensors(path)
        if form == OVERCOMPLETE or (asked == AUTO and is_overcomplete(tensors)):
            tensors, keys = as_plain(tensors, keys)
        loaded = _plain(tensors, keys, channels)
    else:
        _refuse_keys_of_plain_files(keys, form)
        loaded = load_published(path, form, str(keys["layer"]), channels, scaled=keys["scale"] is not None)
    return _standardised(loaded, keys, channels)


def _standardised(loaded: SparseAutoencoder, keys: Mapping[str, Any], channels: int) -> SparseAutoencoder:
    """Return the autoencoder of (activations - ``target.mean``) times ``target.scale``, where these keys are set."""
    set_keys = [key for key in ("mean", "scale") if keys[key] is not None]
    if not set_keys:
        return loaded
    if loaded.normalisation != AS_IT_IS:
        problem = f"leave it out: the file normalises activations itself ({loaded.normalisation})"
        raise UsageError(f"target.{set_keys[0]}", keys[set_keys[0]], problem)
    scale, mean = 1.0, torch.zeros(channels)
    if "scale" in set_keys:
        scale = number("target.scale", keys["scale"], above=0, allowed="a number above 0 that multiplies activations")
    if "mean" in set_keys:
        try:
            vectors = load_directions(str(keys["mean"]))
        except UsageError as error:
            raise UsageError("target.mean", error.value, error.problem) from None
        if vectors.shape != (1, channels):
            problem = f"holds {tuple(vectors.shape)}; one vector of {channels} channels is needed"
            raise UsageError("target.mean", keys["mean"], problem)
        mean = vectors[0]
    return loaded.after(mean, scale)


def _path(checkpoint: object, form: str) -> Path:
    if not isinstance(checkpoint, str):
        problem = "a file of a sparse autoencoder is needed: .safetensors, .pt, or SAELens' folder"
        raise UsageError(KEY, checkpoint, problem)
    path = Path(checkpoint).expanduser()
    if path.is_dir() and form in (AUTO, SAELENS):
        return path
    if not path.is_file():
        raise UsageError(KEY, checkpoint, "is a folder: name the file in it" if path.is_dir() else "no such file")
    return path


def _refuse_keys_of_plain_files(keys: Mapping[str, Any], form: str) -> None:
    for key in ("activation", "k", "threshold"):
        if keys[key] is not None:
            raise UsageError(f"target.{key}", keys[key], f"leave it out: {form} files say it themselves")


def _plain(tensors: Mapping[str, Tensor], keys: Mapping[str, Any], channels: int) -> SparseAutoencoder:
    encoder = _matrix(_named(tensors, keys, "encoder"), keys, channels)
    count = len(encoder)
    bias = _vector(tensors, keys, "encoder_bias", count)
    shift = _vector(tensors, keys, "decoder_bias", channels)
    decoder = _decoder(tensors, keys, (count, channels))
    if keys["activation"] is None:
        problem = f"the file does not say it: one of {', '.join(ACTIVATIONS)}"
        raise UsageError("target.activation", None, problem)
    activation, k = one_of("target.activation", keys["activation"], ACTIVATIONS), keys["k"]
    threshold = _threshold(tensors, keys, count)
    if activation == TOP_K or (activation == BATCH_TOP_K and threshold is None):
        allowed = f"{activation} needs the number of features to keep, a whole number from 1 to {count}"
        whole_number("target.k", k, 1, count, allowed=allowed)
    decoder_bias = None if keys["decoder_bias"] is None else shift  # unnamed is unknown, not 0
    return SparseAutoencoder(encoder, bias, shift, activation, k, threshold, decoder=decoder, decoder_bias=decoder_bias)


def _named(tensors: Mapping[str, Tensor], keys: Mapping[str, Any], key: str) -> Tensor:
    name = keys[key]
    if name not in tensors:
        raise UsageError(f"target.{key}", name, f"no such tensor; the file has {', '.join(tensors)}", list(tensors))
    return tensors[name].float()


def _matrix(tensor: Tensor, keys: Mapping[str, Any], channels: int) -> Tensor:
    """Return the encoder as (F, C) from (F, C) or (C, F); a square one is taken for nn.Linear's weight, (F, C)."""
    if tensor.ndim != 2 or channels not in tensor.shape:
        problem = f"has the shape {tuple(tensor.shape)}, another width: {keys['layer']} has {channels} channels"
        raise UsageError("target.encoder", keys["encoder"], problem)
    return (tensor if tensor.shape[1] == channels else tensor.T).contiguous()


def _vector(tensors: Mapping[str, Tensor], keys: Mapping[str, Any], key: str, count: int) -> Tensor:
    if keys[key] is None:
        return torch.zeros(count)
    vector = _named(tensors, keys, key).flatten()
    if len(vector) != count:
        raise UsageError(f"target.{key}", keys[key], f"has {len(vector)} values, and {count} are needed")
    return vector


def _decoder(tensors: Mapping[str, Tensor], keys: Mapping[str, Any], shape: tuple[int, int]) -> Tensor | None:
    """Return the decoder as (F, C), None if no key names it; a square one is taken for nn.Linear's weight, (C, F)."""
    if keys["decoder"] is None:
        return None
    decoder = _named(tensors, keys, "decoder")
    stored = tuple(decoder.shape)
    if stored not in (shape, shape[::-1]):
        raise UsageError("target.decoder", keys["decoder"], f"has the shape {stored}, and the encoder {shape}")
    return (decoder.T if stored == shape[::-1] else decoder).contiguous()


def _threshold(tensors: Mapping[str, Tensor], keys: Mapping[str, Any], count: int) -> float | Tensor | None:
    """Return the threshold: (F,) for ``jump_relu``, a number or None for ``batch_topk``."""
    key, value = "target.threshold", keys["threshold"]
    if keys["activation"] == JUMP_RELU:
        if is_number(value):
            return torch.full((count,), float(value))
        if value is None:
            raise UsageError(key, value, f"{JUMP_RELU} needs a number, or the name of a tensor of {count} values")
        return _vector(tensors, keys, "threshold", count)
    if value is None or is_number(value):
        return None if value is None else float(value)
    tensor = _named(tensors, keys, "threshold")
    if tensor.numel() != 1:
        raise UsageError(key, value, "must be a number, or the name of a tensor with one value")
    return float(tensor)
