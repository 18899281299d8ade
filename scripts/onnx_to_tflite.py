"""Convolutional networks as TFLite files: batch normalisation folded, activations fused, channels last.

Networks are read by tvm_coexec's own front end, whose graphs have that form already.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tvm_coexec.frontends import to_graph
from tvm_coexec.graph import Graph, Node
from tvm_coexec.layers import Concat, Conv2d, Linear, Pool

ACTIVATIONS = {"relu": schema.ActivationFunctionType.RELU, "relu6": schema.ActivationFunctionType.RELU6}


class UnsupportedError(Exception):
    """A layer has no counterpart here."""


class _Writer:
    """Collects tensors and operators; tensors are known by number."""

    def __init__(self) -> None:
        self.buffers, self.tensors, self.operators = [schema.BufferT()], [], []
        self.codes: list[int] = []

    def tensor(self, name: str, shape: Sequence[int], constant: np.ndarray | None = None) -> int:
        tensor = schema.TensorT()
        tensor.name, tensor.shape = name, list(shape)
        if constant is not None:
            tensor.type = schema.TensorType.INT32 if constant.dtype == np.int32 else schema.TensorType.FLOAT32
            tensor.buffer = len(self.buffers)
            self.buffers.append(schema.BufferT())
            self.buffers[-1].data = np.ascontiguousarray(constant).view(np.uint8).reshape(-1)
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def constant(self, array: np.ndarray) -> int:
        return self.tensor(f"constant{len(self.tensors)}", array.shape, array)

    def add(self, operator: str, inputs: Sequence[int], output: int, options: str, **values: Any) -> None:
        """An operator, with options of the type ``<options>Options``."""
        code = getattr(schema.BuiltinOperator, operator)
        if code not in self.codes:
            self.codes.append(code)
        added = schema.OperatorT()
        added.opcodeIndex, added.inputs, added.outputs = self.codes.index(code), list(inputs), [output]
        added.builtinOptionsType = getattr(schema.BuiltinOptions, f"{options}Options")
        added.builtinOptions = getattr(schema, f"{options}OptionsT")()
        for name, value in values.items():
            setattr(added.builtinOptions, name, value)
        self.operators.append(added)

    def finish(self, inputs: Sequence[int], outputs: Sequence[int]) -> bytes:
        graph, model = schema.SubGraphT(), schema.ModelT()
        graph.tensors, graph.operators, graph.inputs, graph.outputs = self.tensors, self.operators, inputs, outputs
        model.version, model.subgraphs, model.buffers, model.operatorCodes = 3, [graph], self.buffers, []
        for code in self.codes:
            entry = schema.OperatorCodeT()
            entry.builtinCode, entry.deprecatedBuiltinCode = code, min(code, 127)
            model.operatorCodes.append(entry)
        builder = flatbuffers.Builder(1024)
        builder.Finish(model.Pack(builder), b"TFL3")
        return bytes(builder.Output())


class _Conversion:
    """One graph on its way."""

    def __init__(self, graph: Graph) -> None:
        self.graph, self.writer = graph, _Writer()
        self.numbers = {name: self.writer.tensor(name, self._shape(name)) for name in graph.inputs}
        self.not_negative: set[str] = set()
        for node in graph.nodes:
            self._convert(node)
            for whole in graph.wholes(node.output):
                self._join(whole, graph.parts(whole))

    def _shape(self, name: str) -> Sequence[int]:
        tensor = self.graph.tensors[name]
        return tensor.image or (tensor.rows, tensor.channels)

    def _convert(self, node: Node) -> None:
        layer, steps = node.layer, [step for step in node.layer.epilogue if step != "bias"]
        fused = ACTIVATIONS[steps.pop()] if steps and steps[-1] in ACTIVATIONS else 0
        residual = bool(steps) and steps.pop() == "residual"
        if steps:
            raise UnsupportedError(f"{node.name} has the activation {steps[-1]}")
        output = self.writer.tensor(node.output, self._shape(node.output))
        result = self.writer.tensor(f"{node.output}.sum", self._shape(node.output)) if residual else output
        activation = 0 if residual else fused
        if isinstance(layer, Conv2d):
            self._conv2d(node, layer, result, activation)
        elif isinstance(layer, Linear):
            weights = self.writer.constant(np.ascontiguousarray(node.params["weights"].T))
            inputs = [self.numbers[node.input], weights, self._bias(node, layer.n)]
            self.writer.add("FULLY_CONNECTED", inputs, result, "FullyConnected", fusedActivationFunction=activation)
        elif isinstance(layer, Pool):
            self._pool(node, layer, result, activation)
        elif isinstance(layer, Concat):
            inputs = [self.numbers[name] for name in (node.input, *node.others)]
            self.writer.add("CONCATENATION", inputs, result, "Concatenation", axis=3)
        else:
            raise UnsupportedError(f"{node.name} is a {layer.op} layer")
        if residual and node.residual is not None:
            inputs = [result, self.numbers[node.residual]]
            self.writer.add("ADD", inputs, output, "Add", fusedActivationFunction=fused)
        self.numbers[node.output] = output
        if fused or (isinstance(layer, Concat | Pool) and self.not_negative.issuperset((node.input, *node.others))):
            self.not_negative.add(node.output)

    def _join(self, whole: str, parts: Sequence[str]) -> None:
        """Concatenate the parts of an image once there are all."""
        if self.numbers.keys() >= set(parts):
            self.numbers[whole] = self.writer.tensor(whole, self._shape(whole))
            inputs = [self.numbers[name] for name in parts]
            self.writer.add("CONCATENATION", inputs, self.numbers[whole], "Concatenation", axis=3)
            if self.not_negative.issuperset(parts):
                self.not_negative.add(whole)

    def _bias(self, node: Node, channels: int) -> int:
        return self.writer.constant(node.params.get("bias", np.zeros(channels, np.float32)))

    def _conv2d(self, node: Node, layer: Conv2d, result: int, activation: int) -> None:
        weights = node.params["weights"].transpose(0, 2, 3, 1)
        depthwise = layer.groups == layer.in_channels == layer.out_channels and layer.groups > 1
        if layer.groups > 1 and not depthwise:
            raise UnsupportedError(f"{node.name} has {layer.groups} groups")
        padding, source = self._padded(node, layer)
        options: dict[str, Any] = {"padding": padding, "fusedActivationFunction": activation}
        options |= {"strideH": layer.stride[0], "strideW": layer.stride[1]}
        options |= {"dilationHFactor": layer.dilation[0], "dilationWFactor": layer.dilation[1]}
        if depthwise:
            weights = weights.transpose(3, 1, 2, 0)
            options["depthMultiplier"] = 1
        inputs = [source, self.writer.constant(np.ascontiguousarray(weights)), self._bias(node, layer.out_channels)]
        kind = ("DEPTHWISE_CONV_2D", "DepthwiseConv2D") if depthwise else ("CONV_2D", "Conv2D")
        self.writer.add(kind[0], inputs, result, kind[1], **options)

    def _pool(self, node: Node, layer: Pool, result: int, activation: int) -> None:
        zero_pads = layer.count_padding if layer.kind == "average" else node.input in self.not_negative
        padding, source = self._padded(node, layer, zero_pads, same_counts=layer.kind == "average")
        operator = "AVERAGE_POOL_2D" if layer.kind == "average" else "MAX_POOL_2D"
        options = {"padding": padding, "fusedActivationFunction": activation}
        options |= {"strideH": layer.stride[0], "strideW": layer.stride[1]}
        options |= {"filterHeight": layer.kernel[0], "filterWidth": layer.kernel[1]}
        self.writer.add(operator, [source], result, "Pool2D", **options)

    def _padded(
        self, node: Node, layer: Conv2d | Pool, zero_pads: bool = True, same_counts: bool = False
    ) -> tuple[int, int]:
        """The kind of padding, and what to read: the input, or the input with zeros around it."""
        source = self.numbers[node.input]
        if not any(layer.padding):
            return schema.Padding.VALID, source
        around = []
        for axis, size in enumerate((layer.h, layer.w)):
            reach = layer.dilation[axis] * (layer.kernel[axis] - 1) + 1
            total = max((-(-size // layer.stride[axis]) - 1) * layer.stride[axis] + reach - size, 0)
            around.append((total // 2, total - total // 2))
        if tuple(layer.padding) == (*(a for a, _ in around), *(b for _, b in around)) and not (
            same_counts and zero_pads
        ):
            return schema.Padding.SAME, source
        if not zero_pads:
            raise UnsupportedError(f"{node.name} pads with what is not zero")
        top, left, bottom, right = layer.padding
        batch, height, width, channels = self._shape(node.input)
        padded = self.writer.tensor(
            f"{node.output}.padded", (batch, height + top + bottom, width + left + right, channels)
        )
        amounts = self.writer.constant(np.array([[0, 0], [top, bottom], [left, right], [0, 0]], np.int32))
        self.writer.add("PAD", [source, amounts], padded, "Pad")
        return schema.Padding.VALID, padded


def convert(path: Path) -> bytes:
    """The TFLite file of an ONNX file.

    Raises
    ------
    UnsupportedError
        A layer has no counterpart here; it is named.
    """
    graph = to_graph(path)
    conversion = _Conversion(graph)
    numbers = conversion.numbers
    return conversion.writer.finish([numbers[n] for n in graph.inputs], [numbers[n] for n in graph.outputs])
