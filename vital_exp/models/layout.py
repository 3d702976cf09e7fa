"""Where a layer's output holds pictures, channels and positions, and the one order in which the library reads it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """The axes of a layer's output.

    Attributes:
        channels: the axis of the channels.
        pictures: the axis of the pictures.
        windowed: whether that axis holds several windows (or tokens) of each picture, as inside a Swin transformer.
        picture_by_picture: of those, whether all windows of a picture stand together; else all pictures of a window.
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
        """Return values (n, C, ...), ordered as by :meth:`channels_first`, in the order of the layer's own output.

        Args:
            values: for n pictures.
            output: the layer's own for ``count`` pictures.
            count: how many pictures the output is of.
        """
        split = self._split(output, count)
        order = self._order(len(split))
        split[order[0]] = len(values)
        inverse = sorted(range(len(order)), key=order.__getitem__)
        restored = values.reshape([split[axis] for axis in order]).permute(inverse)
        return restored.flatten(self.pictures, self.pictures + 1) if self.windowed else restored

    def _split(self, output: Tensor, count: int) -> list[int]:
        """The output's lengths with the axis of the pictures taken apart into pictures and windows."""
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
