"""The kernel of :mod:`.plain_tiles`: a work-item reads both operands from global memory, and sums stay in registers."""

from __future__ import annotations

from typing import Any

from tvm.script.ir_builder import tirx as T

from .frame import where
from .pixels import every
from .product import LANES, lane_of, or_zero, registers, store_vector
from .split_sums import SplitSums
from .tiles_kernel import VECTORS, TileKernel


class PlainTileKernel(TileKernel):
    """Builds the kernel of one half: the work of :class:`.TileKernel` without what it keeps in local memory."""

    def _compute(self) -> None:
        tiling, extents = self.tiling, self.product.extents
        self.sums = registers(self.sums_size)
        self.rows = registers(tiling.item_rows * LANES)
        self.weights = registers(LANES * self.item_vectors, "float32x4")
        for number in range(self.sums_size):
            T.buffer_store(self.sums, T.float32(0), [number])
        self._find_rows()
        vectors = -(-extents.span // LANES)
        steps = -(-extents.taps * vectors // tiling.parts)
        ends = steps * tiling.parts > extents.taps * vectors  # the last part has less to do
        with T.serial(0, steps) as step:
            number = self.part_number * steps + step
            with where(number < extents.taps * vectors if ends else None):
                self._add_products(number // vectors, number % vectors * LANES)
        split = SplitSums(self.sums, 1, self.slice, tiling.slice_items, self.position, self.item == 0)
        split.add_parts(self.buffers, tiling.parts, self.part_number, self.tile_number, self._store)

    def _find_rows(self) -> None:
        """Keep where the input's rows and the weights' tiles begin that a work-item multiplies."""
        tiling, product = self.tiling, self.product
        self.starts = registers(tiling.item_rows, "int32")
        for i in range(tiling.item_rows):
            row = self.part.first_row + self.first_row + self.row_position + i * tiling.items_down
            start = product.first_element(T.min(row, product.extents.rows - 1))
            T.buffer_store(self.starts, start // LANES if product.aligned else start, [i])
        self.weight_tiles = registers(self.item_vectors, "int32")
        for j in range(self.item_vectors):
            tile = self.part.first_tile + self.first_tile + self._column(j) // VECTORS
            T.buffer_store(self.weight_tiles, T.min(tile, product.extents.tiles - 1), [j])

    def _column(self, j: int) -> Any:
        """Which vector of the tile's columns an item computes."""
        return self.column_position + j * self.tiling.items_across

    def _add_products(self, tap: Any, within: Any) -> None:
        """Add the products of four steps of a run to the sums; all are read before the first is added."""
        tiling, extents = self.tiling, self.product.extents
        for i in range(tiling.item_rows):
            self._read_row(i, tap, within)
        for lane in range(LANES):
            step = within + lane if extents.span % LANES == 0 else T.min(within + lane, extents.span - 1)
            for j in range(self.item_vectors):
                read = self.buffers["weights"][
                    self.weight_tiles[j], tap * extents.span + step, self._column(j) % VECTORS
                ]
                T.buffer_store(self.weights, read, [lane * self.item_vectors + j])
        for lane in range(LANES):
            for i in range(tiling.item_rows):
                for column in range(tiling.item_columns):
                    position = i * tiling.item_columns + column
                    weight = lane_of(self.weights[lane * self.item_vectors + column // LANES], column % LANES)
                    T.buffer_store(self.sums, self.sums[position] + self.rows[i * LANES + lane] * weight, [position])

    def _read_row(self, i: int, tap: Any, within: Any) -> None:
        """Read four elements of a run of a row; zero behind its end, where anything may lie."""
        product, span, source = self.product, self.product.extents.span, self.buffers["input"]
        if product.aligned:
            position = self.starts[i] + product.run_offset(tap) // LANES + within // LANES
            store_vector(self.rows, i * LANES, source[position])
            return
        position = self.starts[i] + product.run_offset(tap) + within
        for lane in range(LANES):
            exists = every([within + lane < span] if span % LANES else [])
            with or_zero(exists, self.rows, [i * LANES + lane]):
                T.buffer_store(self.rows, source[position + lane], [i * LANES + lane])
