"""Batch-norm statistics as a prior for natural images, as in DeepInversion (Yin et al., CVPR 2020)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from vital_exp.errors import UsageError
from vital_exp.objectives.terms import Problem, Term
from vital_exp.values import number

KEY = "objective.batch_norm"


class BatchNormStatistics(Term):
    """Distance of the inputs of all batch norms from their running statistics (DeepInversion, Yin et al. 2020).

    The sum over the batch norms of ||mean - running mean|| + ||variance - running variance||, with norms over channels
    and biased variances. Means and variances are taken over the positions of each picture, so that no picture depends
    on another; the original takes them over a batch of pictures.

    Args:
        problem: what the pictures are made for.
        weight: factor of the term.
        first_factor: factor of the network's first batch norm.

    Raises:
        UsageError: no batch norm has real running statistics.
    """

    knows_target = False
    to_the_end = True  # the forward pass must reach every batch norm

    def __init__(self, problem: Problem, weight: float = 1.0, first_factor: float = 10.0) -> None:
        super().__init__(problem, weight)
        norms = real_batch_norms(problem.network.module)
        if not norms:
            wanted = (
                "not applicable: the network has no batch norm with running statistics of images (batch norms that "
                "are folded into convolutions have none); method=vital needs no batch norm"
            )
            raise UsageError(KEY, problem.network.name, wanted)
        self.norms = norms
        self.factors = (number(f"{KEY}.first_factor", first_factor, 0), *([1.0] * (len(norms) - 1)))
        self._distances: list[Tensor] = []  # (N,) for each batch norm of the current forward pass

    @contextmanager
    def during(self, step: int) -> Iterator[None]:
        """Compare the inputs of the batch norms with their statistics while the network runs."""
        self._distances = []
        with ExitStack() as hooks:
            for norm, factor in zip(self.norms, self.factors, strict=True):
                hooks.callback(norm.register_forward_pre_hook(self._hook(factor)).remove)
            yield

    def _hook(self, factor: float):  # type: ignore[no-untyped-def]
        def hook(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            assert isinstance(norm, (nn.BatchNorm2d, nn.SyncBatchNorm))
            self._distances.append(factor * statistics_distance(inputs[0], norm.running_mean, norm.running_var))

        return hook

    def __call__(self, pictures: Tensor, activations: Mapping[str, Tensor]) -> Tensor:
        """Return the (N,) distances of the forward pass that has just ended."""
        distances, self._distances = self._distances, []
        return torch.stack(distances).sum(dim=0)


def statistics_distance(features: Tensor, mean: Tensor | None, variance: Tensor | None) -> Tensor:
    """Return ||m - mean|| + ||v - variance||, (N,), for the means m and variances v of features over positions.

    Args:
        features: (N, C, ...) inputs of a batch norm.
        mean, variance: (C,) running statistics.
    """
    assert mean is not None
    assert variance is not None
    values = features.flatten(2)
    values = values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
    off_mean = (values.mean(dim=-1) - mean).norm(dim=1)
    distances: Tensor = off_mean + (values.var(dim=-1, correction=0) - variance).norm(dim=1)
    return distances


def real_batch_norms(module: nn.Module) -> list[nn.BatchNorm2d | nn.SyncBatchNorm]:
    """Return the batch norms with running statistics of images, in the network's order.

    A batch norm with mean 0 and variance 1 is left out: it was folded into a convolution, or never trained.
    """
    found = []
    for norm in module.modules():
        if isinstance(norm, (nn.BatchNorm2d, nn.SyncBatchNorm)) and norm.running_mean is not None:
            assert norm.running_var is not None
            if bool((norm.running_mean != 0).any()) or bool((norm.running_var != 1).any()):
                found.append(norm)
    return found
