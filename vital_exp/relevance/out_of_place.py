"""A forward pass without in-place operations, so that activations keep their values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from vital_exp.models.axes import Arguments, Keywords, Operation, tensors_in
from vital_exp.relevance import rules
from vital_exp.relevance.covered import operation_name

# Activation functions that guided backpropagation passes.
GUIDED = frozenset(
    {"relu", "relu6", "hardtanh", "clamp", "clamp_min", "gelu", "silu", "hardswish", "leaky_relu", "elu"}
)


class Uncovered(Exception):
    """An operation on an activation has no rule; the message is the operation's name."""


class OutOfPlacePass(TorchFunctionMode):
    """While it is active, in-place operations are carried out out of place, so that activations stay what they were.

    Later uses of a tensor that was changed in place get the operation's result. A tensor that shares the changed
    memory, such as a view, would have changed too; a later use of such a tensor raises Uncovered.
    """

    def __init__(self) -> None:
        super().__init__()
        # By the id of a tensor: the tensor, kept so that its id and memory are not reused, and its changed value.
        self._changed: dict[int, tuple[Tensor, Tensor]] = {}
        # By the address of their memory: the changed tensors.
        self._outdated: dict[int, list[Tensor]] = {}

    def __torch_function__(
        self, func: Operation, types: object, args: Arguments = (), kwargs: Keywords | None = None
    ) -> Any:
        """Carry out one operation."""
        given = self.current(args)
        keywords = {name: self.current(value) for name, value in (kwargs or {}).items()}
        if not given and "input" in keywords:
            given = (keywords.pop("input"),)
        result = self._run(func, given, keywords)
        if self._outdated and needs_gradient(result):
            self._refuse_outdated((*given, *keywords.values()))
        if in_place(func, keywords) and given and needs_gradient(result) and result is not given[0]:
            self._replace(given[0], result)
        return result

    def current(self, value: object) -> Any:
        """Return the value of a tensor after in-place operations; of a tuple or list, the values of its tensors."""
        if isinstance(value, (tuple, list)) and type(value) in (tuple, list):
            return type(value)(map(self.current, value))
        while id(value) in self._changed:
            _, value = self._changed[id(value)]
        return value

    def _replace(self, tensor: Tensor, changed: Tensor) -> None:
        self._changed[id(tensor)] = tensor, changed
        address = _address(tensor)
        if address and address != _address(changed):
            self._outdated.setdefault(address, []).append(tensor)

    def _refuse_outdated(self, values: object) -> None:
        for tensor in tensors_in(values):
            if any(_overlap(tensor, changed) for changed in self._outdated.get(_address(tensor), ())):
                raise Uncovered("in-place change of a part of an activation that is used again")

    def _run(self, func: Operation, args: Arguments, keywords: Keywords) -> Any:
        return carry_out(func, args, keywords)


class GuidedPass(OutOfPlacePass):
    """A mode in which activation functions pass only positive gradients back (guided backpropagation).

    In-place operations are carried out out of place; all other operations are unchanged.
    """

    def _run(self, func: Operation, args: Arguments, keywords: Keywords) -> Any:
        if operation_name(func) in GUIDED and needs_gradient(args[0]):
            return rules.guided(
                carry_out(func, args, keywords), args[0], lambda x: _derivative(func, x, args[1:], keywords)
            )
        return carry_out(func, args, keywords)


def in_place(func: Operation, keywords: Keywords) -> bool:
    """Return whether an operation changes its first argument."""
    name = str(getattr(func, "__name__", ""))
    if name in ("__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__", "__idiv__"):
        return True
    return bool(keywords.get("inplace")) or (name.endswith("_") and name != "requires_grad_" and name[-2] != "_")


def carry_out(func: Operation, args: Arguments, keywords: Keywords) -> Any:
    """Carry out an operation; an in-place operation on or with an activation is done out of place.

    An assignment ``x[...] = y`` returns a changed copy of x.
    """
    if keywords.get("inplace"):
        keywords = {**keywords, "inplace": False}
    if not in_place(func, keywords) or not needs_gradient((*args, *keywords.values())):
        return func(*args, **keywords)
    plain = operation_name(func)
    outside = getattr(torch, plain, None) or getattr(F, plain, None)
    if outside is not None and needs_gradient(args[0]):
        return outside(*args, **keywords)
    copy = args[0].clone()
    func(copy, *args[1:], **keywords)
    return copy


def needs_gradient(value: object) -> bool:
    """Return whether a value is, or contains, a tensor that needs a gradient."""
    return any(tensor.requires_grad for tensor in tensors_in(value))


def is_activation(value: object) -> bool:
    """Return whether a value is, or contains, a tensor that needs a gradient and is no parameter of the network."""
    return any(tensor.requires_grad and not isinstance(tensor, nn.Parameter) for tensor in tensors_in(value))


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _overlap(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors that share a storage have elements in common; True for different dtypes."""
    if a.dtype != b.dtype:
        return True
    elements = a.untyped_storage().nbytes() // a.element_size()
    covered = torch.zeros(elements, dtype=torch.bool)
    covered.as_strided(a.shape, a.stride(), a.storage_offset()).fill_(True)
    return bool(covered.as_strided(b.shape, b.stride(), b.storage_offset()).any())


def _derivative(func: Operation, x: Tensor, rest: Arguments, keywords: Keywords) -> Tensor:
    with torch.enable_grad():
        variable = x.detach().requires_grad_()
        (derivative,) = torch.autograd.grad(carry_out(func, (variable, *rest), keywords).sum(), variable)
    return derivative
