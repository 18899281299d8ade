"""A family of operators that the product does not have: rows that gate each other, with a gain for each channel."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from tvm_coexec.layers import TILE, Base, Hardware, Variant, fused_operands, register, row_tiles, tile_count
from tvm_coexec.schedules.dispatch import Dispatch
from tvm_coexec.schedules.packing import in_tiles, step_shapes


@register
@dataclass(frozen=True)
class Gated(Base):
    """``(first + gain) · second`` of rows ``[m, n]``, then ``epilogue``."""

    m: int
    n: int
    epilogue: tuple[str, ...] = ()
    op: ClassVar[str] = "gated"
    kernels: ClassVar[str] = __name__
    axis: ClassVar[str] = "channels"
    channel_local: ClassVar[bool] = True

    @property
    def input_sizes(self) -> tuple[tuple[int, ...], ...]:
        return ((self.m, self.n),) * 2

    @property
    def output_size(self) -> tuple[int, ...]:
        return (self.m, self.n)

    @property
    def out_channels(self) -> int:
        return self.n

    @property
    def flops(self) -> int:
        return 2 * self.m * self.n

    @property
    def weight_bytes(self) -> int:
        return self.item_bytes * self.n

    @property
    def activation_bytes(self) -> int:
        return 3 * self.item_bytes * self.m * self.n

    def own_parameters(self) -> dict[str, tuple[int, ...]]:
        return {"gain": (self.n,)}

    def facts(self) -> dict[str, float]:
        return super().facts() | {"gated:tensors": 2}

    def evaluate(self, operands: Mapping[str, np.ndarray], pixels: np.ndarray | None = None) -> np.ndarray:
        first, second = (operands[name].astype(np.float64) for name in ("input", "input1"))
        return (first + operands["gain"]) * second


def operand_names(layer: Gated, variant: Variant) -> tuple[str, ...]:
    return ("input", "input1", "gain", *fused_operands(layer.epilogue), "output")


def pack(layer: Gated, params: Mapping[str, np.ndarray], variant: Variant) -> dict[str, np.ndarray]:
    return {name: in_tiles(values) for name, values in params.items()}


def error_bound(variant: Variant) -> float:
    return 1e-6


def steps_per_item(layer: Gated) -> int:
    return TILE


def variants(layer: Gated, side: str, hardware: Hardware) -> list[Variant]:
    return [Variant.make("gate", lanes=hardware.lanes)]


def default_variant(layer: Gated, side: str, hardware: Hardware) -> Variant:
    return variants(layer, side, hardware)[0]


def dispatch(layer: Gated, side: str, variant: Variant) -> Dispatch:
    return Dispatch(grid=(layer.m, 1), group=(1, 1), unit_axis=1, padded_rows=layer.m)


def build(layer: Gated, side: str, variant: Variant, layouts: Any = None) -> tuple[Any, ...]:
    import tvm
    from tvm.script.ir_builder import IRBuilder
    from tvm.script.ir_builder import tirx as T

    from tvm_coexec.schedules.epilogue import stages
    from tvm_coexec.schedules.frame import Launch, Operand, begin_kernel, zero_behind

    rows = (layer.m, row_tiles(layer.n), TILE)
    shapes = {"gain": (tile_count(layer.n), TILE), **step_shapes(layer)}
    arguments = tuple(Operand(name, shapes.get(name, rows)) for name in operand_names(layer, variant))

    def compute(buffers: dict[str, Any], row: Any, unit: Any) -> None:
        def operand(name: str) -> Any:
            return buffers[name][unit, channel] if name in shapes else buffers[name][row, unit, channel]

        with T.serial(0, TILE) as channel:
            values = [(operand("input") + operand("gain")) * operand("input1")]
            for stage in stages(layer.epilogue, operand):
                values.append(stage(values))
            T.buffer_store(
                buffers["output"],
                zero_behind(layer.n, values[-1], layer.epilogue, unit, channel),
                [row, unit, channel],
            )

    with IRBuilder() as builder, T.prim_func(s_tir=True):
        buffers, begin, count = begin_kernel(arguments)
        if side == "cpu":
            with T.serial(0, layer.m) as row, T.serial(0, count) as unit:
                compute(buffers, row, begin + unit)
        else:
            with (
                T.launch_thread("blockIdx.x", layer.m) as row,
                T.launch_thread("blockIdx.y", count) as unit,
                T.launch_thread("threadIdx.x", 1),
            ):
                compute(buffers, row, begin + unit)
    return (Launch(tvm.IRModule({"main": builder.get()}), arguments, dispatch(layer, side, variant)),)
