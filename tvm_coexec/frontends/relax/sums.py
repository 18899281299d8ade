"""Loops that add up along an axis: TVM's own call its run-time library, and a product makes NaN of the infinite."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tvm import te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T


def running_sums(shape: tuple[int, ...], axis: int, exclusive: bool, reverse: bool) -> Callable[[te.Tensor], te.Tensor]:
    """The sums of all elements up to each one of an axis, in reverse of all from it on; ``exclusive`` of it."""
    outer, extent, inner = math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])

    def statement(data: Any, result: Any, dtype: str) -> Any:
        x, sums = T.buffer_proxy(data), T.buffer_proxy(result)
        with IRBuilder() as builder, T.serial(0, outer) as o, T.serial(0, extent) as e, T.serial(0, inner) as i:
            index = extent - 1 - e if reverse else e
            before = index + 1 if reverse else index - 1
            at, last = (o * extent + index) * inner + i, (o * extent + before) * inner + i
            new = last if exclusive else at
            zero = tirx.const(0, dtype)
            first = zero if exclusive else x[at]
            sums[at] = tirx.if_then_else(e > 0, sums[last] + x[new], first)
        return builder.get()

    def compute(data: te.Tensor) -> te.Tensor:
        return te.extern(
            [shape], [data], lambda ins, outs: statement(ins[0], outs[0], data.dtype), dtype=[data.dtype], name="sums"
        )

    return compute
