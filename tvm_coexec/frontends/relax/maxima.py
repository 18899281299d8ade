"""Loops that find where the maxima of a pooling's windows lie."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tvm import te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from .scattering import unravelled


@dataclass(frozen=True)
class Windows:
    """Windows over the axes behind the first two; ``pads`` says how far each begins before the first element.

    Where a window has several NaN, the first is its maximum, or the last if ``last_nan``.
    """

    kernel: Sequence[int]
    strides: Sequence[int]
    dilations: Sequence[int]
    pads: Sequence[int]
    last_nan: bool = False


def places_of_maxima(
    shape: tuple[int, ...], pooled: tuple[int, ...], windows: Windows, in_image: bool, first_is_fastest: bool
) -> Callable[[te.Tensor], te.Tensor]:
    """The address, as int64, of each window's first maximum, of which there is none in the padding.

    It is counted in the whole tensor, or ``in_image``; ``first_is_fastest`` counts the first axis of images fastest.
    As in the maxima, NaN is taken for the largest.
    """
    sizes, kernel = shape[2:], windows.kernel
    steps = [math.prod(sizes[axis + 1 :]) for axis in range(len(sizes))]
    named_steps = [math.prod(sizes[:axis]) for axis in range(len(sizes))] if first_is_fastest else steps

    def positions(window: list[Any], tap: Any) -> list[Any]:
        places = zip(window, unravelled(tap, kernel), windows.strides, windows.dilations, windows.pads, strict=False)
        return [at * stride + offset * dilation - pad for at, offset, stride, dilation, pad in places]

    def address(found: list[Any], by: list[int]) -> Any:
        return sum(at.astype("int64") * step for at, step in zip(found, by, strict=True))

    def statement(data: Any, places: Any, dtype: str) -> Any:
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
                    with T.If(_is_before(new, x, best[i], dtype, windows.last_nan)), T.Then():
                        best[i] = image + address(found, steps)
            if named_steps != steps:
                best[i] = image + address(unravelled(best[i] - image, sizes), named_steps)
            if in_image:
                best[i] = best[i] - image
        return builder.get()

    def compute(x: te.Tensor) -> te.Tensor:
        return te.extern(
            [pooled], [x], lambda ins, outs: statement(ins[0], outs[0], str(x.dtype)), dtype=["int64"], name="places"
        )

    return compute


def _is_before(new: Any, x: Any, place: Any, dtype: str, last_nan: bool) -> Any:
    """Whether a number is taken instead of the one at a place, where there is one yet."""
    old = x[tirx.max(place, tirx.const(0, "int64"))]
    if "float" not in dtype:
        return tirx.any(place < 0, new > old)
    is_nan = tirx.isnan(new) if last_nan else tirx.all(tirx.isnan(new), tirx.Not(tirx.isnan(old)))
    return tirx.any(place < 0, new > old, is_nan)
