"""Where the maxima of windows lie, which MaxPool gives beside them."""

from __future__ import annotations

import math
from typing import Any

from tvm import te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from .call import Call
from .indexing import unravelled


def places_of_maxima(call: Call) -> Any:
    """The address in the whole tensor of each window's first maximum, of which there is none in the padding.

    Addresses within an image may count its first axis fastest. As in the maxima, NaN is taken for the largest.
    """
    values, shape, pooled = call.attributes, call.type(0).shape, call.model.types[call.node.proto.output[1]].shape
    sizes, kernel = shape[2:], values["kernel_shape"]
    ones = [1] * len(kernel)
    strides, dilations = values.get("strides", ones), values.get("dilations", ones)
    pads = values.get("pads", [0] * 2 * len(kernel))
    steps = [math.prod(sizes[axis + 1 :]) for axis in range(len(sizes))]
    named_steps = [math.prod(sizes[:axis]) for axis in range(len(sizes))] if values.get("storage_order", 0) else steps

    def positions(window: list[Any], tap: Any) -> list[Any]:
        offsets = unravelled(tap, kernel)
        return [
            at * stride + offset * dilation - pad
            for at, offset, stride, dilation, pad in zip(window, offsets, strides, dilations, pads, strict=False)
        ]

    def address(found: list[Any], by: list[int]) -> Any:
        return sum(at.astype("int64") * step for at, step in zip(found, by, strict=True))

    def statement(data: Any, places: Any) -> Any:
        x, best = T.buffer_proxy(data), T.buffer_proxy(places)
        with IRBuilder() as builder, T.serial(0, math.prod(pooled)) as i:
            _, _, *window = unravelled(i, pooled)
            image = (i // math.prod(pooled[2:])).astype("int64") * math.prod(sizes)
            best[i] = tirx.const(-1, "int64")
            with T.serial(0, math.prod(kernel)) as tap:
                found = positions(window, tap)
                is_inside = tirx.all(*(tirx.all(at >= 0, at < size) for at, size in zip(found, sizes, strict=True)))
                with T.If(is_inside), T.Then():
                    new = x[image + address(found, steps)]
                    with T.If(_is_before(new, x, best[i], call.type(0).dtype)), T.Then():
                        best[i] = image + address(found, steps)
            if named_steps != steps:
                best[i] = image + address(unravelled(best[i] - image, sizes), named_steps)
        return builder.get()

    def compute(x: te.Tensor) -> te.Tensor:
        return te.extern([pooled], [x], lambda ins, outs: statement(ins[0], outs[0]), dtype=["int64"], name="places")

    return call.loops(compute, call.operand(0))


def _is_before(new: Any, x: Any, place: Any, dtype: str) -> Any:
    """Whether a number is taken instead of the one at a place, where there is one yet."""
    old = x[tirx.max(place, tirx.const(0, "int64"))]
    is_larger = (
        tirx.any(new > old, tirx.all(tirx.isnan(new), tirx.Not(tirx.isnan(old)))) if "float" in dtype else new > old
    )
    return tirx.any(place < 0, is_larger)
