"""Which axis of an activation holds the channels: followed through every operation of a forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

# The attribute of a tensor under which its channel axes are kept; several where a reshape has split the channels.
AXES = "_channel_axes"
# Operations with a fixed channel axis: axis 1, or the last one.
CHANNELS_SECOND = frozenset(
    {
        *("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
        *("batch_norm", "instance_norm", "group_norm", "prelu", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle"),
        *("unfold_maps", "fold", "local_response_norm", "native_channel_shuffle"),
    }
)
CHANNELS_LAST = frozenset({"linear", "bilinear", "embedding", "multi_head_attention_forward"})
# Norms that keep the channel axis of their input; where it is unknown, it is the axis that they normalise.
LAYER_NORMS = frozenset({"layer_norm", "rms_norm"})
# Operations that keep the order of axes and may change the length of some.
SAME_ORDER = frozenset(
    {
        *("max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d", "lp_pool2d"),
        *("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool1d"),
        *("adaptive_max_pool2d", "adaptive_max_pool3d", "fractional_max_pool2d", "max_pool2d_with_indices"),
        *("interpolate", "upsample", "grid_sample", "pad", "glu", "cumsum", "roll", "flip", "repeat", "tile"),
        *("cat", "concat", "concatenate"),
    }
)
# Operations that move, join, split or reduce axes: the channels are followed by repeating the operation on a tensor of
# channel numbers.
MOVEMENTS = frozenset(
    {
        *("reshape", "view", "view_as", "flatten", "unflatten", "ravel", "squeeze", "unsqueeze", "expand", "expand_as"),
        *("permute", "transpose", "t", "T", "mT", "swapaxes", "swapdims", "movedim", "moveaxis", "atleast_3d"),
        *("chunk", "split", "split_with_sizes", "tensor_split", "unbind", "getitem", "select", "narrow", "unfold"),
        *("index_select", "mean", "sum", "amax", "amin", "max", "min"),
    }
)
TRANSPOSITIONS = tuple(vars(torch._C.TensorBase)[name].__get__ for name in ("T", "mT", "H", "mH"))  # properties
PRODUCTS = frozenset({"matmul", "bmm", "mm", "rmatmul", "baddbmm", "addmm", "tensordot"})


# An operation and its arguments as torch passes them to a TorchFunctionMode; every operation has others.
Operation = Callable[..., Any]
Arguments = tuple[Any, ...]
Keywords = dict[str, Any]
# By the description of a movement that was tried: the channel axes of each of its results.
Tried = dict[str, list[list[int]]]


def channel_axes(tensor: Tensor) -> tuple[int, ...] | None:
    """Return the axes that hold the channels of a tensor computed in an :class:`AxisPass`; None: unknown."""
    return getattr(tensor, AXES, None)


def set_channel_axes(tensor: Tensor, axes: Sequence[int] | None) -> None:
    """Note the axes that hold the channels of a tensor."""
    if axes:
        setattr(tensor, AXES, tuple(axes))


class AxisPass(TorchFunctionMode):
    """While it is active, every tensor computed from the pictures records which of its axes hold the channels.

    A layer with weights determines the channel axis of its input and of its output. From there the axis is followed
    through permutations, reshapes, sums and all operations that keep shapes; else it is unknown.

    Args:
        active: whether anything is followed.
    """

    def __init__(self, active: bool = True) -> None:
        super().__init__()
        self.active = active
        self._tried: Tried = {}

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Carry out the operations inside without following them, such as those of a hook that reads activations."""
        active, self.active = self.active, False
        yield
        self.active = active

    def __torch_function__(
        self, func: Operation, types: object, args: Arguments = (), kwargs: Keywords | None = None
    ) -> object:
        """Carry out one operation and note the channel axes of its result."""
        keywords = dict(kwargs or {})
        result = func(*args, **keywords)
        if self.active and any(True for _ in tensors_in(result)):
            with torch.no_grad():
                _follow(func, args, keywords, result, self._tried)
        return result


def _follow(func: Operation, args: Arguments, keywords: Keywords, result: object, tried: Tried) -> None:
    name = _name(func)
    first = next(tensors_in(args), None)
    if name == "unfold" and not isinstance(func, type(Tensor.unfold)):
        name = "unfold_maps"  # torch.nn.functional.unfold cuts image patches; Tensor.unfold cuts windows of one axis
    if name in CHANNELS_SECOND | CHANNELS_LAST:
        _by_weights(name, func, args, first, result)
        return
    if name in LAYER_NORMS and first is not None:
        normalised = args[1] if len(args) > 1 else keywords.get("normalized_shape", ())
        if len(normalised) == 1:
            _settle(first, first.ndim - 1)
    known = [one for one in tensors_in((args, *keywords.values())) if channel_axes(one) is not None]
    if not known:
        return
    if name in PRODUCTS or name == "einsum":
        for one in tensors_in(result):
            set_channel_axes(one, _of_product(name, args, one))
    elif name == "scaled_dot_product_attention":
        _copy(args[2], result)
    elif name == "stack" and isinstance(result, Tensor):
        _stack(args, keywords, known[0], result)
    elif name in ("max", "min") and len(list(tensors_in(args))) > 1:  # of two tensors, position by position
        _by_shape(name, known, result)
    elif name in MOVEMENTS or func in TRANSPOSITIONS:
        _move(func, args, keywords, known[0], result, tried)
    else:
        _by_shape(name, known, result)


def _by_weights(name: str, func: Operation, args: Arguments, first: Tensor | None, result: object) -> None:
    """Note the channel axis that an operation with weights determines, of its input and of its result."""
    out = next(tensors_in(result))
    if name in CHANNELS_LAST:
        set_channel_axes(out, (out.ndim - 1,))
        if first is not None and name == "linear":
            _settle(first, first.ndim - 1)
        return
    unbatched = name.startswith("conv") and len(args) > 1 and isinstance(args[1], Tensor) and args[1].ndim > out.ndim
    axis = 0 if unbatched else 1
    if out.ndim > axis:
        set_channel_axes(out, (axis,))
    if first is not None and first.ndim > axis:
        _settle(first, axis)


def _settle(given: Tensor, axis: int) -> None:
    """Note the axis that a layer reads as channels, if the channel axis was unknown or one of several."""
    axes = channel_axes(given)
    if axes is None or (len(axes) > 1 and axis in axes):
        set_channel_axes(given, (axis,))


def _by_shape(name: str, known: Sequence[Tensor], result: object) -> None:
    """Give each result the channel axes of an operand of the same shape; for :data:`SAME_ORDER`, lengths may differ."""
    for out in tensors_in(result):
        same = next((one for one in known if one.shape == out.shape), None)
        if same is None and name in SAME_ORDER:
            same = next((one for one in known if one.ndim == out.ndim), None)
        if same is None:  # a sum or a product of operands that are broadcast to a common shape
            same = next((one for one in known if one.ndim == out.ndim and _stretches(one, out)), None)
        if same is not None and channel_axes(out) is None:
            set_channel_axes(out, channel_axes(same))


def _stretches(one: Tensor, out: Tensor) -> bool:
    return all(a in (b, 1) for a, b in zip(one.shape, out.shape, strict=True))


def _copy(value: object, result: object) -> None:
    for out in tensors_in(result):
        if isinstance(value, Tensor) and value.ndim == out.ndim:
            set_channel_axes(out, channel_axes(value))


def _stack(args: Arguments, keywords: Keywords, known: Tensor, result: Tensor) -> None:
    new = (args[1] if len(args) > 1 else keywords.get("dim", 0)) % result.ndim
    set_channel_axes(result, [axis + (axis >= new) for axis in channel_axes(known) or ()])


def _of_product(name: str, args: Arguments, out: Tensor) -> tuple[int, ...] | None:
    """Return the channel axis of a matrix product: its columns, or its rows where weights stand on the left."""
    if name == "einsum":
        return _of_einsum(args)
    factors = [one for one in tensors_in(args) if one.ndim]
    if len(factors) < 2:
        return None
    left, right = (factors[1], factors[0]) if name == "rmatmul" else factors[-2:]
    if channel_axes(right) is None and right.ndim <= 2:  # weights
        return (out.ndim - 1,)
    axes = channel_axes(right) or ()
    if axes and axes[-1] == right.ndim - 1:
        return (out.ndim - 1,)
    if axes and channel_axes(left) is None and axes[-1] == right.ndim - 2 and out.ndim > 1:
        return (out.ndim - 2,)  # weights from the left
    return None


def _of_einsum(args: Arguments) -> tuple[int, ...] | None:
    """Return the axes of the channels' letters in the result, else of its last letter that only the weights have."""
    if not isinstance(args[0], str) or "->" not in args[0] or "." in args[0]:
        return None
    inputs, output = args[0].replace(" ", "").split("->")
    factors, letters = list(tensors_in(args[1:])), inputs.split(",")
    if len(factors) != len(letters):
        return None
    for factor, names in zip(factors, letters, strict=True):
        kept = [output.index(names[axis]) for axis in channel_axes(factor) or () if names[axis] in output]
        if kept:
            return tuple(kept)
    known = {name for f, names in zip(factors, letters, strict=True) if channel_axes(f) is not None for name in names}
    brought = [axis for axis, name in enumerate(output) if name not in known]
    return (brought[-1],) if brought else None


def _move(func: Operation, args: Arguments, keywords: Keywords, known: Tensor, result: object, tried: Tried) -> None:
    """Note the channel axes of the results of one of :data:`MOVEMENTS`; each kind of movement is tried once."""
    if all(known.shape[axis] < 2 for axis in channel_axes(known) or ()):
        _by_shape("", [known], result)  # the number of a single channel does not vary
        return
    move = str((func, known.shape, channel_axes(known), *map(_described, (*args, *keywords.items()))))
    if move not in tried:
        tried[move] = _tried_on_marks(func, args, keywords, known, result)
    for out, axes in zip(tensors_in(result), tried[move], strict=False):
        set_channel_axes(out, axes)


def _described(value: object) -> object:
    """Return an argument of an operation, a floating-point tensor as its shape, any other tensor as shape and id."""
    if isinstance(value, Tensor):
        return tuple(value.shape) if value.is_floating_point() else (tuple(value.shape), id(value))
    return tuple(map(_described, value)) if isinstance(value, (tuple, list)) and _is_plain(value) else value


def _is_plain(values: Sequence[object]) -> bool:
    """Whether values are in a plain tuple or list, not in a subclass such as torch.Size."""
    return type(values) in (tuple, list)


def _tried_on_marks(
    func: Operation, args: Arguments, keywords: Keywords, known: Tensor, result: object
) -> list[list[int]]:
    """Repeat an operation on a tensor of channel numbers: the axes along which a result varies hold its channels."""
    marks = _marks(known, channel_axes(known) or ())

    def marked(value: object) -> object:
        if value is known:
            return marks
        if isinstance(value, Tensor) and value.device.type == "meta":
            return torch.zeros((), device="cpu").expand(value.shape)
        return type(value)(map(marked, value)) if isinstance(value, (tuple, list)) and _is_plain(value) else value

    try:
        tried = func(*map(marked, args), **{name: marked(value) for name, value in keywords.items()})
    except (RuntimeError, ValueError, TypeError, IndexError):
        return []  # the operation refuses the channel numbers: unknown
    pairs = zip(tensors_in(result), tensors_in(tried), strict=False)
    return [
        [axis for axis in range(numbers.ndim) if _varies(numbers, axis)] if numbers.shape == out.shape else []
        for out, numbers in pairs
    ]


def _marks(known: Tensor, axes: Sequence[int]) -> Tensor:
    """Return a tensor of the shape of ``known`` that holds at each position the number of its channel."""
    device = "cpu" if known.device.type == "meta" else known.device
    sizes = [known.shape[axis] if axis in axes else 1 for axis in range(known.ndim)]
    count = 1
    for size in sizes:
        count *= size
    return torch.arange(count, device=device, dtype=torch.float32).view(sizes).expand(known.shape)


def _varies(numbers: Tensor, axis: int) -> bool:
    if numbers.shape[axis] < 2 or not numbers.numel():
        return False
    return bool((numbers.narrow(axis, 0, 1) != numbers.narrow(axis, 1, 1)).any())


def tensors_in(values: object) -> Iterator[Tensor]:
    """Yield the tensors in a value; it may be a tensor, or tuples, lists and mappings of any depth."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, (list, tuple)):
        for value in values:
            yield from tensors_in(value)
    elif isinstance(values, Mapping):
        yield from tensors_in(list(values.values()))


def _name(func: Operation) -> str:
    """Return the name of an operation without its underscores: add for add_."""
    name = str(getattr(func, "__name__", "")).strip("_")
    return name.removesuffix("_with_indices") if name.startswith("adaptive") else name
