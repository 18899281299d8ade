"""Loops that find the largest or least elements: TVM's own sorting is a function of its run-time library."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tvm import te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T


def extreme_indices(
    shape: tuple[int, ...], axis: int, count: int, largest: bool = True, nan_is_first: bool = False
) -> Callable[[te.Tensor], te.Tensor]:
    """The indices of the ``count`` largest or least elements along an axis, by a list that is kept sorted.

    Equal elements stay in their order. Indices are int64. NaN is taken for the largest, or always ``nan_is_first``.
    """
    outer, extent, inner = math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])

    def is_before(one: Any, other: Any, dtype: str) -> Any:
        is_apart = one > other if largest else one < other
        if "float" not in dtype:
            return is_apart
        first, last = (one, other) if largest or nan_is_first else (other, one)
        return tirx.any(is_apart, tirx.all(tirx.isnan(first), tirx.Not(tirx.isnan(last))))

    def statement(data: Any, indices: Any, dtype: str) -> Any:
        x, found = T.buffer_proxy(data), T.buffer_proxy(indices)
        with IRBuilder() as builder, T.serial(0, outer) as o, T.serial(0, inner) as i, T.serial(0, extent) as e:
            insert(x, found, o, i, e, dtype)
        return builder.get()

    def insert(x: Any, found: Any, o: Any, i: Any, e: Any, dtype: str) -> None:
        """Put an element behind those that are listed, and exchange it with those that it comes before."""

        def at(index: Any) -> Any:
            return (o * count + index) * inner + i

        def value(index: Any) -> Any:
            return x[(o * extent + found[at(index)].astype("int32")) * inner + i]

        new = x[(o * extent + e) * inner + i]
        with T.If(e < count), T.Then():
            found[at(e)] = e.astype("int64")
        with T.serial(0, count) as step:
            index = count - 1 - step
            with T.If(tirx.if_then_else(index < e, is_before(new, value(index), dtype), False)), T.Then():
                with T.If(index + 1 < count), T.Then():
                    found[at(index + 1)] = found[at(index)]
                found[at(index)] = e.astype("int64")

    def compute(data: te.Tensor) -> te.Tensor:
        size = (*shape[:axis], count, *shape[axis + 1 :])
        return te.extern(
            [size],
            [data],
            lambda ins, outs: statement(ins[0], outs[0], str(data.dtype)),
            dtype=["int64"],
            name="places",
        )

    return compute
