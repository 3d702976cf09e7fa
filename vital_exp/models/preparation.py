"""Prepare a module whose layers will be read, or say in one line why they cannot be read."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn.parameter import is_lazy

from vital_exp.errors import UsageError

COMPILED = "_orig_mod"  # the attribute by which a module of torch.compile holds the original
QUANTISED = tuple(f"torch{ao}.nn.{kind}quantized" for ao in (".ao", "") for kind in ("", "intrinsic."))


def prepared(module: object) -> nn.Module:
    """Return a module whose layers can be read.

    A module of torch.compile is replaced by the original; compiled parts inside run uncompiled from now on. Tensors
    made in inference mode, through which no gradient flows, are replaced by copies.

    Raises:
        UsageError: it is not a module, or a module of TorchScript, quantised, exported, with sparse or oneDNN's
            tensors, or with parameters that have no shape yet.
    """
    if not isinstance(module, nn.Module):
        problem = "the name of a network or a torch.nn.Module is needed"
        if type(module).__name__ == "ExportedProgram":
            problem += "; an exported program keeps no layers: hand over the module it was exported from"
        raise UsageError("model", type(module).__name__, problem)
    while isinstance(inner := getattr(module, COMPILED, None), nn.Module):
        module = inner
    check_kinds(module)
    check_tensors(module)
    for part in module.modules():
        _run_uncompiled(part)
    _leave_inference_mode(module)
    return module


def check_kinds(module: nn.Module) -> None:
    """Make sure that all parts of a module are modules of Python in floating point.

    Raises:
        UsageError: names the first part that is not, and what to hand over instead.
    """
    for name, part in module.named_modules():
        if problem := _problem(part):
            raise UsageError("model", f"{type(part).__name__}{f' ({name})' if name else ''}", problem)


def _problem(part: nn.Module) -> str | None:
    if isinstance(part, torch.jit.ScriptModule):
        return (
            "the layers of TorchScript cannot be read: hand over the torch.nn.Module before torch.jit.script or trace"
        )
    if type(part).__module__.startswith(QUANTISED):
        return "no gradient passes a quantised module: hand over the network before quantisation"
    if isinstance(part, GraphModule) and _runs_no_module(part):
        return "this graph keeps no layers: hand over the module it was made from, or torch.export.unflatten(program)"
    return None


def _runs_no_module(graph: GraphModule) -> bool:
    """Whether a graph has layers with weights and calls none of these layers, as the graphs of torch.export do."""
    called = tuple(f"{node.target}." for node in graph.graph.nodes if node.op == "call_module")
    weighty = [f"{name}." for name, part in graph.named_modules() if name and part._parameters]
    return bool(weighty) and not any(name.startswith(called) for name in weighty)


def check_tensors(module: nn.Module) -> None:
    """Make sure that parameters and buffers are tensors that torch can differentiate through.

    They may lie on the meta device: layers can be listed without values.

    Raises:
        UsageError: names the first tensor without a shape, quantised or not dense.
    """
    for name, tensor in chain(module.named_parameters(), module.named_buffers()):
        if is_lazy(tensor):
            wanted = "has no shape yet: run the module once on a picture, module(torch.zeros(1, 3, H, W))"
            raise UsageError("model", name, wanted)
        if tensor.is_quantized:
            raise UsageError(
                "model", name, "no gradient passes a quantised tensor: hand over the network before quantisation"
            )
        if tensor.layout != torch.strided:
            layout = str(tensor.layout).removeprefix("torch.")
            wanted = f"is a tensor of layout {layout}: hand over the network with dense tensors"
            raise UsageError("model", name, wanted)


def check_values(module: nn.Module) -> None:
    """Make sure that parameters and buffers have values; raises UsageError for tensors on the meta device."""
    for name, tensor in chain(module.named_parameters(), module.named_buffers()):
        if tensor.is_meta:
            wanted = "is on the meta device, without values: module.to_empty(device='cpu'), then load weights"
            raise UsageError("model", name, wanted)


def _run_uncompiled(part: nn.Module) -> None:
    """Let a part that is a module of torch.compile, or was compiled in place, run its original code."""
    inner = getattr(part, COMPILED, None)
    if isinstance(inner, nn.Module):
        vars(part)["forward"] = inner.__call__
    if vars(part).get("_compiled_call_impl") is not None:
        part._compiled_call_impl = None


def _leave_inference_mode(module: nn.Module) -> None:
    """Replace tensors of inference mode by copies; tied weights stay tied."""
    copies: dict[int, Tensor] = {}
    for tensors, name, tensor in list(_inference_tensors(module)):
        if id(tensor) not in copies:
            copy = tensor.detach().clone()
            copies[id(tensor)] = nn.Parameter(copy, False) if isinstance(tensor, nn.Parameter) else copy
        tensors[name] = copies[id(tensor)]


def _inference_tensors(module: nn.Module) -> Iterator[tuple[dict[str, Any], str, Tensor]]:
    """Yield (its dictionary, name, tensor) of each tensor of inference mode: parameters, buffers, attributes."""
    for part in module.modules():
        for tensors in (part._parameters, part._buffers, vars(part)):
            for name, tensor in tensors.items():
                if isinstance(tensor, Tensor) and tensor.is_inference():
                    yield tensors, name, tensor
