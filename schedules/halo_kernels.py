"""This file builds the kernel that clears a halo."""

from __future__ import annotations

from typing import Any

import tvm
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from tvm_coexec.layers import line_block, tile_count

from .frame import Buffer, Launch, Operand, begin_kernel
from .halo import GROUP_LINES, Halo

_LANES = 16
"""Half a tile, the widest vector that OpenCL and AVX-512 have."""


def clearing(halo: Halo, side: str) -> Launch:
    """Build the kernel that clears the halo beside units ``[begin, begin + count)``."""
    operand = Operand("output", halo.buffer_shape)
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        buffers, begin, count = begin_kernel([operand])
        clear = _Clear(halo, buffers["output"])
        if side == "cpu":
            with T.serial(0, count) as unit:
                clear.unit(begin + unit, 0, halo.image[0] * halo.height)
        else:
            with (
                T.launch_thread("blockIdx.x", halo.dispatch.grid[0]) as group,
                T.launch_thread("blockIdx.y", count) as unit,
                T.launch_thread("threadIdx.x", 1),
            ):
                clear.unit(begin + unit, group * GROUP_LINES, GROUP_LINES)
    return Launch(tvm.IRModule({"main": builder.get()}), (operand,), halo.dispatch)


class _Clear:
    """Builds the code that clears the halo of one unit."""

    def __init__(self, halo: Halo, image: Buffer) -> None:
        self.halo, self.image = halo, image

    def unit(self, unit: Any, first_line: Any, lines: int) -> None:
        """Clear what belongs to a unit; of one of channels, in some of the lines of memory."""
        halo, first_tile, tiles = self.halo, self.halo.layout.first_tile, tile_count(self.halo.image[3])
        if halo.axis == "lines":
            first, count = self._lines_of(unit)
            self._lines(first, count, first_tile, tiles)
        else:
            skipped = unit * halo.unit_tiles
            count = T.min(T.int32(lines), halo.image[0] * halo.height - first_line)
            self._lines(first_line, count, first_tile + skipped, T.min(T.int32(halo.unit_tiles), tiles - skipped))

    def _lines_of(self, unit: Any) -> tuple[Any, Any]:
        """First line of memory and number of lines of a unit; written as sums, which OpenCL code may hold anywhere."""
        (above, _), block, height = self.halo.layout.halo, line_block(self.halo.image[1]), self.halo.height
        is_behind_first = T.min(unit, T.int32(1))
        is_last = T.max(unit - (self.halo.units - 2), T.int32(0))
        first = is_behind_first * (above + unit * block)
        return first, T.min(above + (unit + 1) * block + is_last * height, T.int32(height)) - first

    def _lines(self, first: Any, count: Any, first_tile: Any, tiles: Any) -> None:
        """All of a line above or below the image, else what lies at the left and at the right of it."""
        (above, beside), (_, h, w, _) = self.halo.layout.halo, self.halo.image
        with T.serial(0, count) as number:
            line = first + number
            pixel, within = line * self.halo.width, line % self.halo.height
            with T.If(T.Or(within < above, within >= above + h)):
                with T.Then():
                    self._pixels(pixel, self.halo.width, first_tile, tiles)
                with T.Else():
                    self._pixels(pixel, beside, first_tile, tiles)
                    self._pixels(pixel + beside + w, beside, first_tile, tiles)

    def _pixels(self, first: Any, count: int, first_tile: Any, tiles: Any) -> None:
        width = self.halo.layout.tile_width
        lanes = min(_LANES, width)
        with (
            T.serial(0, count) as pixel,
            T.serial(0, tiles) as tile,
            T.serial(0, width // lanes) as vector,
            T.vectorized(0, lanes) as lane,
        ):
            T.buffer_store(self.image, T.float32(0), [first + pixel, first_tile + tile, vector * lanes + lane])
