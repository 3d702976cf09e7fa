"""Axes, shapes and runs of every layer in a forward pass, found by one pass with two pictures and one with three.

The axis whose length differs between the passes is the axis of the pictures. Where the values of the first picture
differ too, the layer mixes the pictures of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from vital_exp.errors import UsageError
from vital_exp.models.axes import AxisPass, channel_axes, set_channel_axes, tensors_in
from vital_exp.models.layout import Layout
from vital_exp.models.outputs import Output
from vital_exp.models.precision import HALVES, precisions_of
from vital_exp.targets.unit import OUTPUT

# So many of the first picture's values are compared between the passes.
SAMPLED = 64
# Largest difference by rounding, relative to the largest value: another batch size is summed in another order.
ROUNDING = 1e-3
ROUNDING_IN_HALF = 5e-2


@dataclass(frozen=True)
class TracedLayer:
    """A layer's first run in a forward pass.

    Attributes:
        shape: (C, ...) of one picture's activation, as :meth:`Layout.channels_first` orders it.
        layout: the axes of the output.
        runs: how often the layer runs in a pass.
    """

    shape: tuple[int, ...]
    layout: Layout
    runs: int = 1


@dataclass
class Trace:
    """The layers of a network as seen in forward passes.

    Attributes:
        layers: the layers that can be read, in the order in which they finish; ``"output"`` is the last.
        unclear: the layers that run and cannot be read, with the reason.
        company: the first layer whose values for a picture change with the other pictures of a batch (or at random);
            None where there is none.
        alone: whether the network takes only one picture at a time.
    """

    layers: dict[str, TracedLayer] = field(default_factory=dict)
    unclear: dict[str, str] = field(default_factory=dict)
    company: str | None = None
    alone: bool = False

    @property
    def one_by_one(self) -> bool:
        """Whether pictures must pass the network one by one, so that none depends on the others."""
        return self.alone or self.company is not None


@dataclass
class _Run:
    """A layer's first output in a pass.

    Attributes:
        shape: of the output.
        count: number of pictures in the pass.
        samples: some values of the first picture, for each (axis that may hold the pictures, whether the windows of a
            picture would stand together).
        output: kept while its channel axis is unclear: a later layer may determine it.
        channels: the channel axes as far as they are known.
        runs: how often the layer has run.
    """

    shape: tuple[int, ...]
    count: int
    samples: dict[tuple[int, bool], Tensor]
    output: Tensor | None = None
    channels: tuple[int, ...] | None = None
    runs: int = 1


@torch.no_grad()
def trace(module: nn.Module, pictures: Tensor, output: Output | None = None, *, layers: bool = True) -> Trace:
    """Trace a network in a pass with all three pictures and one with the first two.

    Args:
        module: the network, in evaluation mode.
        pictures: (3, C, H, W) normalised, different from each other.
        output: which of the tensors that the network returns is its output; None: the logits, else the first.
        layers: whether layers are traced; False traces the output alone, which costs less.
    """
    output, parts = output or Output(), dict(module.named_modules()) if layers else {}
    try:
        first = _pass(module, parts, pictures, output)
        second = _pass(module, parts, pictures[:2], output, first)
    except (RuntimeError, ValueError, AssertionError, IndexError, TypeError):
        return _of_one(_pass(module, parts, pictures[:1], output))
    return _compared(first, second, rounding_of(module))


def _of_one(runs: dict[str, _Run]) -> Trace:
    """Return the trace of a network that takes one picture at a time."""
    found = Trace(alone=True)
    for name, run in runs.items():
        _add(found, name, run, 0, run.shape[:1] != (1,), True)
    return found


def rounding_of(module: nn.Module) -> float:
    """Return the largest relative difference by rounding, by the coarsest precision of a module's weights."""
    return ROUNDING_IN_HALF if set(HALVES) & set(precisions_of(module)) else ROUNDING


def _compared(first: dict[str, _Run], second: dict[str, _Run], rounding: float) -> Trace:
    """Return the trace that two passes with different numbers of pictures give."""
    found = Trace()
    for name, run in second.items():
        earlier = first.get(name)
        axis, problem = _axis_of_pictures(earlier, run)
        if axis is None or earlier is None:
            found.unclear[name] = problem
            continue
        windowed = run.shape[axis] != run.count
        by_picture = _alike(earlier, run, axis, True, rounding)
        by_window = windowed and not by_picture and _alike(earlier, run, axis, False, rounding)
        if not (by_picture or by_window) and found.company is None:
            found.company = name
        _add(found, name, run, axis, windowed, not by_window)
    return found


def _axis_of_pictures(first: _Run | None, second: _Run) -> tuple[int | None, str]:
    """Return the one axis whose length is proportional to the number of pictures, or None and why there is none."""
    if first is None or len(first.shape) != len(second.shape):
        return None, "for another number of pictures it does not run, or returns other axes"
    changed = [axis for axis, (a, b) in enumerate(zip(first.shape, second.shape, strict=True)) if a != b]
    if not changed:
        return None, "its output does not depend on the number of pictures"
    axis = changed[0]
    if len(changed) > 1 or first.shape[axis] * second.count != second.shape[axis] * first.count:
        shapes = f"{list(first.shape)} for {first.count} pictures, {list(second.shape)} for {second.count}"
        return None, f"which axis holds the pictures is not known: it returns {shapes}"
    return axis, ""


def _alike(first: _Run, second: _Run, axis: int, picture_by_picture: bool, rounding: float) -> bool:
    """Whether the first picture's values agree in both passes within rounding."""
    a, b = first.samples.get((axis, picture_by_picture)), second.samples.get((axis, picture_by_picture))
    if a is None or b is None or a.shape != b.shape:
        return a is b  # on the meta device there are no values
    tolerance = ROUNDING_IN_HALF if a.dtype in HALVES else rounding
    a, b = a.double(), b.double()
    return bool(((a - b).abs().max() <= tolerance * a.abs().max()) | ~a.isfinite().all())


def _add(found: Trace, name: str, run: _Run, axis: int, windowed: bool, by_picture: bool) -> None:
    """Add a layer whose picture axis is known; as unclear if its channel axis is unknown."""
    known = run.channels if run.output is None else channel_axes(run.output)
    channels = [one for one in known or () if one != axis]
    others = [one for one in range(len(run.shape)) if one != axis]
    if not channels and len(others) == 1:
        channels = others  # a vector
    if len(channels) != 1:
        problem = "several axes hold" if channels else "which axis holds"
        pictures = f"it returns {list(run.shape)} for {run.count} pictures"
        found.unclear[name] = f"{problem} its channels{'' if channels else ' is not known'}: {pictures}"
        return
    layout = Layout(channels[0], axis, windowed, by_picture)
    output = torch.empty(run.shape, device="meta")
    shape = tuple(layout.channels_first(output, run.count).shape[1:])
    found.layers[name] = TracedLayer(shape, layout, run.runs)


def _pass(
    module: nn.Module,
    parts: Mapping[str, nn.Module],
    pictures: Tensor,
    output: Output,
    earlier: Mapping[str, _Run] | None = None,
) -> dict[str, _Run]:
    """Run the network; return the first run of every layer that returns a tensor, and the network's as "output".

    Args:
        module: the network.
        parts: its modules whose runs are noted, by name.
        pictures: (N, C, H, W) normalised.
        output: which of the tensors that the network returns is its output.
        earlier: the runs of the pass before, with another number of pictures; channel axes are followed only in the
            last pass, which has ``earlier`` or a single picture.
    """
    runs: dict[str, _Run] = {}
    given = pictures.clone()  # a forward pass may change its input in place
    axes = AxisPass(active=earlier is not None or len(pictures) == 1)
    set_channel_axes(given, (1,))

    def note(name: str, inputs: object, output: object) -> None:
        with axes.paused():
            _note(runs, name, inputs, output, len(pictures), earlier)

    with ExitStack() as around:
        for name, layer in parts.items():
            if name:
                hook = partial(_call, note, name)
                around.callback(layer.register_forward_hook(hook).remove)
        around.enter_context(axes)
        returned = module(given)
    with suppress(UsageError):  # a network that returns no tensor has no output to read
        note(OUTPUT, (), output.tensor(returned, len(pictures)))
    return runs


def _call(note: Callable[[str, object, object], None], name: str, _: nn.Module, inputs: object, output: object) -> None:
    note(name, inputs, output)


def _note(
    runs: dict[str, _Run],
    name: str,
    inputs: object,
    output: object,
    count: int,
    earlier: Mapping[str, _Run] | None,
) -> None:
    """Note one run of a layer, by the first tensor that it returns."""
    tensor = next(tensors_in(output), None)
    if tensor is None or not tensor.ndim:
        return
    if name in runs:
        runs[name].runs += 1
        return
    given = next(tensors_in(inputs), None)
    if channel_axes(tensor) is None and given is not None and given.shape == tensor.shape:
        set_channel_axes(tensor, channel_axes(given))  # a mode does not see scripted operations
    axes = channel_axes(tensor)
    known = earlier[name].shape if earlier and name in earlier else None
    candidates = [axis for axis, size in enumerate(tensor.shape) if size and size % count == 0]
    if known is not None and len(known) == tensor.ndim:
        candidates = [axis for axis in candidates if known[axis] != tensor.shape[axis]]
    open_question = earlier is not None and (axes is None or len(axes) > 1)
    kept = tensor if open_question else None
    runs[name] = _Run(tuple(tensor.shape), count, _samples(tensor, count, candidates), kept, axes)


def _samples(tensor: Tensor, count: int, axes: Sequence[int]) -> dict[tuple[int, bool], Tensor]:
    """Return some values of the first picture for each axis that may hold the pictures, see :class:`_Run`."""
    samples: dict[tuple[int, bool], Tensor] = {}
    if tensor.device.type == "meta":
        return samples
    for axis in axes:
        size = tensor.shape[axis]
        samples[axis, True] = _some(tensor.narrow(axis, 0, size // count))
        if size > count:
            windows = tensor.unflatten(axis, (size // count, count))
            samples[axis, False] = _some(windows.select(axis + 1, 0))
    return samples


def _some(values: Tensor) -> Tensor:
    """Return up to :data:`SAMPLED` values, evenly spread, without copying the others."""
    places = np.linspace(0, values.numel() - 1, min(SAMPLED, values.numel())).astype(np.int64)
    return values[tuple(torch.from_numpy(place) for place in np.unravel_index(places, values.shape))]
