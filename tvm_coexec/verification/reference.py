"""What a step should compute, in float64 numpy: what every measured candidate is compared with.

What a layer computes before its epilogue, its class says.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from tvm_coexec.layers import AnyLayer, step_name, step_numbers, step_operands

_erf = np.vectorize(math.erf, otypes=[np.float64])


def _gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + _erf(x / math.sqrt(2)))


def _gelu_tanh(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _silu(x: np.ndarray) -> np.ndarray:
    return x * 0.5 * (1 + np.tanh(0.5 * x))


def _relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


def _relu6(x: np.ndarray) -> np.ndarray:
    return np.clip(x, 0, 6)


def _hard_swish(x: np.ndarray) -> np.ndarray:
    return x * np.clip(x + 3, 0, 6) / 6


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * x))


def _elu(x: np.ndarray, alpha: float, factor: float) -> np.ndarray:
    return factor * np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


def _softplus(x: np.ndarray) -> np.ndarray:
    return np.logaddexp(x, 0)


_ACTIVATIONS: dict[str, Callable[..., np.ndarray]] = {
    "abs": np.abs,
    "clip": np.clip,
    "elu": _elu,
    "erf": _erf,
    "exp": np.exp,
    "hard_sigmoid": lambda x, alpha, beta: np.clip(alpha * x + beta, 0, 1),
    "inverse_root": lambda x, epsilon: 1 / np.sqrt(np.maximum(x, 0) + epsilon),
    "leaky_relu": lambda x, alpha: np.where(x < 0, alpha * x, x),
    "mish": lambda x: x * np.tanh(_softplus(x)),
    "negative": np.negative,
    "softplus": _softplus,
    "square": np.square,
    "tanh": np.tanh,
    "relu": _relu,
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "silu": _silu,
    "relu6": _relu6,
    "hard_swish": _hard_swish,
    "sigmoid": _sigmoid,
}


def evaluate(layer: AnyLayer, operands: Mapping[str, np.ndarray], pixels: np.ndarray | None = None) -> np.ndarray:
    """Compute rows of the layer's output in float64.

    Parameters
    ----------
    operands
        ``input [rows, k]``, ``weights [k, n]``, vectors ``[n]``, ``residual [rows, n]``: unpacked, any number of rows.
        For a layer of images ``input``, ``input1`` … ``[batch, h, w, channels]``, ``weights [out, in / groups,
        kernel]`` and, of the pixels computed alone, ``residual [pixels, out]``.
    pixels
        Numbers of the pixels of an output image to compute; by default all.
    """
    value = layer.evaluate(operands, pixels)
    for step, name in zip(layer.epilogue, step_operands(layer.epilogue), strict=True):
        value = _after_step(value, step, None if name is None else operands[name].astype(np.float64))
    return value


def _after_step(value: np.ndarray, step: str, operand: np.ndarray | None) -> np.ndarray:
    if operand is None:
        return _ACTIVATIONS[step_name(step)](value, *step_numbers(step))
    if step == "scale":
        return value * operand
    return np.where(value < 0, value * operand, value) if step == "prelu" else value + operand


def relative_error(result: np.ndarray, expected: np.ndarray) -> float:
    """Largest error over the largest magnitude expected; infinite where a result is not finite."""
    if not np.all(np.isfinite(result)):
        return math.inf
    return float(np.abs(result - expected).max() / max(float(np.abs(expected).max()), 1e-30))
