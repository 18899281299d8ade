"""Operators that ONNX Runtime's quantisation tools write into models are replaced by ONNX's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from tvm_coexec.errors import ModelError

from .values import source_of

_DOMAIN = "com.microsoft"


def replace_contributed(model: onnx.ModelProto) -> None:
    """Replace the operators that this module knows, in place."""
    graph = model.graph
    if not any(_replacement(node) for node in graph.node):
        return
    constants = {tensor.name: tensor for tensor in graph.initializer}
    nodes: list[NodeProto] = []
    for node in graph.node:
        replacement = _replacement(node)
        for made in replacement(node, constants) if replacement else [node]:
            nodes.append(made)
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(constants.values())


def _replacement(node: NodeProto) -> _Replacement | None:
    return _REPLACEMENTS.get(node.op_type) if node.domain == _DOMAIN else None


def _lstm(node: NodeProto, constants: dict[str, TensorProto]) -> Iterator[NodeProto]:
    """An LSTM whose weights were quantised alone: inputs and states need not be, and are not here."""
    inputs = [*node.input[:8], *[""] * (8 - len(node.input[:8]))]
    for index, scale in ((1, 8), (2, 10)):
        inputs[index] = f"{node.input[index]}/dequantised"
        arrays = [_array(node, at, constants) for at in (index, scale, scale + 1)]
        quantised, scales, zeros = (array.astype(np.float32) for array in arrays)
        scales, zeros = (array.reshape(len(quantised), 1, -1) for array in (scales, zeros))
        weights = ((quantised - zeros) * scales).transpose(0, 2, 1)
        constants[inputs[index]] = numpy_helper.from_array(np.ascontiguousarray(weights), inputs[index])
    lstm = helper.make_node("LSTM", inputs, list(node.output), name=node.name)
    lstm.attribute.extend(node.attribute)
    yield lstm


def _array(node: NodeProto, index: int, constants: Mapping[str, TensorProto]) -> np.ndarray:
    name = node.input[index] if index < len(node.input) else ""
    if name not in constants:
        raise ModelError(
            f"{source_of(node)} has weights, scales or zero points that the model computes; make them constants"
        )
    array: np.ndarray = numpy_helper.to_array(constants[name])
    return array


def _matmul(node: NodeProto, constants: dict[str, TensorProto]) -> Iterator[NodeProto]:
    """A product with quantised weights of what is quantised by its own range."""
    x, weights, scale, *rest = node.input
    zero, bias = [*rest, "", ""][:2]
    base = node.output[0]
    parts = [f"{base}/{part}" for part in ("quantised", "scale", "zero")]
    yield helper.make_node("DynamicQuantizeLinear", [x], parts, name=node.name)
    yield from _scaled(node, [parts[0], weights, parts[2], zero], (parts[1], scale), bias)


def _matmul_to_float(node: NodeProto, constants: dict[str, TensorProto]) -> Iterator[NodeProto]:
    """Multiply quantised matrices, in float32."""
    left, right, left_scale, right_scale, *rest = node.input
    left_zero, right_zero, bias = [*rest, "", "", ""][:3]
    yield from _scaled(node, [left, right, left_zero, right_zero], (left_scale, right_scale), bias)


def _scaled(node: NodeProto, operands: list[str], scales: tuple[str, str], bias: str) -> Iterator[NodeProto]:
    base, operator = node.output[0], node.name
    total, exact, scale = (f"{base}/{part}" for part in ("total", "exact", "scales"))
    product = f"{base}/product" if bias else base
    yield helper.make_node("MatMulInteger", operands, [total], name=operator)
    yield helper.make_node("Cast", [total], [exact], name=operator, to=TensorProto.FLOAT)
    yield helper.make_node("Mul", list(scales), [scale], name=operator)
    yield helper.make_node("Mul", [exact, scale], [product], name=operator)
    if bias:
        yield helper.make_node("Add", [product, bias], [base], name=operator)


_Replacement = Callable[[NodeProto, dict[str, TensorProto]], Iterator[NodeProto]]

_REPLACEMENTS: dict[str, _Replacement] = {
    "DynamicQuantizeLSTM": _lstm,
    "DynamicQuantizeMatMul": _matmul,
    "MatMulIntegerToFloat": _matmul_to_float,
}
"""What makes the nodes in a node's place, and adds the constants that they read."""
