"""What a step should compute, in float64 numpy: the yardstick of every measured candidate."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from tvm_coexec.layers import Linear, RowWise

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


_ACTIVATIONS = {
    "relu": _relu,
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "silu": _silu,
    "relu6": _relu6,
    "hard_swish": _hard_swish,
    "sigmoid": _sigmoid,
}


def _body(layer: Linear | RowWise, operands: Mapping[str, np.ndarray]) -> np.ndarray:
    x = operands["input"].astype(np.float64)
    if isinstance(layer, Linear):
        return x @ operands["weights"].astype(np.float64)
    if layer.kind == "layer_norm":
        centred = x - x.mean(axis=-1, keepdims=True)
        normal = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + layer.epsilon)
        return normal * operands["gamma"] + operands["beta"]
    if layer.kind == "softmax":
        power = np.exp(x - x.max(axis=-1, keepdims=True))
        return power / power.sum(axis=-1, keepdims=True)
    return x


def evaluate(layer: Linear | RowWise, operands: Mapping[str, np.ndarray]) -> np.ndarray:
    """Rows of the layer's output in float64.

    Parameters
    ----------
    operands
        ``input [rows, k]``, ``weights [k, n]``, vectors ``[n]``, ``residual [rows, n]``: unpacked, any number of rows.
    """
    value = _body(layer, operands)
    for step in layer.epilogue:
        value = _ACTIVATIONS[step](value) if step in _ACTIVATIONS else value + operands[step]
    return value


def relative_error(result: np.ndarray, expected: np.ndarray) -> float:
    """Largest error over the largest magnitude expected; infinite where a result is not finite."""
    if not np.all(np.isfinite(result)):
        return math.inf
    return float(np.abs(result - expected).max() / max(float(np.abs(expected).max()), 1e-30))
