"""The frame that dense families share: tiles of 32 output channels, a run-time range of them, a fused epilogue.

A family describes how one element of the accumulator is reduced; the frame adds the epilogue, and
:mod:`.register_tiles` schedules both for LLVM and for OpenCL. Activations are ``[rows, tiles, 32]`` in memory, packed
weights ``[tiles, reduction, 32]``. The kernel computes tiles ``[begin, begin + count)`` of all rows, or all tiles where
units are parts of the rows. A family whose rows are pixels of an image says where in memory a row of the output lies,
and which rows exist only to fill up a block.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import tvm
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from tvm_coexec.layers import TILE, Layer, sum_type, tile_count

from .dispatch import Dispatch
from .epilogue import maps_zero_to_zero, stages

Buffer = Any
Reduce = Callable[[dict[str, Buffer], list[Any], Any], Any]
"""Term of the reduction: from the operands' buffers, the indices ``[row, tile, channel, split, *reduction]`` and the
first tile of the range to the product that is added up."""
Condition = Callable[..., Any]
"""A condition on a row (and, for a term, the reduction's indices); None where it always holds."""


@dataclass(frozen=True)
class Operand:
    """A kernel argument: its name in the step that calls it, and its shape as the kernel sees it.

    ``is_image`` says that an OpenCL kernel reads it as an image over the buffer; see :mod:`.weight_images`.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    is_image: bool = False


@dataclass(frozen=True)
class Launch:
    """One kernel of a half: what it is compiled from, its buffers in order, and how it is launched."""

    module: tvm.IRModule
    operands: tuple[Operand, ...]
    dispatch: Dispatch


@dataclass(frozen=True)
class Part:
    """What a kernel computes of its layer: a range of tiles for a range of rows, known when it runs."""

    first_tile: Any
    tiles: Any
    first_row: Any
    rows: Any

    @classmethod
    def of(cls, begin: Any, count: Any, channels: int, rows: int, unit_rows: int | None) -> Part:
        """Take units ``[begin, begin + count)``: tiles of all rows or, if they have ``unit_rows``, rows of tiles."""
        if unit_rows is None:
            return cls(begin, count, 0, rows)
        # TVM's analysis multiplies an extent by its bound, which must stay within 32 bits.
        bounded = T.min(count, T.int32(rows // unit_rows))
        return cls(0, tile_count(channels), begin * unit_rows, bounded * unit_rows)


def one_if_channel(channels: int, tile: Any, channel: Any) -> Any:
    """1 where a tile's place holds one of ``channels``, else 0.

    A factor, since TVM's OpenCL ``select`` takes a scalar condition for the sign bit of every lane.
    """
    left = channels - (tile * TILE + channel)
    return T.Cast("float32", T.max(T.min(left, T.int32(1)), T.int32(0)))


def kept_where(exists: Any, value: Any) -> Any:
    """``value`` where ``exists`` is 1, and zero where it is 0, even if ``value`` is no number there."""
    return T.reinterpret("float32", T.reinterpret("int32", value) & (T.int32(0) - exists))


def zero_behind(channels: int, value: Any, epilogue: Sequence[str], tile: Any, channel: Any, width: int = TILE) -> Any:
    """``value``, but zero where there is no channel; weights of zero see to that if the epilogue maps 0 to 0.

    Pixels of a narrow image have one tile, of which only ``width`` channels are written.
    """
    if channels % width == 0 or maps_zero_to_zero(epilogue):
        return value
    return value * one_if_channel(channels, tile, channel)


def begin_kernel(operands: Sequence[Operand], vectors: Container[str] = ()) -> tuple[dict[str, Buffer], Any, Any]:
    """Name the kernel that is being built ``main``, and declare its arguments: its buffers, ``begin`` and ``count``.

    TVM orders the pointers of an OpenCL kernel by name, so each name starts with its index, in two digits. Buffers
    named in ``vectors`` have elements of four floats: GPUs' compilers take ``vload4`` apart, but not these.
    """
    T.func_name("main")
    # Without noalias TVM keeps sums in memory: 38 instead of 113 GFLOP/s on a core of a Zen 4.
    T.func_attr({"tirx.noalias": True, "global_symbol": "main"})
    handles = [T.arg(operand.name, T.handle()) for operand in operands]
    begin, count = T.arg("begin", T.int32()), T.arg("count", T.int32())
    buffers = {}
    for position, (operand, handle) in enumerate(zip(operands, handles, strict=True)):
        shape, dtype = operand.shape, operand.dtype
        if operand.name in vectors:
            shape, dtype = (*shape[:-1], shape[-1] // 4), f"{dtype}x4"
        buffers[operand.name] = IRBuilder.name(f"p{position:02d}_{operand.name}", T.match_buffer(handle, shape, dtype))
    return buffers, begin, count


@dataclass(frozen=True)
class Description:
    """What a dense kernel computes, before it is scheduled.

    Parameters
    ----------
    channels
        Output channels; what lies behind the last one up to the end of its tile is stored as zero.
    output_width
        Channels of a tile that lie in memory: all, unless rows are pixels of a narrow image.
    unit_rows
        Rows of a unit; None where units are tiles.
    partial_sums
        Independent accumulators for each output element, added at the end: they hide the latency of the multiply-add
        where few rows are computed.
    output_row, residual_row, is_stored
        Where in memory a row of the output and of the residual lies, and whether it exists.
    output_tile, residual_tile
        The index, among the tiles of such a row, of the layer's first one.
    is_needed
        Whether a term can change the result; the others are left out.
    weight
        The weight of a term, whatever the row, where weights may be fetched before they are needed.
    written_out
        Axes of the reduction that are unrolled, so that ``is_needed`` is decided when the kernel is built.
    start, combine
        What an accumulator holds at first, and how a term joins it.
    finish
        What becomes of a finished accumulator before the epilogue: from the operands' buffers, the indices ``[row,
        tile, channel]`` counted from the range's first tile, that tile, and the accumulator to the result.
    """

    layer: Layer
    operands: tuple[Operand, ...]
    rows: int
    channels: int
    reduction: tuple[int, ...]
    term: Reduce
    unit_rows: int | None = None
    partial_sums: int = 1
    output_row: Callable[[Any], Any] = lambda row: row
    residual_row: Callable[[Any], Any] = lambda row: row
    output_tile: int = 0
    residual_tile: int = 0
    output_width: int = TILE
    is_stored: Condition = lambda row: None
    is_needed: Condition = lambda row, *reduction: None
    weight: Reduce | None = None
    written_out: tuple[int, ...] = ()
    start: float = 0.0
    combine: Callable[[Any, Any], Any] = operator.add
    finish: Callable[[dict[str, Buffer], list[Any], Any, Any], Any] | None = None

    def prim_func(self, together: int = TILE) -> Any:
        """Write the description as TIR: blocks ``accumulate``, ``stage_0`` … and, last, the one that stores.

        So many channels will be accumulated ``together``; none are where a tile holds no more channels.
        """
        with IRBuilder() as builder, T.prim_func(s_tir=True):
            buffers, begin, count = begin_kernel(self.operands)
            part = Part.of(begin, count, self.channels, self.rows, self.unit_rows)
            accumulator = T.sblock_alloc_buffer(
                (part.rows, part.tiles, self.partial_sums, self.output_width), sum_type(self.layer.dtype)
            )
            self._accumulate(accumulator, buffers, part, together)
            self._epilogue(accumulator, buffers, part)
        return builder.get()

    def _accumulate(self, accumulator: Buffer, buffers: dict[str, Buffer], part: Part, together: int) -> None:
        extents = (part.tiles, part.rows, self.partial_sums, self.output_width, *self.reduction)
        with T.grid(*extents) as loops, T.sblock("accumulate"):
            t, i, s, j = (T.axis.spatial(extent, loop) for extent, loop in zip(extents[:4], loops[:4], strict=True))
            reduction = [T.axis.reduce(extent, loop) for extent, loop in zip(extents[4:], loops[4:], strict=True)]
            with T.init():
                T.buffer_store(accumulator, T.float32(self.start), [i, t, s, j])
            row = part.first_row + i
            term = self.term(buffers, [row, t, j, s, *reduction], part.first_tile)
            with where(self._is_channel(part.first_tile + t, j, together)), where(self.is_needed(row, *reduction)):
                T.buffer_store(accumulator, self.combine(accumulator[i, t, s, j], term), [i, t, s, j])

    def _is_channel(self, tile: Any, channel: Any, together: int) -> Any:
        """Whether any of the channels that are accumulated together exists; None where some always do.

        Those that do not exist are left out only where an accumulator starts as the zero that is to be stored.
        """
        if -self.channels % self.output_width < together or self.start:
            return None
        return tile * TILE + channel // together * together < self.channels

    def _epilogue(self, accumulator: Buffer, buffers: dict[str, Buffer], part: Part) -> None:
        index: list[Any] = []

        def row() -> Any:
            return part.first_row + index[0]

        def total() -> Any:
            i, t, j = index
            value = accumulator[i, t, 0, j]
            for s in range(1, self.partial_sums):
                value = self.combine(value, accumulator[i, t, s, j])
            return value if self.finish is None else self.finish(buffers, [row(), t, j], part.first_tile, value)

        chain = stages(
            self.layer.epilogue,
            lambda name: (
                buffers["residual"][self.residual_row(row()), self.residual_tile + part.first_tile + index[1], index[2]]
                if name == "residual"
                else buffers[name][part.first_tile + index[1], index[2]]
            ),
        )
        kept: list[Buffer] = []
        for number, stage in enumerate(chain):
            last = number == len(chain) - 1
            extents = (part.tiles, part.rows, self.output_width)
            target = (
                buffers["output"]
                if last
                else T.sblock_alloc_buffer((part.rows, part.tiles, self.output_width), sum_type(self.layer.dtype))
            )
            with T.grid(*extents) as loops, T.sblock("store" if last else f"stage_{number}"):
                t, i, j = (T.axis.spatial(extent, loop) for extent, loop in zip(extents, loops, strict=True))
                index[:] = [i, t, j]
                value = stage([total(), *(buffer[i, t, j] for buffer in kept)])
                if last:
                    tile = part.first_tile + t
                    value = zero_behind(self.channels, value, self.layer.epilogue, tile, j, self.output_width)
                    with where(self.is_stored(row())):
                        T.buffer_store(target, value, [self.output_row(row()), self.output_tile + tile, j])
                else:
                    T.buffer_store(target, value, [i, t, j])
            kept.append(target)


@contextmanager
def where(condition: Any) -> Iterator[None]:
    """What is built inside happens where ``condition`` holds."""
    if condition is None:
        yield
    else:
        with T.If(condition), T.Then():
            yield
