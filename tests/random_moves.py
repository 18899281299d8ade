"""Operators of random graphs that move elements, or leave some out: views, slices, concatenations, other sizes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from random_graphs import Growing, check, has_rank


def view(g: Growing) -> str:
    """Reshapes of every kind."""
    x = g.value()
    shape, kind = g[x].shape, g.pick(("Reshape", "Flatten", "Squeeze", "Unsqueeze"))
    if kind == "Flatten":
        return g.add(kind, x, axis=g.integer(-len(shape), len(shape)))
    if kind == "Squeeze":
        ones = [axis for axis, size in enumerate(shape) if size == 1 and g.chance(60)]
        return g.add(kind, x, *([g.const(ones, "int64")] if ones else []))
    if kind == "Unsqueeze":
        return g.add(kind, x, g.const([g.axis(len(shape) + 1)], "int64"))
    target = _refactored(g, shape)
    if target and g.chance(30):
        target[g.integer(0, len(target) - 1)] = -1
    return g.add(kind, x, g.const(target, "int64"))


def _refactored(g: Growing, shape: Sequence[int]) -> list[int]:
    """Other sizes of as many elements: neighbours are joined, or an axis is divided."""
    target = list(shape)
    for _ in range(g.integer(1, 2)):
        if len(target) > 1 and g.chance(50):
            index = g.integer(0, len(target) - 2)
            target[index : index + 2] = [target[index] * target[index + 1]]
        elif target:
            index = g.integer(0, len(target) - 1)
            divisor = g.pick([size for size in (1, 2, 3, 4, 8) if target[index] % size == 0])
            target[index : index + 1] = [divisor, target[index] // divisor]
    return target


def transposition(g: Growing) -> str:
    x = g.value(lambda array: array.ndim >= 2)
    axes = list(range(g[x].ndim))
    if g.chance(50):  # what exporters write: channels to the end or from there
        perm = g.pick(([axes[0], *axes[2:], axes[1]], [axes[0], axes[-1], *axes[1:-1]], axes[::-1]))
    else:
        perm = []
        while axes:
            perm.append(axes.pop(g.integer(0, len(axes) - 1)))
    return g.add("Transpose", x, perm=perm)


def concatenation(g: Growing) -> str:
    x = g.value(lambda array: array.ndim >= 1)
    rank, axis = g[x].ndim, g.axis(g[x].ndim)

    def fits(array: np.ndarray) -> bool:
        own, other = list(g[x].shape), list(array.shape)
        return len(own) == len(other) and own[: axis % rank] + own[axis % rank + 1 :] == (
            other[: axis % rank] + other[axis % rank + 1 :]
        )

    others = [g.value(fits) for _ in range(g.integer(1, 2))]
    if g.chance(20):
        others.append(g.const(g.normal(*g[x].shape)))
    return g.add("Concat", *([x, *others] if g.chance(70) else [*others, x]), axis=axis)


def division(g: Growing) -> str:
    x = g.value(lambda array: array.ndim >= 1 and max(array.shape) > 1)
    axis = g.pick([axis for axis, size in enumerate(g[x].shape) if size > 1])
    size = g[x].shape[axis]
    first = g.integer(1, size - 1)
    sizes = g.const([first, size - first], "int64")
    return g.add("Split", x, sizes, outputs=2, axis=axis - g[x].ndim if g.chance(30) else axis)


def cut(g: Growing) -> str:
    """Slices with all kinds of begins, ends and steps."""
    x = g.value(lambda array: array.ndim >= 1)
    rank = g[x].ndim
    axes = sorted({g.integer(0, rank - 1) for _ in range(g.integer(1, 2))})
    starts, ends, steps = [], [], []
    for axis in axes:
        size = g[x].shape[axis]
        if g.chance(25):
            starts, ends, steps = [*starts, -1], [*ends, -(2**31)], [*steps, -g.integer(1, 2)]
        else:
            first = g.integer(0, size - 1)
            last = g.pick((g.integer(first + 1, size), 2**31 - 1))
            starts.append(first - size if g.chance(30) else first)
            ends.append(last)
            steps.append(g.pick((1, 1, 1, 2, 3)))
    axes = [axis - rank if g.chance(30) else axis for axis in axes]
    return g.add("Slice", x, *(g.const(numbers, "int64") for numbers in (starts, ends, axes, steps)))


def gathering(g: Growing) -> str:
    x = g.value(lambda array: array.ndim >= 1)
    axis = g.axis(g[x].ndim)
    size = g[x].shape[axis]
    if g.chance(25):
        shape = list(g[x].shape)
        shape[axis] = g.integer(1, 3)
        return g.add("GatherElements", x, g.const(g.random.integers(-size, size, shape), "int64"), axis=axis)
    shape = g.pick(((), (1,), (3,), (2, 2)))
    return g.add("Gather", x, g.const(g.random.integers(-size, size, shape), "int64"), axis=axis)


def padding(g: Growing) -> str:
    x = g.value(lambda array: array.ndim >= 1)
    rank = g[x].ndim
    mode = g.pick(("constant", "constant", "reflect", "edge"))
    limits = [min(2, size - 1) if mode == "reflect" else 2 for size in g[x].shape]
    some = [g.chance(50) for _ in range(rank)]
    pads = [g.integer(0, limit) if on else 0 for limit, on in zip(limits * 2, some * 2, strict=True)]
    number = [g.const(g.pick((0.0, 1.5)))] if mode == "constant" and g.chance(50) else []
    return g.add("Pad", x, g.const(pads, "int64"), *number, mode=mode)


def spreading(g: Growing) -> str:
    x = g.value(lambda array: array.ndim >= 1)
    kind = g.pick(("Expand", "Tile"))
    if kind == "Tile":
        return g.add(kind, x, g.const([g.pick((1, 1, 2, 3)) for _ in g[x].shape], "int64"))
    shape = [size if size > 1 else g.integer(1, 3) for size in g[x].shape]
    return g.add(kind, x, g.const([2, *shape] if g.chance(20) else shape, "int64"))


def resizing(g: Growing) -> str:
    x = g.value(has_rank(3, 4, 4))
    mode = g.pick(("nearest", "linear", "linear"))
    coordinates = g.pick(("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"))
    nearest = g.pick(("floor", "round_prefer_floor", "ceil")) if mode == "nearest" else None
    attributes = {"mode": mode, "coordinate_transformation_mode": coordinates, "nearest_mode": nearest}
    if g.chance(50):
        scales = [1.0, 1.0, *(g.pick((1.0, 2.0, 0.5, 3.0)) for _ in g[x].shape[2:])]
        # ONNX Runtime and ONNX's own tests align corners in different ways where a size is no whole number
        is_whole = all(size * scale % 1 == 0 for size, scale in zip(g[x].shape, scales, strict=True))
        check(is_whole or coordinates != "align_corners")
        return g.add("Resize", x, "", g.const(scales), **attributes)
    sizes = [*g[x].shape[:2], *(g.integer(1, 2 * size) for size in g[x].shape[2:])]
    return g.add("Resize", x, "", "", g.const(sizes, "int64"), **attributes)


def rearrangement(g: Growing) -> str:
    """Depth to space, space to depth, triangles and running sums."""
    kind = g.pick(("DepthToSpace", "SpaceToDepth", "Trilu", "CumSum"))
    if kind == "DepthToSpace":
        x = g.value(lambda array: array.ndim == 4 and array.shape[1] % 4 == 0)
        return g.add(kind, x, blocksize=2, mode=g.pick(("DCR", "CRD")))
    if kind == "SpaceToDepth":
        x = g.value(lambda array: array.ndim == 4 and array.shape[2] % 2 == array.shape[3] % 2 == 0)
        return g.add(kind, x, blocksize=2)
    x = g.value(lambda array: array.ndim >= 2)
    if kind == "Trilu":
        return g.add(kind, x, upper=g.integer(0, 1))
    return g.add(kind, x, g.const(g.axis(g[x].ndim), "int64"), exclusive=g.integer(0, 1), reverse=g.integer(0, 1))
