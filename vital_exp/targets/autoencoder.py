"""Sparse autoencoders: features of a layer's activations, read by an encoder that lets few of them through."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vital_exp.errors import UsageError
from vital_exp.values import is_number, one_of, whole_number

RELU, TOP_K, BATCH_TOP_K = "relu", "topk", "batch_topk"
ACTIVATIONS = (RELU, TOP_K, BATCH_TOP_K)


@dataclass(frozen=True)
class SparseAutoencoder:
    """The encoder of a sparse autoencoder: f = g(W (a - shift) + bias) at each position.

    Attributes:
        encoder: W, (F, C) float32.
        bias: (F,).
        shift: (C,), what is subtracted first: the decoder's bias where it is tied; else 0.
        activation: g. ``"relu"``; ``"topk"``: of the ReLU's values the k largest at each position (Gao et al. 2024);
            ``"batch_topk"`` (Bussmann et al. 2024): those above ``threshold``, as in its inference, or where there is
            none the k times P largest of each picture's P positions, so that pictures stay independent.
        k: features that stay.
        threshold: of ``"batch_topk"``.
    """

    encoder: Tensor
    bias: Tensor
    shift: Tensor
    activation: str = RELU
    k: int | None = None
    threshold: float | None = None

    def __len__(self) -> int:
        return len(self.encoder)

    def before(self, values: Tensor) -> Tensor:
        """Return W (a - shift) + bias, (N, F, P), for activations (N, C, P)."""
        shifted = values - self.shift.to(values)[:, None]
        return torch.einsum("ncp,fc->nfp", shifted, self.encoder.to(values)) + self.bias.to(values)[:, None]

    def encode(self, values: Tensor) -> Tensor:
        """Return the features (N, F, P) of activations (N, C, P)."""
        before = self.before(values)
        return before.relu() * self._stays(before)

    def read(self, values: Tensor, features: Tensor) -> Tensor:
        """Return for each picture one feature at each position, (N, P), of activations (N, C, P).

        The gradient is that of the linear part, active or not: else a picture in which a feature sleeps would have none
        that could wake it.
        """
        linear = self.linear(values, features)
        if self.activation == RELU:
            return linear + (linear.relu() - linear).detach()
        with torch.no_grad():
            active = self.encode(values)[torch.arange(len(values)), features.to(values.device)]
        return linear + (active - linear).detach()

    def linear(self, values: Tensor, features: Tensor) -> Tensor:
        """Return for each picture what one feature reads at each position, (N, P), before the activation function."""
        features = features.to(values.device)
        shifted = values - self.shift.to(values)[:, None]
        rows = self.encoder.to(values)[features]
        return torch.einsum("ncp,nc->np", shifted, rows) + self.bias.to(values)[features, None]

    def _stays(self, before: Tensor) -> Tensor:
        """Return 1 where a feature stays and 0 elsewhere, (N, F, P)."""
        if self.activation == BATCH_TOP_K and self.threshold is not None:
            return (before > self.threshold).to(before)
        if self.activation == RELU:
            return torch.ones_like(before)
        assert self.k is not None
        each = before if self.activation == TOP_K else before.flatten(1)  # over features, or features and positions
        count = self.k if self.activation == TOP_K else min(self.k * before.shape[2], each.shape[1])
        mask = torch.zeros_like(each)
        mask.scatter_(1, each.topk(count, dim=1).indices, 1.0)
        return mask.view_as(before)

    @cached_property
    def _hash(self) -> str:
        digest = hashlib.sha256()
        for tensor in (self.encoder, self.bias, self.shift):
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def describe(self) -> str:
        """Return what the features depend on, for a hash."""
        return f"{self._hash} {self.activation} {self.k} {self.threshold}"


def load_autoencoder(keys: Mapping[str, Any], channels: int) -> SparseAutoencoder:
    """Load the encoder that the keys of ``target=sae`` name.

    Args:
        keys: checkpoint, encoder, encoder_bias, decoder, decoder_bias, activation, k, threshold.
        channels: of the layer.

    Raises:
        UsageError: no such file or tensor, tensors of another width, an unknown activation, a k out of range.
    """
    tensors = _tensors(keys.get("checkpoint"))
    encoder = _matrix(_named(tensors, keys, "encoder"), keys, channels)
    count = len(encoder)
    bias = _vector(tensors, keys, "encoder_bias", count)
    shift = _vector(tensors, keys, "decoder_bias", channels)
    _check_decoder(tensors, keys, (count, channels))
    activation, k = keys["activation"], keys["k"]
    one_of("target.activation", activation, ACTIVATIONS)
    threshold = _threshold(tensors, keys)
    needs_k = activation == TOP_K or (activation == BATCH_TOP_K and threshold is None)
    if needs_k:
        allowed = f"a whole number of features that stay, 1 to {count}, for {activation}"
        whole_number("target.k", k, 1, count, allowed=allowed)
    return SparseAutoencoder(encoder, bias, shift, activation, k, threshold)


def _tensors(checkpoint: object) -> dict[str, Tensor]:
    key = "target.checkpoint"
    if not isinstance(checkpoint, str):
        raise UsageError(key, checkpoint, "a .safetensors file of a sparse autoencoder is needed")
    path = Path(checkpoint).expanduser()
    if not path.is_file():
        raise UsageError(key, checkpoint, "no such file")
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UsageError(key, checkpoint, f"cannot be read as .safetensors ({error})") from None


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


def _check_decoder(tensors: Mapping[str, Tensor], keys: Mapping[str, Any], shape: tuple[int, int]) -> None:
    """Make sure that the decoder, where it is named, is of the encoder."""
    if keys["decoder"] is None:
        return
    found = tuple(_named(tensors, keys, "decoder").shape)
    if found not in (shape, shape[::-1]):
        raise UsageError("target.decoder", keys["decoder"], f"has the shape {found}, and the encoder {shape}")


def _threshold(tensors: Mapping[str, Tensor], keys: Mapping[str, Any]) -> float | None:
    given = keys["threshold"]
    if given is None or is_number(given):
        return None if given is None else float(given)
    found = _named(tensors, keys, "threshold")
    if found.numel() != 1:
        raise UsageError("target.threshold", given, "a number, or the name of a tensor with one")
    return float(found)
