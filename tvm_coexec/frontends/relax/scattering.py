"""Loops that copy a tensor and change elements of it, at indices that are kept within it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tvm import te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from .places import within

_Shape = tuple[int, ...]

_COMBINE: Mapping[str, Callable[[Any, Any], Any]] = {
    "none": lambda old, new: new,
    "add": lambda old, new: old + new,
    "mul": lambda old, new: old * new,
    "max": tirx.max,
    "min": tirx.min,
}


def scattered_elements(shape: _Shape, places: _Shape, axis: int, reduction: str) -> Callable[..., te.Tensor]:
    """Write each update to its own place, but for one axis, on which its index says where."""
    strides, combine = _strides(shape), _COMBINE[reduction]

    def write(given: Any, updates: Any, output: Any) -> None:
        with T.serial(0, math.prod(places)) as i:
            index = unravelled(i, places)
            index[axis] = within(given[i], shape[axis])
            target = sum(at * stride for at, stride in zip(index, strides, strict=True))
            output[target] = combine(output[target], updates[i])

    return _changed(shape, write)


def scattered_parts(shape: _Shape, indices: _Shape, reduction: str) -> Callable[..., te.Tensor]:
    """Write each update, which has the last axes, to where the numbers of its index say on the first ones."""
    depth, combine = indices[-1], _COMBINE[reduction]
    inner, strides = math.prod(shape[depth:]), _strides(shape)[:depth]

    def write(given: Any, updates: Any, output: Any) -> None:
        with T.serial(0, math.prod(indices[:-1])) as i, T.serial(0, inner) as j:
            index = [within(given[i * depth + axis], shape[axis]) for axis in range(depth)]
            start = sum(at * stride for at, stride in zip(index, strides, strict=True))
            output[start + j] = combine(output[start + j], updates[i * inner + j])

    return _changed(shape, write)


def _changed(shape: _Shape, write: Callable[..., None]) -> Callable[..., te.Tensor]:
    """Copy the first operand, and change some elements by the loops that ``write`` makes of the others."""

    def statement(*buffers: Any) -> Any:
        data, given, updates, output = (T.buffer_proxy(buffer) for buffer in buffers)
        with IRBuilder() as builder, T.seq_scope():
            with T.serial(0, math.prod(shape)) as i:
                output[i] = data[i]
            write(given, updates, output)
        return builder.get()

    def compute(*operands: te.Tensor) -> te.Tensor:
        return te.extern(
            [shape],
            list(operands),
            lambda ins, outs: statement(*ins, *outs),
            dtype=[operands[0].dtype],
            name="scattered",
        )

    return compute


def _strides(shape: _Shape) -> list[int]:
    return [math.prod(shape[position + 1 :]) for position in range(len(shape))]


def unravelled(address: Any, shape: Sequence[int]) -> list[Any]:
    """Compute the index of an element by its address in elements."""
    return [address // stride % extent for extent, stride in zip(shape, _strides(tuple(shape)), strict=True)]
