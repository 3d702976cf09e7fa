"""Reference images that the user hands over as tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from vital_exp.errors import UsageError
from vital_exp.images.ranges import checked_shape, tell_ranges
from vital_exp.models.channels import RGB
from vital_exp.references.base import Candidate, Competing
from vital_exp.targets.class_names import ClassNames
from vital_exp.targets.selection import parse_target
from vital_exp.targets.unit import Target

# One tensor for all targets, or one per target; a target is named by its spelling or by a Target.
Given = Tensor | Mapping[str, Tensor] | Mapping[Target, Tensor] | Mapping[str | Target, Tensor]


class TensorReferences(Competing):
    """References from tensors (B, C, H, W) in [0, 1], taken as they are: not clamped, resized or cast.

    Args:
        tensors: one tensor for all targets, or one per target ({target or any spelling of it: tensor}).
            A variation of a target uses the tensor of the target unless it has its own.
        class_names: the names that spellings of classes are looked up in.
        channels: C, the number of channels that the network takes.

    Raises:
        UsageError: a value is not a floating-point tensor of that shape, or a key does not spell a target.
    """

    def __init__(self, tensors: Given, class_names: ClassNames, channels: int = RGB) -> None:
        self._shared: Tensor | None = None
        self._by_target: dict[Target, Tensor] = {}
        if isinstance(tensors, Mapping):
            for spelling, tensor in tensors.items():
                target = parse_target(spelling, class_names)
                self._by_target[target] = checked_shape(tensor, "references", f"{target.name} ", channels)
        else:
            self._shared = checked_shape(tensors, "references", channels=channels)

    def images(self, target: Target) -> Iterator[Tensor]:
        """Yield the target's images one by one, each (C, H, W) in the tensor's own dtype and on its device.

        Raises:
            UsageError: no tensor was given for the target.
        """
        return iter(self._tensor(target).detach())

    def fingerprint(self, target: Target) -> str:
        """Return the SHA-256 of the target's tensor: shape, dtype and bytes.

        Raises:
            UsageError: no tensor was given for the target.
        """
        tensor = self._tensor(target).detach().cpu().contiguous()
        digest = hashlib.sha256(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def check_ranges(self) -> None:
        """Make sure that the tensors hold values in [0, 1], or nearly so.

        Raises:
            UsageError: a tensor holds NaN or infinite values, values from 0 to 255, or normalised values; the message
                names the range.
        """
        named = {f"{target.name} ": tensor for target, tensor in self._by_target.items()}
        tell_ranges("references", named if self._shared is None else {"": self._shared})

    def candidates(self, target: Target) -> list[Candidate]:
        """Return all images of the target: they compete for its facets."""
        tensor = self._tensor(target).detach()
        shared = self._shared is not None
        return [
            Candidate(place, partial(tensor.__getitem__, place), place if shared else None)
            for place in range(len(tensor))
        ]

    def competition(self, target: Target) -> dict[str, object]:
        """Return a hash of the target's images."""
        return {"references": self.fingerprint(target)}

    def targets(self) -> list[Target]:
        """Return the targets that have a tensor of their own."""
        return list(self._by_target)

    def tensors(self) -> list[Tensor]:
        """Return all tensors, each (B, C, H, W)."""
        return list(self._by_target.values()) if self._shared is None else [self._shared]

    def counts(self) -> dict[str, int]:
        """Return the number of images by target name; one tensor for all targets has the name ``""``."""
        if self._shared is not None:
            return {"": len(self._shared)}
        return {target.name: len(tensor) for target, tensor in self._by_target.items()}

    def class_indices(self) -> list[int] | None:
        """Return the classes that have a tensor of their own, ascending; None when one tensor serves all targets."""
        if self._shared is not None:
            return None
        return sorted({target.index for target in self._by_target if target.kind == "class"})

    def _tensor(self, target: Target) -> Tensor:
        if self._shared is not None:
            return self._shared
        for candidate in (target, replace(target, variation=1)):
            if candidate in self._by_target:
                return self._by_target[candidate]
        names = [known.name for known in self._by_target]
        known = f"; there are tensors for {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}" if names else ""
        raise UsageError("references", target.name, f"has no tensor of reference images{known}", names)
