"""A few numbers per layer of a network's pass of one fixed picture: they differ where code, hooks or weights differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

from vital_exp.models.network import VisionNetwork, model_space
from vital_exp.models.outputs import tensors
from vital_exp.targets.unit import OUTPUT

# By layer, in the order in which layers finish: the root mean square of its activations, then signed sums of them.
Fingerprint = Mapping[str, Sequence[float]]

SEED = 0
BLOCKS = 8  # of the picture, on a side: black or white in each colour
NOISE = 0.25  # share of noise in the picture; edges and noise together drive units as far as natural images do
SUMS = 8  # all of them miss a change of five times the tolerance in one of 50,000 cases
# The signs repeat after a prime number, so that no two channels or rows of a map have the same signs.
PERIOD = 65521
DIGITS = 7  # significant digits that are kept
# The largest difference by rounding (other kernels, threads, devices), as a share of a layer's root mean square.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
# A smaller root mean square counts as this one: the activations may be zero but for rounding.
SMALLEST = 1e-3
# The settings of torch.backends by which float32 may be rounded to fewer bits: TF32 of a GPU, bfloat16 of a CPU.
ROUNDED = (("cudnn", "conv"), ("cudnn", "rnn"), ("cuda", "matmul"), *(("mkldnn", p) for p in ("conv", "rnn", "matmul")))


def fingerprint(network: VisionNetwork) -> dict[str, list[float]]:
    """Return the fingerprint of every layer that runs, and of the output, by one pass of one picture.

    All values of an activation count; of a tuple or a dict, the values of all tensors. Where a layer runs twice, its
    first run counts. Random numbers that the network draws are the same at each call.
    """
    found: dict[str, list[float]] = {}
    shown = model_space(probe_picture(network.preprocessing.channels, network.preprocessing.size), network)
    numbers = _Numbers(network.device)
    with ExitStack() as hooks, _plain_pass(network.device):
        for name, module in network.module.named_modules():

            def note(_module: nn.Module, _inputs: object, output: object, name: str = name) -> None:
                if name and name not in found and (values := [one for _, one in tensors(output)]):
                    found[name] = numbers(values)

            hooks.callback(module.register_forward_hook(note).remove)
        if values := [one for _, one in tensors(network.module(shown))]:
            found[OUTPUT] = numbers(values)
    return found


def probe_picture(channels: int, size: tuple[int, int]) -> Tensor:
    """Return the picture (1, channels, H, W) in [0, 1]: blocks, black or white in each colour, under noise."""
    generator = torch.Generator().manual_seed(SEED)
    blocks = torch.rand(1, channels, BLOCKS, BLOCKS, generator=generator).round()
    noise = torch.rand(1, channels, *size, generator=generator)
    return (1 - NOISE) * functional.interpolate(blocks, size) + NOISE * noise


def differing_layer(old: Fingerprint, new: Fingerprint, precision: torch.dtype) -> str | None:
    """Return the first layer at which two fingerprints differ by more than rounding; None where there is none.

    Args:
        old, new: the fingerprints; a layer that only one of them has differs.
        precision: of the network.
    """
    for layer in dict.fromkeys([*old, *new]):
        if layer not in old or layer not in new or _differ(old[layer], new[layer], TOLERANCE.get(precision, 1e-4)):
            return layer
    return None


def _differ(old: Sequence[float], new: Sequence[float], tolerance: float) -> bool:
    (size, *sums), (new_size, *new_sums) = old, new
    allowed = tolerance * max(size, new_size, SMALLEST)
    change = sum((a - b) ** 2 for a, b in zip(sums, new_sums, strict=True)) ** 0.5
    return abs(size - new_size) > allowed or change > allowed


class _Numbers:
    """Turns a layer's activations into numbers; a block often returns its last layer's tensor, counted only once."""

    def __init__(self, device: torch.device) -> None:
        drawn = torch.randint(2, (PERIOD,), generator=torch.Generator().manual_seed(SEED))
        self.signs = (drawn * 2 - 1).float().to(device)  # (PERIOD,) of -1 and 1, always the same
        self.last: tuple[Tensor, int] | None = None  # the last tensor, and how often it had been changed in place
        self.of_last: list[float] = []

    def __call__(self, values: Sequence[Tensor]) -> list[float]:
        counted = len(values) == 1 and not values[0].is_inference()
        only = (values[0], values[0]._version) if counted else None
        if not (only and self.last and only[0] is self.last[0] and only[1] == self.last[1]):
            self.of_last, self.last = _numbers(values, self.signs), only
        return self.of_last


def _numbers(given: Sequence[Tensor], signs: Tensor) -> list[float]:
    """Return root mean square and randomly signed sums of all values; such a sum changes as much as the values do."""
    parts = [(torch.view_as_real(one) if one.is_complex() else one).detach().float().flatten() for one in given]
    values = parts[0] if len(parts) == 1 else torch.cat(parts)
    size = values.norm()
    if not size.isfinite():
        values = values.nan_to_num(0, 0, 0)
        size = values.norm()
    whole = len(values) // PERIOD * PERIOD
    folded = values[:whole].view(-1, PERIOD).sum(dim=0) if whole else torch.zeros_like(signs)  # (PERIOD,)
    folded[: len(values) - whole] += values[whole:]
    sums = functional.pad(folded * signs, (0, -PERIOD % SUMS)).view(-1, SUMS).sum(dim=0)  # (SUMS,)
    scaled = torch.cat([size[None], sums]) / max(1, len(values)) ** 0.5
    return [float(f"{value:.{DIGITS}g}") for value in scaled.tolist()]


@contextmanager
def _plain_pass(device: torch.device) -> Iterator[None]:
    """A forward pass without gradients, in the network's own precision, with random numbers that are always the same.

    Afterwards the settings and random generators of the process are as before.
    """
    gpus = [device.index or 0] if device.type == "cuda" else []
    with torch.no_grad(), torch.autocast(device.type, enabled=False), _exact(), torch.random.fork_rng(gpus):
        torch.random.default_generator.manual_seed(SEED)
        if gpus:
            with torch.cuda.device(gpus[0]):
                torch.cuda.manual_seed(SEED)
        yield


@contextmanager
def _exact() -> Iterator[None]:
    """Multiply float32 at full precision inside, whatever the settings of the process allow."""
    parts: list[object] = [getattr(getattr(torch.backends, backend), part, None) for backend, part in ROUNDED]
    settable = [part for part in parts if hasattr(part, "fp32_precision")]
    before = [part.fp32_precision for part in settable]
    try:
        for part in settable:
            part.fp32_precision = "ieee"
        yield
    finally:
        for part, value in zip(settable, before, strict=True):
            part.fp32_precision = value
