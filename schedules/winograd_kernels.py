"""Winograd's convolution as TIR transforms the input, multiplies at each point, transforms back and stores.

A *group* is the tiles that one register block or work-group multiplies. Between the steps, the transformed input lies
in ``[points², groups · chunks · tiles of a group, lanes]``, a chunk being ``lanes`` input channels, and the products in
``[…, points², tiles of a group, 32]``. On the CPU both are scratch of the call: a block of tiles is transformed and
multiplied while it is in the cache. In OpenCL scratch memory is an operand, and a GPU takes each step in
a kernel of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import tvm
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from tvm_coexec.layers import Variant

from .epilogue import stages
from .frame import Buffer, Operand, Part, begin_kernel, where, zero_behind
from .winograd_tiles import WinogradTiles, weights_name
from .winograd_transforms import INPUT, OUTPUT, apply


@dataclass
class Steps:
    """Builds the three steps of a kernel from its buffers.

    Parameters
    ----------
    lanes
        Channels in a vector.
    begin
        The first tile of channels.
    rows
        Tiles that are multiplied at once.
    group_rows
        Tiles of a group.
    """

    tiles: WinogradTiles
    buffers: dict[str, Buffer]
    begin: Any
    lanes: int
    rows: int
    group_rows: int

    @property
    def width(self) -> int:
        """Channels of a tile that are computed."""
        return self.tiles.layouts.output.tile_width

    @property
    def chunks(self) -> int:
        return -(-self.tiles.layer.in_channels // self.lanes)

    def spread(self, tile: Any, chunk: Any, target: Buffer, group: Any, row: Any) -> None:
        """Transform a chunk of the input of one tile."""
        points, matrix = self.tiles.points, INPUT[self.tiles.m]
        lines = _registers((points, points, self.lanes))
        for j in range(points):
            for i in range(points):
                with T.vectorized(0, self.lanes) as lane:
                    column = [self._input(tile, k, j, chunk * self.lanes + lane) for k in range(points)]
                    T.buffer_store(lines, apply(matrix, column)[i], [i, j, lane])
        for i in range(points):
            for j in range(points):
                with T.vectorized(0, self.lanes) as lane:
                    line = [lines[i, k, lane] for k in range(points)]
                    position = self._position(group, chunk, row)
                    T.buffer_store(target, apply(matrix, line)[j], [i * points + j, position, lane])

    def _position(self, group: Any, chunk: Any, row: Any) -> Any:
        """Where a tile of a group lies in the transformed input."""
        return (group * self.chunks + chunk) * self.group_rows + row

    def _input(self, tile: Any, i: int, j: int, channel: Any) -> Any:
        pixel, exists = self.tiles.input_pixel(tile, i, j)
        source = self.tiles.layouts.input.element(pixel, channel, self.tiles.layer.in_channels)
        value = self.buffers["input"][source]
        return value if exists is None else T.if_then_else(exists, value, T.float32(0))

    def multiply(
        self, spread: Buffer, group: Any, point: Any, unit: Any, first_row: Any, channels: tuple[Any, int]
    ) -> Buffer:
        """Products of ``rows`` tiles and ``channels`` (the first, and how many) of a unit; returns their registers."""
        first_channel, count = channels
        lanes, weights = self.lanes, self.buffers[weights_name(self.tiles.m)]
        sums = _registers((self.rows, count // lanes, lanes))

        def for_all(value: Callable[[Any, Any, Any], Any]) -> None:
            with T.unroll(0, self.rows) as row, T.unroll(0, count // lanes) as vector, T.vectorized(0, lanes) as lane:
                T.buffer_store(sums, value(row, vector, lane), [row, vector, lane])

        def add(chunk: Any, channel: Any) -> None:
            def value(row: Any, vector: Any, lane: Any) -> Any:
                factor = weights[
                    self.begin + unit, point, chunk * lanes + channel, first_channel + vector * lanes + lane
                ]
                position = self._position(group, chunk, first_row + row)
                return sums[row, vector, lane] + spread[point, position, channel] * factor

            for_all(value)

        for_all(lambda *_: T.float32(0))
        whole, rest = divmod(self.tiles.layer.in_channels, lanes)
        with T.serial(0, whole) as chunk, T.serial(0, lanes) as channel:
            add(chunk, channel)
        if rest:  # the last channels fill no vector
            with T.serial(0, rest) as channel:
                add(whole, channel)
        return sums

    def keep(self, sums: Buffer, target: Buffer, position: Sequence[Any], first_row: Any, first_channel: Any) -> None:
        """Store the registers of :meth:`multiply` as ``target[*position, row, channel]``."""
        rows, vectors, lanes = sums.shape
        with T.unroll(0, rows) as row, T.unroll(0, vectors) as vector, T.vectorized(0, lanes) as lane:
            channel = first_channel + vector * lanes + lane
            T.buffer_store(target, sums[row, vector, lane], [*position, first_row + row, channel])

    def gather(self, tile: Any, unit: Any, first_channel: Any, product: Callable[[Any, Any], Any]) -> None:
        """Transform the products of one tile back, a vector of channels, and store it; ``product(point, channel)``."""
        m, points, matrix = self.tiles.m, self.tiles.points, OUTPUT[self.tiles.m]
        lines = _registers((m, points, self.lanes))
        outputs = _registers((m, m, self.lanes))
        for j in range(points):
            for i in range(m):
                with T.vectorized(0, self.lanes) as lane:
                    column = [product(k * points + j, first_channel + lane) for k in range(points)]
                    T.buffer_store(lines, apply(matrix, column)[i], [i, j, lane])
        for i in range(m):
            for j in range(m):
                with T.vectorized(0, self.lanes) as lane:
                    T.buffer_store(outputs, apply(matrix, [lines[i, k, lane] for k in range(points)])[j], [i, j, lane])
        for i in range(m):
            for j in range(m):
                with where(self.tiles.is_stored(tile, i, j)):
                    self._store(tile, (i, j), self.begin + unit, first_channel, outputs)

    def _store(self, tile: Any, position: tuple[int, int], unit: Any, first_channel: Any, outputs: Buffer) -> None:
        layer, layouts, buffers = self.tiles.layer, self.tiles.layouts, self.buffers
        pixel, residual = (self.tiles.output_pixel(at, tile, *position) for at in (layouts.output, layouts.residual))
        channel: Any = None
        chain = stages(
            layer.epilogue,
            lambda name: (
                buffers["residual"][residual, layouts.residual.first_tile + unit, channel]
                if name == "residual"
                else buffers[name][unit, channel]
            ),
        )
        kept: list[Buffer] = []
        for number, stage in enumerate(chain):
            last = number == len(chain) - 1
            target = buffers["output"] if last else _registers((self.lanes,))
            with T.vectorized(0, self.lanes) as lane:
                channel = first_channel + lane
                value = stage([outputs[(*position, lane)], *(buffer[lane] for buffer in kept)])
                if last:
                    value = zero_behind(layer.out_channels, value, layer.epilogue, unit, channel, self.width)
                position_in_memory = [pixel, layouts.output.first_tile + unit, channel]
                T.buffer_store(target, value, position_in_memory if last else [lane])
            kept.append(target)


def _registers(shape: tuple[int, ...]) -> Buffer:
    return T.alloc_buffer(shape, "float32", scope="local")


def cpu_kernel(tiles: WinogradTiles, variant: Variant, operands: tuple[Operand, ...]) -> tvm.IRModule:
    """Run all three steps, block by block."""
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        buffers, begin, count = begin_kernel(operands)
        part = part_of(tiles, begin, count)
        steps = Steps(tiles, buffers, part.first_tile, variant["lanes"], variant["rows"], variant["rows"])
        spread, products = (T.alloc_buffer(shape, "float32") for shape in scratch_shapes(tiles, variant))
        Blocks(steps, variant, spread, products).build(part)
    return tvm.IRModule({"main": builder.get()})


def part_of(tiles: WinogradTiles, begin: Any, count: Any) -> Part:
    """What a kernel computes; rows are tiles of pixels."""
    return Part.of(begin, count, tiles.layer.out_channels, tiles.count, tiles.unit_count)


def scratch_shapes(tiles: WinogradTiles, variant: Variant, workers: int = 1) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Give the shapes of the transformed input and the products of :class:`Blocks`, for workers side by side."""
    rows, groups = variant["rows"], variant["block_groups"]
    return (
        spread_shape(tiles, workers * groups * rows, variant["lanes"]),
        (workers * (groups if variant["order"] else 1), tiles.points**2, rows, tiles.layouts.output.tile_width),
    )


def spread_shape(tiles: WinogradTiles, rows: int, lanes: int) -> tuple[int, int, int]:
    """Give the shape of the transformed input of so many tiles.

    The points of a tile, which are written one after the other, are an odd number of vectors apart: else they could
    all fall into one set of the cache.
    """
    vectors = rows * -(-tiles.layer.in_channels // lanes)
    return tiles.points**2, vectors + 1 - vectors % 2, lanes


class Blocks:
    """All three steps for a block of groups while it is in the cache, then for the next one.

    With ``order`` 0 a group goes through all points and is stored, with 1 a point goes through all groups of the
    block, while its weights stay in the cache. ``channels`` of a unit are multiplied at once. Several may work side by
    side: ``worker`` then computes every ``workers``-th block, in its own part of the scratch memory.
    """

    def __init__(
        self, steps: Steps, variant: Variant, spread: Buffer, products: Buffer, worker: Any = 0, workers: int = 1
    ) -> None:
        self.steps, self.groups, self.order = steps, variant["block_groups"], variant["order"]
        self.channels = dict(variant.params).get("channels", steps.width)
        self.spread, self.products = spread, products
        self.worker, self.workers = worker, workers

    def build(self, part: Part) -> None:
        """Compute a part of the layer."""
        steps, rows = self.steps, self.steps.rows
        block = self.groups * rows
        blocks = T.truncdiv(part.rows + block - 1, block)
        own = blocks - self.worker + self.workers - 1
        with T.serial(0, T.truncdiv(own, self.workers)) as number:
            passed = (number * self.workers + self.worker) * block
            first, left = part.first_row + passed, T.min(part.rows - passed, block)
            with T.serial(0, left) as tile, T.serial(0, steps.chunks) as chunk:
                steps.spread(first + tile, chunk, self.spread, self._position(tile // rows), tile % rows)
            with T.serial(0, part.tiles) as unit:
                (self._point_by_point if self.order else self._group_by_group)(unit, first, left)

    def _position(self, group: Any) -> Any:
        """Where a group of the block lies in scratch memory."""
        return self.worker * self.groups + group

    def _group_by_group(self, unit: Any, first: Any, left: Any) -> None:
        rows = self.steps.rows
        with T.serial(0, T.floordiv(left + rows - 1, rows)) as group:
            with T.serial(0, self.steps.tiles.points**2) as point:
                self._multiply(unit, group, point, self.worker)
            with T.serial(0, T.min(left - group * rows, rows)) as row:
                self._gather(unit, first + group * rows + row, self.worker, row)

    def _point_by_point(self, unit: Any, first: Any, left: Any) -> None:
        rows = self.steps.rows
        groups = T.floordiv(left + rows - 1, rows)
        with T.serial(0, self.steps.tiles.points**2) as point, T.serial(0, groups) as group:
            self._multiply(unit, group, point, self._position(group))
        with T.serial(0, left) as tile:
            self._gather(unit, first + tile, self._position(tile // rows), tile % rows)

    def _multiply(self, unit: Any, group: Any, point: Any, position: Any) -> None:
        for first in range(0, self.steps.width, self.channels):
            sums = self.steps.multiply(self.spread, self._position(group), point, unit, 0, (first, self.channels))
            self.steps.keep(sums, self.products, [position, point], 0, first)

    def _gather(self, unit: Any, tile: Any, position: Any, row: Any) -> None:
        with T.serial(0, self.steps.width // self.steps.lanes) as vector:
            channel = vector * self.steps.lanes
            self.steps.gather(tile, unit, channel, lambda point, lane: self.products[position, point, row, lane])
