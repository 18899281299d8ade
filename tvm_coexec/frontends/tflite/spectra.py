"""TFLite's operators on complex numbers, each of which is a pair of real ones on a last axis of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from tvm import relax

from tvm_coexec.errors import ModelError

from .importer import Conversion


def _real_spectrum(step: Conversion) -> relax.Expr:
    """RFFT2D works on the last two axes by products with waves, in which what is padded or cut off has no part."""
    *outer, h, w = step.shape(0)
    height, width = step.integers(1)
    kept = width // 2 + 1
    cos, sin = _waves(width, kept, w)
    along_width = np.stack([cos, -sin], axis=-1).reshape(w, 2 * kept)
    lines = relax.op.matmul(step.operand(0), relax.const(along_width.astype(np.float32), "float32"))
    pairs = (*outer, height, kept, 2)
    if (height, h) == (1, 1):
        return relax.op.reshape(lines, pairs)
    cos, sin = (wave.T for wave in _waves(height, height, h))
    rotated = relax.op.reshape(lines, (*outer, h, kept, 2))
    real, imaginary = (relax.op.squeeze(_half(rotated, index), [-1]) for index in (0, 1))
    results = [
        relax.op.add(_times(cos, real), _times(sin, imaginary)),
        relax.op.subtract(_times(cos, imaginary), _times(sin, real)),
    ]
    return relax.op.concat([relax.op.expand_dims(result, -1) for result in results], -1)


def _waves(length: int, kept: int, indices: int) -> tuple[np.ndarray, np.ndarray]:
    """Compute cosines and sines of a length's first ``kept`` frequencies, at the first places; 0 beyond the length."""
    turns = np.outer(np.arange(indices), np.arange(kept)) % length / length
    inside = (np.arange(indices) < length)[:, None]
    return inside * np.cos(2 * np.pi * turns), inside * np.sin(2 * np.pi * turns)


def _times(wave: np.ndarray, numbers: relax.Expr) -> relax.Expr:
    return relax.op.matmul(relax.const(wave.astype(np.float32), "float32"), numbers)


def _half(pairs: relax.Expr, index: int) -> relax.Expr:
    return relax.op.strided_slice(pairs, [-1], [index], [index + 1])


def _absolute(step: Conversion) -> relax.Expr:
    squares = relax.op.multiply(step.operand(0), step.operand(0))
    return relax.op.sqrt(relax.op.sum(squares, [-1]))


def _part(index: int) -> Callable[[Conversion], relax.Expr]:
    return lambda step: relax.op.squeeze(_half(step.operand(0), index), [-1])


def _of_shape(step: Conversion) -> relax.Expr:
    """The same numbers in the shape that the file gives the result, of which one extent may follow from the others."""
    elements, shape = math.prod(step.shape(0)) // 2, list(_result_shape(step))
    if -1 in shape:
        shape[shape.index(-1)] = elements // max(-math.prod(shape), 1)
    if math.prod(shape) != elements:
        raise ModelError(
            f"{step.source} reshapes {elements} complex numbers to {shape}, which has {math.prod(shape)} elements; "
            "convert the model again"
        )
    return relax.op.reshape(step.operand(0), (*shape, 2))


def _result_shape(step: Conversion) -> Sequence[int]:
    shape, code = step.shape(0)[:-1], step.operator.code
    if code == "RESHAPE":
        return step.new_shape()
    if code == "EXPAND_DIMS":
        axis = step.counted(step.integers(1)[0], len(shape) + 1)
        return (*shape[:axis], 1, *shape[axis:])
    axes = {step.counted(step.options.SqueezeDims(i), len(shape)) for i in range(step.options.SqueezeDimsLength())}
    dropped = axes or {axis for axis, size in enumerate(shape) if size == 1}
    return [size for axis, size in enumerate(shape) if axis not in dropped]


def _transposed(step: Conversion) -> relax.Expr:
    axes = step.integers(1)
    return relax.op.permute_dims(step.operand(0), [*axes, len(axes)])


def _cast(step: Conversion) -> relax.Expr:
    """Cast complex numbers to their real part, and real numbers to complex ones without an imaginary part."""
    made = step.importer.file.tensors[step.operator.outputs[0]]
    if made.stored_dtype != "complex64":
        return relax.op.astype(_part(0)(step), made.dtype)
    real = relax.op.expand_dims(relax.op.astype(step.operand(0), "float32"), -1)
    return relax.op.concat([real, relax.op.zeros_like(real)], -1)


def _product(step: Conversion) -> relax.Expr:
    (a, b), (c, d) = ([_half(step.operand(number), part) for part in (0, 1)] for number in (0, 1))
    real = relax.op.subtract(relax.op.multiply(a, c), relax.op.multiply(b, d))
    return relax.op.concat([real, relax.op.add(relax.op.multiply(a, d), relax.op.multiply(b, c))], -1)


CONVERTERS: dict[str, Callable[[Conversion], relax.Expr]] = {
    "COMPLEX_ABS": _absolute,
    "IMAG": _part(1),
    "REAL": _part(0),
    "RFFT2D": _real_spectrum,
}
"""Operators for which the file's own order of axes matters."""

ON_PAIRS: dict[str, Callable[[Conversion], relax.Expr]] = {
    "ADD": lambda step: relax.op.add(step.operand(0), step.operand(1)),
    "CAST": _cast,
    "EXPAND_DIMS": _of_shape,
    "MUL": _product,
    "RESHAPE": _of_shape,
    "SQUEEZE": _of_shape,
    "SUB": lambda step: relax.op.subtract(step.operand(0), step.operand(1)),
    "TRANSPOSE": _transposed,
}
"""Operators of real numbers that complex ones may be given to, too."""
