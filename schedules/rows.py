"""Row-wise kernels as TIR: every statistic of a row is reduced in vectors of 32 channels, then across them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tvm
from tvm import s_tir
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from tvm_coexec.layers import ROW_BLOCK, TILE, RowWise, tile_count

from .epilogue import Epilogue, Stage, maps_zero_to_zero, stages
from .frame import Operand, begin_kernel, one_if_channel, where
from .opencl_helpers import local_barrier
from .product import or_zero

Term = Callable[[Any, Any, Any], Any]
"""An element of a row, from its indices."""

_LOWEST = float(np.finfo(np.float32).min)
_FOLD = 8
"""Partial results that are left when a tile's 32 are folded by vector instructions."""


class _RowKernel:
    """Builds one kernel: blocks are added in order, and all are computed row by row."""

    def __init__(self, layer: RowWise, operands: Sequence[Operand]) -> None:
        self.layer = layer
        self.vector_blocks: list[str] = []
        self.buffers, self.begin, self.count = begin_kernel(operands)

    def element(self, row: Any, tile: Any, channel: Any) -> Any:
        return self.buffers["input"][self.begin * ROW_BLOCK + row, tile, channel]

    def is_channel(self, tile: Any, channel: Any) -> Any:
        """1 where a position holds a channel, else 0; None where every position does."""
        return None if self.layer.n % TILE == 0 else one_if_channel(self.layer.n, tile, channel)

    def statistic(self, name: str, term: Term, combine: Callable[[Any, Any], Any], start: float) -> Any:
        """Reduce ``term(row, tile, channel)`` over a row; returns a buffer with one value a row."""
        rows = self.count * ROW_BLOCK
        wide = T.sblock_alloc_buffer((rows, TILE), "float32")
        self._reduce(
            f"{name}_wide", wide, (TILE, tile_count(self.layer.n)), lambda i, j, t: term(i, t, j), combine, start
        )
        narrow = T.sblock_alloc_buffer((rows, _FOLD), "float32")
        self._reduce(
            f"{name}_fold", narrow, (_FOLD, TILE // _FOLD), lambda i, j, t: wide[i, t * _FOLD + j], combine, start
        )
        result = T.sblock_alloc_buffer((rows, 1), "float32")
        self._reduce(name, result, (1, _FOLD), lambda i, _j, t: narrow[i, t], combine, start)
        return result

    def once(self, name: str, value: Callable[[Any], Any]) -> Any:
        """Compute ``value(row)`` once a row; returns a buffer with one value a row."""
        result = T.sblock_alloc_buffer((self.count * ROW_BLOCK, 1), "float32")
        self._reduce(name, result, (1, 1), lambda i, _j, _t: value(i), lambda _old, new: new, 0.0)
        return result

    def _reduce(
        self,
        name: str,
        target: Any,
        extents: tuple[int, int],
        term: Term,
        combine: Callable[[Any, Any], Any],
        start: float,
    ) -> None:
        rows = self.count * ROW_BLOCK
        with T.grid(rows, *extents) as (li, lj, lt), T.sblock(name):
            i, j = T.axis.spatial(rows, li), T.axis.spatial(extents[0], lj)
            t = T.axis.reduce(extents[1], lt)
            with T.init():
                T.buffer_store(target, T.float32(start), [i, j])
            T.buffer_store(target, combine(target[i, j], term(i, j, t)), [i, j])
        self.vector_blocks.append(name)

    def store(self, chain: Sequence[Stage], value: Term, index: list[Any]) -> None:
        rows, tiles = self.count * ROW_BLOCK, tile_count(self.layer.n)
        kept: list[Any] = []
        for number, stage in enumerate(chain):
            last = number == len(chain) - 1
            target = self.buffers["output"] if last else T.sblock_alloc_buffer((rows, tiles, TILE), "float32")
            with T.grid(rows, tiles, TILE) as (li, lt, lj), T.sblock("store" if last else f"stage_{number}"):
                i, t, j = T.axis.spatial(rows, li), T.axis.spatial(tiles, lt), T.axis.spatial(TILE, lj)
                index[:] = [self.begin * ROW_BLOCK + i, t, j]
                result = stage([value(i, t, j), *(buffer[i, t, j] for buffer in kept)])
                inside = self.is_channel(t, j)
                if last and inside is not None and not maps_zero_to_zero(self.layer.epilogue):
                    result = result * inside
                T.buffer_store(target, result, [self.begin * ROW_BLOCK + i if last else i, t, j])
            kept.append(target)


class _GroupRowKernel:
    """The same for a work-group that computes one row: each item takes every so many channels, all of which exist."""

    def __init__(self, layer: RowWise, operands: Sequence[Operand], items: int) -> None:
        self.layer, self.items = layer, items
        self.buffers, self.begin, self.count = begin_kernel(operands)

    def build(self) -> None:
        layer, items = self.layer, self.items
        with (
            T.launch_thread("blockIdx.x", self.count * ROW_BLOCK) as row,
            T.launch_thread("threadIdx.x", items) as self.item,
        ):
            self.row = self.begin * ROW_BLOCK + row
            self.shared = T.alloc_buffer((items,), "float32", scope="shared")
            value = _VALUES[layer.kind](self)
            index: list[Any] = []
            chain = stages(
                layer.epilogue,
                lambda name: self.buffers[name].__getitem__(tuple(index if name == "residual" else index[1:])),
            )
            kept = [T.alloc_buffer((1,), "float32", scope="local") for _ in chain]
            padded = tile_count(layer.n) * TILE
            with T.serial(0, -(-padded // items)) as number:
                channel = number * items + self.item
                index[:] = [self.row, channel // TILE, channel % TILE]
                with where(channel < padded if padded % items else None):
                    for position, stage in enumerate(chain):
                        result = stage([value(0, *index[1:]), *(buffer[0] for buffer in kept[:position])])
                        T.buffer_store(kept[position], result, [0])
                    with or_zero(channel < layer.n if padded > layer.n else None, self.buffers["output"], [index]):
                        T.buffer_store(self.buffers["output"], kept[-1][0], index)

    def element(self, _row: Any, tile: Any, channel: Any) -> Any:
        return self.buffers["input"][self.row, tile, channel]

    def is_channel(self, _tile: Any, _channel: Any) -> Any:
        """None, as of a row whose every position holds a channel."""
        return

    def statistic(self, _name: str, term: Term, combine: Callable[[Any, Any], Any], start: float) -> Any:
        """Reduce ``term`` over the row; returns an item's copy of the result."""
        result, items, n = self.once("", lambda _row: T.float32(start)), self.items, self.layer.n
        with T.serial(0, -(-n // items)) as number:
            channel = number * items + self.item
            with where(channel < n if n % items else None):
                value = combine(result[0, 0], term(0, channel // TILE, channel % TILE))
                T.buffer_store(result, value, [0, 0])
        T.buffer_store(self.shared, result[0, 0], [self.item])
        local_barrier()
        left = items
        while left > 1:
            left //= 2
            with where(self.item < left):
                folded = combine(self.shared[self.item], self.shared[self.item + left])
                T.buffer_store(self.shared, folded, [self.item])
            local_barrier()
        T.buffer_store(result, self.shared[0], [0, 0])
        local_barrier()
        return result

    def once(self, _name: str, value: Callable[[Any], Any]) -> Any:
        """Keep ``value``; returns an item's copy of it."""
        result = T.alloc_buffer((1, 1), "float32", scope="local")
        T.buffer_store(result, value(0), [0, 0])
        return result


_AnyRowKernel = _RowKernel | _GroupRowKernel


def _add(x: Any, y: Any) -> Any:
    return x + y


def _layer_norm(kernel: _AnyRowKernel) -> Term:
    n = T.float32(1.0 / kernel.layer.n)
    total = kernel.statistic("total", kernel.element, _add, 0.0)

    def squared(i: Any, t: Any, j: Any) -> Any:
        deviation = kernel.element(i, t, j) - total[i, 0] * n
        inside = kernel.is_channel(t, j)
        square = deviation * deviation
        return square if inside is None else square * inside

    squares = kernel.statistic("squares", squared, _add, 0.0)
    epsilon = T.float32(kernel.layer.epsilon)
    scale = kernel.once("scale", lambda i: T.float32(1) / T.sqrt(squares[i, 0] * n + epsilon))

    def value(i: Any, t: Any, j: Any) -> Any:
        normal = (kernel.element(i, t, j) - total[i, 0] * n) * scale[i, 0]
        return normal * kernel.buffers["gamma"][t, j] + kernel.buffers["beta"][t, j]

    return value


def _exp_below(kernel: _AnyRowKernel, highest: Any, i: Any, t: Any, j: Any) -> Any:
    """``exp(x - highest)``, zero where a position holds no channel; one expression, since it stands in a reduction."""
    epilogue = Epilogue()
    power = epilogue.exp(lambda v: v[0])
    inside = kernel.is_channel(t, j)
    difference = kernel.element(i, t, j) - highest[i, 0]
    # the zeros beside the channels may be far above these: an infinite power times zero is no number
    values = [difference if inside is None else T.min(T.float32(0), difference)]
    for stage in epilogue.stages:
        values.append(stage(values))
    return power(values) if inside is None else power(values) * inside


def _softmax(kernel: _AnyRowKernel) -> Term:
    def candidate(i: Any, t: Any, j: Any) -> Any:
        inside = kernel.is_channel(t, j)
        x = kernel.element(i, t, j)
        return x if inside is None else x * inside + T.float32(_LOWEST) * (T.float32(1) - inside)

    # a NaN that it passes over comes back by the sum
    highest = kernel.statistic("highest", candidate, lambda known, new: T.max(new, known), _LOWEST)
    total = kernel.statistic("total", lambda i, t, j: _exp_below(kernel, highest, i, t, j), _add, 0.0)
    scale = kernel.once("scale", lambda i: T.float32(1) / total[i, 0])
    return lambda i, t, j: _exp_below(kernel, highest, i, t, j) * scale[i, 0]


def _map(kernel: _AnyRowKernel) -> Term:
    return kernel.element


_VALUES = {"layer_norm": _layer_norm, "softmax": _softmax, "map": _map}


def group_rows(layer: RowWise, operands: Sequence[Operand], items: int) -> tvm.IRModule:
    """A row to a work-group of so many items, a power of two, which divide its channels."""
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        _GroupRowKernel(layer, operands, items).build()
    return tvm.IRModule({"main": builder.get()})


def schedule_rows(layer: RowWise, operands: Sequence[Operand], *, lanes: int, gpu: bool) -> tvm.IRModule:
    """A row at a time, in vectors of ``lanes`` channels; on the GPU a work-item computes a unit."""
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        kernel = _RowKernel(layer, operands)
        value = _VALUES[layer.kind](kernel)
        index: list[Any] = []
        chain = stages(
            layer.epilogue,
            lambda name: kernel.buffers[name].__getitem__(tuple(index if name == "residual" else index[1:])),
        )
        kernel.store(chain, value, index)
    sch = s_tir.Schedule(tvm.IRModule({"main": builder.get()}))
    store = sch.get_sblock("store")
    i, _t, j = sch.get_loops(store)
    unit, row = sch.split(i, [None, ROW_BLOCK])
    if gpu:
        sch.bind(unit, "blockIdx.x")
    j0, j1 = sch.split(j, [None, lanes])
    sch.vectorize(j1)
    for number in reversed(range(len(chain) - 1)):
        block = sch.get_sblock(f"stage_{number}")
        sch.compute_at(block, j0, preserve_unit_loops=True)
        sch.set_scope(block, 0, "local")
        sch.vectorize(sch.get_loops(block)[-1])
    for name in reversed(kernel.vector_blocks):
        _statistic(sch, sch.get_sblock(name), row, lanes)
    return sch.mod


def _statistic(sch: s_tir.Schedule, block: Any, row: Any, lanes: int) -> None:
    sch.compute_at(block, row, preserve_unit_loops=True)
    sch.set_scope(block, 0, "local")
    j, t = sch.get_loops(block)[-2:]
    j0, j1 = sch.split(j, [None, min(lanes, int(sch.get(j).extent))])
    sch.reorder(t, j0, j1)
    sch.vectorize(j1)
    sch.unroll(j0)
    sch.decompose_reduction(block, t)
