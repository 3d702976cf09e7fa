"""The rest of a network: from the activation of a layer to the output."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vital_exp.errors import UsageError
from vital_exp.models.network import VisionNetwork, model_space
from vital_exp.models.precision import exact


class Rest:
    """A network from one layer on, for one image.

    Branches around the layer, such as a shortcut that begins below it, keep the image's own activations.

    Args:
        network: the frozen network.
        layer: module name.
        picture: the image, (C, H, W) in [0, 1].

    Attributes:
        activation: (C, ...), the layer's activation for the image, channels first.
    """

    def __init__(self, network: VisionNetwork, layer: str, picture: Tensor) -> None:
        self._taps = network.taps([layer], "layers")
        if layer not in self._taps.layers:
            raise UsageError("layers", layer, "nothing of the network comes after it; name a hidden layer")
        self.layer, self._module, self._output = layer, network.module, network.output
        self._picture = model_space(picture[None], network)
        with torch.no_grad():
            self.activation = exact(self._taps(self._picture)[0][layer][0])

    def __call__(self, activations: Tensor) -> Tensor:
        """Return the network's output (n, ...) for activations (n, C, ...) in place of the layer's own."""
        pictures = self._picture.expand(len(activations), -1, -1, -1)
        try:  # the layers below run for one image only, unless a branch around the layer joins its output again
            return self._run(self._picture, activations)
        except RuntimeError:
            return self._run(pictures, activations)

    def _run(self, pictures: Tensor, activations: Tensor) -> Tensor:
        def hook(_module: nn.Module, _inputs: object, output: object) -> Tensor:
            if not isinstance(output, Tensor):
                raise UsageError("layers", self.layer, "the layer returns several tensors; take one inside or after it")
            return self._taps.layout(self.layer, pictures).restore(activations.to(output.dtype), output, len(pictures))

        handle = self._taps.layers[self.layer].register_forward_hook(hook)
        try:
            returned = self._module(pictures)
        finally:
            handle.remove()
        return exact(self._output.tensor(returned, len(activations)))
