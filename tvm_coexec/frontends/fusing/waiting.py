"""Values whose elements have moved, but that no layer has made yet: more may happen to where they are."""

from __future__ import annotations

from dataclasses import dataclass

from tvm_coexec.frontends.patterns.moves import Moved
from tvm_coexec.frontends.trace import Source
from tvm_coexec.graph.graph import Image

from .drafts import DraftTensor
from .values import Value


@dataclass(frozen=True)
class Root:
    """A tensor in the order of elements in which the model sees it.

    Attributes
    ----------
    shape
        Axes each of which is one of those of ``size``.
    positions
        For each of them, which one of ``size`` it is.
    size
        The tensor as an image: rows are the lines of one that is a pixel wide.
    """

    tensor: DraftTensor
    shape: tuple[int, ...]
    positions: tuple[int, ...]
    size: Image

    @classmethod
    def of(cls, value: Value, source: Source) -> Root | None:
        """What a value shows; None if its elements are in an order that no axes tell."""
        tensor, channels, rows = value.tensor, value.tensor.channels, value.tensor.rows
        if not value.channels_last and tensor.image is None and len(value.shape) == 4 and value.has_channels_at(1):
            value.read_as_image(source)
        if tensor.image is None:
            if value.channels_last:
                return cls(tensor, (rows, channels), (1, 3), (1, rows, 1, channels))
            pixels = rows // value.batch
            return cls(tensor, (value.batch, channels, pixels), (0, 3, 1), (value.batch, pixels, 1, channels))
        batch, h, w, _ = tensor.image
        if value.channels_last:
            return cls(tensor, tensor.image, (0, 1, 2, 3), tensor.image)
        return cls(tensor, (batch, channels, h, w), (0, 3, 1, 2), tensor.image) if batch == value.batch else None

    @property
    def is_channels_first(self) -> bool:
        return self.positions == (0, 3, 1, 2)


@dataclass(frozen=True)
class Waiting:
    """A value that no layer has made yet, since more may happen to where its elements are."""

    root: Root
    moved: Moved
    source: Source
