"""Relax's functions of one value: the steps of an epilogue that they are, and the numbers of these."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from tvm import relax, tirx

from tvm_coexec.errors import ModelError
from tvm_coexec.frontends.trace import Source
from tvm_coexec.layers import clip, step_name, step_numbers

OPERATIONS = {
    "relax.abs": "abs",
    "relax.clip": "clip",
    "relax.erf": "erf",
    "relax.exp": "exp",
    "relax.negative": "negative",
    "relax.nn.gelu": "gelu",
    "relax.nn.gelu_tanh": "gelu_tanh",
    "relax.nn.leakyrelu": "leaky_relu",
    "relax.nn.prelu": "prelu",
    "relax.nn.relu": "relu",
    "relax.nn.relu6": "relu6",
    "relax.nn.silu": "silu",
    "relax.nn.softplus": "softplus",
    "relax.sigmoid": "sigmoid",
    "relax.square": "square",
    "relax.tanh": "tanh",
}
"""Relax's functions of one value, and the operations that they become."""


_STRAIGHT = 17.0
"""From here on softplus is a straight line to float32."""


def limited(low: float, high: float) -> tuple[str, dict[str, Any]]:
    """Give the operation and attributes that limit a value to a range: without bounds, one that changes nothing."""
    if (low, high) == (-math.inf, math.inf):
        return "reshape", {}
    text = clip(low, high)
    return step_name(text), {"numbers": step_numbers(text)}


def clip_bounds(call: relax.Call, source: Source) -> tuple[float, float]:
    """Lower and upper bound of a call of ``clip``."""
    bounds = call.args[1:]
    if not all(isinstance(bound, tirx.IntImm | tirx.FloatImm) for bound in bounds):
        raise ModelError(f"{source} has bounds that are no constants; make them numbers")
    return float(bounds[0].value), float(bounds[1].value)


def check_slope(slope: np.ndarray | float | None, source: Source) -> None:
    """Refuse what a layer multiplies by zeros as well, of which NaN and infinity make NaN."""
    if slope is not None and not np.isfinite(slope).all():
        raise ModelError(f"{source} has a slope that is not finite; give it finite ones")


def numbers(op: str, call: relax.Call, source: Source) -> dict[str, Any]:
    """Attributes of a function that has numbers; none for other operations."""
    if op == "leaky_relu":
        check_slope(float(call.attrs.alpha), source)
        return {"numbers": (float(call.attrs.alpha),)}
    if op == "prelu":
        return {"axis": int(call.attrs.axis) % len(call.args[0].ty.shape)}
    if op == "softplus" and (float(call.attrs.beta) != 1 or float(call.attrs.threshold) < _STRAIGHT):
        raise ModelError(f"{source} is a scaled softplus, or a straight line from early on; supported is the plain one")
    return {}
