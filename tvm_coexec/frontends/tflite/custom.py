"""MediaPipe's own operators in TFLite files are a biased transposed convolution, and crops along found landmarks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from flatbuffers import flexbuffers
from tvm import relax

from tvm_coexec.errors import ModelError

from .images import transposed, with_bias
from .importer import Conversion

_VALID_PADDING = 2
"""What custom operators say instead of ``tflite.Padding.VALID``."""


def _biased_transpose_conv(step: Conversion) -> relax.Expr:
    """Convert ``Convolution2DTransposeBias`` of an image, weights and bias."""
    options = [int(number) for number in np.frombuffer(step.operator.custom_options[:12], np.int32)]
    shape, kernel = step.shape(0)[1:3], step.shape(1)[1:3]
    if len(options) == 3:
        is_valid, stride = options[0] == _VALID_PADDING, (options[2], options[1])
    else:  # what the file leaves out is told by the size of the result
        wanted = step.importer.file.tensors[step.operator.outputs[0]].shape[1:3]
        is_valid, stride = False, (max(wanted[0] // shape[0], 1), max(wanted[1] // shape[1], 1))
    beyond = [max(reach - pace, 0) if is_valid else 0 for reach, pace in zip(kernel, stride, strict=True)]
    size = [extent * pace + more for extent, pace, more in zip(shape, stride, beyond, strict=True)]
    return with_bias(step, transposed(step, 0, stride, size), 2, (1, -1, 1, 1))


def _landmarks_to_matrix(step: Conversion) -> relax.Expr:
    """``Landmarks2TransformMatrix`` tells where the pixels of an upright crop around some landmarks are in the image.

    The crop is turned as the line between two landmarks is, and holds all the others of a list.
    """
    landmarks, options = _landmarks(step), flexbuffers.Loads(step.operator.custom_options)
    ends = _numbers_at(landmarks, [options["left_rotation_idx"], options["right_rotation_idx"]])
    left, right = (relax.op.strided_slice(ends, [0], [position], [position + 1]) for position in (0, 1))
    run, rise = (_column(relax.op.subtract(right, left), axis) for axis in (0, 1))
    angle = relax.op.subtract(_constant(options["target_rotation_radians"]), relax.op.atan2(rise, run))
    cos, sin = relax.op.cos(angle), relax.op.sin(angle)
    turn = _matrix([[cos, sin], [relax.op.negative(sin), cos]])
    turned = relax.op.matmul(_numbers_at(landmarks, options["subset_idxs"]), relax.op.permute_dims(_inverse(cos, sin)))
    high, low = (make(turned, axis=[0], keepdims=True) for make in (relax.op.max, relax.op.min))
    middle = relax.op.multiply(relax.op.add(high, low), _constant(0.5))
    centre = relax.op.matmul(turn, relax.op.permute_dims(middle))
    extent = (options["output_width"], options["output_height"])
    factors = [[options["scale_x"] / extent[0], options["scale_y"] / extent[1]]]
    scaled = relax.op.multiply(turn, relax.op.multiply(relax.op.subtract(high, low), _constant(factors)))
    half = _constant([[-extent[0] / 2], [-extent[1] / 2]])
    shift = relax.op.add(centre, relax.op.matmul(scaled, half))
    upper = relax.op.concat([scaled, _constant(np.zeros((2, 1))), shift], 1)
    lower = _constant([[0, 0, 1, 0], [0, 0, 0, 1]])
    return relax.op.reshape(relax.op.concat([upper, lower], 0), (1, 4, 4))


def _inverse(cos: relax.Expr, sin: relax.Expr) -> relax.Expr:
    return _matrix([[cos, relax.op.negative(sin)], [sin, cos]])


def _transform_landmarks(step: Conversion) -> relax.Expr:
    """``TransformLandmarks`` makes positions on a crop ones in the image; a third number of each stays."""
    landmarks = _landmarks(step)
    result = relax.op.matmul(_plane(landmarks), relax.op.permute_dims(_part(step, 0, 2)))
    result = relax.op.add(result, relax.op.permute_dims(_part(step, 3, 4)))
    shape = step.shape(0)
    if shape[2] > 2:
        result = relax.op.concat([result, relax.op.strided_slice(landmarks, [1], [2], [shape[2]])], 1)
    return relax.op.reshape(result, shape)


def _transform_image(step: Conversion) -> relax.Expr:
    """``TransformTensorBilinear`` gives the pixels of a crop, between four of the image each, or 0 outside of it."""
    options = flexbuffers.Loads(step.operator.custom_options)
    _, h, w, channels = step.shape(0)
    size = (options["output_height"], options["output_width"])
    rows, columns = (grid.reshape(-1) + 0.5 for grid in np.mgrid[: size[0], : size[1]])
    pixels = _constant(np.stack([columns, rows, np.zeros_like(rows), np.ones_like(rows)], 1))
    positions = relax.op.matmul(pixels, relax.op.permute_dims(_part(step, 0, 4)))
    positions = relax.op.subtract(positions, _constant(0.5))
    image = relax.op.reshape(step.operand(0), (h * w, channels))
    x, y = (_column(positions, axis) for axis in (0, 1))
    left, upper = relax.op.floor(x), relax.op.floor(y)
    right_part, lower_part = relax.op.subtract(x, left), relax.op.subtract(y, upper)

    def line(down: int) -> relax.Expr:
        first, second = (relax.op.take(image, _position((h, w), upper, left, down, right), axis=0) for right in (0, 1))
        return _between(first, second, right_part)

    inside = relax.op.logical_and(_within(x, w), _within(y, h))
    result = relax.op.where(inside, _between(line(0), line(1), lower_part), _constant(0.0))
    return relax.op.reshape(result, (1, *size, channels))


def _position(size: tuple[int, int], upper: relax.Expr, left: relax.Expr, down: int, right: int) -> relax.Expr:
    """Where pixels at whole places, or beside them, stand; beyond the edge is what counts for nothing later."""
    row = relax.op.clip(relax.op.add(upper, _constant(float(down))), 0, size[0] - 1)
    column = relax.op.clip(relax.op.add(left, _constant(float(right))), 0, size[1] - 1)
    position = relax.op.add(relax.op.multiply(row, _constant(float(size[1]))), column)
    return relax.op.squeeze(relax.op.astype(position, "int32"), [1])


def _between(first: relax.Expr, second: relax.Expr, part: relax.Expr) -> relax.Expr:
    rest = relax.op.subtract(_constant(1.0), part)
    return relax.op.add(relax.op.multiply(rest, first), relax.op.multiply(part, second))


def _within(position: relax.Expr, extent: int) -> relax.Expr:
    from_start = relax.op.greater_equal(position, _constant(0.0))
    return relax.op.logical_and(from_start, relax.op.less_equal(position, _constant(float(extent - 1))))


def _landmarks(step: Conversion) -> relax.Expr:
    """Put one landmark in a row; the first version of these operators has them in images."""
    shape = step.shape(0)
    if len(shape) != 3 or shape[0] != 1:
        raise ModelError(f"{step.source} has landmarks of shape {list(shape)}; known is its version 2 of [1, n, axes]")
    return relax.op.reshape(step.operand(0), shape[1:])


def _numbers_at(landmarks: relax.Expr, positions: list[int]) -> relax.Expr:
    return _plane(relax.op.take(landmarks, relax.const(np.array(positions, "int32"), "int32"), axis=0))


def _plane(landmarks: relax.Expr) -> relax.Expr:
    """Take the first two numbers of each row."""
    return relax.op.strided_slice(landmarks, [1], [0], [2])


def _part(step: Conversion, begin: int, end: int) -> relax.Expr:
    """Take columns of the two rows of a matrix that make x and y."""
    matrix = relax.op.reshape(step.operand(1), (4, 4))
    return relax.op.strided_slice(matrix, [0, 1], [0, begin], [2, end])


def _column(rows: relax.Expr, axis: int) -> relax.Expr:
    return relax.op.strided_slice(rows, [1], [axis], [axis + 1])


def _matrix(rows: list[list[relax.Expr]]) -> relax.Expr:
    return relax.op.concat([relax.op.concat(row, 1) for row in rows], 0)


def _constant(numbers: Any) -> relax.Expr:
    return relax.const(np.array(numbers, np.float32), "float32")


ON_IMAGES: dict[str, Callable[[Conversion], relax.Expr]] = {"Convolution2DTransposeBias": _biased_transpose_conv}
"""Operators that are written with channels first."""

ON_LANDMARKS: dict[str, Callable[[Conversion], relax.Expr]] = {
    "Landmarks2TransformMatrix": _landmarks_to_matrix,
    "TransformLandmarks": _transform_landmarks,
    "TransformTensorBilinear": _transform_image,
}
"""Operators that are many of Relax's, on few numbers."""
