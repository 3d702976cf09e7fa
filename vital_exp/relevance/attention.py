"""Attention, composed of operations that have rules: linear maps, matrix products, softmax, sums (AttnLRP)."""

from __future__ import annotations

import inspect
import math
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from vital_exp.models.axes import Arguments, Keywords
from vital_exp.relevance import rules
from vital_exp.relevance.out_of_place import Uncovered

DOT_PRODUCTS = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")
MULTI_HEAD = inspect.signature(F.multi_head_attention_forward)


class Rules(Protocol):
    """The operations of attention, each with its own rule."""

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return x weight^T + bias."""

    def matrix_product(self, a: Tensor, b: Tensor) -> Tensor:
        """Return a b; one factor may be constant."""

    def softmax(self, x: Tensor, axis: int) -> Tensor:
        """Return the softmax along an axis."""

    def sum_of_two(self, a: Tensor, b: Tensor) -> Tensor:
        """Return a + b; one summand may be constant."""


def dot_product_attention(rule_pass: Rules, args: Arguments, keywords: Keywords) -> Tensor:
    """Return ``scaled_dot_product_attention(*args, **keywords)``; Uncovered is raised for dropout."""
    given = {**dict(zip(DOT_PRODUCTS, args, strict=False)), **keywords}
    query, key, value = given["query"], given["key"], given["value"]
    if given.get("dropout_p"):
        raise Uncovered("scaled_dot_product_attention with dropout")
    if given.get("enable_gqa"):
        key, value = (part.repeat_interleave(query.shape[-3] // part.shape[-3], -3) for part in (key, value))
    mask = given.get("attn_mask")
    if given.get("is_causal"):
        mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
    if mask is not None and mask.dtype == torch.bool:
        mask = torch.where(mask, 0.0, -math.inf).to(query.dtype)
    mixed, _ = attend(rule_pass, query, key, value, mask, given.get("scale"))
    return mixed


def attend(
    rule_pass: Rules, query: Tensor, key: Tensor, value: Tensor, offset: Tensor | None, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """Return the output (..., T, D) and the weights (..., T, S) of attention; each operation has its own rule."""
    scaled = query * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    scores = rule_pass.matrix_product(rules.identity(scaled, query), key.transpose(-2, -1))
    if offset is not None:
        scores = rule_pass.sum_of_two(scores, offset)
    shares = rule_pass.softmax(scores, -1)
    return rule_pass.matrix_product(shares, value), shares


def multi_head_attention(rule_pass: Rules, args: Arguments, keywords: Keywords) -> tuple[Tensor, Tensor | None]:
    """Return what ``torch.nn.functional.multi_head_attention_forward(*args, **keywords)`` returns."""
    given = MULTI_HEAD.bind(*args, **keywords)
    given.apply_defaults()
    known = given.arguments
    if any(known[name] is not None for name in ("bias_k", "bias_v", "static_k", "static_v")) or known["add_zero_attn"]:
        raise Uncovered("attention with added keys")
    if known["dropout_p"] and known["training"]:
        raise Uncovered("attention with dropout")
    heads, one = known["num_heads"], known["query"].ndim == 2
    query, key, value = (part.unsqueeze(1) if one else part for part in _projected(rule_pass, known))  # (T, N, D)
    length, count, width = query.shape
    q, k, v = (part.unflatten(2, (heads, -1)).permute(1, 2, 0, 3) for part in (query, key, value))  # (N, heads, T, d)
    offset = _offset(known["attn_mask"], known["key_padding_mask"], count, heads, query)
    mixed, shares = attend(rule_pass, q, k, v, offset)
    mixed = mixed.permute(2, 0, 1, 3).reshape(length, count, width)
    out = rule_pass.linear(mixed, known["out_proj_weight"], known["out_proj_bias"])
    if known["need_weights"] and known["average_attn_weights"]:
        shares = rules.pooled(shares.mean(1), shares, lambda v: v.mean(1))
    weights = shares if known["need_weights"] else None
    return (out[:, 0], None if weights is None else weights[0]) if one else (out, weights)


def _projected(rule_pass: Rules, known: Keywords) -> tuple[Tensor, ...]:
    """Return queries, keys and values: parts of one projection of a common input, or three projections."""
    inputs = known["query"], known["key"], known["value"]
    packed, bias = known["in_proj_weight"], known["in_proj_bias"]
    if inputs[0] is inputs[1] is inputs[2] and not known["use_separate_proj_weight"]:
        return rule_pass.linear(inputs[0], packed, bias).chunk(3, dim=-1)
    weights = [known[f"{letter}_proj_weight"] for letter in "qkv"]
    if not known["use_separate_proj_weight"]:
        weights = packed.chunk(3)
    biases = [None] * 3 if bias is None else bias.chunk(3)
    return tuple(rule_pass.linear(x, weight, part) for x, weight, part in zip(inputs, weights, biases, strict=True))


def _offset(mask: Tensor | None, padding: Tensor | None, count: int, heads: int, like: Tensor) -> Tensor | None:
    """Return the offset of scores (N, heads, T, S); boolean masks are true at positions that are not attended."""
    offset = None
    if mask is not None:
        mask = _added(mask, like)
        offset = mask if mask.ndim == 2 else mask.unflatten(0, (count, heads))  # (N heads, T, S)
    if padding is None:
        return offset
    hidden = _added(padding, like).reshape(count, 1, 1, -1)  # (N, S)
    return hidden if offset is None else offset + hidden


def _added(mask: Tensor, like: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=like.dtype, device=mask.device).masked_fill(mask, -math.inf)
