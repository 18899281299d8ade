"""Rows that are cut or moved within each item of a batch, and a constant that is added to them.

Operands: ``input [rows, row tiles, 32]``, ``summand [rows of an item, tiles, 32]``, what the epilogue reads, and
``output [rows, row tiles, 32]``. A work-item computes one row of a tile.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tvm_coexec.layers import TILE, Hardware, ImageLayouts, PlaceRows, Variant, fused_operands, row_tiles, tile_count

from .dispatch import ERROR_BOUND, Dispatch
from .packing import in_tiles, step_shapes

if TYPE_CHECKING:
    from .frame import Launch, Operand

IMPLEMENTATION = "copy"


def operand_names(layer: PlaceRows, variant: Variant) -> tuple[str, ...]:
    """Names of the buffers that a half reads and writes."""
    return ("input", *(("summand",) if layer.has_summand else ()), *fused_operands(layer.epilogue), "output")


def pack(layer: PlaceRows, params: Mapping[str, np.ndarray], variant: Variant) -> dict[str, np.ndarray]:
    """Pack ``summand [out_rows, channels]`` and ``bias [channels]`` as the kernels read them."""
    return {name: in_tiles(values) for name, values in params.items()}


def error_bound(variant: Variant) -> float:
    """Bound the error of a result, relative to the largest value of the output."""
    return ERROR_BOUND


def dispatch(layer: PlaceRows, side: str, variant: Variant) -> Dispatch:
    """Launch geometry of a half."""
    rows = layer.batch * layer.out_rows
    return Dispatch(grid=(rows, 1), group=(1, 1), unit_axis=1, padded_rows=rows)


def default_variant(layer: PlaceRows, side: str, hardware: Hardware) -> Variant:
    """A good variant for a layer that was never tuned."""
    return variants(layer, side, hardware)[0]


def steps_per_item(layer: PlaceRows) -> int:
    """Elements that a work-item computes one after the other."""
    return TILE


def variants(layer: PlaceRows, side: str, hardware: Hardware) -> list[Variant]:
    """List the one variant of a side."""
    lanes = 4 if side == "gpu" and hardware.opencl_type == "gpu" else hardware.lanes
    return [Variant.make(IMPLEMENTATION, lanes=lanes)]


def operands(layer: PlaceRows, variant: Variant) -> tuple[Operand, ...]:
    """List the kernel's arguments."""
    from .frame import Operand

    tiles, stride = tile_count(layer.channels), row_tiles(layer.channels)
    result = (layer.batch * layer.out_rows, stride, TILE)
    shapes = {
        "input": (layer.batch * layer.in_rows, stride, TILE),
        "summand": (layer.out_rows, tiles, TILE),
        "residual": result,
        "output": result,
        **step_shapes(layer),
    }
    return tuple(Operand(name, shapes[name]) for name in operand_names(layer, variant))


def build(layer: PlaceRows, side: str, variant: Variant, layouts: ImageLayouts | None = None) -> tuple[Launch, ...]:
    """Build the one kernel of a half."""
    import tvm
    from tvm.script.ir_builder import IRBuilder
    from tvm.script.ir_builder import tirx as T

    from .frame import Launch, begin_kernel

    arguments, geometry = operands(layer, variant), dispatch(layer, side, variant)
    rows = layer.batch * layer.out_rows
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        buffers, begin, count = begin_kernel(arguments)
        if side == "cpu":
            with T.serial(0, rows) as row, T.serial(0, count) as unit:
                _place_rows(layer, variant["lanes"], buffers, row, begin + unit)
        else:
            with (
                T.launch_thread("blockIdx.x", rows) as row,
                T.launch_thread("blockIdx.y", count) as unit,
                T.launch_thread("threadIdx.x", 1),
            ):
                _place_rows(layer, variant["lanes"], buffers, row, begin + unit)
    return (Launch(tvm.IRModule({"main": builder.get()}), arguments, geometry),)


def _place_rows(layer: PlaceRows, lanes: int, buffers: dict[str, Any], row: Any, unit: Any) -> None:
    """Compute one tile of a row, in vectors."""
    from tvm.script.ir_builder import tirx as T

    from .epilogue import stages
    from .frame import zero_behind

    item, position = T.floordiv(row, layer.out_rows), T.floormod(row, layer.out_rows)
    source = position - layer.shift
    channel: Any = None

    def value() -> Any:
        read = T.max(T.min(source, layer.in_rows - 1), 0)
        taken = buffers["input"][item * layer.in_rows + read, unit, channel]
        exists = T.Cast("float32", T.Select(T.And(source >= 0, source < layer.in_rows), T.int32(1), T.int32(0)))
        taken = taken * exists if layer.shift or layer.in_rows < layer.out_rows else taken
        return taken + buffers["summand"][position, unit, channel] if layer.has_summand else taken

    chain = stages(
        layer.epilogue,
        lambda name: buffers[name][row, unit, channel] if name == "residual" else buffers[name][unit, channel],
    )
    with T.serial(0, TILE // lanes) as vector:
        kept: list[Any] = []
        for number, stage in enumerate(chain):
            last = number == len(chain) - 1
            target = buffers["output"] if last else T.alloc_buffer((lanes,), "float32", scope="local")
            with T.vectorized(0, lanes) as lane:
                channel = vector * lanes + lane
                result = stage([value(), *(buffer[lane] for buffer in kept)])
                if last:
                    result = zero_behind(layer.channels, result, layer.epilogue, unit, channel)
                T.buffer_store(target, result, [row, unit, channel] if last else [lane])
            kept.append(target)
