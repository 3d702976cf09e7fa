"""A forward pass whose operations carry relevance rules, whatever modules they are written in."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from vital_exp.relevance import operations

# What an operation is called, without the marks of in-place and reflected forms: iadd, add_ and radd are add.
ALIASES = {"_max_pool2d": "max_pool2d", "max_pool2d_with_indices": "max_pool2d", "concat": "cat", "concatenate": "cat"}
# Operations that move, choose or sum up values unchanged: their gradient is their rule.
MOVEMENTS = frozenset(
    {
        *("cat", "stack", "chunk", "split", "unbind", "getitem", "__getitem__", "select", "narrow", "pad", "roll"),
        *("reshape", "view", "view_as", "flatten", "unflatten", "squeeze", "unsqueeze", "permute", "transpose", "T"),
        *("swapaxes", "movedim", "expand", "expand_as", "repeat", "contiguous", "clone", "flip", "to", "type", "float"),
        *("double", "type_as", "t", "mT", "rearrange", "_pad", "where"),
    }
)
# Operations through which relevance passes unchanged; the first argument is the activation.
IDENTITIES = frozenset(
    {
        *(
            "batch_norm",
            "layer_norm",
            "group_norm",
            "instance_norm",
            "rms_norm",
            "dropout",
            "dropout2d",
            "feature_dropout",
        ),
        *("relu", "relu6", "hardtanh", "clamp", "clamp_min", "gelu", "silu", "hardswish", "leaky_relu", "elu", "mish"),
        *("sigmoid", "hardsigmoid", "tanh", "stochastic_depth", "neg"),
    }
)
NEVER_NEGATIVE = frozenset({"relu", "relu6", "sigmoid", "hardsigmoid"})
# What normalises an activation is taken as constant, as in batch and layer norm (ConvNeXt V2's response norm).
CONSTANTS = frozenset({"norm", "var", "std", "var_mean", "rsqrt"})
GUIDED = frozenset(
    {"relu", "relu6", "hardtanh", "clamp", "clamp_min", "gelu", "silu", "hardswish", "leaky_relu", "elu"}
)
IN_PLACE = {"iadd": "add", "isub": "sub", "imul": "mul", "itruediv": "div"}


class Uncovered(Exception):
    """An operation on an activation has no rule; its name."""


def check_ruled(values: Any) -> None:
    """Make sure that activations came out of operations that a relevance pass carried out.

    A custom ``torch.autograd.Function`` or a scripted module is not shown to it: relevance would flow through its plain
    gradient.

    Raises:
        Uncovered: one did not.
    """
    for tensor in _tensors(values):
        if tensor.grad_fn is not None and not getattr(tensor, "_has_rule", False):
            raise Uncovered(tensor.grad_fn.name().removesuffix("Backward"))


class OutOfPlacePass(TorchFunctionMode):
    """While it is active, in-place operations are carried out out of place, so that activations stay what they were.

    Whatever uses a tensor after an in-place operation on it gets the operation's result.
    """

    def __init__(self) -> None:
        super().__init__()
        # By the id of a tensor: it, kept so that no other takes its id, and what it would have become.
        self._changed: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Carry out one operation."""
        given = self.current(args)
        keywords = {name: self.current(value) for name, value in (kwargs or {}).items()}
        result = self._run(func, given, keywords)
        if _in_place(func, keywords) and given and _needs_gradient(given[0]) and result is not given[0]:
            self._changed[id(given[0])] = given[0], result
        return result

    def current(self, value: Any) -> Any:
        """Return what in-place operations would have made of a tensor, or of those in a tuple or list."""
        if type(value) in (tuple, list):
            return type(value)(map(self.current, value))
        while id(value) in self._changed:
            _, value = self._changed[id(value)]
        return value

    def _run(self, func: Any, args: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        return _value(func, args, keywords)


class RelevancePass(OutOfPlacePass):
    """While it is active, operations on activations that need a gradient get the backward pass of their rule.

    In-place operations are carried out out of place. An operation without a rule raises Uncovered; one that torch does
    not show to a mode does so when its result is used.

    Attributes:
        counts: how often each rule was installed, by operation; ``"residual_sum"`` counts sums of two activations.

    Args:
        epsilon_rules: linear layers and convolutions follow AttnLRP's gamma rules instead of z+.
    """

    def __init__(self, epsilon_rules: bool = False) -> None:
        super().__init__()
        self.epsilon_rules = epsilon_rules
        self.counts: Counter[str] = Counter()

    def _run(self, func: Any, args: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        """Carry out one operation with its rule."""
        if not any(map(_needs_gradient, (*args, *keywords.values()))):
            return func(*args, **keywords)
        check_ruled((*args, *keywords.values()))
        result = self._carry_out(func, args, keywords)
        for tensor in _tensors(result):
            tensor._has_rule = True  # type: ignore[attr-defined]
        return result

    def _carry_out(self, func: Any, args: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        name = operation_name(func)
        if name in MOVEMENTS:
            return func(*args, **keywords)
        if name in CONSTANTS:
            return _detached(func(*args, **keywords))
        if name in IDENTITIES:
            return self._identity(func, args, keywords)
        if name in RULED:
            return getattr(self, f"_{name}")(func, args, keywords)
        result = func(*args, **keywords)
        if _needs_gradient(result) and not _same(result, args):
            raise Uncovered(name)
        return result

    def _note(self, name: str) -> None:
        self.counts[name] += 1

    def _identity(self, func: Any, args: tuple[Any, ...], keywords: dict[str, Any]) -> Tensor:
        name = operation_name(func)
        self._note(name)
        result = operations.identity(_value(func, args, keywords), args[0])
        return operations.positive(result) if name in NEVER_NEGATIVE else result

    def _conv2d(self, func: Any, args: tuple[Any, ...], keywords: dict[str, Any]) -> Tensor:
        value = func(*args, **keywords)
        x, weight, bias, options = _linear_arguments(args, keywords)

        def convolve(v: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
            return F.conv2d(v, w, b, *options, **keywords)

        return self._weights("conv2d", value, x, weight, bias, convolve, operations.GAMMA_CONVOLUTION)

    def _linear(self, func: Any, args: tuple[Any, ...], keywords: dict[str, Any]) -> Tensor:
        value = func(*args, **keywords)
        x, weight, bias, _ = _linear_arguments(args, keywords)
        return self._weights("linear", value, x, weight, bias, F.linear, operations.GAMMA_LINEAR)

    def _weights(
        self,
        name: str,
        value: Tensor,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        linear: Callable[..., Tensor],
        gamma: float,
    ) -> Tensor:
        self._note(name)
        if self.epsilon_rules:
            return operations.gamma(value, x, weight.detach(), bias, linear, gamma)
        return operations.z_plus(value, x, weight.detach(), linear)

    def _max_pool2d(self, func: Any, args: tuple[Any, ...], keywords: dict[str, Any]) -> Tensor:
        self._note("max_pool2d")
        value = func(*args, **keywords)
        stride = _argument(args, keywords, 2, "stride") or _argument(args, keywords, 1, "kernel_size")
        result = operations.pooled(value, args[0], lambda v: operations.average_like_maximum(v, stride, value.shape))
        return operations.positive(result) if operations.is_positive(args[0]) else result

    def _avg_pool2d(self, func: Any, args: tuple[Any, ...], keywords: dict[str, Any]) -> Tensor:
        self._note(operation_name(func))
        value = func(*args, **keywords)
        return operations.pooled(value, args[0], lambda v: func(v, *args[1:], **keywords))

    _adaptive_avg_pool2d = _mean = _avg_pool2d

    def _add(self, func: Any, args: tuple[Any, ...], keywords: dict[str, Any]) -> Tensor:
        a, b = _operands(args, keywords)
        return self._sum(a, _scaled(b, keywords.get("alpha", 1)))

    def _sub(self, func: Any, args: tuple[Any, ...], keywords: dict[str, Any]) -> Tensor:
        a, b = _operands(args, keywords)
        return self._sum(a, _scaled(b, -keywords.get("alpha", 1)))

    def _rsub(self, func: Any, args: tuple[Any, ...], keywords: dict[str, Any]) -> Tensor:
        a, b = _operands(args, keywords)  # b - a
        return self._sum(_scaled(a, -keywords.get("alpha", 1)), b)

    def _sum(self, a: Any, b: Any) -> Tensor:
        value = torch.add(a, b)
        if not (_needs_gradient(a) and _needs_gradient(b)):  # a constant, such as a position embedding, is a bias
            self._note("bias")
            return operations.identity(value, a if _needs_gradient(a) else b)
        self._note("residual_sum")
        return operations.residual_sum(value, a, b)

    def _mul(self, func: Any, args: tuple[Any, ...], keywords: dict[str, Any]) -> Tensor:
        a, b = _operands(args, keywords)
        value = torch.mul(a, b)
        if not (_needs_gradient(a) and _needs_gradient(b)):  # layer scale, or a number
            self._note("scale")
            return operations.identity(value, a if _needs_gradient(a) else b)
        self._note("product")
        return operations.product(value, a, b)

    def _addcmul(self, func: Any, args: tuple[Any, ...], keywords: dict[str, Any]) -> Tensor:
        offset, a, b = args[:3]
        factor = keywords.get("value", 1)
        product = self._mul(torch.mul, (a, b), {}) if _needs_gradient(a) or _needs_gradient(b) else a * b
        scaled = product if factor == 1 else self._mul(torch.mul, (product, factor), {})
        return self._add(torch.add, (offset, scaled), {})

    def _div(self, func: Any, args: tuple[Any, ...], keywords: dict[str, Any]) -> Tensor:
        if any(map(_needs_gradient, (*args[1:], keywords.get("other")))):
            raise Uncovered("division by an activation")
        self._note("scale")
        return operations.identity(torch.div(*args, **keywords), args[0])

    def _matmul(self, func: Any, args: tuple[Any, ...], keywords: dict[str, Any]) -> Tensor:
        if not _needs_gradient(args[1]) and args[1].ndim == 2:  # a projection, such as that of CLIP's image tower
            return self._linear(F.linear, (args[0], args[1].transpose(0, 1)), {})
        self._note("matmul")
        return operations.matrix_product(torch.matmul(*args, **keywords), args[0], args[1])

    _bmm = _matmul

    def _softmax(self, func: Any, args: tuple[Any, ...], keywords: dict[str, Any]) -> Tensor:
        self._note("softmax")
        return operations.softmax(func(*args, **keywords), args[0], _argument(args, keywords, 1, "dim"))

    def _scaled_dot_product_attention(self, func: Any, args: tuple[Any, ...], keywords: dict[str, Any]) -> Tensor:
        query, key, value = args[:3]
        mask, scale = _argument(args, keywords, 3, "attn_mask"), keywords.get("scale")
        if _argument(args, keywords, 5, "is_causal"):
            raise Uncovered("causal attention")
        return self._attend(query, key, value, mask, scale)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Any, scale: float | None) -> Tensor:
        """Scaled dot products, softmax, weighted sum, each by its own rule."""
        query = operations.identity(query * (scale or 1 / math.sqrt(query.shape[-1])), query)
        scores = self._matmul(torch.matmul, (query, key.transpose(-2, -1)), {})
        if mask is not None:
            offset = torch.where(mask, 0.0, -math.inf) if mask.dtype == torch.bool else mask
            scores = operations.identity(scores + offset, scores)
        return self._matmul(torch.matmul, (self._softmax(torch.softmax, (scores, -1), {}), value), {})

    def _multi_head_attention_forward(self, func: Any, args: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        """torchvision's attention: one projection to queries, keys and values of one input, heads, one projection."""
        x, heads = args[0], args[4]
        weight, bias, out_weight, out_bias = args[5], args[6], args[11], args[12]
        if args[1] is not x or args[2] is not x or weight is None:
            raise Uncovered("attention between different inputs")
        if args[7] is not None or args[8] is not None or args[9] or keywords.get("key_padding_mask") is not None:
            raise Uncovered("attention to more than the input, or to less")
        projected = self._linear(F.linear, (x, weight, bias), {})  # (T, N, 3 D)
        length, count, width = x.shape
        query, key, value = (
            part.reshape(length, count, heads, width // heads).permute(1, 2, 0, 3)  # (N, heads, T, D / heads)
            for part in projected.chunk(3, dim=-1)
        )
        mask = _mask(keywords.get("attn_mask"), count, heads)
        mixed = self._attend(query, key, value, mask, None).permute(2, 0, 1, 3).reshape(length, count, width)
        return self._linear(F.linear, (mixed, out_weight, out_bias), {}), None


RULED = frozenset(
    {
        *("conv2d", "linear", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "mean", "add", "mul", "div"),
        *("sub", "rsub", "addcmul"),
        *("matmul", "bmm", "softmax", "scaled_dot_product_attention", "multi_head_attention_forward"),
    }
)


class GuidedPass(OutOfPlacePass):
    """While it is active, activation functions let only positive gradients back (guided backpropagation).

    In-place operations are carried out out of place; everything else is as it is.
    """

    def _run(self, func: Any, args: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        if operation_name(func) in GUIDED and _needs_gradient(args[0]):
            return operations.guided(
                _value(func, args, keywords), args[0], lambda x: _derivative(func, x, args[1:], keywords)
            )
        return _value(func, args, keywords)


def operation_name(func: Any) -> str:
    """Return an operation's plain name: relu for relu_, add for __iadd__."""
    name = str(getattr(func, "__name__", func))
    if name in MOVEMENTS or name in ALIASES:
        return ALIASES.get(name, name)
    name = name.removeprefix("__").removesuffix("__").rstrip("_")
    name = IN_PLACE.get(name, name)
    return {"radd": "add", "rmul": "mul", "truediv": "div"}.get(name, name)


def _in_place(func: Any, keywords: Mapping[str, Any]) -> bool:
    """Whether an operation changes its first argument."""
    name = str(getattr(func, "__name__", ""))
    plain = name.removeprefix("__").removesuffix("__")
    return bool(keywords.get("inplace")) or (name.endswith("_") and not name.endswith("__")) or plain in IN_PLACE


def _value(func: Any, args: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    """Carry out an operation, out of place if it is an in-place one on an activation."""
    if keywords.get("inplace"):
        keywords = {**keywords, "inplace": False}
    if not _in_place(func, keywords) or not args or not _needs_gradient(args[0]):
        return func(*args, **keywords)
    plain = operation_name(func)
    outside = getattr(torch, plain, None) or getattr(F, plain)
    return outside(*args, **keywords)


def _derivative(func: Any, x: Tensor, rest: tuple[Any, ...], keywords: dict[str, Any]) -> Tensor:
    with torch.enable_grad():
        variable = x.detach().requires_grad_()
        (derivative,) = torch.autograd.grad(_value(func, (variable, *rest), keywords).sum(), variable)
    return derivative


def _linear_arguments(args: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor | None, Any]:
    """Return input, weight, bias and further positional arguments; ``keywords`` keeps only further ones."""
    x = args[0]
    weight = args[1] if len(args) > 1 else keywords.pop("weight")
    bias = args[2] if len(args) > 2 else keywords.pop("bias", None)
    return x, weight, bias, args[3:]


def _argument(args: tuple[Any, ...], keywords: Mapping[str, Any], place: int, name: str) -> Any:
    return args[place] if len(args) > place else keywords.get(name)


def _operands(args: tuple[Any, ...], keywords: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return both operands of a sum, a difference or a product."""
    return args[0], _argument(args, keywords, 1, "other")


def _scaled(x: Any, factor: float) -> Any:
    """Multiply by a number: a linear map of each value by itself, through which relevance passes unchanged."""
    if factor == 1:
        return x
    return operations.identity(x * factor, x) if _needs_gradient(x) else x * factor


def _mask(mask: Tensor | None, count: int, heads: int) -> Tensor | None:
    """Return a mask of ``nn.MultiheadAttention`` as what is added to scores (N, heads, T, T)."""
    if mask is None:
        return None
    if mask.dtype == torch.bool:  # true where nothing is read, unlike in scaled_dot_product_attention
        mask = torch.zeros(mask.shape, device=mask.device).masked_fill(mask, -math.inf)
    return mask if mask.ndim == 2 else mask.unflatten(0, (count, heads))  # (N heads, T, T)


def _needs_gradient(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.requires_grad
    return isinstance(value, (list, tuple)) and any(map(_needs_gradient, value))


def _tensors(values: Any) -> Iterator[Tensor]:
    """Yield the tensors in a result or in arguments that need a gradient."""
    if isinstance(values, Tensor):
        if values.requires_grad:
            yield values
    elif isinstance(values, (list, tuple)):
        for value in values:
            yield from _tensors(value)


def _detached(result: Any) -> Any:
    return result.detach() if isinstance(result, Tensor) else tuple(part.detach() for part in result)


def _same(result: Any, args: tuple[Any, ...]) -> bool:
    """Whether an operation returned one of its arguments, such as ``x.requires_grad_()``."""
    return any(result is argument for argument in args)
