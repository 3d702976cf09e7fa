"""Make a module ready to be looked into layer by layer, or say in one line why it cannot be."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn.parameter import is_lazy

from vital_exp.errors import UsageError

COMPILED = "_orig_mod"  # the name under which what torch.compile returns holds the module it was made from
QUANTISED = tuple(f"torch{ao}.nn.{kind}quantized" for ao in (".ao", "") for kind in ("", "intrinsic."))


def prepared(module: object) -> nn.Module:
    """Return a module whose layers can be read, and checked to be of a kind that has any.

    A compiled module is exchanged for the one it was made from; compiled parts inside run uncompiled from now on.
    Tensors that were made in inference mode, through which no gradient flows, are exchanged for copies.

    Raises:
        UsageError: no module, or one of TorchScript, quantised, exported, of oneDNN's or sparse tensors, or with
            parameters that have no shape yet.
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
        UsageError: the first that is not, and what to hand over instead.
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
        return "no gradient passes a quantised module: hand over the network before it was quantised"
    if isinstance(part, GraphModule) and _runs_no_module(part):
        return "this graph keeps no layers: hand over the module it was made from, or torch.export.unflatten(program)"
    return None


def _runs_no_module(graph: GraphModule) -> bool:
    """Whether a graph has the weights of layers and runs none of the layers, as those of torch.export do."""
    called = tuple(f"{node.target}." for node in graph.graph.nodes if node.op == "call_module")
    weighty = [f"{name}." for name, part in graph.named_modules() if name and part._parameters]
    return bool(weighty) and not any(name.startswith(called) for name in weighty)


def check_tensors(module: nn.Module) -> None:
    """Make sure that parameters and buffers are tensors that torch can differentiate through.

    They may lie on the meta device: layers can be listed without values.

    Raises:
        UsageError: the first that has not.
    """
    for name, tensor in chain(module.named_parameters(), module.named_buffers()):
        if is_lazy(tensor):
            wanted = "has no shape yet: run the module once on a picture, module(torch.zeros(1, 3, H, W))"
            raise UsageError("model", name, wanted)
        if tensor.is_quantized:
            raise UsageError(
                "model", name, "no gradient passes a quantised tensor: hand over the network before it was"
            )
        if tensor.layout != torch.strided:
            layout = str(tensor.layout).removeprefix("torch.")
            wanted = f"is a tensor of layout {layout}: hand over the network with dense ones"
            raise UsageError("model", name, wanted)


def check_values(module: nn.Module) -> None:
    """Make sure that parameters and buffers have values; raises UsageError on the meta device, where they have none."""
    for name, tensor in chain(module.named_parameters(), module.named_buffers()):
        if tensor.is_meta:
            wanted = "is on the meta device, without values: module.to_empty(device='cpu'), then load weights"
            raise UsageError("model", name, wanted)


def _run_uncompiled(part: nn.Module) -> None:
    """Let a part that torch.compile made, or that was compiled in place, run as the code it was made from."""
    inner = getattr(part, COMPILED, None)
    if isinstance(inner, nn.Module):
        vars(part)["forward"] = inner.__call__
    if vars(part).get("_compiled_call_impl") is not None:
        part._compiled_call_impl = None


def _leave_inference_mode(module: nn.Module) -> None:
    """Exchange tensors of inference mode for copies; those that were one tensor stay one."""
    copies: dict[int, Tensor] = {}
    for tensors, name, tensor in list(_inference_tensors(module)):
        if id(tensor) not in copies:
            copy = tensor.detach().clone()
            copies[id(tensor)] = nn.Parameter(copy, False) if isinstance(tensor, nn.Parameter) else copy
        tensors[name] = copies[id(tensor)]


def _inference_tensors(module: nn.Module) -> Iterator[tuple[dict[str, Any], str, Tensor]]:
    """Yield where modules hold tensors of inference mode: parameters, buffers, plain attributes."""
    for part in module.modules():
        for tensors in (part._parameters, part._buffers, vars(part)):
            for name, tensor in tensors.items():
                if isinstance(tensor, Tensor) and tensor.is_inference():
                    yield tensors, name, tensor
