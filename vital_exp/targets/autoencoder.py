"""Sparse autoencoders: an encoder maps a layer's activations to features, most of which are 0."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

KEY = "target.checkpoint"
RELU, TOP_K, BATCH_TOP_K, JUMP_RELU = "relu", "topk", "batch_topk", "jump_relu"
ACTIVATIONS = (RELU, TOP_K, BATCH_TOP_K, JUMP_RELU)
# Normalisations of the channels of each position before the encoder; the constants are from SAELens and Prisma.
AS_IT_IS, LAYER_NORM, CONSTANT_NORM = "none", "layer_norm", "constant_norm"
LAYER_NORM_EPS = 1e-5
LEAST_NORM = 1e-12  # divisor at a position whose channels are all equal


@dataclass(frozen=True)
class SparseAutoencoder:
    """A sparse autoencoder: f = g(W (n(a) - shift) + bias) at each position, and a is about n^-1(f D + d).

    Attributes:
        encoder: W, (F, C) float32.
        bias: (F,).
        shift: (C,), subtracted before the encoder: the decoder's bias where the two are tied, else 0.
        activation: g, which keeps some values and sets all others to 0. ``"relu"``: positive values; ``"topk"``: the k
            largest at each position, after the ReLU (Gao et al. 2024); ``"batch_topk"`` (Bussmann et al. 2024): values
            above ``threshold``, as the paper does at inference, or without a threshold the k P largest over the P
            positions of each picture, so that pictures stay independent; ``"jump_relu"`` (Rajamanoharan et al. 2024):
            values above the feature's own ``threshold``.
        k: the number of features that g keeps at a position.
        threshold: a number for ``"batch_topk"``, (F,) for ``"jump_relu"``.
        normalisation: n, over the C channels of a position. ``"none"``; ``"layer_norm"``: (a - mean) / (s + 1e-5), s
            the standard deviation with divisor C - 1; ``"constant_norm"``: a sqrt(C) / |a|.
        rectified: whether g includes the ReLU; without it the k largest values are kept even where they are negative.
        decoder: D, (F, C); None where it is not known.
        decoder_bias: d, (C,); None where it is not known.
    """

    encoder: Tensor
    bias: Tensor
    shift: Tensor
    activation: str = RELU
    k: int | None = None
    threshold: float | Tensor | None = None
    normalisation: str = AS_IT_IS
    rectified: bool = True
    decoder: Tensor | None = None
    decoder_bias: Tensor | None = None

    def __len__(self) -> int:
        return len(self.encoder)

    def centred(self, values: Tensor) -> Tensor:
        """Return the encoder's input n(a) - shift, (N, C, P), for activations (N, C, P)."""
        offset, size = self._offset_and_size(values)
        return (values - offset) / size - self.shift.to(values)[:, None]

    def before(self, values: Tensor) -> Tensor:
        """Return the values before g, W (n(a) - shift) + bias, (N, F, P), for activations (N, C, P)."""
        centred = self.centred(values)
        return torch.einsum("ncp,fc->nfp", centred, self.encoder.to(values)) + self.bias.to(values)[:, None]

    def encode(self, values: Tensor) -> Tensor:
        """Return the features (N, F, P) of activations (N, C, P)."""
        before = self.before(values)
        return (before.relu() if self.rectified else before) * self._stays(before)

    def reconstruct(self, values: Tensor) -> Tensor:
        """Return the reconstruction n^-1(f D + d) of activations (N, C, P), of the same shape."""
        assert self.decoder is not None
        assert self.decoder_bias is not None
        offset, size = self._offset_and_size(values)
        decoded = torch.einsum("nfp,fc->ncp", self.encode(values), self.decoder.to(values))
        return (decoded + self.decoder_bias.to(values)[:, None]) * size + offset

    def after(self, mean: Tensor, factor: float) -> SparseAutoencoder:
        """Return the autoencoder with the features f(a) = f0((a - mean) factor), f0 the features of this one.

        This one must have no normalisation.

        Args:
            mean: (C,), subtracted from activations.
            factor: multiplies the difference.
        """
        assert self.normalisation == AS_IT_IS
        decoder = None if self.decoder is None else self.decoder / factor
        bias = None if self.decoder_bias is None else self.decoder_bias / factor + mean
        encoder, shift = self.encoder * factor, self.shift / factor + mean
        return replace(self, encoder=encoder, shift=shift, decoder=decoder, decoder_bias=bias)

    def read(self, values: Tensor, features: Tensor) -> Tensor:
        """Return for each picture one feature at each position, (N, P), for activations (N, C, P).

        ``features`` (N,) holds the features' numbers. The gradient is that of the linear part even where g returns 0:
        otherwise a picture in which the feature is inactive would have no gradient that could activate it.
        """
        linear = self.linear(values, features)
        if self.activation == RELU:
            return linear + (linear.relu() - linear).detach()
        with torch.no_grad():
            active = self.encode(values)[torch.arange(len(values)), features.to(values.device)]
        return linear + (active - linear).detach()

    def linear(self, values: Tensor, features: Tensor) -> Tensor:
        """Return for each picture one feature's value before g at each position, (N, P)."""
        features = features.to(values.device)
        rows = self.encoder.to(values)[features]
        return torch.einsum("ncp,nc->np", self.centred(values), rows) + self.bias.to(values)[features, None]

    def _offset_and_size(self, values: Tensor) -> tuple[Tensor | float, Tensor | float]:
        """Return the offset that n subtracts and the size that it divides by, each a number or (N, 1, P)."""
        if self.normalisation == LAYER_NORM:
            offset = values.mean(dim=1, keepdim=True)
            variance = values.var(dim=1, keepdim=True).clamp(min=LEAST_NORM**2)  # the root's gradient at 0 is infinite
            return offset, variance.sqrt() + LAYER_NORM_EPS
        if self.normalisation == CONSTANT_NORM:
            return 0.0, values.norm(dim=1, keepdim=True).clamp(min=LEAST_NORM) / values.shape[1] ** 0.5
        return 0.0, 1.0

    def _stays(self, before: Tensor) -> Tensor:
        """Return 1 where g keeps a feature and 0 elsewhere, (N, F, P)."""
        if self.threshold is not None and self.activation in (BATCH_TOP_K, JUMP_RELU):
            threshold = torch.as_tensor(self.threshold).to(before).reshape(-1, 1)
            return (before > threshold).to(before)
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
        thresholds = [self.threshold] if isinstance(self.threshold, Tensor) else []
        for tensor in (self.encoder, self.bias, self.shift, *thresholds):
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def describe(self) -> str:
        """Return everything that the features depend on, as text for a hash."""
        threshold = "" if isinstance(self.threshold, Tensor) else self.threshold  # a tensor is part of the hash
        return f"{self._hash} {self.activation} {self.k} {threshold} {self.normalisation} {self.rectified}"
