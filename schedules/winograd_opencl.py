"""The steps of Winograd's convolution are OpenCL kernels, which run one after the other in the queue.

A real GPU runs three: transform, multiply, transform back. On a CPU device, where one work-item fills a core, a single
one takes all steps block by block, as on the CPU; or the last two are one, and the products stay in the item's own
memory, where there are too few blocks for all cores.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import tvm
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from tvm_coexec.layers import Variant, fused_operands, tile_count

from .dispatch import Dispatch, dispatch_of_blocks, rows_of_group
from .frame import Buffer, Launch, Operand, begin_kernel, where
from .winograd_kernels import Blocks, Steps, part_of, scratch_shapes, spread_shape
from .winograd_tiles import WinogradTiles, weights_name

SPREAD, PRODUCTS = "scratch_0", "scratch_1"
"""Operands between the kernels: the transformed input, and the products."""
_THREADS = ("threadIdx.x", "threadIdx.y")


def blocked_launch(tiles: WinogradTiles, variant: Variant, operands: tuple[Operand, ...]) -> Launch:
    """Take one kernel for all steps, with a work-group for each core of the device."""
    workers = variant["workers"]
    shapes = scratch_shapes(tiles, variant, workers)
    all_operands = (*operands, *(Operand(name, shape) for name, shape in zip((SPREAD, PRODUCTS), shapes, strict=True)))
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        buffers, begin, count = begin_kernel(all_operands)
        part = part_of(tiles, begin, count)
        steps = Steps(tiles, buffers, part.first_tile, variant["lanes"], variant["rows"], variant["rows"])
        extents = (("blockIdx.x", workers), ("blockIdx.y", 1), *((thread, 1) for thread in _THREADS))
        with ExitStack() as stack:
            worker, *_ = (stack.enter_context(T.launch_thread(*extent)) for extent in extents)
            Blocks(steps, variant, buffers[SPREAD], buffers[PRODUCTS], worker, workers).build(part)
    dispatch = Dispatch((workers, 1), (1, 1), None, padded_rows=-(-tiles.count // variant["rows"]) * variant["rows"])
    return Launch(tvm.IRModule({"main": builder.get()}), all_operands, dispatch)


@dataclass(frozen=True)
class _Item:
    """Where a work-item stands, and what it works with."""

    steps: Steps
    buffers: dict[str, Buffer]
    begin: Any
    count: Any
    block: Any
    unit: Any
    channel_thread: Any
    row_thread: Any


class OpenCLKernels:
    """Builds the launches of one half from its variant and the operands of the whole."""

    def __init__(self, tiles: WinogradTiles, variant: Variant, operands: tuple[Operand, ...]) -> None:
        self.tiles, self.variant = tiles, variant
        self.rows, self.lanes = variant["rows"], variant["lanes"]
        self.group_rows = rows_of_group(variant)
        self.groups = -(-tiles.count // self.group_rows)
        self.chunks = -(-tiles.layer.in_channels // self.lanes)
        self.width = tiles.layouts.output.tile_width
        self.channels = self.width // variant["channel_threads"]
        self.squared = tiles.points**2
        named = {operand.name: operand for operand in operands}
        self.spread = Operand(SPREAD, spread_shape(tiles, self.groups * self.group_rows, self.lanes))
        self.products = Operand(
            PRODUCTS, (tile_count(tiles.layer.out_channels), self.groups, self.squared, self.group_rows, self.width)
        )
        self.input, self.weights = named["input"], named[weights_name(tiles.m)]
        self.stored = tuple(named[name] for name in (*fused_operands(tiles.layer.epilogue), "output"))

    def separate(self) -> tuple[Launch, ...]:
        """Build three kernels, for a GPU."""
        return (
            self._launch((self.input, self.spread), self.groups, self._spread),
            self._launch((self.spread, self.weights, self.products), self.groups * self.squared, self._multiply),
            self._launch((self.products, *self.stored), self.groups, self._gather),
        )

    def joined(self) -> tuple[Launch, ...]:
        """Build two kernels, for a CPU device."""
        return (
            self._launch((self.input, self.spread), self.groups, self._spread),
            self._launch((self.spread, self.weights, *self.stored), self.groups, self._multiply_and_gather),
        )

    def _launch(self, operands: tuple[Operand, ...], blocks: int, body: Callable[[_Item], None]) -> Launch:
        dispatch = dispatch_of_blocks(blocks, self.variant, self.groups * self.group_rows)
        with IRBuilder() as builder, T.prim_func(s_tir=True):
            buffers, begin, count = begin_kernel(operands)
            steps = Steps(self.tiles, buffers, begin, self.lanes, self.rows, self.group_rows)
            x, y = (count if axis == dispatch.unit_axis else blocks for axis in (0, 1))
            extents = (("blockIdx.x", x), ("blockIdx.y", y), *zip(_THREADS, dispatch.group, strict=True))
            with ExitStack() as stack:
                x, y, *threads = (stack.enter_context(T.launch_thread(*extent)) for extent in extents)
                block, unit = (x, y) if dispatch.unit_axis == 1 else (y, x)
                # TVM drops an argument that the code does not read, but every kernel is given begin and count.
                with where(begin >= 0):
                    body(_Item(steps, buffers, begin, count, block, unit, *threads))
        return Launch(tvm.IRModule({"main": builder.get()}), operands, dispatch)

    def _rows(self, item: _Item, body: Callable[[Any, Any], None]) -> None:
        """``body(tile, row)`` for those of an item's tiles that exist."""
        with T.serial(0, self.rows) as number:
            row = item.row_thread * self.rows + number
            tile = item.block * self.group_rows + row
            with where(tile < self.tiles.count if self.tiles.count % self.group_rows else None):
                body(tile, row)

    def _spread(self, item: _Item) -> None:
        """The units share the chunks of the input."""
        threads = self.variant["channel_threads"]
        share = T.truncdiv(self.chunks + item.count * threads - 1, item.count * threads)
        with T.serial(0, share) as number:
            chunk = (item.unit * share + number) * threads + item.channel_thread
            with where(chunk < self.chunks):
                self._rows(
                    item, lambda tile, row: item.steps.spread(tile, chunk, item.buffers[SPREAD], item.block, row)
                )

    def _multiply(self, item: _Item) -> None:
        group, point = T.floordiv(item.block, self.squared), T.floormod(item.block, self.squared)
        first_row, first = item.row_thread * self.rows, item.channel_thread * self.channels
        sums = item.steps.multiply(item.buffers[SPREAD], group, point, item.unit, first_row, (first, self.channels))
        item.steps.keep(sums, item.buffers[PRODUCTS], [item.begin + item.unit, group, point], first_row, first)

    def _gather(self, item: _Item) -> None:
        position = (item.begin + item.unit, item.block)
        self._gather_rows(item, lambda point, row, channel: item.buffers[PRODUCTS][(*position, point, row, channel)])

    def _multiply_and_gather(self, item: _Item) -> None:
        products = T.alloc_buffer((self.squared, self.rows, self.width), "float32", scope="local")
        with T.serial(0, self.squared) as point:
            sums = item.steps.multiply(item.buffers[SPREAD], item.block, point, item.unit, 0, (0, self.width))
            item.steps.keep(sums, products, [point], 0, 0)
        self._gather_rows(item, lambda point, row, channel: products[point, row, channel])

    def _gather_rows(self, item: _Item, product: Callable[[Any, Any, Any], Any]) -> None:
        def gather(tile: Any, row: Any) -> None:
            with T.serial(0, self.channels // self.lanes) as vector:
                channel = item.channel_thread * self.channels + vector * self.lanes
                item.steps.gather(tile, item.unit, channel, lambda point, lane: product(point, row, lane))

        self._rows(item, gather)
