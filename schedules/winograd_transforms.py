"""Winograd's convolution F(m×m, 3×3) transforms by matrices of one dimension: first lines, then columns.

A tile of m×m outputs comes from (m+2)² products for each pair of an input and an output channel. The interpolation
points are 0, ±1, infinity, and for m = 4 also ±2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Matrix = tuple[tuple[float, ...], ...]

INPUT: dict[int, Matrix] = {
    2: ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1)),
    4: (
        (4, 0, -5, 0, 1, 0),
        (0, -4, -4, 1, 1, 0),
        (0, 4, -4, -1, 1, 0),
        (0, -2, -1, 2, 1, 0),
        (0, 2, -1, -2, 1, 0),
        (0, 4, 0, -5, 0, 1),
    ),
}
"""From the m+2 inputs of a line to its m+2 factors."""

WEIGHTS: dict[int, Matrix] = {
    2: ((1, 0, 0), (1 / 2, 1 / 2, 1 / 2), (1 / 2, -1 / 2, 1 / 2), (0, 0, 1)),
    4: (
        (1 / 4, 0, 0),
        (-1 / 6, -1 / 6, -1 / 6),
        (-1 / 6, 1 / 6, -1 / 6),
        (1 / 24, 1 / 12, 1 / 6),
        (1 / 24, -1 / 12, 1 / 6),
        (0, 0, 1),
    ),
}
"""From a line of the kernel to its m+2 factors."""

OUTPUT: dict[int, Matrix] = {
    2: ((1, 1, 1, 0), (0, 1, -1, -1)),
    4: ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1)),
}
"""From m+2 products to the m outputs of a line."""


def transform_weights(weights: np.ndarray, m: int) -> np.ndarray:
    """Transform weights ``[out, in, 3, 3]`` to ``[out, in, (m+2)²]``, in float64."""
    matrix = np.array(WEIGHTS[m], np.float64)
    kernels = weights.reshape(*weights.shape[:2], 9).astype(np.float64)
    return kernels @ np.kron(matrix, matrix).T


def apply(matrix: Matrix, values: Sequence[Any]) -> list[Any]:
    """Multiply a matrix and a vector of expressions.

    Points ±p give pairs of lines that differ in the sign of some entries: their two parts are computed once.
    """
    results: dict[int, Any] = {}
    for index, line in enumerate(matrix):
        if index in results:
            continue
        partner = next((other for other in range(index + 1, len(matrix)) if _is_pair(line, matrix[other])), None)
        if partner is None:
            results[index] = _combine(line, values)
            continue
        equal = _combine([a if a == b else 0 for a, b in zip(line, matrix[partner], strict=True)], values)
        opposite = _combine([a if a != b else 0 for a, b in zip(line, matrix[partner], strict=True)], values)
        results[index], results[partner] = equal + opposite, equal - opposite
    return [results[index] for index in range(len(matrix))]


def _is_pair(line: Sequence[float], other: Sequence[float]) -> bool:
    """Whether two lines agree but for signs, with more than one entry of either kind, so that sharing pays."""
    if any(abs(a) != abs(b) for a, b in zip(line, other, strict=True)):
        return False
    entries = [(a, b) for a, b in zip(line, other, strict=True) if a]
    return len({a == b for a, b in entries}) == 2 and len(entries) > 2


def _combine(factors: Sequence[float], values: Sequence[Any]) -> Any:
    """The sum of products, without those by 0 and ±1; it starts with a positive term if there is one."""
    total = None
    for factor, value in sorted(zip(factors, values, strict=True), key=lambda pair: pair[0] < 0):
        if factor == 0:
            continue
        product = value if abs(factor) == 1 else value * float(abs(factor))
        if total is None:
            total = product if factor > 0 else product * -1.0
        else:
            total = total + product if factor > 0 else total - product
    return total
