"""One random stream per picture: a function of seed, target and step, never of the batch that the picture is in."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


class RandomStreams:
    """Random numbers for a batch of pictures, drawn on the CPU so that every device gets the same numbers.

    Args:
        seed: the run's seed.
        names: the names of the targets, one per picture.
        branches: one label per picture, for independent streams of one target; see :meth:`branched`, :meth:`views`.

    Examples:
        >>> import torch
        >>> from vital_exp.images.randomness import RandomStreams
        >>> alone = RandomStreams(0, ["class-1"]).uniform((2,), "jitter", step=3)
        >>> both = RandomStreams(0, ["class-0", "class-1"]).uniform((2,), "jitter", step=3)
        >>> torch.equal(both[1], alone[0])  # other pictures of the batch change nothing
        True
    """

    def __init__(self, seed: int, names: Sequence[str], branches: Sequence[str] = ()) -> None:
        self.seed = seed
        self.names = tuple(names)
        self.branches = tuple(branches) or ("",) * len(self.names)

    def branched(self, label: str) -> RandomStreams:
        """Return independent streams of the same pictures; the same label gives the same streams."""
        return RandomStreams(self.seed, self.names, [f"{branch}/{label}" for branch in self.branches])

    def views(self, numbers: Sequence[int]) -> RandomStreams:
        """Return streams for several views of each picture: first all pictures' view ``numbers[0]``, and so on.

        View 0 has the streams of the picture itself.
        """
        branches = [f"{branch}/view {view}" if view else branch for view in numbers for branch in self.branches]
        return RandomStreams(self.seed, self.names * len(numbers), branches)

    def _generators(self, purpose: str, step: int) -> list[torch.Generator]:
        generators = []
        for name, branch in zip(self.names, self.branches, strict=True):
            digest = hashlib.blake2b(f"{self.seed}/{name}/{purpose}/{step}{branch}".encode(), digest_size=8).digest()
            generators.append(torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1))
        return generators

    def normal(self, shape: Sequence[int], purpose: str, step: int = 0) -> Tensor:
        """Return standard normal numbers (N, *shape), float32."""
        return torch.stack([torch.randn(*shape, generator=g) for g in self._generators(purpose, step)])

    def uniform(self, shape: Sequence[int], purpose: str, step: int = 0) -> Tensor:
        """Return numbers uniform in [0, 1), (N, *shape), float32."""
        return torch.stack([torch.rand(*shape, generator=g) for g in self._generators(purpose, step)])

    def integers(self, low: int, high: int, count: int, purpose: str, step: int = 0) -> Tensor:
        """Return integers uniform in [low, high], both included, (N, count), int64."""
        draws = [torch.randint(low, high + 1, (count,), generator=g) for g in self._generators(purpose, step)]
        return torch.stack(draws)
