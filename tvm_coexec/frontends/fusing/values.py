"""A value of the trace, seen as a tensor of the graph: where its channels are, and what is still to be applied."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from tvm_coexec.errors import ModelError
from tvm_coexec.frontends.trace import Source
from tvm_coexec.graph import Image

from .drafts import Affine, DraftTensor, trailing_axes

NO_PADDING = (0, 0, 0, 0)
"""Top, left, bottom, right."""


@dataclass(frozen=True)
class Value:
    """A tensor, and how the model sees it.

    Tensors have their channels last; the model may see them anywhere. Reshapes and transposes only change what is
    seen, and cost nothing.

    Attributes
    ----------
    shape
        The axes that the model sees.
    batch
        Product of the axes before the channels: all rows if they are last, the batch of an image in the order
        batch, channels, height, width.
    pending
        What is still to be applied to the tensor's channels.
    padding
        Zeros around the image, after ``pending``: top, left, bottom, right.
    """

    tensor: DraftTensor
    shape: tuple[int, ...]
    batch: int
    pending: Affine | None = None
    padding: tuple[int, int, int, int] = NO_PADDING

    @property
    def channels_last(self) -> bool:
        return self.batch == self.tensor.rows

    def has_channels_at(self, axis: int) -> bool:
        """Whether this axis is that of the channels, all of them."""
        return (
            0 <= axis < len(self.shape)
            and self.shape[axis] == self.tensor.channels
            and math.prod(self.shape[:axis]) == self.batch
        )

    @property
    def is_flat_image(self) -> bool:
        """Whether the last axis has all channels and pixels of an image, in this order."""
        return not self.channels_last and math.prod(self.shape[:-1]) == self.batch

    def read_as_image(self, source: Source) -> Image:
        """Batch, height, width and channels of what the model sees as ``[batch, channels, height, width]``.

        From now on the tensor is an image; ``padding`` is left out.
        """
        channels = self.tensor.channels
        ordered = self.has_channels_at(1) or (channels == 1 and self.shape[1:2] == (1,))
        if len(self.shape) != 4 or not ordered:
            raise ModelError(
                f"{source} reads shape {list(self.shape)} from a tensor of {channels} channels; supported are images "
                "[batch, channels, height, width]"
            )
        top, left, bottom, right = self.padding
        image = (self.shape[0], self.shape[2] - top - bottom, self.shape[3] - left - right, channels)
        claim_image(self.tensor, image, source)
        return image

    def reshaped(self, shape: tuple[int, ...], source: Source) -> Value:
        if self.padding != NO_PADDING:
            raise ModelError(f"{source} reads a padded image; padding is supported before convolutions and pooling")
        if self.channels_last and trailing_axes(shape, self.tensor.channels) is None:
            raise ModelError(
                f"{source} reshapes {list(self.shape)} to {list(shape)}, which breaks its rows of "
                f"{self.tensor.channels} channels; supported are reshapes that keep rows whole or flatten an input"
            )
        return replace(self, shape=shape)

    def transposed(self, axes: tuple[int, ...], source: Source) -> Value:
        """The channels may move; all other axes must keep their order."""
        channel_axis = self.channel_axis
        moved = [axis for axis in axes if self.shape[axis] > 1 and axis != channel_axis]
        if channel_axis is None or moved != sorted(moved) or self.padding != NO_PADDING:
            raise ModelError(
                f"{source} transposes an activation of shape {list(self.shape)}; supported are transposes that move "
                "the axis of the channels and no other"
            )
        shape = tuple(self.shape[axis] for axis in axes)
        return replace(self, shape=shape, batch=math.prod(shape[: axes.index(channel_axis)]))

    def per_channel(self, array: np.ndarray) -> np.ndarray | None:
        """A constant that is broadcast to the value as one float64 number a channel; None if it is more than that."""
        excess = max(array.ndim - len(self.shape), 0)
        if math.prod(array.shape[:excess]) != 1:
            return None
        narrow = array.reshape(array.shape[excess:]).astype(np.float64)
        wide = narrow.reshape((1,) * (len(self.shape) - narrow.ndim) + narrow.shape)
        if any(own not in (1, size) for own, size in zip(wide.shape, self.shape, strict=True)):
            return None  # the value is repeated to the constant's shape instead
        if self.channels_last:
            first = len(self.shape) - (trailing_axes(self.shape, self.tensor.channels) or 0)
            last = len(self.shape)
        else:
            axis = self.channel_axis
            first, last = (0, 0) if axis is None else (axis, axis + 1)
        if math.prod(wide.shape[:first]) != 1 or math.prod(wide.shape[last:]) != 1:
            return None
        vector = np.broadcast_to(wide.reshape(wide.shape[first:last]), self.shape[first:last]).reshape(-1)
        return np.broadcast_to(vector, (self.tensor.channels,)).copy()

    def name_output(self, name: str, source: Source) -> None:
        """Give the tensor to the model's user as this value."""
        self.tensor.name, self.tensor.shape = name, self.shape
        if self.channels_last:
            return
        rows = self.tensor.rows
        image = self.tensor.image or (self.batch, 1, rows // self.batch, self.tensor.channels)
        if image[0] != self.batch:
            raise ModelError(f"{source} has its channels between height and width; transpose it to put them elsewhere")
        claim_image(self.tensor, image, source)
        self.tensor.channels_first = True

    @property
    def channel_axis(self) -> int | None:
        """The axis that has all channels; None where they are spread over several."""
        return next((axis for axis in reversed(range(len(self.shape))) if self.has_channels_at(axis)), None)


class Values(dict[str, Value]):
    """Values by their names, which knows as well the names of those that one tensor has."""

    def __init__(self) -> None:
        super().__init__()
        self._names: dict[DraftTensor, dict[str, None]] = {}

    def __setitem__(self, name: str, value: Value) -> None:
        super().__setitem__(name, value)
        self._names.setdefault(value.tensor, {})[name] = None

    def of(self, tensor: DraftTensor) -> list[str]:
        """The names of a tensor's values, in the order in which they were given."""
        return [name for name in self._names.get(tensor, ()) if self[name].tensor is tensor]


def claim_image(tensor: DraftTensor, image: Image, source: Source) -> None:
    """Let the tensor be an image."""
    if tensor.image not in (None, image):
        raise ModelError(
            f"{source} reads an image of {tensor.image} as {image}; reshape its pixels for all readers alike"
        )
    tensor.image = image
