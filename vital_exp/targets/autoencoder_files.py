"""Sparse autoencoders from files: one whose tensors the user names, or one in a format that says all itself."""

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
        keys: layer, checkpoint, format, mean, scale, and of a plain file encoder, encoder_bias, decoder, decoder_bias,
            activation, k, threshold.
        channels: of the layer.

    Raises:
        UsageError: no such file or tensor, tensors of another width, a file of another format or one that would run
            code, an unknown activation, a k out of range.
    """
    wanted = one_of("target.format", keys["format"], (AUTO, *FORMATS, OVERCOMPLETE, PLAIN))
    path = _path(keys["checkpoint"], wanted)
    form = (detect(path) or PLAIN) if wanted == AUTO else wanted
    if form in (PLAIN, OVERCOMPLETE):
        tensors = autoencoder_tensors(path)
        if form == OVERCOMPLETE or (wanted == AUTO and is_overcomplete(tensors)):
            tensors, keys = as_plain(tensors, keys)
        found = _plain(tensors, keys, channels)
    else:
        _leave_to_the_file(keys, form)
        found = load_published(path, form, str(keys["layer"]), channels, scaled=keys["scale"] is not None)
    return _standardised(found, keys, channels)


def _standardised(found: SparseAutoencoder, keys: Mapping[str, Any], channels: int) -> SparseAutoencoder:
    """Return the autoencoder that reads activations less ``target.mean``, times ``target.scale``, where given."""
    given = [key for key in ("mean", "scale") if keys[key] is not None]
    if not given:
        return found
    if found.normalisation != AS_IT_IS:
        problem = f"the file normalises activations itself ({found.normalisation})"
        raise UsageError(f"target.{given[0]}", keys[given[0]], problem)
    scale, mean = 1.0, torch.zeros(channels)
    if "scale" in given:
        scale = number("target.scale", keys["scale"], above=0, allowed="a number above 0 that multiplies activations")
    if "mean" in given:
        try:
            vectors = load_directions(str(keys["mean"]))
        except UsageError as error:
            raise UsageError("target.mean", error.value, error.problem) from None
        if vectors.shape != (1, channels):
            problem = f"holds {tuple(vectors.shape)}; one vector of {channels} channels is needed"
            raise UsageError("target.mean", keys["mean"], problem)
        mean = vectors[0]
    return found.after(mean, scale)


def _path(checkpoint: object, form: str) -> Path:
    if not isinstance(checkpoint, str):
        raise UsageError(
            KEY, checkpoint, "a file of a sparse autoencoder is needed: .safetensors, .pt, or SAELens' folder"
        )
    path = Path(checkpoint).expanduser()
    if path.is_dir() and form in (AUTO, SAELENS):
        return path
    if not path.is_file():
        raise UsageError(KEY, checkpoint, "is a folder: name the file in it" if path.is_dir() else "no such file")
    return path


def _leave_to_the_file(keys: Mapping[str, Any], form: str) -> None:
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
        allowed = f"a whole number of features that stay, 1 to {count}, for {activation}"
        whole_number("target.k", k, 1, count, allowed=allowed)
    own = None if keys["decoder_bias"] is None else shift  # else the decoder may have one that nobody named
    return SparseAutoencoder(encoder, bias, shift, activation, k, threshold, decoder=decoder, decoder_bias=own)


def _named(tensors: Mapping[str, Tensor], keys: Mapping[str, Any], key: str) -> Tensor:
    name = keys[key]
    if name not in tensors:
        raise UsageError(f"target.{key}", name, f"no such tensor; the file has {', '.join(tensors)}", list(tensors))
    return tensors[name].float()


def _matrix(tensor: Tensor, keys: Mapping[str, Any], channels: int) -> Tensor:
    """Return the encoder as (F, C), which may be stored either way round (a square one as nn.Linear's: (F, C))."""
    if tensor.ndim != 2 or channels not in tensor.shape:
        problem = f"{tuple(tensor.shape)} is of another width: {keys['layer']} has {channels} channels"
        raise UsageError("target.encoder", keys["encoder"], problem)
    return (tensor if tensor.shape[1] == channels else tensor.T).contiguous()


def _vector(tensors: Mapping[str, Tensor], keys: Mapping[str, Any], key: str, count: int) -> Tensor:
    if keys[key] is None:
        return torch.zeros(count)
    found = _named(tensors, keys, key).flatten()
    if len(found) != count:
        raise UsageError(f"target.{key}", keys[key], f"has {len(found)} values, and {count} are needed")
    return found


def _decoder(tensors: Mapping[str, Tensor], keys: Mapping[str, Any], shape: tuple[int, int]) -> Tensor | None:
    """Return the decoder as (F, C), where it is named (a square one is stored as nn.Linear's: (C, F))."""
    if keys["decoder"] is None:
        return None
    decoder = _named(tensors, keys, "decoder")
    found = tuple(decoder.shape)
    if found not in (shape, shape[::-1]):
        raise UsageError("target.decoder", keys["decoder"], f"has the shape {found}, and the encoder {shape}")
    return (decoder.T if found == shape[::-1] else decoder).contiguous()


def _threshold(tensors: Mapping[str, Tensor], keys: Mapping[str, Any], count: int) -> float | Tensor | None:
    """Return the threshold of an activation that reads one: of ``jump_relu`` (F,), of ``batch_topk`` a number."""
    given, activation = keys["threshold"], keys["activation"]
    if activation == JUMP_RELU:
        if is_number(given):
            return torch.full((count,), float(given))
        if given is None:
            raise UsageError(
                "target.threshold", given, f"a number, or the name of a tensor of {count}, for {JUMP_RELU}"
            )
        return _vector(tensors, keys, "threshold", count)
    if given is None or is_number(given):
        return None if given is None else float(given)
    found = _named(tensors, keys, "threshold")
    if found.numel() != 1:
        raise UsageError("target.threshold", given, "a number, or the name of a tensor with one")
    return float(found)
