"""Loops that add up or multiply along an axis: TVM's call its run-time library, and matrices make NaN of infinity."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

from tvm import te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T


def running_sums(shape: tuple[int, ...], axis: int, exclusive: bool, reverse: bool) -> Callable[[te.Tensor], te.Tensor]:
    """The sums of all elements up to each one of an axis, in reverse of all from it on; ``exclusive`` of it."""
    return _running(shape, axis, (exclusive, reverse), 0, operator.add)


def running_products(
    shape: tuple[int, ...], axis: int, exclusive: bool, reverse: bool
) -> Callable[[te.Tensor], te.Tensor]:
    """The products of the same elements as of :func:`running_sums`."""
    return _running(shape, axis, (exclusive, reverse), 1, operator.mul)


def _running(
    shape: tuple[int, ...], axis: int, ways: tuple[bool, bool], neutral: int, join: Callable[[Any, Any], Any]
) -> Callable[[te.Tensor], te.Tensor]:
    exclusive, reverse = ways
    outer, extent, inner = math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])

    def statement(data: Any, result: Any, dtype: str) -> Any:
        x, joined = T.buffer_proxy(data), T.buffer_proxy(result)
        with IRBuilder() as builder, T.serial(0, outer) as o, T.serial(0, extent) as e, T.serial(0, inner) as i:
            index = extent - 1 - e if reverse else e
            before = index + 1 if reverse else index - 1
            at, last = (o * extent + index) * inner + i, (o * extent + before) * inner + i
            new = last if exclusive else at
            first = tirx.const(neutral, dtype) if exclusive else x[at]
            joined[at] = tirx.if_then_else(e > 0, join(joined[last], x[new]), first)
        return builder.get()

    def compute(data: te.Tensor) -> te.Tensor:
        return te.extern(
            [shape], [data], lambda ins, outs: statement(ins[0], outs[0], data.dtype), dtype=[data.dtype], name="joined"
        )

    return compute
