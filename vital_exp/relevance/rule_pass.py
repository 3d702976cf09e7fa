"""A forward pass that attaches relevance rules to operations, in whatever modules the operations are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vital_exp.models.axes import Arguments, Keywords, Operation, tensors_in
from vital_exp.relevance import attention, rules
from vital_exp.relevance.covered import AVERAGES, CONSTANTS, CONVOLUTIONS, IDENTITIES, MAXIMA, MOVEMENTS, operation_name
from vital_exp.relevance.out_of_place import (
    OutOfPlacePass,
    Uncovered,
    carry_out,
    is_activation,
    needs_gradient,
)
from vital_exp.relevance.out_of_place import in_place as changes_its_input

NEVER_NEGATIVE = frozenset({"relu", "relu6", "sigmoid", "hardsigmoid", "softplus", "abs", "square", "sqrt"})
# A power with this exponent normalises an activation, as in a root mean square norm, and counts as a constant.
INVERSE_ROOT = -0.5


def check_ruled(values: object) -> None:
    """Check that activations are results of operations that a relevance pass carried out.

    torch hides a custom ``torch.autograd.Function`` or a scripted module from the pass, so that relevance would follow
    their plain gradients.

    Raises:
        Uncovered: an activation is no such result.
    """
    for tensor in _activations(values):
        if tensor.grad_fn is not None and not getattr(tensor, "_has_rule", False):
            raise Uncovered(tensor.grad_fn.name().removesuffix("Backward"))


class RelevancePass(OutOfPlacePass):
    """While it is active, operations on activations that need a gradient get the backward pass of their rule.

    In-place operations are carried out out of place. An operation without a rule raises Uncovered; where torch hides
    the operation from modes, the first use of its result raises Uncovered. ``vital_exp.relevance.covered.COVERED``
    lists the operations with a rule.

    Attributes:
        counts: how often each rule was installed, by operation; ``"residual_sum"`` counts sums of two activations.

    Args:
        epsilon_rules: linear layers and convolutions follow AttnLRP's gamma rules instead of z+.
    """

    def __init__(self, epsilon_rules: bool = False) -> None:
        super().__init__()
        self.epsilon_rules = epsilon_rules
        self.counts: Counter[str] = Counter()

    def _run(self, func: Operation, args: Arguments, keywords: Keywords) -> Any:
        """Carry out one operation with its rule."""
        given = (*args, *keywords.values())
        if not needs_gradient(given):
            return func(*args, **keywords)
        check_ruled(given)
        name = operation_name(func)
        if name in RULES:
            result = RULES[name](self, func, args, keywords)
        elif changes_its_input(func, keywords):
            raise Uncovered(name)
        else:
            result = func(*args, **keywords)
            if needs_gradient(result) and not _same(result, args):
                raise Uncovered(name)
        for tensor in _activations(result):
            tensor._has_rule = True  # type: ignore[attr-defined]
        return result

    def _note(self, name: str) -> None:
        self.counts[name] += 1

    def _movement(self, func: Operation, args: Arguments, keywords: Keywords) -> Any:
        return carry_out(func, args, keywords)

    def _constant(self, func: Operation, args: Arguments, keywords: Keywords) -> Any:
        result = func(*args, **keywords)
        return result.detach() if isinstance(result, Tensor) else tuple(part.detach() for part in result)

    def _identity(self, func: Operation, args: Arguments, keywords: Keywords) -> Tensor:
        name = operation_name(func)
        if is_activation((*args[1:], *keywords.values())):
            raise Uncovered(f"{name} with a parameter that is an activation")
        self._note(name)
        result = rules.identity(carry_out(func, args, keywords), args[0])
        return rules.positive(result) if name in NEVER_NEGATIVE else result

    # Linear layers and convolutions.

    def _convolution(self, func: Operation, args: Arguments, keywords: Keywords) -> Tensor:
        x, weight, bias, options = _linear_arguments(args, keywords)

        def convolve(v: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
            result: Tensor = func(v, w, b, *options, **keywords)
            return result

        return self._affine(operation_name(func), x, weight, bias, convolve, rules.GAMMA_CONVOLUTION)

    def _linear(self, func: Operation, args: Arguments, keywords: Keywords) -> Tensor:
        return self.linear(*_linear_arguments(args, keywords)[:3])

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return x weight^T + bias."""
        if not needs_gradient((x, weight)):
            return F.linear(x, weight, bias)
        return self._affine("linear", x, weight, bias, F.linear, rules.GAMMA_LINEAR)

    def _affine(
        self, name: str, x: Tensor, weight: Tensor, bias: Tensor | None, affine: Callable[..., Tensor], gamma: float
    ) -> Tensor:
        """Return an affine map; a weight that is an activation (dynamic convolutions) makes it a product of two."""
        if is_activation(bias):
            raise Uncovered(f"{name} with a bias that is an activation")
        if not is_activation(weight):
            return self._weights(name, affine(x, weight, bias), x, weight, bias, affine, gamma)
        mixed = self._bilinear(name, x, weight, affine, gamma)
        return mixed if bias is None else rules.identity(affine(x, weight, bias).detach(), mixed)

    def _weights(
        self,
        name: str,
        value: Tensor,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        affine: Callable[..., Tensor],
        gamma: float,
    ) -> Tensor:
        self._note(name)
        if self.epsilon_rules:
            return rules.gamma(value, x, weight.detach(), bias, affine, gamma)
        return rules.z_plus(value, x, weight.detach(), affine)

    # Means, sums over dimensions, maxima.

    def _average(self, func: Operation, args: Arguments, keywords: Keywords) -> Tensor:
        name = operation_name(func)
        self._note(name)
        value: Tensor = func(*args, **keywords)
        if name == "interpolate" and "nearest" in str(_argument(args, keywords, 3, "mode") or "nearest"):
            return value  # nearest neighbours are copies
        return rules.pooled(value, args[0], lambda v: func(v, *args[1:], **keywords))

    def _maximum(self, func: Operation, args: Arguments, keywords: Keywords) -> Any:
        name = operation_name(func)
        if isinstance(_argument(args, keywords, 1, "other"), Tensor):
            return self._larger_of_two(func, args, keywords)
        self._note(name)
        value = func(*args, **keywords)
        if "pool" in name:
            average = _average_pooling(name, value.shape, args, keywords)
        else:
            average = _average_over(_argument(args, keywords, 1, "dim"), _argument(args, keywords, 2, "keepdim"))
        if isinstance(value, tuple):  # with indices
            return type(value)((rules.pooled(value[0], args[0], average), value[1]))
        result = rules.pooled(value, args[0], average)
        return rules.positive(result) if rules.is_positive(args[0]) else result

    def _larger_of_two(self, func: Operation, args: Arguments, keywords: Keywords) -> Tensor:
        a, b = _operands(args, keywords)
        value: Tensor = func(a, b)
        if needs_gradient(a) and needs_gradient(b):
            self._note("choice")
            return value
        return rules.identity(value, a if needs_gradient(a) else b)  # like a clamp

    # Sums and products of two.

    def _add(self, func: Operation, args: Arguments, keywords: Keywords) -> Tensor:
        a, b = _operands(args, keywords)
        return self.sum_of_two(a, _scaled(b, keywords.get("alpha", 1)))

    def _sub(self, func: Operation, args: Arguments, keywords: Keywords) -> Tensor:
        a, b = _operands(args, keywords)
        return self.sum_of_two(a, _scaled(b, -keywords.get("alpha", 1)))

    def _rsub(self, func: Operation, args: Arguments, keywords: Keywords) -> Tensor:
        a, b = _operands(args, keywords)  # b - a
        return self.sum_of_two(_scaled(a, -keywords.get("alpha", 1)), b)

    def _lerp(self, func: Operation, args: Arguments, keywords: Keywords) -> Tensor:
        start, end, weight = (_argument(args, keywords, i, name) for i, name in enumerate(("input", "end", "weight")))
        if needs_gradient(weight):
            raise Uncovered("lerp by an activation")
        return self.sum_of_two(_scaled(start, 1 - weight), _scaled(end, weight))

    def sum_of_two(self, a: Tensor, b: Tensor) -> Tensor:
        """Return a + b; relevance is shared by magnitude. A constant, such as a position embedding, gets none."""
        value = torch.add(a, b)
        if not (needs_gradient(a) and needs_gradient(b)):
            self._note("bias")
            return rules.identity(value, a if needs_gradient(a) else b)
        self._note("residual_sum")
        return rules.residual_sum(value, a, b)

    def _mul(self, func: Operation, args: Arguments, keywords: Keywords) -> Tensor:
        a, b = _operands(args, keywords)
        value = torch.mul(a, b)
        if not (needs_gradient(a) and needs_gradient(b)):  # layer scale, or a number
            self._note("scale")
            return rules.identity(value, a if needs_gradient(a) else b)
        self._note("product")
        return rules.product(value, a, b)

    def _glu(self, func: Operation, args: Arguments, keywords: Keywords) -> Tensor:
        axis = _argument(args, keywords, 1, "dim")
        a, gate = args[0].chunk(2, dim=-1 if axis is None else axis)
        return self._mul(torch.mul, (a, rules.identity(gate.sigmoid(), gate)), {})

    def _div(self, func: Operation, args: Arguments, keywords: Keywords) -> Tensor:
        if needs_gradient((*args[1:], keywords.get("other"))):
            raise Uncovered("division by an activation")
        if keywords.get("rounding_mode") is not None:
            raise Uncovered("division with rounding")
        self._note("scale")
        return rules.identity(torch.div(*args, **keywords), args[0])

    def _pow(self, func: Operation, args: Arguments, keywords: Keywords) -> Tensor:
        exponent = _argument(args, keywords, 1, "exponent")
        if is_activation(exponent):
            raise Uncovered("pow with an exponent that is an activation")
        value = torch.pow(args[0], exponent)
        if not isinstance(exponent, Tensor) and exponent == INVERSE_ROOT:
            return value.detach()
        if torch.as_tensor(exponent).amin() <= 0:
            raise Uncovered("pow with an exponent of at most 0")
        self._note("pow")
        return rules.identity(value, args[0])

    # Matrix products.

    def _matmul(self, func: Operation, args: Arguments, keywords: Keywords) -> Tensor:
        a, b = [*args, *(keywords[name] for name in FACTORS if name in keywords)]
        return self.matrix_product(a, b)

    def matrix_product(self, a: Tensor, b: Tensor) -> Tensor:
        """Return a b as ``torch.matmul``. A constant matrix is a weight; a constant batch of matrices is not."""
        if a.ndim == 1:
            return self.matrix_product(a.unsqueeze(0), b).squeeze(-1 if b.ndim == 1 else -2)
        if b.ndim == 1:
            return self.matrix_product(a, b.unsqueeze(1)).squeeze(-1)
        if b.ndim == 2 and not needs_gradient(b):  # a projection, such as that of CLIP's image tower
            return self.linear(a, b.transpose(0, 1), None)
        if a.ndim == 2 and not needs_gradient(a):
            return self._bilinear("matmul", a, b, torch.matmul, rules.GAMMA_LINEAR)
        self._note("matmul")
        return rules.matrix_product(torch.matmul(a, b), a, b)

    def _bilinear(self, name: str, a: Tensor, b: Tensor, product: Callable[..., Tensor], gamma: float) -> Tensor:
        """An operation that is linear in each of two factors; a constant factor is a weight."""
        value = product(a, b)
        if not needs_gradient(value):
            return value
        if not needs_gradient(b):
            return self._weights(name, value, a, b, None, lambda v, w, _=None: product(v, w), gamma)
        if not needs_gradient(a):
            return self._weights(name, value, b, a, None, lambda v, w, _=None: product(w, v), gamma)
        self._note(name)
        return rules.bilinear(value, a, b, product)

    def _tensordot(self, func: Operation, args: Arguments, keywords: Keywords) -> Tensor:
        a, b = args[0], _argument(args, keywords, 1, "b")
        dims = _argument(args, keywords, 2, "dims")
        return self._bilinear("tensordot", a, b, lambda v, w: torch.tensordot(v, w, dims), rules.GAMMA_LINEAR)

    def _einsum(self, func: Operation, args: Arguments, keywords: Keywords) -> Tensor:
        equation, factors = args[0], list(tensors_in(args[1:]))
        if not isinstance(equation, str) or len(factors) > 2:
            raise Uncovered("einsum of more than two factors" if len(factors) > 2 else "einsum without an equation")
        read, written = _indices(equation)
        a, b = factors[0], factors[-1]
        if len(factors) == 1:
            self._note("einsum")
            value = torch.einsum(equation, a)
            return value if read <= written else rules.pooled(value, a, lambda v: torch.einsum(equation, v))

        def product(v: Tensor, w: Tensor) -> Tensor:
            return torch.einsum(equation, v, w)

        if read <= written:  # the einsum does not sum
            self._note("einsum")
            return rules.outer(product(a, b), a, b, product)
        return self._bilinear("einsum", a, b, product, rules.GAMMA_LINEAR)

    def _addmm(self, func: Operation, args: Arguments, keywords: Keywords) -> Tensor:
        offset, *given = args
        a, b = [*given, *(keywords[name] for name in FACTORS if name in keywords)]
        if operation_name(func) == "addcmul":
            product = self._mul(torch.mul, (a, b), {}) if needs_gradient((a, b)) else a * b
            return self.sum_of_two(offset, _scaled(product, keywords.get("value", 1)))
        product = self.matrix_product(a, b) if needs_gradient((a, b)) else a @ b
        product = _scaled(product, keywords.get("alpha", 1))
        if keywords.get("beta", 1) == 0:  # torch ignores the offset, whatever its values
            return product
        return self.sum_of_two(_scaled(offset, keywords.get("beta", 1)), product)

    # Attention.

    def _softmax(self, func: Operation, args: Arguments, keywords: Keywords) -> Tensor:
        axis = _argument(args, keywords, 1, "dim")
        if axis is None:
            raise Uncovered("softmax without a dimension")
        self._note("softmax")
        return rules.softmax(func(*args, **keywords), args[0], axis)

    def softmax(self, x: Tensor, axis: int) -> Tensor:
        """Return the softmax along an axis."""
        return self._softmax(torch.softmax, (x, axis), {})

    def _dot_product_attention(self, func: Operation, args: Arguments, keywords: Keywords) -> Tensor:
        return attention.dot_product_attention(self, args, keywords)

    def _multi_head_attention(self, func: Operation, args: Arguments, keywords: Keywords) -> Any:
        return attention.multi_head_attention(self, args, keywords)


# torch's names of the factors of matrix products.
FACTORS = ("tensor1", "tensor2", "batch1", "batch2", "mat", "mat1", "mat2", "vec", "tensor", "other")

# The rule of every operation in COVERED.
RULES: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(MOVEMENTS, RelevancePass._movement),
    **dict.fromkeys(IDENTITIES, RelevancePass._identity),
    **dict.fromkeys(CONSTANTS, RelevancePass._constant),
    **dict.fromkeys(AVERAGES, RelevancePass._average),
    **dict.fromkeys(MAXIMA, RelevancePass._maximum),
    **dict.fromkeys(("maximum", "minimum"), RelevancePass._larger_of_two),
    **dict.fromkeys(CONVOLUTIONS, RelevancePass._convolution),
    "linear": RelevancePass._linear,
    "add": RelevancePass._add,
    "sub": RelevancePass._sub,
    "rsub": RelevancePass._rsub,
    "lerp": RelevancePass._lerp,
    "mul": RelevancePass._mul,
    "glu": RelevancePass._glu,
    "div": RelevancePass._div,
    "pow": RelevancePass._pow,
    **dict.fromkeys(("matmul", "mm", "bmm", "mv", "dot"), RelevancePass._matmul),
    "tensordot": RelevancePass._tensordot,
    "einsum": RelevancePass._einsum,
    **dict.fromkeys(("addcmul", "addmm", "addmv", "baddbmm"), RelevancePass._addmm),
    "softmax": RelevancePass._softmax,
    "scaled_dot_product_attention": RelevancePass._dot_product_attention,
    "multi_head_attention_forward": RelevancePass._multi_head_attention,
}


def _average_pooling(name: str, size: torch.Size, args: Arguments, keywords: Keywords) -> Callable[[Tensor], Tensor]:
    """Return the average pooling whose shares a maximum pooling with an output of this size uses."""
    axes = int(name[-2])  # of max_pool2d
    stride = None
    if not name.startswith("adaptive"):
        stride = _argument(args, keywords, 2, "stride") or _argument(args, keywords, 1, "kernel_size")
    return lambda v: rules.average_like_maximum(v, stride, size, axes)


def _average_over(axes: tuple[int, ...] | list[int] | int | None, keeps_them: object) -> Callable[[Tensor], Tensor]:
    """Return a function for the mean over some axes, or over all axes if none is given."""
    if axes is None or axes == ():
        return lambda v: v.mean()
    return lambda v: v.mean(axes, keepdim=bool(keeps_them))


def _indices(equation: str) -> tuple[set[str], set[str]]:
    """Return the indices of an einsum's inputs, and the indices of its output."""
    inputs, arrow, output = equation.replace(" ", "").partition("->")
    letters = [letter for letter in inputs if letter not in ",."]
    return set(letters), set(output) if arrow else {letter for letter in letters if letters.count(letter) == 1}


def _linear_arguments(args: Arguments, keywords: Keywords) -> tuple[Tensor, Tensor, Tensor | None, Any]:
    """Return input, weight, bias and the other positional arguments; remove weight and bias from ``keywords``."""
    x = args[0]
    weight = args[1] if len(args) > 1 else keywords.pop("weight")
    bias = args[2] if len(args) > 2 else keywords.pop("bias", None)
    return x, weight, bias, args[3:]


def _argument(args: Arguments, keywords: Keywords, place: int, name: str) -> Any:
    return args[place] if len(args) > place else keywords.get(name)


def _operands(args: Arguments, keywords: Keywords) -> tuple[Any, Any]:
    """Return both operands of a sum, a difference or a product."""
    return args[0], _argument(args, keywords, 1, "other")


def _scaled(x: Tensor, factor: Tensor | float) -> Tensor:
    """Return x times a constant; relevance passes unchanged."""
    if not isinstance(factor, Tensor) and factor == 1:
        return x
    return rules.identity(x * factor, x) if needs_gradient(x) else x * factor


def _activations(values: object) -> Iterator[Tensor]:
    """Yield the tensors in ``values`` that need a gradient."""
    return (tensor for tensor in tensors_in(values) if tensor.requires_grad)


def _same(result: object, args: Arguments) -> bool:
    """Return whether an operation returned one of its arguments, as ``x.requires_grad_()`` does."""
    return any(result is argument for argument in args)
