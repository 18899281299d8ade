"""What happens to a layer's result before it is stored: bias, residual add, activations.

An epilogue is built as a list of *stages*, each a function of the values before it. A stage's value is kept in a
register, so that an expression that needs a value many times (a polynomial) does not repeat its text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from tvm.script.ir_builder import tirx as T

Expr = Any
Stage = Callable[[list[Expr]], Expr]
"""Maps the values of all stages before it (the accumulator first) to its own value."""

_LOG2E = math.log2(math.e)
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4
# exp(r) on |r| <= ln(2)/2: the Taylor series to r^7 is below one float32 rounding there.
_EXP_SERIES = tuple(1.0 / math.factorial(power) for power in range(7, -1, -1))


def _erf_series(terms: int) -> tuple[float, ...]:
    return tuple((-1) ** i * 2 / math.sqrt(math.pi) / (math.factorial(i) * (2 * i + 1)) for i in range(terms))


def f32(value: float) -> Expr:
    return T.float32(value)


def polynomial(x: Expr, coefficients: Sequence[float]) -> Expr:
    """Horner's scheme; the highest power comes first."""
    result = f32(coefficients[0])
    for coefficient in coefficients[1:]:
        result = result * x + f32(coefficient)
    return result
