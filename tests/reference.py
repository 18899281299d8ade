"""What a graph computes, in float64 numpy: written apart from the product, to judge it by."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from tvm_coexec.graph import Graph, Node
from tvm_coexec.layers import Linear

_erf = np.vectorize(math.erf, otypes=[np.float64])

_ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "relu": lambda x: np.where(x > 0, x, 0.0),
    "gelu": lambda x: x * (1 + _erf(x / math.sqrt(2))) / 2,
    "gelu_tanh": lambda x: x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    "silu": lambda x: x * (1 + np.tanh(x / 2)) / 2,
}


def evaluate(graph: Graph, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The outputs of a graph, in the shapes that the model's user sees."""
    values: dict[str, np.ndarray] = {}
    for name in graph.inputs:
        tensor = graph.tensors[name]
        assert inputs[name].shape == tensor.shape, f"input {name!r} has shape {inputs[name].shape}, not {tensor.shape}"
        values[name] = inputs[name].astype(np.float64).reshape(tensor.rows, tensor.channels)
    for node in graph.nodes:
        values[node.output] = _evaluate_node(node, values)
    return {name: values[name].reshape(graph.tensors[name].shape) for name in graph.outputs}


def _evaluate_node(node: Node, values: Mapping[str, np.ndarray]) -> np.ndarray:
    params = {name: array.astype(np.float64) for name, array in node.params.items()}
    value = values[node.input]
    if isinstance(node.layer, Linear):
        value = value @ params["weights"]
    elif node.layer.kind == "layer_norm":
        scale = np.sqrt(value.var(axis=1, keepdims=True) + node.layer.epsilon)
        value = (value - value.mean(axis=1, keepdims=True)) / scale * params["gamma"] + params["beta"]
    elif node.layer.kind == "softmax":
        power = np.exp(value - value.max(axis=1, keepdims=True))
        value = power / power.sum(axis=1, keepdims=True)
    for step in node.layer.epilogue:
        if step == "bias":
            value = value + params["bias"]
        elif step == "residual":
            assert node.residual is not None
            value = value + values[node.residual]
        else:
            value = _ACTIVATIONS[step](value)
    return value
