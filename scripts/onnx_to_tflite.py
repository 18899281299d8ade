"""Networks as TFLite files: batch normalisation folded, activations fused, channels last.

Networks are read by tvm_coexec's own front end, whose graphs have that form already.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tflite_encoders
from ai_edge_litert import schema_py_generated as schema
from tflite_writer import Writer

from tvm_coexec.frontends import to_graph
from tvm_coexec.graph import Graph, Node
from tvm_coexec.layers import AnyLayer, Attention, Concat, Conv2d, Linear, Opaque, PlaceRows, Pool, RowWise

FUSED = {"relu": schema.ActivationFunctionType.RELU, "relu6": schema.ActivationFunctionType.RELU6}
"""Activations that are part of another operator."""

NOT_FUSED = {"relu": "RELU", "relu6": "RELU6", "sigmoid": "LOGISTIC", "hard_swish": "HARD_SWISH"}
"""Operators that compute nothing but an activation."""

GELU = {"gelu": False, "gelu_tanh": True}
"""Whether a GELU is approximate."""


class UnsupportedError(Exception):
    """A layer has no counterpart here."""


class _Conversion:
    """One graph on its way."""

    def __init__(self, graph: Graph) -> None:
        self.graph, self.writer = graph, Writer()
        self.numbers = {
            name: self.writer.tensor(name, self._shape(name), graph.tensors[name].dtype) for name in graph.inputs
        }
        self.projections: dict[str, Node] = {}
        self.not_negative: set[str] = set()
        for node in graph.nodes:
            if self._is_projection(node):
                self.projections[node.output] = node
                continue
            self._convert(node)
            for parent in graph.parents(node.output):
                self._join(parent, graph.slices(parent))

    def finish(self) -> bytes:
        """Give the file; outputs that are no images have the axes that the model's user sees."""
        outputs = []
        for tensor in map(self.graph.tensors.__getitem__, self.graph.outputs):
            number = self.numbers[tensor.name]
            outputs.append(number if tensor.image else self.writer.reshaped(number, tensor.shape))
        return self.writer.finish([self.numbers[name] for name in self.graph.inputs], outputs)

    def _shape(self, name: str) -> Sequence[int]:
        tensor = self.graph.tensors[name]
        return tensor.image or (tensor.rows, tensor.channels)

    def _is_projection(self, node: Node) -> bool:
        """Whether a linear layer makes nothing but operands of one attention, which then writes it, part by part."""
        readers = self.graph.consumers(node.output)
        return (
            isinstance(node.layer, Linear)
            and node.layer.epilogue in ((), ("bias",))
            and [type(reader.layer) for reader in readers] == [Attention]
            and node.output not in (*readers[0].others[2:], *self.graph.outputs)
        )

    def _convert(self, node: Node) -> None:
        steps = list(node.layer.epilogue)
        result = self._computed(node, steps)
        while steps:
            result = self._step(node, steps, result)
        self.numbers[node.output] = result
        if node.layer.epilogue:
            is_not_negative = node.layer.epilogue[-1] in FUSED
        else:
            keeps_signs = isinstance(node.layer, Concat | Pool)
            is_not_negative = keeps_signs and self.not_negative.issuperset((node.input, *node.others))
        if is_not_negative:
            self.not_negative.add(node.output)

    def _computed(self, node: Node, steps: list[str]) -> int:
        """The result of a layer, with those of the steps that follow it that are part of the operator."""
        layer = node.layer
        match layer:
            case Conv2d() | Linear():
                bias = node.params["bias"] if steps[:1] == ["bias"] else _no_bias(layer)
                del steps[: steps[:1] == ["bias"]]
                if isinstance(layer, Conv2d):
                    result = self._conv2d(node, layer, bias, _fused(steps))
                else:
                    result = self._linear(self.numbers[node.input], node.params["weights"], bias, _fused(steps))
            case Pool():
                result = self._pool(node, layer, _fused(steps))
            case Concat():
                result = self._concatenated((node.input, *node.others), node.output)
            case RowWise():
                result = tflite_encoders.rowwise(self.writer, layer, self.numbers[node.input], node.params)
            case PlaceRows():
                result = tflite_encoders.place(self.writer, layer, self.numbers[node.input], node.params)
            case Attention():
                result = self._attention(node, layer)
            case Opaque(operator="Gather"):
                result = self._gather(node, layer)
            case _:
                name = layer.operator if isinstance(layer, Opaque) else layer.op
                raise UnsupportedError(f"{node.name} is a {name} layer")
        return result

    def _step(self, node: Node, steps: list[str], value: int) -> int:
        """The value after the next step of an epilogue, which is taken from the steps."""
        step, shape = steps.pop(0), self.writer.shape(value)
        if step == "bias":
            return self._sum(value, self.writer.constant(node.params["bias"]), steps)
        if step == "residual" and node.residual is not None:
            return self._sum(value, self.numbers[node.residual], steps)
        if step in GELU:
            return self.writer.add("GELU", [value], shape, "Gelu", approximate=GELU[step])
        if step in NOT_FUSED:
            return self.writer.add(NOT_FUSED[step], [value], shape)
        raise UnsupportedError(f"{node.name} has the activation {step}")

    def _sum(self, value: int, summand: int, steps: list[str]) -> int:
        shape, activation = self.writer.shape(value), _fused(steps)
        return self.writer.add("ADD", [value, summand], shape, "Add", fusedActivationFunction=activation)

    def _join(self, parent: str, slices: Sequence[str]) -> None:
        """Concatenate the parts of an image once there are all."""
        if self.numbers.keys() >= set(slices):
            self.numbers[parent] = self._concatenated(slices, parent)
            if self.not_negative.issuperset(slices):
                self.not_negative.add(parent)

    def _concatenated(self, slices: Sequence[str], parent: str) -> int:
        inputs = [self.numbers[name] for name in slices]
        return self.writer.add("CONCATENATION", inputs, self._shape(parent), "Concatenation", axis=3)

    def _linear(self, source: int, weights: np.ndarray, bias: np.ndarray, activation: int) -> int:
        inputs = [source, self.writer.constant(weights.T), self.writer.constant(bias)]
        shape = (int(np.prod(self.writer.shape(source))) // weights.shape[0], weights.shape[1])
        return self.writer.add("FULLY_CONNECTED", inputs, shape, "FullyConnected", fusedActivationFunction=activation)

    def _attention(self, node: Node, layer: Attention) -> int:
        names = (node.input, *node.others)
        mask = self.writer.constant(node.params["mask"]) if layer.mask == "constant" else None
        if layer.mask == "input":
            mask = self.numbers[names[3]]
        scales = (layer.scale, 1.0, 1.0)
        operands = [self._operand(layer, *of) for of in zip(names, layer.offsets, scales, strict=False)]
        return tflite_encoders.attention(self.writer, layer, operands, mask)

    def _operand(self, layer: Attention, name: str, first: int, scale: float) -> int:
        """Columns of a tensor, scaled; of a projection, they alone are computed, with scaled weights."""
        factor, columns = np.float32(scale), slice(first, first + layer.out_channels)
        if name in self.projections:
            node = self.projections[name]
            weights = node.params["weights"][:, columns] * factor
            bias = node.params["bias"][columns] * factor if "bias" in node.params else _no_bias(node.layer)[columns]
            return self._linear(self.numbers[node.input], weights, bias, _fused([]))
        operand = self.writer.sliced(self.numbers[name], 1, first, layer.out_channels)
        if scale == 1:
            return operand
        inputs = [operand, self.writer.constant(factor.reshape(1))]
        return self.writer.add("MUL", inputs, self.writer.shape(operand), "Mul")

    def _gather(self, node: Node, layer: Opaque) -> int:
        """Gather rows of a table by their numbers.

        The front end wraps numbers that count from the table's end, in layers of the same operator. TFLite refuses such
        numbers when it meets them, and no text has them: the wrapping is left out.
        """
        numbers = self.numbers[node.input]
        if layer.output.dtype != "float32" and not node.params and len(layer.inputs) != 2:
            return numbers
        tables = [table for table in node.params.values() if table.ndim == 2 and table.dtype == np.float32]
        if len(layer.inputs) != 1 or not tables or layer.output.shape != (*layer.inputs[0].shape, tables[0].shape[1]):
            raise UnsupportedError(f"{node.name} is a {layer.operator} layer of other than a table's rows")
        inputs = [self.writer.constant(tables[0]), numbers]
        rows = self.writer.add("GATHER", inputs, layer.output.shape, "Gather", axis=0)
        return self.writer.reshaped(rows, self._shape(node.output))

    def _conv2d(self, node: Node, layer: Conv2d, bias: np.ndarray, activation: int) -> int:
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
        inputs = [source, self.writer.constant(weights), self.writer.constant(bias)]
        kind = ("DEPTHWISE_CONV_2D", "DepthwiseConv2D") if depthwise else ("CONV_2D", "Conv2D")
        return self.writer.add(kind[0], inputs, self._shape(node.output), kind[1], **options)

    def _pool(self, node: Node, layer: Pool, activation: int) -> int:
        zero_pads = layer.count_padding if layer.kind == "average" else node.input in self.not_negative
        padding, source = self._padded(node, layer, zero_pads, same_counts=layer.kind == "average")
        operator = "AVERAGE_POOL_2D" if layer.kind == "average" else "MAX_POOL_2D"
        options = {"padding": padding, "fusedActivationFunction": activation}
        options |= {"strideH": layer.stride[0], "strideW": layer.stride[1]}
        options |= {"filterHeight": layer.kernel[0], "filterWidth": layer.kernel[1]}
        return self.writer.add(operator, [source], self._shape(node.output), "Pool2D", **options)

    def _padded(
        self, node: Node, layer: Conv2d | Pool, zero_pads: bool = True, same_counts: bool = False
    ) -> tuple[int, int]:
        """Give the kind of padding, and what to read: the input, or the input with zeros around it."""
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
        shape = (batch, height + top + bottom, width + left + right, channels)
        amounts = self.writer.integers([[0, 0], [top, bottom], [left, right], [0, 0]])
        padded = self.writer.add("PAD", [source, amounts], shape, "Pad")
        return schema.Padding.VALID, padded


def _no_bias(layer: AnyLayer) -> np.ndarray:
    return np.zeros(layer.out_channels, np.float32)


def _fused(steps: list[str]) -> int:
    """The activation that is the next step, which is taken from the steps, or none."""
    return FUSED[steps.pop(0)] if steps and steps[0] in FUSED else schema.ActivationFunctionType.NONE


def convert(path: Path) -> bytes:
    """Convert an ONNX file to a TFLite file.

    Raises
    ------
    UnsupportedError
        A layer has no counterpart here; it is named.
    """
    graph = to_graph(path)
    return _Conversion(graph).finish()
