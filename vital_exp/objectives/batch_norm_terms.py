"""Batch-norm statistics as a prior: what DeepInversion (Yin et al., CVPR 2020) knows of natural images."""

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

    Sum over the norms of ||mean - running mean|| + ||variance - running variance||, over channels; the variance is the
    biased one. Means and variances are over each picture's own positions, so a picture depends on no other; the
    original takes them over a batch of pictures.

    Args:
        problem: what the pictures are made for.
        weight: factor of the term.
        first_factor: how many times the first norm of the network counts.

    Raises:
        UsageError: no batch norm has real running statistics.
    """

    knows_target = False
    to_the_end = True  # the pass must run through every norm

    def __init__(self, problem: Problem, weight: float = 1.0, first_factor: float = 10.0) -> None:
        super().__init__(problem, weight)
        norms = real_batch_norms(problem.network.module)
        if not norms:
            wanted = (
                "not applicable: the network has no batch norm with real running statistics (folded into convolutions, "
                "or none at all); method=vital needs none"
            )
            raise UsageError(KEY, problem.network.name, wanted)
        self.norms = norms
        self.factors = (number(f"{KEY}.first_factor", first_factor, 0), *([1.0] * (len(norms) - 1)))
        self._distances: list[Tensor] = []  # (N,) of each norm of the pass that runs

    @contextmanager
    def during(self, step: int) -> Iterator[None]:
        """Compare the inputs of the norms while the network runs."""
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
        """Return the (N,) distances of the pass that has just run."""
        distances, self._distances = self._distances, []
        return torch.stack(distances).sum(dim=0)


def statistics_distance(features: Tensor, mean: Tensor | None, variance: Tensor | None) -> Tensor:
    """Return ||mean over positions - mean|| + ||variance over positions - variance||, (N,).

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
    """Return the batch norms that hold running statistics of images, in the network's order.

    Those of networks whose norms were folded into their convolutions are left at mean 0 and variance 1.
    """
    found = []
    for norm in module.modules():
        if isinstance(norm, (nn.BatchNorm2d, nn.SyncBatchNorm)) and norm.running_mean is not None:
            assert norm.running_var is not None
            if bool((norm.running_mean != 0).any()) or bool((norm.running_var != 1).any()):
                found.append(norm)
    return found
