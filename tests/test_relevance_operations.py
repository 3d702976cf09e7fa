"""Operations that LRP covers, against twins in explicit form, in float64; what it refuses; the documentation's list."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.explicit_relevance import (
    Array,
    dense,
    gamma_twin,
    matrix,
    proportional_twin,
    random,
    stabilised,
    z_plus_twin,
)
from vital_exp import load_model
from vital_exp.errors import UsageError
from vital_exp.relevance import relevance_maps
from vital_exp.relevance.covered import COVERED
from vital_exp.relevance.out_of_place import GuidedPass, OutOfPlacePass, Uncovered
from vital_exp.relevance.rule_pass import RULES, RelevancePass

Operation = Callable[[Tensor], Tensor]
MAPS, TOKENS = (4, 6, 6), (5, 4)  # of one image


def flow(operation: Operation, x: Tensor, relevance: Tensor, epsilon_rules: bool = False) -> Array:
    """What a relevance pass, which changes no value, gives to the input of an operation: (N, inputs)."""
    leaf = x.clone().requires_grad_()
    with RelevancePass(epsilon_rules) as rules:
        out = rules.current(operation(leaf))
    torch.testing.assert_close(out.detach(), operation(x.clone()), rtol=1e-10, atol=1e-12)
    (arrived,) = torch.autograd.grad(out, leaf, relevance)
    return arrived.flatten(1).numpy()


def constant(*shape: int, seed: int = 11) -> Tensor:
    return random(*shape, seed=seed)


# Operation, what stands for it in the matrix form, shape of an image.
AVERAGES: dict[str, tuple[Operation, Operation, tuple[int, ...]]] = {
    "sum over channels": (lambda x: x.sum(1), lambda x: x.mean(1), MAPS),
    "sum over space": (lambda x: torch.sum(x, dim=(2, 3), keepdim=True), lambda x: x.mean((2, 3)), MAPS),
    "sum of tokens by name": (lambda x: torch.sum(input=x, dim=1), lambda x: x.mean(1), TOKENS),
    "weighted sum": (lambda x: (x * constant(4)).sum(-1), lambda x: (x * constant(4)).sum(-1), TOKENS),
    "mean over the last axes": (lambda x: torch.mean(input=x, dim=(-2, -1)), lambda x: x.mean((2, 3)), MAPS),
    "einsum of one": (lambda x: torch.einsum("ntd->nd", x), lambda x: x.sum(1), TOKENS),
    "average in one dimension": (lambda x: F.avg_pool1d(x, 2), lambda x: F.avg_pool1d(x, 2), TOKENS),
    "average in three": (lambda x: F.avg_pool3d(x[:, None], 2), lambda x: F.avg_pool3d(x[:, None], 2), MAPS),
    "bilinear": (nn.Upsample(9, mode="bilinear"), lambda x: F.interpolate(x, 9, mode="bilinear"), MAPS),
    "area": (lambda x: F.interpolate(x, 3, None, "area"), lambda x: F.avg_pool2d(x, 2), MAPS),
    "fold": (
        lambda x: F.fold(F.unfold(x, 3, padding=1), 6, 3, padding=1),
        lambda x: F.fold(F.unfold(x, 3, padding=1), 6, 3, padding=1),
        MAPS,
    ),
    "adaptive maximum": (nn.AdaptiveMaxPool2d(1), lambda x: x.mean((2, 3)), MAPS),
    "adaptive maximum of parts": (nn.AdaptiveMaxPool2d((3, 2)), lambda x: F.adaptive_avg_pool2d(x, (3, 2)), MAPS),
    "maximum in one dimension": (nn.MaxPool1d(2), lambda x: F.avg_pool1d(x, 2), TOKENS),
    "maximum in three": (lambda x: nn.MaxPool3d(2)(x[:, None]), lambda x: F.avg_pool3d(x[:, None], 2), MAPS),
    "maximum over channels": (lambda x: x.amax(1, keepdim=True), lambda x: x.mean(1), MAPS),
    "maximum with indices": (lambda x: torch.max(x, dim=1).values, lambda x: x.mean(1), TOKENS),
    "minimum with indices": (lambda x: x.min(1)[0], lambda x: x.mean(1), TOKENS),
    "generalised mean": (
        lambda x: F.avg_pool2d(x.clamp(min=1e-6).pow(3), 6).pow(1 / 3),
        lambda x: x.mean((2, 3)),
        MAPS,
    ),
}
POWERS = {"generalised mean": 3}  # what is averaged


@pytest.mark.parametrize("name", list(AVERAGES))
def test_sums_means_and_maxima_are_proportional(name: str) -> None:
    operation, average, shape = AVERAGES[name]
    x = random(2, *shape, seed=1).abs() + 0.1
    relevance = random(*operation(x).shape, seed=2)
    averaged = (x ** POWERS.get(name, 1)).flatten(1).numpy()
    expected = proportional_twin(matrix(average, shape), averaged, relevance.flatten(1).numpy())
    np.testing.assert_allclose(flow(operation, x, relevance), expected, rtol=1e-4 if "sum" in name else 1e-7, atol=1e-9)
    np.testing.assert_allclose(flow(operation, x, relevance).sum(), relevance.sum(), rtol=1e-3)


@pytest.mark.parametrize("reduced", [torch.sum, torch.mean, torch.max, torch.amax])
def test_all_dimensions_at_once(reduced: Operation) -> None:
    x = random(2, 5, 4, seed=1).abs()
    np.testing.assert_allclose(flow(reduced, x, torch.tensor(3.0).double()), (3 * x / x.sum()).flatten(1), rtol=1e-3)


# Linear maps with constant weights: operation, gamma.
LINEAR: dict[str, tuple[Operation, tuple[int, ...], float]] = {
    "convolution in one dimension": (nn.Conv1d(5, 3, 3, padding=1, stride=2).double(), TOKENS, 0.25),
    "convolution in three": (lambda x: F.conv3d(x[:, None], constant(2, 1, 2, 3, 3)), MAPS, 0.25),
    "transposed": (nn.ConvTranspose2d(4, 3, 3, stride=2, output_padding=1).double(), MAPS, 0.25),
    "transposed in groups": (lambda x: F.conv_transpose2d(x, constant(4, 1, 2, 2), groups=2, stride=2), MAPS, 0.25),
    "transposed in one dimension": (nn.ConvTranspose1d(5, 2, 2).double(), TOKENS, 0.25),
    "transposed in three": (lambda x: F.conv_transpose3d(x[:, None], constant(1, 2, 2, 2, 2)), MAPS, 0.25),
    "matrix": (lambda x: x @ constant(4, 3), TOKENS, 0.05),
    "matrix first": (lambda x: torch.matmul(constant(3, 5), other=x), TOKENS, 0.05),
    "vector": (lambda x: torch.matmul(x, constant(4)), TOKENS, 0.05),
    "vector first": (lambda x: constant(5) @ x, TOKENS, 0.05),
    "matrix and vector": (lambda x: torch.stack([torch.mv(one, vec=constant(4)) for one in x]), TOKENS, 0.05),
    "matrices": (lambda x: torch.stack([torch.mm(one, constant(4, 3)) for one in x]), TOKENS, 0.05),
    "einsum": (lambda x: torch.einsum("ntd,dk->ntk", x, constant(4, 3)), TOKENS, 0.05),
    "einsum, weight first": (lambda x: torch.einsum("kt, ntd -> nkd", constant(3, 5), x), TOKENS, 0.05),
    "einsum with an ellipsis": (lambda x: torch.einsum("...d,dk", x, constant(4, 3)), TOKENS, 0.05),
    "einsum of a list": (lambda x: torch.einsum("ntd,dtk->nk", [x, constant(4, 5, 1)]), TOKENS, 0.05),
    "einsum by a part of a weight": (lambda x: torch.einsum("ntd,dk->ntk", x, constant(4, 9)[:, ::3]), TOKENS, 0.05),
    "repeated weight": (lambda x: x @ constant(4, 1).expand(4, 3), TOKENS, 0.05),
    "tensordot": (lambda x: torch.tensordot(x, constant(5, 3, 4), dims=([1, 2], [0, 2])), TOKENS, 0.05),
    "tensordot, weight first": (
        lambda x: torch.tensordot(constant(3, 4), x, dims=([1], [2])).movedim(0, 2),
        TOKENS,
        0.05,
    ),
}


@pytest.mark.parametrize("epsilon_rules", [False, True])
@pytest.mark.parametrize("name", list(LINEAR))
def test_linear_maps_in_matrix_form(name: str, epsilon_rules: bool) -> None:
    operation, shape, gamma = LINEAR[name]
    if isinstance(operation, nn.Module):
        operation.requires_grad_(False)
    x = random(2, *shape, seed=1)
    (weights, bias), relevance = dense(operation, shape), random(*operation(x).shape, seed=2)
    flat, arriving = x.flatten(1).numpy(), relevance.flatten(1).numpy()
    expected = z_plus_twin(weights, flat, arriving)
    if epsilon_rules:
        expected = gamma_twin(weights, bias, flat, arriving, gamma)
    np.testing.assert_allclose(flow(operation, x, relevance, epsilon_rules), expected, rtol=1e-7, atol=1e-9)


def assigned(x: Tensor) -> Tensor:
    """A class token, written in front of the tokens."""
    whole = torch.zeros(len(x), 6, 4, dtype=x.dtype)
    whole[:, 1:] = x
    whole[:, 0] = 2
    return whole * 1 - 0


def overwritten(x: Tensor) -> Tensor:
    """The first token becomes a copy of the last."""
    x = x.clone()
    x[:, 0] = x[:, -1]
    return x * 1


MASK = (random(6, 6, seed=3) > 0).expand(4, 6, 6)
# Affine maps whose matrix moves values.
MOVEMENTS: dict[str, tuple[Operation, tuple[int, ...]]] = {
    "pixel shuffle": (nn.PixelShuffle(2), MAPS),
    "pixel unshuffle": (nn.PixelUnshuffle(3), MAPS),
    "channel shuffle": (nn.ChannelShuffle(2), MAPS),
    "nearest": (nn.Upsample(scale_factor=2), MAPS),
    "nearest by name": (lambda x: F.interpolate(input=x, size=4, mode="nearest-exact"), MAPS),
    "unfold": (nn.Unfold(3, padding=1), MAPS),
    "windows": (lambda x: x.unfold(2, 3, 2).unfold(3, 2, 2), MAPS),
    "constant mask": (lambda x: torch.where(MASK, x, 0.5), MAPS),
    "constant mask, two branches": (lambda x: torch.where(MASK, x, x.flip(1)), MAPS),
    "masked": (lambda x: x.masked_fill(MASK, 0), MAPS),
    "repeated": (lambda x: x.repeat_interleave(2, 1).tile(1, 1, 2), TOKENS),
    "gathered": (lambda x: x.gather(1, torch.tensor([[[0, 0, 3, 2]]]).expand(len(x), 2, 4)), TOKENS),
    "selected": (lambda x: x.index_select(1, torch.tensor([1, 1, 4])), TOKENS),
    "properties": (lambda x: torch.stack([one.T for one in x]).mT.reshape_as(x), TOKENS),
    "permuted by einsum": (lambda x: torch.einsum("ntd->ndt", x), TOKENS),
    "class token": (lambda x: torch.cat([constant(1, 1, 4).expand(len(x), 1, 4), x], 1), TOKENS),
    "registers": (lambda x: torch.cat([x[:, :1], constant(1, 2, 4).expand(len(x), 2, 4), x[:, 1:]], 1), TOKENS),
    "assigned": (assigned, TOKENS),
    "overwritten": (overwritten, TOKENS),
    "axis added in place": (lambda x: x.clone().unsqueeze_(1), TOKENS),
}


@pytest.mark.parametrize("name", list(MOVEMENTS))
def test_relevance_follows_what_is_moved(name: str) -> None:
    operation, shape = MOVEMENTS[name]
    x = random(2, *shape, seed=1)
    weights, _ = dense(operation, shape)
    relevance = random(*operation(x).shape, seed=2)
    np.testing.assert_allclose(flow(operation, x, relevance), relevance.flatten(1).numpy() @ weights, atol=1e-12)


def test_relevance_follows_what_is_chosen() -> None:
    x, relevance = random(2, 5, 4, seed=1), random(2, 2, 4, seed=2)
    expected = np.zeros((2, 5, 4))
    for place in np.ndindex(2, 4):
        order = np.argsort(-x[place[0], :, place[1]].numpy())[:2]
        expected[place[0], order, place[1]] = relevance[place[0], :, place[1]]
    for choice in (lambda v: v.topk(2, dim=1)[0], lambda v: torch.sort(v, dim=1, descending=True)[0][:, :2]):
        np.testing.assert_array_equal(flow(choice, x, relevance), expected.reshape(2, -1))
    larger = flow(lambda v: torch.maximum(v, v.flip(1)), x, x).reshape(2, 5, 4)
    wins = (x > x.flip(1)).numpy()
    both = np.where(wins, x, 0) + np.where(wins, x, 0)  # each stands twice, in its place and in the mirrored one
    both[:, 2] = x[:, 2]  # itself
    np.testing.assert_allclose(larger, _mirrored(x.numpy(), wins, both), atol=1e-12)


def _mirrored(relevance: Array, wins: Array, both: Array) -> Array:
    """Relevance of both places where a value is the larger one."""
    expected = np.where(wins, relevance + relevance[:, ::-1], 0)
    expected[:, 2] = both[:, 2]
    return expected


UNCHANGED: dict[str, Operation] = {
    **{
        name: getattr(F, name) for name in ("softplus", "logsigmoid", "hardsigmoid", "mish", "selu", "celu", "softsign")
    },
    "prelu": nn.PReLU().double().requires_grad_(False),
    "threshold": nn.Threshold(0.1, 0.0),
    "shrinkage": F.softshrink,
    "log softmax": lambda x: F.log_softmax(x, dim=1),
    "group norm": nn.GroupNorm(2, 4).double().requires_grad_(False),
    "local response norm": nn.LocalResponseNorm(2),
    "root mean square norm": lambda x: F.rms_norm(x, (6,), torch.ones(6).double()),
    "root mean square norm by hand": lambda x: x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-6),
    "root mean square norm by a power": lambda x: x * (x.square().mean(1, keepdim=True) + 1e-6) ** -0.5,
    "unit length": lambda x: F.normalize(x, dim=1),
    "divided by its length": lambda x: x / torch.linalg.vector_norm(x, dim=1, keepdim=True),
    "square": lambda x: x.square() + x**2 - x.abs(),
    "larger than a constant": lambda x: torch.max(x, torch.zeros(1).double()),
    "scaled by einsum": lambda x: torch.einsum("nchw,c->nchw", x, constant(4)),
    "gelu by hand": lambda x: 0.5 * x * (1 + torch.erf(x / 2**0.5)),
    "dropout in three dimensions": nn.Dropout3d().eval(),
}


@pytest.mark.parametrize("name", list(UNCHANGED))
def test_functions_of_one_value_and_norms_pass_relevance_unchanged(name: str) -> None:
    x, relevance = random(2, *MAPS, seed=7), random(2, *MAPS, seed=8)
    np.testing.assert_allclose(flow(UNCHANGED[name], x, relevance), relevance.flatten(1).numpy(), rtol=1e-9, atol=1e-12)


def test_relevance_of_what_was_broadcast_adds_up() -> None:
    x = random(2, 1, 4, seed=1)
    for operation in (lambda v: v + constant(5, 1), lambda v: constant(5, 1) * v):
        relevance = random(2, 5, 4, seed=2)
        np.testing.assert_allclose(flow(operation, x, relevance), relevance.sum(1).numpy(), rtol=1e-12)


def factors_twin(a: Array, b: Array, relevance: Array, forward: str) -> tuple[Array, Array]:
    """Relevance of both factors of an einsum: half each, in proportion to their products."""
    inputs, output = forward.split("->")
    first, second = inputs.split(",")
    share = relevance / stabilised(2 * np.einsum(forward, a, b))
    to_a = np.einsum(f"{output},{second}->{first}", share, b)
    return a * to_a, b * np.einsum(f"{output},{first}->{second}", share, a)


# Products of two activations, and the einsum that says the same.
PRODUCTS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], str, tuple[int, ...], tuple[int, ...]]] = {
    "einsum": (lambda a, b: torch.einsum("ntd,nsd->nts", a, b), "ntd,nsd->nts", (2, 5, 4), (2, 3, 4)),
    "einsum over all": (lambda a, b: torch.einsum("ntd,ntd", a, b), "ntd,ntd->", (2, 5, 4), (2, 5, 4)),
    "tensordot": (lambda a, b: torch.tensordot(a, b, 1), "ij,jk->ik", (3, 4), (4, 2)),
    "matrices": (torch.mm, "ij,jk->ik", (3, 4), (4, 2)),
    "batches": (lambda a, b: torch.bmm(a, mat2=b), "nij,njk->nik", (2, 3, 4), (2, 4, 2)),
    "vector": (lambda a, b: a @ b, "nij,j->ni", (2, 3, 4), (4,)),
    "vector first": (torch.matmul, "i,nij->nj", (3,), (2, 3, 4)),
    "two vectors": (torch.dot, "i,i->", (4,), (4,)),
    "linear layer with a weight that is an activation": (F.linear, "ni,oi->no", (3, 4), (2, 4)),
    "convolution with a weight that is an activation": (
        lambda a, b: F.conv2d(a, b[:, :, None, None], constant(2)) - constant(2)[:, None, None],
        *("nchw,oc->nohw", (2, 4, 3, 3), (2, 4)),
    ),
    "with an offset": (
        lambda a, b: torch.baddbmm(constant(2, 3, 2), a, b) - constant(2, 3, 2),
        *("nij,njk->nik", (2, 3, 4), (2, 4, 2)),
    ),
    "without its offset": (
        lambda a, b: 2 * torch.addmm(torch.full((3, 2), torch.inf).double(), a, b, beta=0, alpha=0.5),
        *("ij,jk->ik", (3, 4), (4, 2)),
    ),
}


@pytest.mark.parametrize("name", list(PRODUCTS))
def test_both_factors_of_a_product_take_half(name: str) -> None:
    operation, equation, *shapes = PRODUCTS[name]
    a, b = (random(*shape, seed=seed).abs().requires_grad_() for seed, shape in enumerate(shapes))
    with RelevancePass():
        out = operation(a, b)
    relevance = random(*out.shape, seed=5) if out.ndim else torch.tensor(2.0).double()
    arrived = torch.autograd.grad(out, (a, b), relevance)
    expected = factors_twin(a.detach().numpy(), b.detach().numpy(), relevance.numpy(), equation)
    np.testing.assert_allclose(out.detach(), np.einsum(equation, a.detach(), b.detach()))
    for ours, theirs in zip(arrived, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-7, atol=1e-10)


def test_gates_take_half() -> None:
    x, relevance = random(2, 4, 6, seed=1), random(2, 4, 6, seed=2)
    half = relevance.numpy() / 2
    gated = flow(lambda v: torch.einsum("nct,nc->nct", v, v[..., 0]), x, relevance).reshape(2, 4, 6)
    expected = half.copy()
    expected[..., 0] += half.sum(-1)
    np.testing.assert_allclose(gated, expected, rtol=1e-12)
    for glu in (
        lambda v: F.glu(v, dim=2),
        lambda v: v.chunk(2, dim=-1)[0] * F.silu(v.chunk(2, dim=-1)[1]),
        nn.GLU(),
    ):
        both = np.concatenate([half[..., :3], half[..., :3]], axis=-1).reshape(2, -1)
        np.testing.assert_allclose(flow(glu, x, relevance[..., :3]), both, rtol=1e-12)


def test_rotary_embeddings_and_interpolations_split_like_sums() -> None:
    x, relevance = random(2, 3, 4, seed=1), random(2, 3, 4, seed=2)
    cos, sin = constant(3, 4), constant(3, 4, seed=12)

    def rotated(v: Tensor) -> Tensor:
        return v * cos + torch.stack([-v[..., 1::2], v[..., ::2]], -1).reshape(v.shape) * sin

    turned = torch.stack([-x[..., 1::2], x[..., ::2]], -1).reshape(x.shape)
    straight, across = (x * cos).abs().numpy(), (turned * sin).abs().numpy()
    share = straight / (straight + across)
    other = ((1 - share) * relevance.numpy()).reshape(2, 3, 2, 2)[..., ::-1].reshape(2, 3, 4)  # of the partner
    np.testing.assert_allclose(
        flow(rotated, x, relevance), (share * relevance.numpy() + other).reshape(2, -1), rtol=1e-9
    )

    near, far = 0.7 * x.abs().numpy(), 0.3 * x.square().numpy()
    to_far = far / (near + far) * relevance.numpy()
    mixed = flow(lambda v: torch.stack([torch.lerp(v, v.square(), 0.3), v], -1)[..., 0], x, relevance)
    np.testing.assert_allclose(mixed, ((relevance.numpy() - to_far) + to_far).reshape(2, -1), rtol=1e-9)
    apart = flow(lambda v: torch.lerp(v[:, :1], v[:, 1:2], 0.3), x, relevance[:, :1]).reshape(2, 3, 4)
    near, far = 0.7 * x[:, 0].abs().numpy(), 0.3 * x[:, 1].abs().numpy()
    np.testing.assert_allclose(apart[:, 0], near / (near + far) * relevance[:, 0].numpy(), rtol=1e-9)


def _composed(query: Tensor, key: Tensor, value: Tensor, offset: Tensor | float = 0.0, scale: float = 0.5) -> Tensor:
    """Attention of heads of width 4 in single operations, which have their own twins."""
    return ((query * scale) @ key.transpose(-2, -1) + offset).softmax(dim=-1) @ value


HIDDEN = torch.ones(5, 5, dtype=torch.bool).triu(1)
OFFSET = torch.zeros(5, 5, dtype=torch.float64).masked_fill(HIDDEN, -torch.inf)
LEARNED = constant(1, 2, 3, 4)
attention = F.scaled_dot_product_attention
ATTENTION: dict[str, tuple[Operation, Operation]] = {
    "causal": (lambda v: attention(v, v, v, is_causal=True), lambda v: _composed(v, v, v, OFFSET)),
    "boolean mask": (lambda v: attention(v, v, v, ~HIDDEN), lambda v: _composed(v, v, v, OFFSET)),
    "offset": (lambda v: attention(v, v, v, attn_mask=OFFSET), lambda v: _composed(v, v, v, OFFSET)),
    "no dropout": (
        lambda v: attention(query=v, key=v, value=v, dropout_p=0.0, scale=0.1),
        lambda v: _composed(v, v, v, scale=0.1),
    ),
    "grouped queries": (
        lambda v: attention(v, v[:, :1], v[:, :1], enable_gqa=True),
        lambda v: _composed(v, v[:, :1].repeat_interleave(2, 1), v[:, :1].repeat_interleave(2, 1)),
    ),
    "learned queries": (
        lambda v: attention(LEARNED.expand(2, -1, -1, -1), v, v),
        lambda v: _composed(LEARNED.expand(2, -1, -1, -1), v, v),
    ),
    "bias that is an activation": (
        lambda v: attention(v, v, v, attn_mask=v @ v.mT),
        lambda v: _composed(v, v, v, v @ v.mT),
    ),
}


@pytest.mark.parametrize("name", list(ATTENTION))
def test_attention_is_what_it_is_made_of(name: str) -> None:
    fused, composed = ATTENTION[name]
    x = random(2, 2, 5, 4, seed=1)
    relevance = random(*fused(x).shape, seed=2)
    np.testing.assert_allclose(flow(fused, x, relevance), flow(composed, x, relevance), rtol=1e-8, atol=1e-12)


def multi_head(
    packed: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor, offset: Tensor | float
) -> Tensor:
    """``nn.MultiheadAttention`` of two heads of width 4 in single operations; (N, T, 8) and attention (N, T, S)."""
    weights = [packed.q_proj_weight, packed.k_proj_weight, packed.v_proj_weight]
    if packed.in_proj_weight is not None:
        weights = list(packed.in_proj_weight.chunk(3))
    parts = [
        F.linear(x, weight, bias).unflatten(2, (2, 4)).transpose(1, 2)  # (N, heads, T, 4)
        for x, weight, bias in zip((query, key, value), weights, packed.in_proj_bias.chunk(3), strict=True)
    ]
    return packed.out_proj(_composed(*parts, offset).transpose(1, 2).flatten(2))


PADDING = torch.tensor([[False, False, True, False, True], [False] * 5])
QUERIES = constant(2, 3, 8)


def pad(like: Tensor) -> Tensor:
    return torch.zeros(2, 1, 1, 5, dtype=like.dtype).masked_fill(PADDING[:, None, None], -torch.inf)


MULTI_HEAD: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor], int]] = {
    "with weights": (lambda m, v: m(v, v, v)[0], lambda m, v: multi_head(m, v, v, v, 0.0), 8),
    "weights unused": (
        lambda m, v: m(v, v, v, average_attn_weights=False)[0],
        lambda m, v: multi_head(m, v, v, v, 0.0),
        8,
    ),
    "padded": (lambda m, v: m(v, v, v, key_padding_mask=PADDING)[0], lambda m, v: multi_head(m, v, v, v, pad(v)), 8),
    "padded and masked": (
        lambda m, v: m(v, v, v, PADDING, False, HIDDEN)[0],
        lambda m, v: multi_head(m, v, v, v, pad(v) + OFFSET),
        8,
    ),
    "learned queries": (lambda m, v: m(QUERIES, v, v)[0], lambda m, v: multi_head(m, QUERIES, v, v, 0.0), 8),
    "other values": (lambda m, v: m(v, v, v * 2)[0], lambda m, v: multi_head(m, v, v, v * 2, 0.0), 8),
    "keys of another width": (
        lambda m, v: m(QUERIES, v, v)[0],
        lambda m, v: multi_head(m, QUERIES, v, v, 0.0),
        6,
    ),
    "one by one": (
        lambda m, v: torch.stack([m(one, one, one)[0] for one in v]),
        lambda m, v: multi_head(m, v, v, v, 0.0),
        8,
    ),
}


@pytest.mark.parametrize("name", list(MULTI_HEAD))
def test_multi_head_attention_is_what_it_is_made_of(name: str) -> None:
    theirs, composed, width = MULTI_HEAD[name]
    torch.manual_seed(0)
    packed = nn.MultiheadAttention(8, 2, batch_first=True, kdim=width, vdim=width).double().eval().requires_grad_(False)
    nn.init.normal_(packed.in_proj_bias)
    x = random(2, 5, width, seed=1)
    relevance = random(*theirs(packed, x).shape, seed=2)
    ours = flow(lambda v: theirs(packed, v), x, relevance)
    np.testing.assert_allclose(ours, flow(lambda v: composed(packed, v), x, relevance), rtol=1e-7, atol=1e-11)


def test_the_weights_of_multi_head_attention_are_those_it_returns() -> None:
    torch.manual_seed(0)
    packed = nn.MultiheadAttention(8, 2, batch_first=True).double().eval().requires_grad_(False)
    x = random(2, 5, 8, seed=1)
    with RelevancePass():
        _, weights = packed(*[x.clone().requires_grad_()] * 3)
    torch.testing.assert_close(weights.detach(), packed(x, x, x)[1])
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 5).double())


class Does(nn.Module):
    """A module that does one thing."""

    def __init__(self, operation: Operation) -> None:
        super().__init__()
        self.operation = operation

    def forward(self, x: Tensor) -> Tensor:
        return self.operation(x)


def partly_changed(x: Tensor) -> Tensor:
    F.relu(x[:, :2], inplace=True)
    return x * 2


REFUSED: dict[str, Operation] = {
    "cumsum": lambda x: x.cumsum(1),
    "cumprod": lambda x: torch.cumprod(x, dim=1),
    "logcumsumexp": lambda x: x.logcumsumexp(1),
    "prod": lambda x: x.prod(1),
    "cummax": lambda x: torch.cummax(x, 1)[0],
    "nansum": lambda x: x.nansum(1),
    "exp": lambda x: (x * 1).exp_(),
    "copy": lambda x: torch.zeros(2, 4, 6, 6).copy_(x),
    "bilinear": lambda x: F.bilinear(x, x, torch.ones(2, 6, 6)),
    "median": lambda x: x.median(1)[0],
    "rpow": lambda x: 2**x,
    "grid_sample": lambda x: F.grid_sample(x, torch.zeros(len(x), 2, 2, 2), align_corners=False),
    "cosine_similarity": lambda x: F.cosine_similarity(x, x.flip(0)),
    "max_pool2d_with_indices": lambda x: F.max_pool2d(x, 2, return_indices=True)[0],
    "pow with an exponent of at most 0": lambda x: x**-1,
    "pow with an exponent that is an activation": lambda x: x.abs() ** x,
    "lerp by an activation": lambda x: torch.lerp(x, x, x),
    "division with rounding": lambda x: torch.div(x, 2, rounding_mode="floor"),
    "softmax without a dimension": lambda x: torch.nn.functional.softmax(x, _stacklevel=3, dim=None),
    "clamp with a parameter that is an activation": lambda x: x.clamp(min=x.mean()),
    "conv2d with a bias that is an activation": lambda x: F.conv2d(x, torch.ones(2, 4, 1, 1), x[0, :2, 0, 0]),
    "einsum of more than two factors": lambda x: torch.einsum("nc,nc,nc->nc", *[x[..., 0, 0]] * 3),
    "scaled_dot_product_attention with dropout": lambda x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.1),
    "in-place change of a part of an activation that is used again": partly_changed,
}


@pytest.mark.filterwarnings("ignore:Implicit dimension choice")
@pytest.mark.parametrize("name", list(REFUSED))
def test_what_has_no_rule_is_named_with_its_module(name: str) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Sequential(nn.ReLU(), Does(REFUSED[name])), nn.Flatten())
    message = re.escape(
        f"no rule for the operation {name} in 1.1; relevance=gradient_x_activation works on any network"
    )
    images = torch.rand(2, 3, 6, 6)
    with pytest.raises(UsageError, match=message) as told:
        relevance_maps(load_model(network.eval(), size=6), images, "2:0", ["0"])
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("mode", [RelevancePass, GuidedPass, OutOfPlacePass])
def test_a_part_changed_in_place_never_leaves_the_whole_as_it_was(mode: type[OutOfPlacePass]) -> None:
    x = random(2, 4, 3, seed=1)

    def apart(v: Tensor) -> Tensor:
        left, right = v.chunk(2, dim=1)  # share memory, but no element
        return torch.cat([left.mul_(2), right.relu_()], dim=1)

    with mode() as rules:
        torch.testing.assert_close(apart(x.clone().requires_grad_() * 1), apart(x.clone()))
        torch.testing.assert_close(rules.current(overwritten(x.clone().requires_grad_())), overwritten(x.clone()))
        with pytest.raises(Uncovered, match="in-place change of a part"):
            partly_changed(x.clone().requires_grad_() * 1)


def listed() -> dict[str, set[str]]:
    """The table of the documentation: {rule: operations}."""
    text = (Path(__file__).parents[1] / "docs" / "relevance.md").read_text("utf-8")
    rows = re.findall(r"^\| ([\w ]+) \| ((?:`\w+`(?:, )?)+) \|", text, flags=re.MULTILINE)
    return {rule: set(re.findall(r"`(\w+)`", operations)) for rule, operations in rows}


def test_the_documentation_lists_the_covered_operations() -> None:
    assert listed() == {rule: set(operations) for rule, operations in COVERED.items()}
    names = [name for operations in COVERED.values() for name in operations]
    assert len(names) == len(set(names))
    assert set(names) == set(RULES)


# One small network each of timm's families, what is read, and a layer below it: every kind of block lies between them.
SMALL: dict[str, tuple[str, str, str, int]] = {
    "mobilenetv4": ("mobilenetv4_conv_small_050", "blocks", "conv_stem", 64),
    "edgenext": ("edgenext_xx_small", "stages", "stem", 64),
    "mobilevitv2": ("mobilevitv2_050", "stages", "stem", 64),
    "levit": ("levit_128s", "stages", "stem", 224),
    "xcit": ("xcit_nano_12_p16_224", "blocks.1", "patch_embed", 64),
    "eva02": ("eva02_tiny_patch14_224", "blocks.1", "patch_embed", 224),
    "sknet": ("skresnet18", "layer4", "conv1", 64),
    "ghostnetv2": ("ghostnetv2_100", "blocks", "conv_stem", 64),
}


@pytest.mark.parametrize("family", list(SMALL))
def test_timms_families_are_covered(family: str) -> None:
    name, target, early, size = SMALL[family]
    torch.manual_seed(0)
    network = timm.create_model(name).eval()
    images = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(1))
    maps = relevance_maps(load_model(network, size=size), images, f"{target}:0", [early], "lrp")
    assert maps[early].isfinite().all()


def test_an_uncovered_familys_operation_is_named() -> None:
    network, images = timm.create_model("efficientvit_b0").eval(), torch.rand(1, 3, 64, 64)
    with pytest.raises(
        UsageError, match=r"no rule for the operation division by an activation in stages\.2\.blocks\.1\."
    ):
        relevance_maps(load_model(network, size=64), images, "stages:0", ["stem"])
