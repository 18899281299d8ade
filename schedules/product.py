"""Kernels of a real GPU see every dense layer as rows of an input times packed weights.

A row of the output adds up ``taps × span`` products. Its input lies in ``taps`` runs of ``span`` elements, at distances
from the row's first element that are the same for all rows. Weights are ``[tiles, taps · span, 32]``. Work-items move
vectors of four elements.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tvm_coexec.layers import TILE, Layer, fused_operands, tile_count

if TYPE_CHECKING:
    from tvm.tirx import Buffer

    from .frame import Operand, Part

LANES = 4
"""Elements that a work-item moves at once: 16 bytes."""


@dataclass(frozen=True)
class Extents:
    """How large a product is.

    Parameters
    ----------
    rows, unit_rows
        Rows of the output, and those of a unit; None where units are tiles of channels.
    channels
        Channels of the output.
    taps, span
        Runs of the input that a row reads, and elements of each.
    """

    rows: int
    channels: int
    span: int
    taps: int = 1
    unit_rows: int | None = None

    @property
    def tiles(self) -> int:
        return tile_count(self.channels)

    @property
    def padded_rows(self) -> int:
        """Rows of all units, of which the last one may have some that do not exist."""
        return self.rows if self.unit_rows is None else -(-self.rows // self.unit_rows) * self.unit_rows

    @property
    def reduction(self) -> int:
        """Products that are added up for an element."""
        return self.taps * self.span

    @property
    def weight_elements(self) -> int:
        """Elements of the packed weights."""
        return self.tiles * self.reduction * TILE


@dataclass(frozen=True)
class Product:
    """What a half computes.

    Parameters
    ----------
    operands
        The kernel's buffers; one of them is called ``weights``.
    first_element
        Where in the input a row's first element lies.
    run_offset
        Elements from there to a run.
    aligned
        Whether every run starts and ends at a multiple of four elements.
    output_row, residual_row, output_tile, residual_tile
        Where in memory a row of the output and of the residual lies, and the first of the tiles that it has there.
    output_width
        Channels of a tile that lie in memory: all, unless rows are pixels of a narrow image.
    """

    layer: Layer
    operands: tuple[Operand, ...]
    extents: Extents
    first_element: Callable[[Any], Any]
    aligned: bool
    run_offset: Callable[[Any], Any] = lambda tap: 0
    output_row: Callable[[Any], Any] = lambda row: row
    residual_row: Callable[[Any], Any] = lambda row: row
    output_tile: int = 0
    residual_tile: int = 0
    output_width: int = TILE

    def part(self, begin: Any, count: Any) -> Part:
        """What the kernel computes for a range of units."""
        from .frame import Part

        extents = self.extents
        return Part.of(begin, count, extents.channels, extents.padded_rows, extents.unit_rows)

    def arguments(self) -> tuple[dict[str, Buffer], Any, Any]:
        """Declare the kernel's arguments, floats as vectors of four where whole vectors are read and written."""
        from .frame import begin_kernel

        floats = [operand.name for operand in self.operands if operand.dtype == "float32"]
        return begin_kernel(self.operands, vectors=[name for name in floats if name != "input" or self.aligned])


class VectorEpilogue:
    """Stores finished sums, a vector of channels at a time."""

    def __init__(self, product: Product, buffers: dict[str, Any]) -> None:
        from .epilogue import stages

        self.product, self.buffers = product, buffers
        self.lane: Any = 0
        epilogue = product.layer.epilogue
        self.fused = {name: registers(LANES) for name in fused_operands(epilogue)}
        self.chain = stages(epilogue, lambda name: self.fused[name][self.lane])
        self.kept = [registers(LANES) for _ in self.chain]

    def store(self, sums: Sequence[Any], row: Any, tile: Any, vector: Any) -> None:
        """Apply the epilogue to ``sums``, elements of a row, and store them as a vector of a tile, if that is kept."""
        from .frame import where

        width = self.product.output_width
        with where(vector < width // LANES if width < TILE else None):
            self._store(sums, row, tile, vector)

    def _store(self, sums: Sequence[Any], row: Any, tile: Any, vector: Any) -> None:
        from tvm.script.ir_builder import tirx as T

        from .frame import zero_behind

        product, buffers, layer = self.product, self.buffers, self.product.layer
        residual = (product.residual_row(row), product.residual_tile + tile, vector)
        for name, target in self.fused.items():
            store_vector(target, 0, buffers[name][residual if name == "residual" else (tile, vector)])
        for number, stage in enumerate(self.chain):
            for self.lane in range(LANES):
                value = stage([sums[self.lane], *(buffer[self.lane] for buffer in self.kept[:number])])
                if number == len(self.chain) - 1:
                    channel = vector * LANES + self.lane
                    value = zero_behind(layer.out_channels, value, layer.epilogue, tile, channel, product.output_width)
                T.buffer_store(self.kept[number], value, [self.lane])
        target = [product.output_row(row), product.output_tile + tile, vector]
        T.buffer_store(buffers["output"], load_vector(self.kept[-1], 0), target)


def registers(size: int, dtype: str = "float32") -> Any:
    """An array of a work-item's own, whose indices are known when the kernel is built."""
    from tvm.script.ir_builder import tirx as T

    return T.alloc_buffer((size,), dtype, scope="local")


def load_vector(buffer: Any, first: Any) -> Any:
    """Read four elements of an array of floats as one value."""
    from tvm.script.ir_builder import tirx as T

    return buffer[T.Ramp(first, 1, LANES)]


def store_vector(buffer: Any, first: Any, value: Any) -> None:
    """Keep a vector in an array of floats."""
    from tvm.script.ir_builder import tirx as T

    T.buffer_store(buffer, value, [T.Ramp(first, 1, LANES)])


def lane_of(vector: Any, lane: int) -> Any:
    """Read an element of a vector."""
    from tvm import tirx

    return tirx.Shuffle([vector], [tirx.IntImm("int32", lane)])


@contextmanager
def or_zero(condition: Any, target: Any, positions: Iterable[Any]) -> Iterator[None]:
    """Around a store that takes place where ``condition`` holds; else ``target`` becomes zero at ``positions``."""
    from tvm.script.ir_builder import tirx as T

    if condition is None:
        yield
        return
    with T.If(condition):
        with T.Then():
            yield
        with T.Else():
            for position in positions:
                T.buffer_store(target, T.float32(0), position if isinstance(position, list) else [position])
