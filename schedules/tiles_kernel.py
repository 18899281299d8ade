"""In the kernel of :mod:`.tiles` operands pass through local memory, and sums stay in registers.

It is written as TIR directly, as Winograd's are, not scheduled: TVM's double buffering cannot be told that a load into
registers comes before the products and its store after them, and it knows no sum over work-groups.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import tvm
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from tvm_coexec.layers import TILE

from .frame import Launch, where
from .opencl_helpers import local_barrier
from .pixels import every
from .product import LANES, Product, VectorEpilogue, lane_of, load_vector, or_zero, registers, store_vector
from .split_sums import SplitSums
from .tiles import Tiling

VECTORS = TILE // LANES
"""Vectors of a tile's channels."""


class TileKernel:
    """Builds the kernel of one half: first what a work-item is, then each step of its work in order."""

    def __init__(self, product: Product, tiling: Tiling) -> None:
        self.product, self.tiling = product, tiling
        self.column_vectors = tiling.columns // LANES
        self.chunk_vectors = tiling.depth // LANES
        self.row_vectors = self.chunk_vectors + 1  # of a row in local memory: an odd number, against bank conflicts
        self.item_vectors = tiling.item_columns // LANES
        self.sums_size = tiling.item_rows * tiling.item_columns

    def launch(self) -> Launch:
        """The kernel, and how it is launched."""
        product, tiling = self.product, self.tiling
        with IRBuilder() as builder, T.prim_func(s_tir=True):
            self.buffers, self.begin, self.count = product.arguments()
            self.part = product.part(self.begin, self.count)
            dispatch = tiling.dispatch(product.extents)
            with ExitStack() as stack:
                columns, lines = dispatch.grid_for(self.count)
                x = stack.enter_context(T.launch_thread("blockIdx.x", columns))
                y = stack.enter_context(T.launch_thread("blockIdx.y", lines))
                item = stack.enter_context(T.launch_thread("threadIdx.x", dispatch.group[0]))
                self._locate(x, y, item)
                self._compute()
        return Launch(tvm.IRModule({"main": builder.get()}), product.operands, dispatch)

    def _locate(self, x: Any, y: Any, item: Any) -> None:
        """Which tile of the output, which part of the reduction, and which place in the work-group this is."""
        tiling, product = self.tiling, self.product
        if product.extents.unit_rows is None:
            blocks = -(-product.extents.rows // tiling.rows)
            self.column_block, self.row_block, self.part_number = x, y % blocks, y // blocks
            self.tile_number = x * blocks + self.row_block
        else:
            blocks = tiling.column_blocks(product.extents)
            self.column_block, self.row_block, self.part_number = x % blocks, y, x // blocks
            self.tile_number = y * blocks + self.column_block
        self.item = item
        self.slice, position = item // tiling.slice_items, item % tiling.slice_items
        self.position = position
        self.row_position, self.column_position = position // tiling.items_across, position % tiling.items_across
        self.first_row = self.row_block * tiling.rows
        self.first_tile = self.column_block * (tiling.columns // TILE)

    def _compute(self) -> None:
        tiling = self.tiling
        self.local = T.alloc_buffer((tiling.local_vectors,), "float32x4", scope="shared")
        self.sums = registers(self.sums_size)
        self.loaded_input = registers(tiling.input_loads * LANES)
        self.loaded_weights = registers(tiling.weight_loads, "float32x4")
        for number in range(self.sums_size):
            T.buffer_store(self.sums, T.float32(0), [number])
        self._find_rows()
        chunks = tiling.chunks(self.product.extents)
        steps = -(-chunks // (tiling.parts * tiling.slices))
        self.chunks = chunks if steps * tiling.parts * tiling.slices > chunks else None
        first = self.part_number * (steps * tiling.slices)
        self._load(first + self.slice)
        self._keep(0)
        local_barrier()
        # While a chunk is multiplied, the next is on its way to registers, then to the other half of local memory.
        with T.serial(0, steps) as step:
            with where(step + 1 < steps):
                self._load(first + (step + 1) * tiling.slices + self.slice)
            self._multiply(step % 2)
            with where(step + 1 < steps):
                self._keep((step + 1) % 2)
            local_barrier()
        split = SplitSums(self.sums, tiling.slices, self.slice, tiling.slice_items, self.position, self.item == 0)
        split.add_slices(self.local)
        split.add_parts(self.buffers, tiling.parts, self.part_number, self.tile_number, self._store)

    def _find_rows(self) -> None:
        """Keep where the rows of the input and the tiles of the weights begin that a work-item loads parts of."""
        tiling, product = self.tiling, self.product
        self.starts = registers(tiling.input_loads, "int32")
        for load in range(tiling.input_loads):
            row = self.part.first_row + self.first_row + self._loaded(load) // self.chunk_vectors
            start = product.first_element(T.min(row, product.extents.rows - 1))
            T.buffer_store(self.starts, start // LANES if product.aligned else start, [load])
        self.weight_tiles = registers(tiling.weight_loads, "int32")
        for load in range(tiling.weight_loads):
            tile = self.part.first_tile + self.first_tile + self._loaded(load) % self.column_vectors // VECTORS
            T.buffer_store(self.weight_tiles, T.min(tile, product.extents.tiles - 1), [load])

    def _loaded(self, load: int) -> Any:
        """Say which vector of a chunk an item loads, of the input's rows or of the steps of the weights."""
        return self.position + load * self.tiling.slice_items

    def _shared_out(self, load: int, vectors: int) -> Any:
        """Around what an item does with a vector of a chunk, if the last items have one less to load."""
        return where(self._loaded(load) < vectors if (load + 1) * self.tiling.slice_items > vectors else None)

    def _load(self, chunk: Any) -> None:
        """Load a work-item's share of a chunk of both operands into registers."""
        tiling, extents = self.tiling, self.product.extents
        exists = None
        if self.chunks is not None:  # slices and parts do not come out even
            exists, chunk = chunk < self.chunks, T.min(chunk, self.chunks - 1)
        chunks = -(-extents.span // tiling.depth)
        tap, number = (chunk // chunks, chunk % chunks) if chunks > 1 else (chunk, 0)
        for load in range(tiling.input_loads):
            within = number * tiling.depth + self._loaded(load) % self.chunk_vectors * LANES
            with self._shared_out(load, tiling.input_vectors):
                self._load_input(load, exists, tap, within)
        for load in range(tiling.weight_loads):
            step = number * tiling.depth + self._loaded(load) // self.column_vectors
            if extents.span % tiling.depth:
                step = T.min(step, extents.span - 1)
            position = (self.weight_tiles[load], tap * extents.span + step, self._loaded(load) % VECTORS)
            with self._shared_out(load, tiling.weight_vectors):
                T.buffer_store(self.loaded_weights, self.buffers["weights"][position], [load])

    def _load_input(self, load: int, exists: Any, tap: Any, within: Any) -> None:
        """Load four elements of a run of the input; zero behind its end, where anything may lie."""
        product, span, source = self.product, self.product.extents.span, self.buffers["input"]
        first, position = load * LANES, self.starts[load] + product.run_offset(tap) + within
        if product.aligned:
            position = self.starts[load] + product.run_offset(tap) // LANES + within // LANES
            ends = [within < span] if span % self.tiling.depth else []
            with or_zero(every([exists, *ends]), self.loaded_input, range(first, first + LANES)):
                store_vector(self.loaded_input, first, source[position])
            return
        for lane in range(LANES):
            with or_zero(every([exists, within + lane < span]), self.loaded_input, [first + lane]):
                T.buffer_store(self.loaded_input, source[position + lane], [first + lane])

    def _stage(self, number: Any) -> Any:
        """Where in local memory a slice's operands begin, of the chunks with an even or odd number."""
        return (self.slice * 2 + number) * self.tiling.stage_vectors

    def _keep(self, number: Any) -> None:
        """Store what was loaded into local memory."""
        tiling, stage = self.tiling, self._stage(number)
        for load in range(tiling.input_loads):
            row, vector = self._loaded(load) // self.chunk_vectors, self._loaded(load) % self.chunk_vectors
            with self._shared_out(load, tiling.input_vectors):
                value = load_vector(self.loaded_input, load * LANES)
                T.buffer_store(self.local, value, [stage + row * self.row_vectors + vector])
        for load in range(tiling.weight_loads):
            with self._shared_out(load, tiling.weight_vectors):
                position = stage + tiling.rows * self.row_vectors + self._loaded(load)
                T.buffer_store(self.local, self.loaded_weights[load], [position])

    def _multiply(self, number: Any) -> None:
        """Add the products of a chunk to the sums."""
        tiling = self.tiling
        rows, weights = registers(tiling.item_rows, "float32x4"), registers(self.item_vectors, "float32x4")
        stage = self._stage(number)
        with T.serial(0, self.chunk_vectors) as vector:
            for i in range(tiling.item_rows):
                position = stage + (self.row_position + i * tiling.items_down) * self.row_vectors + vector
                T.buffer_store(rows, self.local[position], [i])
            for lane in range(LANES):
                line = stage + tiling.rows * self.row_vectors + (vector * LANES + lane) * self.column_vectors
                for j in range(self.item_vectors):
                    T.buffer_store(weights, self.local[line + self.column_position + j * tiling.items_across], [j])
                for i in range(tiling.item_rows):
                    for column in range(tiling.item_columns):
                        position = i * tiling.item_columns + column
                        product = lane_of(rows[i], lane) * lane_of(weights[column // LANES], column % LANES)
                        T.buffer_store(self.sums, self.sums[position] + product, [position])

    def _store(self) -> None:
        """Apply the epilogue to what exists of the tile, and store it."""
        tiling, part = self.tiling, self.part
        epilogue = VectorEpilogue(self.product, self.buffers)
        bound = T.min(part.rows, self.product.extents.rows - part.first_row)
        for i in range(tiling.item_rows):
            row = self.first_row + self.row_position + i * tiling.items_down
            with where(row < bound):
                for j in range(self.item_vectors):
                    column = self.column_position + j * tiling.items_across
                    tile = self.first_tile + column // VECTORS
                    with where(tile < part.tiles if tiling.columns > TILE else None):
                        first = (i * self.item_vectors + j) * LANES
                        sums = [self.sums[first + lane] for lane in range(LANES)]
                        epilogue.store(sums, part.first_row + row, part.first_tile + tile, column % VECTORS)
