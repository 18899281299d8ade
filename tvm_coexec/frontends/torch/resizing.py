"""Images resized as torch does where Relax's operator does something else.

Torch takes the factor that a network names, which is not the quotient of the sizes where these are rounded; the nearest
pixel is for it the one that lies before; and a filter against aliasing is as wide as what it makes one of.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from tvm import relax

from .importer import Converter, Importer

if TYPE_CHECKING:
    from torch import fx

_CUBIC = -0.75
"""The coefficient of torch's cubic interpolation."""

_Weights = Callable[[float], list[tuple[int, float]]]
"""Elements, which may lie beyond the ends, and what each weighs in a position."""


def _interpolated(own: str, weights: _Weights) -> Converter:
    def convert(node: fx.Node, importer: Importer) -> Any:
        x, size, corners, factors = [*importer.retrieve_args(node), None][:4]
        before, after = _extents(x, size, factors)
        if 1 not in after and (corners or not factors or all(map(math.isclose, _quotients(before, after), factors))):
            return getattr(importer, own)(node)
        matrices = []
        for extent, count, step in zip(before, after, _steps(before, after, factors, corners), strict=True):
            positions = np.arange(count) * step if corners else (np.arange(count) + 0.5) * step - 0.5
            is_copied = weights is _linear and count == extent  # whatever the factor is
            matrices.append(_matrix(extent, np.arange(count) if is_copied else positions, weights))
        return _multiplied(importer, x, matrices)

    return convert


def _smoothed(node: fx.Node, importer: Importer) -> relax.Expr:
    """Linear interpolation by a filter that reaches over as many pixels as become one."""
    x, size, corners, *factors = importer.retrieve_args(node)
    given = None if not factors or None in factors else factors
    before, after = _extents(x, size, given)
    matrices = []
    for extent, count, step in zip(before, after, _steps(before, after, given, corners), strict=True):
        apart = 1.0 if count == extent else step  # an axis whose size stays is copied, whatever the factor is
        distances = np.arange(extent)[None] + 0.5 - (np.arange(count)[:, None] + 0.5) * apart
        width = max(apart, 1.0)
        matrix = np.maximum(1 - np.abs(distances) / width, 0)
        matrices.append(matrix / matrix.sum(1, keepdims=True))
    return _multiplied(importer, x, matrices)


def _nearest(node: fx.Node, importer: Importer) -> Any:
    x, size, factors = [*importer.retrieve_args(node), None][:3]
    before, after = _extents(x, size, factors)
    axes = list(zip(before, after, _steps(before, after, factors), strict=True))
    places = [_places(*axis) for axis in axes]
    if all(
        count % extent == 0 and np.array_equal(chosen, np.arange(count) // (count // extent))
        for (extent, count, _), chosen in zip(axes, places, strict=True)
    ):
        return importer._upsample_nearest2d(node)
    for axis, chosen in enumerate(places, 2):
        x = importer.block_builder.emit(relax.op.take(x, relax.const(chosen), axis))
    return x


def _places(extent: int, count: int, step: float) -> np.ndarray:
    """Which pixel of an axis each of the result is; the factor says nothing where the size stays, or is twice it."""
    if count in (extent, 2 * extent):
        return np.arange(count) // (count // extent)
    places = np.floor(np.arange(count, dtype=np.float32) * np.float32(step)).astype(np.int64)
    return np.minimum(places, extent - 1)


def _extents(x: relax.Expr, size: Any, factors: Any) -> tuple[list[int], list[int]]:
    """Lines and columns, before and after."""
    before = [int(extent) for extent in x.ty.shape][2:]
    after = size if size is not None else [extent * factor for extent, factor in zip(before, factors, strict=True)]
    return before, [int(extent) for extent in after]


def _quotients(before: Sequence[int], after: Sequence[int]) -> list[float]:
    return [count / extent for extent, count in zip(before, after, strict=True)]


def _steps(before: Sequence[int], after: Sequence[int], factors: Any, corners: bool = False) -> list[float]:
    """How far two neighbours of the result lie apart in the image."""
    if corners:
        return [(extent - 1) / (count - 1) if count > 1 else 0.0 for extent, count in zip(before, after, strict=True)]
    return [1 / factor for factor in factors or _quotients(before, after)]


def _multiplied(importer: Importer, x: relax.Expr, matrices: Sequence[np.ndarray]) -> relax.Expr:
    """Lines and columns multiplied by what each of them weighs in each of the result."""
    emit = importer.block_builder.emit
    for matrix in matrices[::-1]:
        constant = relax.const(np.ascontiguousarray(matrix.T, np.float32), str(x.ty.dtype))
        x = emit(relax.op.permute_dims(emit(relax.op.matmul(x, constant)), [0, 1, 3, 2]))
    return x


def _matrix(extent: int, positions: np.ndarray, weights: _Weights) -> np.ndarray:
    """What each element of an axis weighs in each position; those beyond the ends are the last ones."""
    matrix = np.zeros((len(positions), extent))
    for row, position in enumerate(positions):
        for element, weight in weights(float(position)):
            matrix[row, min(max(element, 0), extent - 1)] += weight
    return matrix


def _linear(position: float) -> list[tuple[int, float]]:
    position = max(position, 0.0)
    first = math.floor(position)
    return [(first, 1 - (position - first)), (first + 1, position - first)]


def _cubic(position: float) -> list[tuple[int, float]]:
    first = math.floor(position) - 1
    return [(first + tap, _cubic_weight(abs(position - first - tap))) for tap in range(4)]


def _cubic_weight(distance: float) -> float:
    a, d = _CUBIC, distance
    if d <= 1:
        return ((a + 2) * d - (a + 3)) * d * d + 1
    return ((a * d - 5 * a) * d + 8 * a) * d - 4 * a


CONVERTERS: dict[str, Converter] = {
    "_upsample_bilinear2d_aa.default": _smoothed,
    "upsample_bicubic2d.vec": _interpolated("_upsample_bicubic2d", _cubic),
    "upsample_bilinear2d.vec": _interpolated("_upsample_bilinear2d", _linear),
    "upsample_nearest2d.vec": _nearest,
}
