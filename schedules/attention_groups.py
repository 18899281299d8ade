"""Attention on a GPU: a work-group computes a block of queries of one head, and streams its keys and values.

Keys and values pass through local memory, ``KEYS`` of them at a time. Eight items share a query: each has the scores of
every eighth key and every eighth vector of the result. No row of scores is ever whole: the largest score so far and the
sum of powers of e are kept, and what was added up is scaled down whenever a larger score comes.
"""

from __future__ import annotations

import math
from itertools import accumulate
from typing import Any

import numpy as np
import tvm
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from tvm_coexec.layers import TILE, Attention, tile_count

from .dispatch import Dispatch
from .frame import Launch, Operand, begin_kernel, where
from .group_geometry import KEYS, SHARERS, local_shapes, own_vectors, vectors
from .opencl_helpers import local_barrier
from .product import LANES, lane_of, load_vector, or_zero, registers, store_vector

_LOWEST = float(np.finfo(np.float32).min)


class GroupKernel:
    """Builds the kernel of one half."""

    def __init__(self, layer: Attention, operands: tuple[Operand, ...], rows: int) -> None:
        self.layer, self.operands, self.rows = layer, operands, rows
        self.head_vectors, self.value_vectors = vectors(layer.head_dim), vectors(layer.value_dim)
        self.own_vectors = own_vectors(layer)
        positions = (*layer.head_dims, *layer.offsets, *layer.head_steps)
        self.aligned = all(position % LANES == 0 for position in positions)

    def launch(self, geometry: Dispatch) -> Launch:
        """The kernel, as it is launched."""
        layer = self.layer
        moved = ("input", "input1", "input2", "output") if self.aligned else ()
        with IRBuilder() as builder, T.prim_func(s_tir=True):
            self.buffers, begin, count = begin_kernel(self.operands, vectors=moved)
            with (
                T.launch_thread("blockIdx.x", geometry.grid[0]) as x,
                T.launch_thread("blockIdx.y", count) as unit,
                T.launch_thread("threadIdx.x", geometry.group[0]) as self.item_number,
            ):
                blocks = -(-layer.queries // self.rows)
                self.wanted_head = (begin + unit) * layer.unit_heads + x % layer.unit_heads
                self.head = T.min(self.wanted_head, layer.heads - 1)
                rest = x // layer.unit_heads
                self.batch_item, self.block = rest // blocks, rest % blocks
                self.row, self.sharer = self.item_number // SHARERS, self.item_number % SHARERS
                self.query = T.min(self.block * self.rows + self.row, layer.queries - 1)
                self._compute()
        return Launch(tvm.IRModule({"main": builder.get()}), self.operands, geometry)

    def _compute(self) -> None:
        layer = self.layer
        shapes = local_shapes(layer, self.rows)
        # One array for all: TVM would let those share memory between which it puts barriers of its own.
        sizes = {name: lines * width for name, (lines, width) in shapes.items()}
        starts = dict(zip(sizes, accumulate(sizes.values(), initial=0), strict=False))
        self.local = T.alloc_buffer((sum(sizes.values()),), "float32x4", scope="shared")
        self.positions = {name: (starts[name], width) for name, (_, width) in shapes.items()}
        self.moved = registers(LANES)
        self.scores = registers(LANES)
        self.highest, self.total = registers(2), registers(1)
        self.result = registers(self.own_vectors * LANES)
        T.buffer_store(self.highest, T.float32(-math.inf), [0])
        T.buffer_store(self.total, T.float32(0), [0])
        for number in range(self.own_vectors * LANES):
            T.buffer_store(self.result, T.float32(0), [number])
        self._bring("queries", 0, self.rows, self.block * self.rows, layer.queries)
        with T.serial(0, -(-layer.keys // KEYS)) as chunk:
            self._bring("keys", 1, KEYS, chunk * KEYS, layer.keys)
            self._bring("values", 2, KEYS, chunk * KEYS, layer.keys)
            local_barrier()
            self._score(chunk * KEYS)
            local_barrier()
            self._weigh()
            local_barrier()
            self._add_values()
            local_barrier()
        self._store()

    def _position(self, name: str, line: Any, vector: Any) -> list[Any]:
        """Where in local memory a vector lies."""
        start, width = self.positions[name]
        return [start + line * width + vector]

    def _local(self, name: str, line: Any, vector: Any) -> Any:
        return self.local[tuple(self._position(name, line, vector))]

    def _bring(self, name: str, operand: int, count: int, first: Any, rows: int) -> None:
        """Load rows of a head's columns into local memory, behind the last row and the last column zeros."""
        layer = self.layer
        columns = layer.head_dims[operand]
        width, items = vectors(columns), self.rows * SHARERS
        start = layer.offsets[operand] + self.head * layer.head_steps[operand]
        source = self.buffers["input" if operand == 0 else f"input{operand}"]
        with T.serial(0, -(-count * width // items)) as number:
            position = number * items + self.item_number
            row, vector = position // width, position % width
            with where(position < count * width if count * width % items else None):
                memory_row = self.batch_item * rows + first + row
                exists = first + row < rows
                if self.aligned:
                    with or_zero(exists, self.moved, range(LANES)):
                        store_vector(self.moved, 0, source[memory_row, start // LANES + vector])
                else:
                    for lane in range(LANES):
                        column = vector * LANES + lane
                        with or_zero(T.And(exists, column < columns), self.moved, [lane]):
                            T.buffer_store(self.moved, source[memory_row, start + column], [lane])
                T.buffer_store(self.local, load_vector(self.moved, 0), self._position(name, row, vector))

    def _key(self, first: Any, sharer: Any, lane: int) -> Any:
        return first + sharer + SHARERS * lane

    def _score(self, first: Any) -> None:
        """Compute a vector of scores, of keys that are as far apart as items share a query."""
        layer = self.layer
        query, key = registers(1, "float32x4"), registers(LANES, "float32x4")
        for lane in range(LANES):
            T.buffer_store(self.scores, T.float32(0), [lane])
        with T.serial(0, self.head_vectors) as vector:
            T.buffer_store(query, self._local("queries", self.row, vector), [0])
            for lane in range(LANES):
                T.buffer_store(key, self._local("keys", self._key(0, self.sharer, lane), vector), [lane])
            for lane in range(LANES):
                for position in range(LANES):
                    product = lane_of(query[0], position) * lane_of(key[lane], position)
                    T.buffer_store(self.scores, self.scores[lane] + product, [lane])
        for lane in range(LANES):
            number = self._key(first, self.sharer, lane)
            score = self.scores[lane] * T.float32(layer.scale)
            with T.If(number < layer.keys):
                with T.Then():
                    T.buffer_store(self.scores, score if layer.mask == "none" else score + self._mask(number), [lane])
                with T.Else():
                    T.buffer_store(self.scores, T.float32(-math.inf), [lane])
        T.buffer_store(self.local, load_vector(self.scores, 0), self._position("scores", self.row, self.sharer))

    def _mask(self, key: Any) -> Any:
        row = self.layer.mask_row(self.batch_item, self.head, self.query)
        return self.buffers[Attention.MASK_OPERANDS[self.layer.mask]][row, key]

    def _weigh(self) -> None:
        """Take what was added up down to the largest score so far, and make powers of e of an item's own scores."""
        read = registers(1, "float32x4")
        T.buffer_store(self.highest, self.highest[0], [1])
        with T.serial(0, SHARERS) as sharer:
            T.buffer_store(read, self._local("scores", self.row, sharer), [0])
            for lane in range(LANES):
                T.buffer_store(self.highest, T.max(self.highest[0], lane_of(read[0], lane)), [0])
        lowest = T.float32(_LOWEST)
        factor = registers(1)
        smaller = T.max(self.highest[1], lowest) - T.max(self.highest[0], lowest)
        T.buffer_store(factor, T.exp(smaller), [0])
        T.buffer_store(self.total, self.total[0] * factor[0], [0])
        for number in range(self.own_vectors * LANES):
            T.buffer_store(self.result, self.result[number] * factor[0], [number])
        for lane in range(LANES):
            T.buffer_store(self.scores, T.exp(self.scores[lane] - T.max(self.highest[0], lowest)), [lane])
        T.buffer_store(self.local, load_vector(self.scores, 0), self._position("powers", self.row, self.sharer))

    def _add_values(self) -> None:
        """Add the values of a chunk's keys, each times its power, to an item's own vectors of the result."""
        powers, value = registers(1, "float32x4"), registers(1, "float32x4")
        with T.serial(0, SHARERS) as sharer:
            T.buffer_store(powers, self._local("powers", self.row, sharer), [0])
            for lane in range(LANES):
                power = lane_of(powers[0], lane)
                T.buffer_store(self.total, self.total[0] + power, [0])
                for own in range(self.own_vectors):
                    vector = self._own(own)
                    read = self._local("values", self._key(0, sharer, lane), T.min(vector, self.value_vectors - 1))
                    T.buffer_store(value, read, [0])
                    for column in range(LANES):
                        position = own * LANES + column
                        T.buffer_store(
                            self.result, self.result[position] + power * lane_of(value[0], column), [position]
                        )

    def _own(self, number: int) -> Any:
        return self.sharer + number * SHARERS

    def _store(self) -> None:
        layer, output = self.layer, self.buffers["output"]
        # without a key that counts there is no softmax
        empty = T.float32(0.0 if layer.empty_is_zero else math.nan)
        scale = registers(1)
        with T.If(self.highest[0] == T.float32(-math.inf)):
            with T.Then():
                T.buffer_store(scale, empty, [0])
            with T.Else():
                T.buffer_store(scale, T.float32(1) / self.total[0], [0])
        for number in range(self.own_vectors * LANES):
            T.buffer_store(self.result, self.result[number] * scale[0], [number])
        query = self.block * self.rows + self.row
        row = self.batch_item * layer.queries + query
        with where(T.And(query < layer.queries, self.wanted_head < layer.heads)):
            for own in range(self.own_vectors):
                with where(self._own(own) < self.value_vectors if self.value_vectors % SHARERS else None):
                    self._store_vector(row, own)
            padded = tile_count(layer.out_channels) * TILE
            if padded > layer.out_channels:  # channels that only fill up the last tile are zero
                with where(T.And(self.head == layer.heads - 1, self.sharer == 0)):
                    step = LANES if self.aligned else 1
                    with T.serial(layer.out_channels // step, padded // step) as channel:
                        zero = T.Broadcast(T.float32(0), LANES) if self.aligned else T.float32(0)
                        T.buffer_store(output, zero, [row, channel])

    def _store_vector(self, row: Any, own: int) -> None:
        layer, output = self.layer, self.buffers["output"]
        first = self.head * layer.value_dim
        if self.aligned:
            T.buffer_store(output, load_vector(self.result, own * LANES), [row, first // LANES + self._own(own)])
            return
        for lane in range(LANES):
            column = self._own(own) * LANES + lane
            with where(column < layer.value_dim):
                T.buffer_store(output, self.result[own * LANES + lane], [row, first + column])
