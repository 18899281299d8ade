"""The larger and the smaller of two numbers, of which one may be none: as in the models, NaN is not lost.

TVM's ``max(a, b)`` is ``a > b ? a : b`` on a CPU: a single instruction, and ``b`` where either is NaN. So a NaN is kept
behind a constant. OpenCL's own leaves open what it is, so that kernels get another, which keeps the NaN of either, but
where the first operand is a constant, or the second is the largest so far: there it is as on a CPU.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import tvm_ffi
from tvm import tirx
from tvm.script.ir_builder import tirx as T

_OPENCL_SOURCE = """\
#ifndef coexec_max
#define coexec_plain_max(a, b) ((a) > (b) ? (a) : (b))
#define coexec_plain_min(a, b) ((a) < (b) ? (a) : (b))
#define coexec_max(a, b) ((a) == (a) ? coexec_plain_max(a, b) : (a))
#define coexec_min(a, b) ((a) == (a) ? coexec_plain_min(a, b) : (a))
#endif
"""
"""Macros, since they serve numbers and vectors of all types; compilers compute once what stands there twice."""
_SO_FAR = re.compile(r"(\S+) = (max|min)\((.*), \1\);$", re.MULTILINE)
_CONSTANT_FIRST = re.compile(r"\b(max|min)\((?=\(*\(float\d*\)\(*-?\d)")


def at_least(low: float, x: Any) -> Any:
    """``x``, or ``low`` where that is larger."""
    return T.max(T.float32(low), x)


def at_most(high: float, x: Any) -> Any:
    """``x``, or ``high`` where that is smaller."""
    return T.min(T.float32(high), x)


def clamp(x: Any, low: float, high: float) -> Any:
    """Limit ``x`` to bounds."""
    return at_least(low, at_most(high, x))


def larger(a: Any, b: Any) -> Any:
    """The larger of two numbers that a CPU computes, neither of which need be a constant: two instructions."""
    return _keeping_nan(T.max, a, b)


def smaller(a: Any, b: Any) -> Any:
    """Choose the smaller of two; see :func:`larger`."""
    return _keeping_nan(T.min, a, b)


def _keeping_nan(extremum: Callable[[Any, Any], Any], a: Any, b: Any) -> Any:
    operands = [value for value in (a, b) if hasattr(value, "ty")]
    if not all(str(value.ty).startswith("float") for value in operands) or isinstance(a, tirx.FloatImm):
        return extremum(a, b)
    if isinstance(b, tirx.FloatImm):
        return extremum(b, a)
    return T.Select(_is_nan(a), a, extremum(a, b))


def _is_nan(value: Any) -> Any:
    """Whether a number is none: by the bits of a float32, since TVM makes vectors of them, but not of ``isnan``."""
    if str(value.ty) != "float32":
        return T.isnan(value)
    return (T.reinterpret("int32", value) & T.int32(0x7FFFFFFF)) > T.int32(0x7F800000)


def keeping_nan(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """Rewrite loops with such extrema: whoever made them did not think of NaN."""
    return tvm_ffi.structural_map(
        function,
        [(tirx.Max, lambda found: larger(found.a, found.b)), (tirx.Min, lambda found: smaller(found.a, found.b))],
    )


def with_extrema(source: str) -> str:
    """OpenCL C as TVM writes it, with such ``max`` and ``min``."""
    changed = _SO_FAR.sub(r"\1 = coexec_plain_\2(\3, \1);", source)
    changed = _CONSTANT_FIRST.sub(r"coexec_plain_\1(", changed)
    changed = re.sub(r"\b(max|min)\(", r"coexec_\1(", changed)
    return source if changed == source else _OPENCL_SOURCE + changed
