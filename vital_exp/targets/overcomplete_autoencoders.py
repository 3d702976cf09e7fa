"""Sparse autoencoders of the library overcomplete: the state_dict becomes the tensors of a plain file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vital_exp.errors import UsageError
from vital_exp.targets.autoencoder import JUMP_RELU

FORMAT = "overcomplete"
DICTIONARY, MULTIPLIER, THRESHOLDS = "dictionary._weights", "dictionary.multiplier", "thresholds"
# Encoders of one linear layer can be read: nn.Linear, with a batch norm behind it or not, or bare weights.
LINEAR, BARE = "encoder.final_block.0.", "encoder."
NORM = "encoder.final_block.1."
NORM_EPS = 1e-5  # default of nn.BatchNorm1d
NORM_PARTS = ("weight", "bias", "running_mean", "running_var")
BIAS, DECODER_BIAS = "encoder.bias of overcomplete", "no decoder.bias of overcomplete"  # names for tensors made here


def is_overcomplete(tensors: Mapping[str, Tensor]) -> bool:
    """Return whether tensors have the names of overcomplete's dictionary."""
    return DICTIONARY in tensors


def as_plain(tensors: Mapping[str, Tensor], keys: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of a plain file, the batch norm folded into the encoder, and keys of ``target=sae`` for them.

    The dictionary is the stored one times e^multiplier; the thresholds of a JumpSAE are e^thresholds.

    Raises:
        UsageError: the encoder is not one linear layer, there is no dictionary, or a key contradicts the file.
    """
    prefix = LINEAR if f"{LINEAR}weight" in tensors else BARE
    name = f"{prefix}weight"
    known = {name, f"{prefix}bias"}
    normed = all(f"{NORM}{part}" in tensors for part in NORM_PARTS)  # a layer norm has fewer parts, and is not linear
    known |= {f"{NORM}{part}" for part in (*NORM_PARTS, "num_batches_tracked")} if normed else set()
    unknown = [other for other in tensors if other.startswith(BARE) and other not in known]
    if name not in tensors or DICTIONARY not in tensors or unknown:
        problem = "an encoder of one linear layer and a dictionary are read; the file has"
        raise UsageError("target.format", FORMAT, f"{problem} {', '.join(sorted(tensors))}")
    weight = tensors[name].float()
    bias = tensors.get(f"{prefix}bias", torch.zeros(len(weight))).float()
    if normed:
        gain, offset, mean, variance = (tensors[f"{NORM}{part}"].float() for part in NORM_PARTS)
        factor = gain / (variance + NORM_EPS).sqrt()
        weight, bias = weight * factor[:, None], (bias - mean) * factor + offset
    dictionary = tensors[DICTIONARY].float() * tensors.get(MULTIPLIER, torch.zeros(())).float().exp()
    plain = {name: weight, BIAS: bias, DICTIONARY: dictionary, DECODER_BIAS: torch.zeros(dictionary.shape[1:])}
    names = {"encoder": name, "encoder_bias": BIAS, "decoder": DICTIONARY, "decoder_bias": DECODER_BIAS}
    if THRESHOLDS not in tensors:
        return plain, {**keys, **names}
    for key in ("activation", "threshold", "k"):
        if keys[key] is not None:
            raise UsageError(f"target.{key}", keys[key], f"leave it out: the file has {THRESHOLDS}, for {JUMP_RELU}")
    plain[THRESHOLDS] = tensors[THRESHOLDS].float().exp()
    return plain, {**keys, **names, "activation": JUMP_RELU, "threshold": THRESHOLDS}
