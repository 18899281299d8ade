"""This file builds the kernel of :mod:`.few_rows`."""

from __future__ import annotations

from typing import Any

import tvm
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from tvm_coexec.layers import TILE

from .few_rows import Reading
from .frame import Launch
from .product import LANES, Product, VectorEpilogue, lane_of, or_zero, registers, store_vector
from .split_sums import SplitSums

_TOGETHER = 4
"""Vectors of the reduction whose weights are read before any is multiplied: they are on their way at the same time."""


class FewRowsKernel:
    """Builds the kernel of one half. Rows are those of one run of the input."""

    def __init__(self, product: Product, reading: Reading) -> None:
        assert product.extents.taps == 1 and product.extents.unit_rows is None
        self.product, self.reading, self.rows = product, reading, product.extents.rows
        self.steps = reading.steps(product.extents.span)
        self.covers_more = self.steps * reading.slices * reading.parts * LANES != product.extents.span

    def launch(self) -> Launch:
        """The kernel, and how it is launched."""
        product, reading = self.product, self.reading
        dispatch = reading.dispatch(product.extents)
        with IRBuilder() as builder, T.prim_func(s_tir=True):
            self.buffers, begin, count = product.arguments()
            columns, parts = dispatch.grid_for(count)
            with (
                T.launch_thread("blockIdx.x", columns) as x,
                T.launch_thread("blockIdx.y", parts) as part,
                T.launch_thread("threadIdx.x", reading.items) as item,
            ):
                blocks = TILE // reading.columns
                self.tile = begin + x // blocks
                slice_number, position = item // reading.slice_items, item % reading.slice_items
                self.vector = x % blocks * reading.slice_items + position
                sums = registers(self.rows * LANES)
                self._add_up(sums, part * self.steps * reading.slices + slice_number)
                split = SplitSums(sums, reading.slices, slice_number, reading.slice_items, position, item == 0)
                split.add_slices(T.alloc_buffer((max(split.local_vectors(), 1),), "float32x4", scope="shared"))
                split.add_parts(self.buffers, reading.parts, part, x, lambda: self._store(sums))
        return Launch(tvm.IRModule({"main": builder.get()}), product.operands, dispatch)

    def _add_up(self, sums: Any, first: Any) -> None:
        """Add up an item's products, of every ``slices``-th vector of the reduction from ``first`` on."""
        for number in range(self.rows * LANES):
            T.buffer_store(sums, T.float32(0), [number])
        together = next(count for count in range(_TOGETHER, 0, -1) if self.steps % count == 0)
        weights = registers(together * LANES, "float32x4")
        values = registers(self.rows * LANES)
        with T.serial(0, self.steps // together) as group:
            # All reads of a group are in flight before the first product needs one: latency is what counts here.
            starts = [(first + (group * together + number) * self.reading.slices) * LANES for number in range(together)]
            for number, start in enumerate(starts):
                for lane in range(LANES):
                    step = T.min(start + lane, self.product.extents.span - 1) if self.covers_more else start + lane
                    read = self.buffers["weights"][self.tile, step, self.vector]
                    T.buffer_store(weights, read, [number * LANES + lane])
            for number, start in enumerate(starts):
                for row in range(self.rows):
                    self._load(values, row, start)
                for row in range(self.rows):
                    for lane in range(LANES):
                        for column in range(LANES):
                            position = row * LANES + column
                            product = values[row * LANES + lane] * lane_of(weights[number * LANES + lane], column)
                            T.buffer_store(sums, sums[position] + product, [position])

    def _load(self, values: Any, row: int, start: Any) -> None:
        """Load a vector of a row of the input; zero behind its end, where anything may lie."""
        product, source = self.product, self.buffers["input"]
        first, position = product.first_element(T.int32(row)), row * LANES
        if product.aligned:
            with or_zero(self._exists(start), values, range(position, position + LANES)):
                store_vector(values, position, source[(first + start) // LANES])
        else:
            for lane in range(LANES):
                with or_zero(self._exists(start + lane), values, [position + lane]):
                    T.buffer_store(values, source[first + start + lane], [position + lane])

    def _exists(self, step: Any) -> Any:
        return step < self.product.extents.span if self.covers_more else None

    def _store(self, sums: Any) -> None:
        epilogue = VectorEpilogue(self.product, self.buffers)
        for row in range(self.rows):
            epilogue.store([sums[row * LANES + lane] for lane in range(LANES)], T.int32(row), self.tile, self.vector)
