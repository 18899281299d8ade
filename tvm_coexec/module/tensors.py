"""Tensors and constants as a module's manifest describes them: shape, type, layout, and how they lie in memory."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from tvm_coexec.layers import TILE, TILE_BYTES, ImageLayout, row_tiles, tile_count

TAPS = 9
"""A 3×3 kernel has so many numbers for a channel in and one out."""


def words(count: int, dtype: str) -> int:
    """Words of four bytes, in which memory is counted, that hold ``count`` elements."""
    return -(-count * np.dtype(dtype).itemsize // 4)


@dataclass(frozen=True)
class Source:
    """What fills a kernel's buffer. Its kind keeps apart what a model may call by the same name.

    A ``tensor`` has its name as the ``owner``, a ``constant`` the name of its step, and ``scratch`` its side; the
    latter two have a ``role`` there.
    """

    kind: str
    owner: str
    role: str = ""

    @classmethod
    def tensor(cls, name: str) -> Source:
        """Name an activation as the source."""
        return cls("tensor", name)

    @classmethod
    def constant(cls, step: str, role: str) -> Source:
        """Name a constant of a step, which both sides read, as the source."""
        return cls("constant", step, role)

    @classmethod
    def scratch(cls, side: str, role: str) -> Source:
        """Name what a side's own kernels pass on to each other as the source."""
        return cls("scratch", side, role)

    def __str__(self) -> str:
        return f"the {self.role} of {self.owner!r}" if self.role else repr(self.owner)


Memory = Source | int
"""A piece of memory: the number of a storage buffer, which tensors share, or what has it alone."""


@dataclass(frozen=True)
class TensorSpec:
    """An activation as the model's user sees it; kernels see it as rows of whole tiles, or as an image.

    The last ``channel_axes`` dimensions together are the channels. With a ``layout`` kernels see the tensor as an
    ``image`` of batch, height, width and channels, whose rows are its pixels; the user may see it otherwise, its
    elements with the ``channels_first``. Tensors of the same ``buffer`` share memory, whatever their ``dtype``.
    ``parents`` names what the tensor is a slice of, what that is one of, and so on: they share a buffer at once.
    ``counted_by`` names the output that says how many rows of this one count, if that depends on the inputs.
    """

    name: str
    shape: tuple[int, ...]
    channel_axes: int = 1
    layout: ImageLayout | None = None
    image: tuple[int, int, int, int] | None = None
    channels_first: bool = False
    dtype: str = "float32"
    buffer: int | None = None
    parents: tuple[str, ...] = ()
    counted_by: str | None = None

    @classmethod
    def of_size(cls, name: str, size: tuple[int, ...], layout: ImageLayout | None = None) -> TensorSpec:
        """A tensor that its user sees as kernels do."""
        if len(size) != 4:
            return cls(name, size)
        batch, h, w, channels = size
        return cls(name, size, 1, layout or ImageLayout(), (batch, h, w, channels))

    @property
    def outermost(self) -> str:
        """The name of the outermost parent, whose memory holds the tensor: its own if it is no slice."""
        return self.parents[-1] if self.parents else self.name

    @property
    def rows(self) -> int:
        shape = self.image or self.shape
        return math.prod(shape[:-1] if self.image else shape[: len(shape) - self.channel_axes])

    @property
    def channels(self) -> int:
        return self.image[-1] if self.image else math.prod(self.shape[len(self.shape) - self.channel_axes :])

    @property
    def halo_geometry(self) -> tuple[int, ...] | None:
        """What tells where the halo's zeros are; None without a halo."""
        if self.layout is None or self.layout.halo == (0, 0):
            return None
        return (*self._extents, *self.layout.halo, self.row_bytes)

    @property
    def row_elements(self) -> int:
        """Elements from one row to the next in memory."""
        return self.layout.pixel(self.channels) if self.layout else row_tiles(self.channels) * TILE

    @property
    def memory_rows(self) -> int:
        """Rows in memory, those of an image's halo included."""
        return math.prod(self._extents)

    @property
    def row_bytes(self) -> int:
        """Bytes from one row to the next in memory."""
        return self.row_elements * np.dtype(self.dtype).itemsize

    @property
    def own_bytes(self) -> tuple[int, int]:
        """First byte of a row, and the one behind its last, that belong to no other slice of its parent."""
        if self.layout is None or not self.layout.is_slice:
            return 0, self.row_bytes
        first = self.layout.first_tile
        return (TILE_BYTES * first, TILE_BYTES * (first + tile_count(self.channels, self.dtype)))

    @property
    def memory_words(self) -> int:
        """Words of four bytes that hold the tensor, or the parent that it is a slice of."""
        return words(self.memory_rows * self.row_elements, self.dtype)

    @property
    def _extents(self) -> tuple[int, ...]:
        if self.layout is None or self.image is None:
            return (self.rows,)
        batch, h, w, _ = self.image
        return (batch, *self.layout.extents(h, w))

    def view(self, memory: np.ndarray) -> np.ndarray:
        """View the tensor's elements in its memory, without padding or halo: ``[rows, channels]``, or the image."""
        elements = memory[: self.memory_words].view(self.dtype)
        whole = elements[: self.memory_rows * self.row_elements].reshape(*self._extents, self.row_elements)
        if self.layout is not None and self.image is not None:
            (_, h, w, _), (halo_h, halo_w) = self.image, self.layout.halo
            whole = whole[:, halo_h : halo_h + h, halo_w : halo_w + w]
        first = self.layout.first_tile * TILE if self.layout else 0
        return whole[..., first : first + self.channels]

    def write(self, memory: np.ndarray, array: np.ndarray) -> None:
        """Put the user's elements into the tensor's memory."""
        view = self.view(memory)
        if self.channels_first:
            batch, h, w, channels = view.shape
            array = array.reshape(batch, channels, h, w).transpose(0, 2, 3, 1)
        view[:] = array.reshape(view.shape)

    def read(self, memory: np.ndarray) -> np.ndarray:
        """A copy of the tensor as the user sees it."""
        view = self.view(memory)
        ordered = view.transpose(0, 3, 1, 2) if self.channels_first else view
        return np.array(ordered, order="C").reshape(self.shape)


@dataclass(frozen=True)
class ConstantSpec:
    """A packed constant of a step, and its role there, as the file holds it.

    With a ``winograd`` of m it holds 3×3 kernels, and kernels of the step read the weights of F(m×m, 3×3), which the
    runtime makes of these: ``[tiles, taps, in, 32]`` become ``[tiles, points, in, 32]``, for m = 4 four times as much.
    """

    step: str
    role: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    winograd: int = 0

    @property
    def source(self) -> Source:
        return Source.constant(self.step, self.role)

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    @property
    def row_bytes(self) -> int:
        """Bytes of a tap's kernels, or a point's weights, in a tile; 0 where nothing is made of the constant."""
        return math.prod(self.shape[2:]) * np.dtype(self.dtype).itemsize if self.winograd else 0

    @property
    def memory_words(self) -> int:
        """Words of four bytes that hold what kernels read."""
        stored = words(math.prod(self.shape), self.dtype)
        return stored // TAPS * (self.winograd + 2) ** 2 if self.winograd else stored
