"""The axes of a layer's output (pictures, channels, positions), and the one order in which the library reads it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """The axes of a layer's output.

    Attributes:
        channels: the axis of the channels.
        pictures: the axis of the pictures.
        windowed: whether the axis of the pictures holds several windows (or tokens) of each, as inside a Swin
            transformer.
        picture_by_picture: whether the windows of one picture stand together there; False: the pictures of one window
            do.
    """

    channels: int = 1
    pictures: int = 0
    windowed: bool = False
    picture_by_picture: bool = True

    def channels_first(self, activation: Tensor, count: int) -> Tensor:
        """Return a layer's output for ``count`` pictures with the pictures first and the channels second.

        (N, C, H, W) for maps, (N, C, T) for tokens, (N, C, 1) for vectors; windows and further axes are positions,
        (N, C, P).
        """
        split = activation.view(self._split(activation, count)) if self.windowed else activation
        moved = split.permute(self._order(split.ndim))  # (N, C, ...)
        if moved.ndim == 2:
            return moved[..., None]
        return moved.flatten(2) if self.windowed or moved.ndim > 4 else moved

    def restore(self, values: Tensor, output: Tensor, count: int) -> Tensor:
        """Undo :meth:`channels_first`: return values (n, C, ...) with the axes of the layer's own output.

        Args:
            values: for n pictures.
            output: the layer's own output for ``count`` pictures.
            count: the number of pictures.
        """
        split = self._split(output, count)
        order = self._order(len(split))
        split[order[0]] = len(values)
        inverse = sorted(range(len(order)), key=order.__getitem__)
        restored = values.reshape([split[axis] for axis in order]).permute(inverse)
        return restored.flatten(self.pictures, self.pictures + 1) if self.windowed else restored

    def _split(self, output: Tensor, count: int) -> list[int]:
        """Return the output's shape with the axis of the pictures split into pictures and windows."""
        sizes = list(output.shape)
        if self.windowed:
            windows = sizes[self.pictures] // count
            parts = (count, windows) if self.picture_by_picture else (windows, count)
            sizes[self.pictures : self.pictures + 1] = parts
        return sizes

    def _order(self, dimensions: int) -> list[int]:
        pictures, channels = self.pictures, self.channels
        if self.windowed:
            channels += channels > pictures
            pictures += not self.picture_by_picture
        return [pictures, channels, *(axis for axis in range(dimensions) if axis not in (pictures, channels))]
