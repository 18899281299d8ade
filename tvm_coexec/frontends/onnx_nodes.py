"""ONNX nodes that TVM's importer does not pass on as they are: what they mean is read from the node itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, numpy_helper

from ..errors import ModelError
from . import relax_images
from .trace import Source

_WINDOWED = ("AveragePool", "Conv", "MaxPool")

Known = tuple[str, list[str], dict[str, Any]]
"""An operation, the names of its inputs, and its attributes."""


def attributes(node: NodeProto) -> dict[str, Any]:
    """Values of a node's attributes by name, strings decoded."""
    values = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in values.items()}


def small_constants(graph: onnx.GraphProto) -> dict[str, np.ndarray]:
    """Small constants of a graph, such as bounds and paddings, by name."""
    tensors = {tensor.name: tensor for tensor in graph.initializer if math.prod(tensor.dims) <= 16}
    for node in graph.node:
        if node.op_type == "Constant" and "value" in attributes(node):
            tensors[node.output[0]] = attributes(node)["value"]
    return {name: numpy_helper.to_array(tensor) for name, tensor in tensors.items() if math.prod(tensor.dims) <= 16}


def known_operation(node: NodeProto, source: Source, numbers: Mapping[str, np.ndarray]) -> Known | None:
    """The operation that a node is, if Relax would spread it over several or hide it in compiled code.

    Raises
    ------
    ModelError
        If no layer can compute it.
    """
    values, inputs = attributes(node), list(node.input)
    if node.op_type == "Clip":
        low = _number(inputs[1:2], numbers, values.get("min", -math.inf), source)
        high = _number(inputs[2:3], numbers, values.get("max", math.inf), source)
        return relax_images.clip(low, high, source), inputs[:1], {}
    if node.op_type == "Pad":
        return "pad", inputs[:1], _padding(values, inputs, numbers, source)
    if node.op_type == "LRN":
        defaults = {"alpha": 1e-4, "beta": 0.75, "bias": 1.0}
        return (
            "local_norm",
            inputs,
            {name: values.get(name, default) for name, default in defaults.items()} | {"size": values["size"]},
        )
    cut = cut_range(node, numbers)
    if cut is not None:
        return "slice", inputs[:1], cut
    if node.op_type == "Sum" and len(inputs) == 2:
        return "add", inputs, {}
    return None


def cut_range(node: NodeProto, numbers: Mapping[str, np.ndarray]) -> dict[str, int] | None:
    """What a Gather of one place, or a Slice of one axis without steps, cuts out: ``axis`` and ``begin``, as written.

    None for other nodes.
    """
    operands = [numbers.get(name) for name in node.input[1:]]
    if not operands or any(array is None or array.size != 1 for array in operands):
        return None
    values = [int(array.reshape(())) for array in operands if array is not None]
    if node.op_type == "Gather":
        return {"axis": attributes(node).get("axis", 0), "begin": values[0]}
    if node.op_type == "Slice" and len(values) >= 2 and values[3:] in ([], [1]):
        return {"axis": values[2] if len(values) > 2 else 0, "begin": values[0]}
    return None


def _number(names: list[str], numbers: Mapping[str, np.ndarray], default: float, source: Source) -> float:
    """The value of an optional operand."""
    if not names or not names[0]:
        return default
    if names[0] not in numbers:
        raise ModelError(f"{source} has the operand {names[0]!r}, which is no constant; make it one")
    return float(numbers[names[0]].reshape(()))


def _padding(
    values: Mapping[str, Any], inputs: list[str], numbers: Mapping[str, np.ndarray], source: Source
) -> dict[str, Any]:
    mode = values.get("mode", "constant")
    value = _number(inputs[2:3], numbers, values.get("value", 0.0), source)
    if mode != "constant" or value != 0:
        raise ModelError(f"{source} pads with other values than zeros; supported is padding with zeros")
    if len(inputs) > 1 and inputs[1] not in numbers:
        raise ModelError(f"{source} has the operand {inputs[1]!r}, which is no constant; make it one")
    pads = [int(number) for number in (numbers[inputs[1]] if len(inputs) > 1 else values["pads"])]
    half = len(pads) // 2
    before, after = pads[:half], pads[half:]
    if len(inputs) > 3 and inputs[3]:
        axes = [int(axis) % 4 for axis in numbers[inputs[3]]]
        before, after = (
            [dict(zip(axes, side, strict=True)).get(axis, 0) for axis in range(4)] for side in (before, after)
        )
    return relax_images.pad(before, after, source)


def resolve_automatic_padding(model: onnx.ModelProto) -> None:
    """Write the padding that ``auto_pad`` asks for into the nodes."""
    nodes = [node for node in model.graph.node if attributes(node).get("auto_pad", "NOTSET") != "NOTSET"]
    if not any(node.op_type in _WINDOWED for node in nodes):
        return
    shapes = _shapes(model)
    for node in nodes:
        if node.op_type in _WINDOWED:
            _resolve(node, shapes)


def _shapes(model: onnx.ModelProto) -> dict[str, list[int]]:
    inferred = onnx.shape_inference.infer_shapes(model).graph
    shapes = {
        value.name: [dimension.dim_value for dimension in value.type.tensor_type.shape.dim]
        for value in (*inferred.value_info, *inferred.input, *inferred.output)
    }
    return shapes | {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}


def check_resizing(model: onnx.ModelProto, source_of: Callable[[NodeProto], Source]) -> None:
    """Refuse what TVM's importer would silently get wrong: smoothing, and scales that give no whole pixels."""
    nodes = [node for node in model.graph.node if node.op_type == "Resize"]
    shapes, numbers = _shapes(model) if nodes else {}, small_constants(model.graph)
    for node in nodes:
        if attributes(node).get("antialias", 0):
            raise ModelError(f"{source_of(node)} smooths what it shrinks (antialias), which TVM cannot; leave it out")
        scales = numbers.get(node.input[2], np.ones(0)) if len(node.input) > 2 else np.ones(0)
        sizes = zip(shapes.get(node.input[0], []), scales.tolist(), strict=False)
        if any(abs(size * scale - round(size * scale)) > 1e-4 for size, scale in sizes):
            raise ModelError(f"{source_of(node)} scales to no whole number of pixels; give it sizes instead of scales")


def _resolve(node: NodeProto, shapes: Mapping[str, list[int]]) -> None:
    values = attributes(node)
    kernel = values.get("kernel_shape") or shapes[node.input[1]][2:]
    sizes = shapes[node.input[0]][2:]
    ones = [1] * len(kernel)
    pads: list[int] = [0] * len(kernel)
    if values["auto_pad"] != "VALID":
        windows = zip(sizes, kernel, values.get("strides", ones), values.get("dilations", ones), strict=True)
        pads = [max((-(-size // s) - 1) * s + d * (k - 1) + 1 - size, 0) for size, k, s, d in windows]
    smaller = [pad // 2 for pad in pads]
    larger = [pad - half for pad, half in zip(pads, smaller, strict=True)]
    before, after = (larger, smaller) if values["auto_pad"] == "SAME_LOWER" else (smaller, larger)
    kept = [attribute for attribute in node.attribute if attribute.name not in ("auto_pad", "pads")]
    del node.attribute[:]
    node.attribute.extend([*kept, onnx.helper.make_attribute("pads", [*before, *after])])
