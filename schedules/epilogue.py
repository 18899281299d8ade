"""What happens to a layer's result before it is stored: bias, residual add, activations.

An epilogue becomes a list of *stages*. A stage's value is kept in a register, so that an expression that needs a
value many times (a polynomial) does not repeat its text. Transcendental functions are written out: LLVM would call the
C library once per element, and the ``exp`` of a CPU's OpenCL takes longer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from tvm.script.ir_builder import tirx as T

Expr = Any
Stage = Callable[[list[Expr]], Expr]
"""Maps the accumulator and the values of the stages before it (in that order) to its own value."""

_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4
_EXP_RANGE = (-87.0, 88.0)
# The Taylor series to r^7 is below one float32 rounding on |r| <= ln(2)/2.
_EXP_SERIES = tuple(1.0 / math.factorial(power) for power in range(7, -1, -1))

# erf(x) = x P(x²)/Q(x²) on |x| <= 3.92, where erf is 1 to float32: fitted by reweighted least squares on Chebyshev
# nodes; relative error 2e-8 in exact arithmetic, 4e-7 in float32. Highest power first. At 4 the quotient is a little
# above 1, so that clamping it makes erf exactly 1 from there on, and gelu(-1000) exactly 0.
_ERF_LIMIT = 4.0
_ERF_P = (2.05010951e-06, 2.84879760e-04, 3.76548921e-03, 5.27483337e-02, 1.90403506e-01, 1.12837911)
_ERF_Q = (3.80917882e-05, 1.16250431e-03, 1.49689624e-02, 1.14107892e-01, 5.02073467e-01, 1.0)

_GELU_TANH = (math.sqrt(2 / math.pi), 0.044715)


def _polynomial(x: Expr, coefficients: Sequence[float]) -> Expr:
    """Horner's scheme; the highest power comes first."""
    result = T.float32(coefficients[0])
    for coefficient in coefficients[1:]:
        result = result * x + T.float32(coefficient)
    return result


def _clamp(x: Expr, low: float, high: float) -> Expr:
    return T.max(T.min(x, T.float32(high)), T.float32(low))


class Epilogue:
    """Collects the stages of one epilogue."""

    def __init__(self) -> None:
        self.stages: list[Stage] = []

    def keep(self, value: Stage) -> Stage:
        """Make ``value`` a stage of its own, and return a reference to it."""
        self.stages.append(value)
        index = len(self.stages)
        return lambda values: values[index]

    def exp(self, value: Stage) -> Stage:
        x = self.keep(lambda v: _clamp(value(v), *_EXP_RANGE))
        n = self.keep(lambda v: T.floor(x(v) * T.float32(math.log2(math.e)) + T.float32(0.5)))
        r = self.keep(lambda v: x(v) - n(v) * T.float32(_LN2_HIGH) - n(v) * T.float32(_LN2_LOW))
        power = self.keep(lambda v: T.reinterpret("float32", (T.Cast("int32", n(v)) + T.int32(127)) << T.int32(23)))
        return lambda v: _polynomial(r(v), _EXP_SERIES) * power(v)

    def _sigmoid_times(self, x: Stage, argument: Stage) -> Stage:
        """``x · sigmoid(argument)``."""
        negative = self.exp(lambda v: T.float32(0) - argument(v))
        return lambda v: x(v) / (T.float32(1) + negative(v))

    def activation(self, name: str, value: Stage) -> Stage:
        if name == "relu":
            return lambda v: T.max(value(v), T.float32(0))
        if name == "relu6":
            return lambda v: _clamp(value(v), 0.0, 6.0)
        x = self.keep(value)
        if name == "hard_swish":
            return lambda v: x(v) * (_clamp(x(v) + T.float32(3), 0.0, 6.0) * T.float32(1 / 6))
        return self._gelu(x) if name == "gelu" else self._logistic(name, x)

    def _logistic(self, name: str, x: Stage) -> Stage:
        if name == "sigmoid":
            return self._sigmoid_times(lambda _: T.float32(1), x)
        if name == "silu":
            return self._sigmoid_times(x, x)
        scale, cubic = _GELU_TANH  # (1 + tanh u) / 2 = sigmoid(2u)
        return self._sigmoid_times(x, lambda v: T.float32(2 * scale) * (x(v) + T.float32(cubic) * x(v) * x(v) * x(v)))

    def _gelu(self, x: Stage) -> Stage:
        u = self.keep(lambda v: _clamp(x(v) * T.float32(math.sqrt(0.5)), -_ERF_LIMIT, _ERF_LIMIT))
        w = self.keep(lambda v: u(v) * u(v))
        erf = self.keep(lambda v: _clamp(u(v) * _polynomial(w(v), _ERF_P) / _polynomial(w(v), _ERF_Q), -1.0, 1.0))
        return lambda v: x(v) * T.float32(0.5) * (T.float32(1) + erf(v))


def keeps_zero(steps: Sequence[str]) -> bool:
    """Whether a channel whose operands are all zero stays zero."""
    return "sigmoid" not in steps


def stages(steps: Sequence[str], bias: Callable[[], Expr], residual: Callable[[], Expr]) -> list[Stage]:
    """Stages for the steps of an epilogue; the last one's value is what is stored.

    ``bias`` and ``residual`` give the operand's element at the current index when a stage is built.
    """
    epilogue = Epilogue()
    value: Stage = lambda v: v[0]  # noqa: E731
    for step in steps:
        value = _step(epilogue, step, value, bias, residual)
    return [*epilogue.stages, value]


def _step(epilogue: Epilogue, step: str, value: Stage, bias: Callable[[], Expr], residual: Callable[[], Expr]) -> Stage:
    if step == "bias":
        return lambda v: value(v) + bias()
    if step == "residual":
        return lambda v: value(v) + residual()
    return epilogue.activation(step, value)
