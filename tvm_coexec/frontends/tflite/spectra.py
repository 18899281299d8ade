"""TFLite's operators on complex numbers, each of which is a pair of real ones on a last axis of its own."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from tvm import relax

from .importer import Conversion


def _real_spectrum(step: Conversion) -> relax.Expr:
    """RFFT2D over the last two axes: products with waves, in which what is padded or cut off has no part."""
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
    """Cosines and sines of the first ``kept`` frequencies of a length, at the first places; 0 beyond the length."""
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


CONVERTERS: dict[str, Callable[[Conversion], relax.Expr]] = {
    "COMPLEX_ABS": _absolute,
    "IMAG": _part(1),
    "REAL": _part(0),
    "RFFT2D": _real_spectrum,
}
"""Operators for which the file's own order of axes matters."""
