"""This file writes attention as TIR.

A head's keys are packed in panels ``[panels, head_dim, channels]``, so that scores are computed like a dense layer's
results, and its values in rows that are filled up to whole vectors. What is added to the scores of every query is
packed too: a mask of keys alone, and minus infinity behind the last key, where scores exist only to fill up a vector.
A mask that has a row for each query is read where it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from tvm_coexec.layers import SCRATCH, TILE, Attention, Variant, tile_count

from .dispatch import Dispatch
from .epilogue import Epilogue
from .frame import Buffer, Launch, Operand, begin_kernel, where


@dataclass
class Packed:
    """A head's packed operands; ``position`` are the indices that come before their own."""

    keys: Buffer
    values: Buffer
    summands: Buffer
    position: tuple[Any, ...] = ()


class Steps:
    """Builds the steps of a kernel from its buffers."""

    def __init__(self, layer: Attention, variant: Variant, buffers: dict[str, Buffer]) -> None:
        self.layer, self.buffers = layer, buffers
        self.rows, self.lanes, self.width = variant["rows"], variant["lanes"], variant["channels"]
        self.key_vectors = -(-layer.keys // self.lanes)
        self.value_vectors = -(-layer.value_dim // self.lanes)
        self.blocks = -(-layer.queries // self.rows)

    def packed_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Give the shapes of a head's keys, values and summands."""
        layer, lanes = self.layer, self.lanes
        panels = -(-self.key_vectors * lanes // self.width)
        return (
            (panels, layer.head_dim, self.width),
            (layer.keys, self.value_vectors * lanes),
            (self.key_vectors * lanes,),
        )

    def pack(self, item: Any, head: Any, packed: Packed) -> None:
        layer, position = self.layer, packed.position
        filled = self.key_vectors * self.lanes
        first = [offset + head * step for offset, step in zip(layer.offsets, layer.head_steps, strict=True)]
        with T.serial(0, filled) as key, T.If(key < layer.keys):
            with T.Then():
                row = item * layer.keys + key
                at = (*position, T.floordiv(key, self.width))
                with T.serial(0, layer.head_dim) as d:
                    value = self.buffers["input1"][row, first[1] + d]
                    T.buffer_store(packed.keys, value, [*at, d, T.floormod(key, self.width)])
                with T.serial(0, self.value_vectors * self.lanes) as d:
                    value = self._or_zero(d, self.buffers["input2"][row, first[2] + d])
                    T.buffer_store(packed.values, value, [*position, key, d])
                T.buffer_store(packed.summands, self._summand(item, head, key), [*position, key])
            with T.Else():
                at = (*position, T.floordiv(key, self.width))
                with T.serial(0, layer.head_dim) as d:
                    T.buffer_store(packed.keys, T.float32(0), [*at, d, T.floormod(key, self.width)])
                T.buffer_store(packed.summands, T.float32(-math.inf), [*position, key])

    def _or_zero(self, d: Any, value: Any) -> Any:
        if self.layer.value_dim % self.lanes == 0:
            return value
        return T.if_then_else(d < self.layer.value_dim, value, T.float32(0))

    def _summand(self, item: Any, head: Any, key: Any) -> Any:
        """What is added to the scores of a key, whatever the query."""
        if self.layer.mask == "none" or self.layer.masks_queries:
            return T.float32(0)
        return self.buffers[Attention.MASK_OPERANDS[self.layer.mask]][self.layer.mask_row(item, head, 0), key]

    def attend(self, item: Any, head: Any, block: Any, packed: Packed) -> None:
        """Compute a block of queries of one head."""
        layer = self.layer
        queries = T.alloc_buffer((self.rows, layer.head_dim), "float32", scope="local")
        scores = T.alloc_buffer((self.rows, self.key_vectors * self.lanes), "float32", scope="local")
        totals = T.alloc_buffer((self.rows,), "float32", scope="local")
        first = layer.offsets[0] + head * layer.head_steps[0]
        with T.serial(0, self.rows) as row, T.serial(0, layer.head_dim) as d:
            query = item * layer.queries + self._query(block, row)
            value = self.buffers["input"][query, first + d] * T.float32(layer.scale)
            T.buffer_store(queries, value, [row, d])
        self._scores(queries, packed, scores, lambda row: self.layer.mask_row(item, head, self._query(block, row)))
        with T.serial(0, self.rows) as row:
            self._softmax(scores, row, totals)
        self._times_values(scores, packed, totals, item, head, block)

    def _query(self, block: Any, row: Any) -> Any:
        """Find a query of a block; the last one stands in for those that fill up the last block."""
        return T.min(block * self.rows + row, self.layer.queries - 1)

    def _scores(self, queries: Buffer, packed: Packed, scores: Buffer, mask_row: Callable[[Any], Any]) -> None:
        def panel(number: Any, vectors: int) -> None:
            start = number * self.width

            def summand(row: Any, lane: Any) -> Any:
                of_all = packed.summands[(*packed.position, start + lane)]
                if not self.layer.masks_queries:
                    return of_all
                return of_all + self.buffers[Attention.MASK_OPERANDS[self.layer.mask]][mask_row(row), start + lane]

            def term(d: Any, row: Any, lane: Any) -> Any:
                return queries[row, d] * packed.keys[(*packed.position, number, d, lane)]

            sums = self._dense(vectors, self.layer.head_dim, summand, term)
            with T.unroll(0, self.rows) as row, T.unroll(0, vectors) as vector, T.vectorized(0, self.lanes) as lane:
                T.buffer_store(scores, sums[row, vector, lane], [row, start + vector * self.lanes + lane])

        whole, rest = divmod(self.key_vectors, self.width // self.lanes)
        if whole:
            with T.serial(0, whole) as number:
                panel(number, self.width // self.lanes)
        if rest:
            panel(whole, rest)

    def _dense(
        self, vectors: int, reduction: int, start: Callable[[Any, Any], Any], term: Callable[[Any, Any, Any], Any]
    ) -> Buffer:
        """``start`` and the sum of ``term`` for each row and so many vectors of lanes; returns their registers."""
        lanes = self.lanes
        sums = T.alloc_buffer((self.rows, vectors, lanes), "float32", scope="local")

        def for_all(value: Callable[[Any, Any, Any], Any]) -> None:
            with T.unroll(0, self.rows) as row, T.unroll(0, vectors) as vector, T.vectorized(0, lanes) as lane:
                T.buffer_store(sums, value(row, vector, lane), [row, vector, lane])

        for_all(lambda row, vector, lane: start(row, vector * lanes + lane))
        with T.serial(0, reduction) as k:
            for_all(lambda row, vector, lane: sums[row, vector, lane] + term(k, row, vector * lanes + lane))
        return sums

    def _softmax(self, scores: Buffer, row: Any, totals: Buffer) -> None:
        """Replace a row of scores by powers of e, the largest being 1, and keep what their sum has to be divided by."""
        lanes = self.lanes
        wide = T.alloc_buffer((lanes,), "float32", scope="local")
        highest = T.alloc_buffer((1,), "float32", scope="local")
        self._fill(wide, -math.inf)
        with T.serial(0, self.key_vectors) as vector, T.vectorized(0, lanes) as lane:
            T.buffer_store(wide, T.max(scores[row, vector * lanes + lane], wide[lane]), [lane])
        largest = self._fold(wide, T.max)
        lowest = T.float32(float(np.finfo(np.float32).min))
        T.buffer_store(highest, T.max(largest, lowest) if self.layer.empty_is_zero else largest, [0])
        self._fill(wide, 0.0)
        epilogue = Epilogue()
        power = epilogue.exp(lambda values: values[0])
        with T.serial(0, self.key_vectors) as vector:
            kept: list[Buffer] = []
            for stage in [*epilogue.stages, power]:
                target = T.alloc_buffer((lanes,), "float32", scope="local")
                with T.vectorized(0, lanes) as lane:
                    difference = scores[row, vector * lanes + lane] - highest[0]
                    T.buffer_store(target, stage([difference, *(buffer[lane] for buffer in kept)]), [lane])
                kept.append(target)
            with T.vectorized(0, lanes) as lane:
                T.buffer_store(scores, kept[-1][lane], [row, vector * lanes + lane])
            with T.vectorized(0, lanes) as lane:
                T.buffer_store(wide, wide[lane] + kept[-1][lane], [lane])
        factor = T.float32(1) / self._fold(wide, lambda x, y: x + y)
        if self.layer.empty_is_zero:
            factor = T.Select(highest[0] > lowest, factor, T.float32(0))
        T.buffer_store(totals, factor, [row])

    def _fill(self, target: Buffer, value: float) -> None:
        with T.vectorized(0, self.lanes) as lane:
            T.buffer_store(target, T.float32(value), [lane])

    def _fold(self, wide: Buffer, combine: Callable[[Any, Any], Any]) -> Any:
        """Combine all lanes, half of them at a time."""
        size = self.lanes
        while size > 4:
            size //= 2
            narrow = T.alloc_buffer((size,), "float32", scope="local")
            with T.vectorized(0, size) as lane:
                T.buffer_store(narrow, combine(wide[lane], wide[size + lane]), [lane])
            wide = narrow
        pairs = [combine(wide[lane], wide[lane + size // 2]) for lane in range(size // 2)]
        return pairs[0] if len(pairs) == 1 else combine(*pairs)

    def _times_values(self, scores: Buffer, packed: Packed, totals: Buffer, item: Any, head: Any, block: Any) -> None:
        whole, rest = divmod(self.value_vectors, self.width // self.lanes)
        for number, vectors in enumerate([self.width // self.lanes] * whole + [rest] * (rest > 0)):
            start = number * self.width

            def term(key: Any, row: Any, lane: Any, start: int = start) -> Any:
                return scores[row, key] * packed.values[(*packed.position, key, start + lane)]

            sums = self._dense(vectors, self.layer.keys, lambda *_: T.float32(0), term)
            self._store(sums, start, totals, item, head, block)
        self._fill_up(item, head, block)

    def _store(self, sums: Buffer, start: int, totals: Buffer, item: Any, head: Any, block: Any) -> None:
        layer, lanes = self.layer, self.lanes
        count = min(sums.shape[1] * lanes, layer.value_dim - start)
        step = math.gcd(int(count), lanes)
        for row in range(self.rows):
            query = block * self.rows + row
            with where(query < layer.queries if layer.queries % self.rows else None):
                for first in range(0, int(count), step):
                    with T.vectorized(0, step) as lane:
                        value = sums[row, first // lanes, first % lanes + lane] * totals[row]
                        channel = head * layer.value_dim + start + first + lane
                        T.buffer_store(self.buffers["output"], value, [item * layer.queries + query, channel])

    def _fill_up(self, item: Any, head: Any, block: Any) -> None:
        """Channels that only fill up the last tile are zero."""
        layer = self.layer
        if layer.out_channels % TILE == 0:
            return
        with where(head == layer.heads - 1), T.serial(0, self.rows) as row:
            query = block * self.rows + row
            with where(query < layer.queries), T.serial(layer.out_channels, tile_count(layer.out_channels) * TILE) as c:
                T.buffer_store(self.buffers["output"], T.float32(0), [item * layer.queries + query, c])

    def for_heads(self, unit: Any, body: Callable[[Any, Any], None]) -> None:
        """Run ``body(number, head)`` for the heads of a unit."""
        layer = self.layer
        with T.serial(0, layer.unit_heads) as number:
            head = unit * layer.unit_heads + number
            with where(head < layer.heads if layer.heads % layer.unit_heads else None):
                body(number, head)


def cpu_launch(layer: Attention, variant: Variant, operands: tuple[Operand, ...], dispatch: Dispatch) -> Launch:
    """Pack a head's operands and compute all its queries, then the next head's."""
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        buffers, begin, count = begin_kernel(operands)
        steps = Steps(layer, variant, buffers)
        packed = Packed(*(T.alloc_buffer(shape, "float32") for shape in steps.packed_shapes()))

        def compute(_number: Any, head: Any) -> None:
            with T.serial(0, layer.batch) as item:
                steps.pack(item, head, packed)
                with T.serial(0, steps.blocks) as block:
                    steps.attend(item, head, block, packed)

        with T.serial(0, count) as unit:
            steps.for_heads(begin + unit, compute)
    return Launch(tvm.IRModule({"main": builder.get()}), operands, dispatch)


def opencl_launches(
    layer: Attention, variant: Variant, operands: tuple[Operand, ...], dispatch: Dispatch
) -> tuple[Launch, ...]:
    """A kernel that packs, one item of the batch to a work-item, and one that computes a block to a work-item."""
    shapes = Steps(layer, variant, {}).packed_shapes()
    positions = (layer.units, layer.unit_heads, layer.batch)
    scratch = tuple(Operand(f"{SCRATCH}{number}", (*positions, *shape)) for number, shape in enumerate(shapes))
    named = {operand.name: operand for operand in operands}
    mask = tuple(named[name] for name in Attention.MASK_OPERANDS.values() if name in named)
    packing = (named["input1"], named["input2"], *(() if layer.masks_queries else mask))
    spread = Dispatch(grid=(layer.batch, 1), group=(1, 1), unit_axis=1, padded_rows=dispatch.padded_rows)

    def pack(steps: Steps, packed: Packed, unit: Any, item: Any) -> None:
        def one(number: Any, head: Any) -> None:
            steps.pack(item, head, Packed(packed.keys, packed.values, packed.summands, (unit, number, item)))

        steps.for_heads(unit, one)

    def attend(steps: Steps, packed: Packed, unit: Any, position: Any) -> None:
        with where(position < layer.batch * steps.blocks):
            item, block = T.floordiv(position, steps.blocks), T.floormod(position, steps.blocks)

            def one(number: Any, head: Any) -> None:
                own = Packed(packed.keys, packed.values, packed.summands, (unit, number, item))
                steps.attend(item, head, block, own)

            steps.for_heads(unit, one)

    return (
        _opencl(layer, variant, (*packing, *scratch), spread, pack),
        _opencl(
            layer,
            variant,
            (named["input"], *scratch, *(mask if layer.masks_queries else ()), named["output"]),
            dispatch,
            attend,
        ),
    )


def _opencl(
    layer: Attention,
    variant: Variant,
    operands: Sequence[Operand],
    dispatch: Dispatch,
    body: Callable[[Steps, Packed, Any, Any], None],
) -> Launch:
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        buffers, begin, count = begin_kernel(operands)
        steps = Steps(layer, variant, buffers)
        packed = Packed(*(buffers[f"{SCRATCH}{number}"] for number in range(3)))
        threads = dispatch.group[0]
        with (
            T.launch_thread("blockIdx.x", dispatch.grid[0]) as group,
            T.launch_thread("blockIdx.y", count) as unit,
            T.launch_thread("threadIdx.x", threads) as thread,
            # TVM drops an argument that the code does not read, but every kernel is given begin and count.
            where(begin >= 0),
        ):
            body(steps, packed, begin + unit, group * threads + thread)
    return Launch(tvm.IRModule({"main": builder.get()}), tuple(operands), dispatch)
