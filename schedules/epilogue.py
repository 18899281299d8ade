"""What happens to a layer's result before it is stored: bias, residual add, activations.

An epilogue becomes a list of *stages*. A stage's value is kept in a register, so that an expression that needs a
value many times (a polynomial) does not repeat its text. Transcendental functions are written out: LLVM would call the
C library once per element, and the ``exp`` of a CPU's OpenCL takes longer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from tvm.script.ir_builder import tirx as T

from tvm_coexec.layers import keeps_zero, step_name, step_numbers, step_operands

from .extrema import at_least, at_most, clamp

Expr = Any
Stage = Callable[[list[Expr]], Expr]
"""Maps the accumulator and the values of the stages before it (in that order) to its own value."""

_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4
_EXP_RANGE = (-88.0, 89.0)
"""Beyond which powers are 0 and infinite."""
_LEAST_EXPONENT = -126.0
"""That of the least normal float32."""
# The Taylor series to r^7, twice, is below one float32 rounding on |r| <= ln(2)/2.
_EXP_SERIES = tuple(2.0 / math.factorial(power) for power in range(7, -1, -1))

# erf(x) = x P(x²)/Q(x²) on |x| <= 3.92, where erf is 1 to float32: fitted by reweighted least squares on Chebyshev
# nodes; relative error 2e-8 in exact arithmetic, 4e-7 in float32. Highest power first. At 4 the quotient is a little
# above 1, so that clamping it makes erf exactly 1 from there on, and gelu(-1000) exactly 0.
_ERF_LIMIT = 4.0
_ERF_P = (2.05010951e-06, 2.84879760e-04, 3.76548921e-03, 5.27483337e-02, 1.90403506e-01, 1.12837911)
_ERF_Q = (3.80917882e-05, 1.16250431e-03, 1.49689624e-02, 1.14107892e-01, 5.02073467e-01, 1.0)

# tanh(x) = x P(x²)/Q(x²) on |x| <= 9, fitted like erf: relative error 2e-8 exactly, 4e-7 in float32, also of small
# numbers, which a difference of powers loses. At 9.5 the quotient is above 1, as erf's is at its limit.
_TANH_LIMIT = 9.5
_TANH_P = (1.33546756e-08, 2.06090938e-05, 3.49558888e-03, 1.33810263e-01, 9.99999979e-01)
_TANH_Q = (7.77656448e-07, 3.28563601e-04, 2.58769851e-02, 4.67143419e-01, 1.0)

# log(1 + t) = 2 artanh(z) with z = t / (2 + t), which is 1/3 at most where t is: a series in z², highest power first.
_LOG_SERIES = tuple(2.0 / power for power in range(17, 0, -2))
_MISH_LIMIT = 20.0
"""From here on mish is the identity to float32."""

_GELU_TANH = (math.sqrt(2 / math.pi), 0.044715)


def _polynomial(x: Expr, coefficients: Sequence[float]) -> Expr:
    """Evaluate by Horner's scheme; the highest power comes first."""
    result = T.float32(coefficients[0])
    for coefficient in coefficients[1:]:
        result = result * x + T.float32(coefficient)
    return result


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
        # exp(x) = 2^n · e^r; n · ln 2 is subtracted in two steps, the first of which is exact, so that r is.
        x = self.keep(lambda v: clamp(value(v), *_EXP_RANGE))
        n = self.keep(lambda v: T.floor(x(v) * T.float32(math.log2(math.e)) + T.float32(0.5)))
        r = self.keep(lambda v: x(v) - n(v) * T.float32(_LN2_HIGH) - n(v) * T.float32(_LN2_LOW))
        # NaN, which has no whole number, comes back by r; half the power of two is a number up to the largest result
        whole: Stage = lambda v: T.Cast("int32", T.max(n(v), T.float32(_LEAST_EXPONENT)))  # noqa: E731
        power = self.keep(lambda v: T.reinterpret("float32", (whole(v) + T.int32(126)) << T.int32(23)))
        return lambda v: _polynomial(r(v), _EXP_SERIES) * power(v)

    def _sigmoid_times(self, x: Stage, argument: Stage) -> Stage:
        """Compute ``x · sigmoid(argument)``."""
        negative = self.exp(lambda v: T.float32(0) - argument(v))
        return lambda v: x(v) / (T.float32(1) + negative(v))

    def _sigmoid(self, argument: Stage) -> Stage:
        return self._sigmoid_times(lambda _: T.float32(1), argument)

    def activation(self, name: str, numbers: Sequence[float], value: Stage) -> Stage:
        """Apply the function of a name, with its numbers, to a value."""
        if name in _SIMPLE:
            return _SIMPLE[name](self.keep(value), *map(T.float32, numbers))
        if name == "clip":
            return lambda v: clamp(value(v), *numbers)
        x = self.keep(value)
        made: Stage = getattr(self, f"_{name}")(x, *numbers)
        return made

    def _silu(self, x: Stage) -> Stage:
        return self._sigmoid_times(x, x)

    def _gelu_tanh(self, x: Stage) -> Stage:
        scale, cubic = _GELU_TANH  # (1 + tanh u) / 2 = sigmoid(2u)
        return self._sigmoid_times(x, lambda v: T.float32(2 * scale) * (x(v) + T.float32(cubic) * x(v) * x(v) * x(v)))

    def _tanh(self, x: Stage) -> Stage:
        u = self.keep(lambda v: clamp(x(v), -_TANH_LIMIT, _TANH_LIMIT))
        w = self.keep(lambda v: u(v) * u(v))
        return lambda v: clamp(u(v) * (_polynomial(w(v), _TANH_P) / _polynomial(w(v), _TANH_Q)), -1.0, 1.0)

    def _exp(self, x: Stage) -> Stage:
        return self.exp(x)

    def _elu(self, x: Stage, alpha: float, factor: float) -> Stage:
        power = self.exp(lambda v: at_most(0.0, x(v)))
        below = T.float32(alpha * factor)
        return lambda v: T.float32(factor) * at_least(0.0, x(v)) + below * (power(v) - T.float32(1))

    def _softplus(self, x: Stage) -> Stage:
        """Compute ``max(x, 0) + log(1 + exp(-|x|))``."""
        t = self.keep(self.exp(lambda v: T.min(x(v), T.float32(0) - x(v))))
        z = self.keep(lambda v: t(v) / (T.float32(2) + t(v)))
        return lambda v: at_least(0.0, x(v)) + z(v) * _polynomial(z(v) * z(v), _LOG_SERIES)

    def _mish(self, x: Stage) -> Stage:
        """``x · tanh(log(1 + e))`` is ``x · n / (n + 2)`` with ``n = e · (e + 2)`` and ``e = exp(x)``."""
        e = self.keep(self.exp(lambda v: at_most(_MISH_LIMIT, x(v))))
        n = self.keep(lambda v: e(v) * (e(v) + T.float32(2)))
        return lambda v: x(v) * (n(v) / (n(v) + T.float32(2)))

    def _erf(self, x: Stage) -> Stage:
        u = self.keep(lambda v: clamp(x(v), -_ERF_LIMIT, _ERF_LIMIT))
        w = self.keep(lambda v: u(v) * u(v))
        return lambda v: clamp(u(v) * _polynomial(w(v), _ERF_P) / _polynomial(w(v), _ERF_Q), -1.0, 1.0)

    def _gelu(self, x: Stage) -> Stage:
        erf = self._erf(lambda v: x(v) * T.float32(math.sqrt(0.5)))
        return lambda v: x(v) * T.float32(0.5) * (T.float32(1) + erf(v))


_SIMPLE: dict[str, Callable[..., Stage]] = {
    "relu": lambda x: lambda v: at_least(0.0, x(v)),
    "relu6": lambda x: lambda v: clamp(x(v), 0.0, 6.0),
    "hard_swish": lambda x: lambda v: x(v) * (clamp(x(v) + T.float32(3), 0.0, 6.0) * T.float32(1 / 6)),
    "hard_sigmoid": lambda x, alpha, beta: lambda v: clamp(x(v) * alpha + beta, 0.0, 1.0),
    "inverse_root": lambda x, epsilon: lambda v: T.float32(1) / T.sqrt(at_least(0.0, x(v)) + epsilon),
    "leaky_relu": lambda x, alpha: lambda v: _below(x(v), alpha),
    "abs": lambda x: lambda v: T.max(x(v), T.float32(0) - x(v)),
    "negative": lambda x: lambda v: T.float32(0) - x(v),
    "square": lambda x: lambda v: x(v) * x(v),
}
"""Activations that are written down in one expression."""


def _below(x: Expr, slope: Expr) -> Expr:
    """``x``, times ``slope`` where it is negative."""
    return at_least(0.0, x) + slope * at_most(0.0, x)


def maps_zero_to_zero(steps: Sequence[str]) -> bool:
    """Whether a channel whose operands are all zero stays zero."""
    return all(map(keeps_zero, steps))


def stages(steps: Sequence[str], operand: Callable[[str], Expr]) -> list[Stage]:
    """Stages for the steps of an epilogue; the last one's value is what is stored.

    ``operand`` gives the element of a step's operand at the current index when a stage is built.
    """
    epilogue = Epilogue()
    value: Stage = lambda v: v[0]  # noqa: E731
    for text, name in zip(steps, step_operands(steps), strict=True):
        value = _step(epilogue, text, value, partial(operand, name or ""))
    return [*epilogue.stages, value]


def _step(epilogue: Epilogue, text: str, value: Stage, operand: Callable[[], Expr]) -> Stage:
    if text in ("bias", "residual"):
        return lambda v: value(v) + operand()
    if text == "scale":
        return lambda v: value(v) * operand()
    if text == "prelu":
        x = epilogue.keep(value)
        return lambda v: _below(x(v), operand())
    return epilogue.activation(step_name(text), step_numbers(text), value)
