"""What network definitions are written with: ONNX nodes by name, and random weights that keep activations near 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
"""The first that has LayerNormalization."""
Extent = int | tuple[int, int]


class NetworkBuilder:
    """Collects nodes; every method gives the name of the value that it adds.

    Parameters
    ----------
    shape
        Shape of the only input, ``input``.
    width
        Factor on the published numbers of channels.
    dtype
        Type of the input, as ONNX numbers them.
    """

    def __init__(
        self,
        name: str,
        shape: Sequence[int],
        width: float = 1.0,
        dtype: int = TensorProto.FLOAT,
        seed: int = 0,
    ) -> None:
        self.name, self.width = name, width
        self.random = np.random.default_rng(seed)
        self.input = helper.make_tensor_value_info("input", dtype, shape)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.channels = {"input": shape[1]}

    @classmethod
    def for_images(cls, name: str, size: int, width: float) -> NetworkBuilder:
        """A network that reads one square image of three channels."""
        return cls(name, (1, 3, size, size), width)

    def wide(self, channels: int) -> int:
        """Scale a published number of channels."""
        return max(round(channels * self.width), 1)

    def normal(self, shape: Sequence[int], deviation: float) -> np.ndarray:
        return self.random.standard_normal(shape, np.float32) * np.float32(deviation)

    def constant(self, array: np.ndarray) -> str:
        return self._store(array.astype(np.float32, copy=False))

    def integers(self, *values: int) -> str:
        """Add a constant vector such as a shape."""
        return self._store(np.array(values, np.int64))

    def integer(self, value: int) -> str:
        """Add a constant without axes, such as an index."""
        return self._store(np.array(value, np.int64))

    def _store(self, array: np.ndarray) -> str:
        name = f"constant{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def add(self, op: str, inputs: Sequence[str], channels: int | None = None, **attributes: Any) -> str:
        """Add a node; ``channels`` are those of its first input if left out."""
        name = f"{op.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], name=name, **attributes))
        self.channels[name] = self.channels[inputs[0]] if channels is None else channels
        return name

    def conv(
        self,
        x: str,
        channels: int,
        kernel: Extent,
        stride: int = 1,
        padding: Extent = 0,
        groups: int = 1,
        bias: bool = False,
    ) -> str:
        """A convolution to so many channels, which are not scaled."""
        kernel, padding = _pair(kernel), _pair(padding)
        taps = self.channels[x] // groups * kernel[0] * kernel[1]
        weights = self.normal((channels, self.channels[x] // groups, *kernel), np.sqrt(2 / taps))
        inputs = [x, self.constant(weights)]
        if bias:
            inputs.append(self.constant(self.normal((channels,), 0.1)))
        return self.add(
            "Conv",
            inputs,
            channels,
            kernel_shape=kernel,
            strides=(stride, stride),
            pads=(*padding, *padding),
            group=groups,
        )

    def batch_norm(self, x: str, scale: float = 1.0, epsilon: float = 1e-5) -> str:
        """Statistics and parameters that are no identity; ``scale`` shrinks what a residual block adds."""
        channels = self.channels[x]
        low, high = (0.6, 0.0, -0.2, 0.6), (1.2, 0.3, 0.2, 1.4)  # scale, shift, mean, variance
        vectors = [self.random.uniform(*bounds, channels) for bounds in zip(low, high, strict=True)]
        vectors[0] *= scale
        return self.add("BatchNormalization", [x, *map(self.constant, vectors)], epsilon=epsilon)

    def relu(self, x: str) -> str:
        return self.add("Relu", [x])

    def relu6(self, x: str) -> str:
        return self.add("Clip", [x, self.constant(np.array(0.0)), self.constant(np.array(6.0))])

    def max_pool(self, x: str, kernel: int, stride: int, padding: int = 0, **attributes: Any) -> str:
        return self._pool("MaxPool", x, kernel, stride, padding, **attributes)

    def average_pool(self, x: str, kernel: int, stride: int, padding: int = 0, **attributes: Any) -> str:
        return self._pool("AveragePool", x, kernel, stride, padding, **attributes)

    def _pool(self, op: str, x: str, kernel: int, stride: int, padding: int, **attributes: Any) -> str:
        return self.add(op, [x], kernel_shape=_pair(kernel), strides=_pair(stride), pads=[padding] * 4, **attributes)

    def concat(self, *branches: str) -> str:
        return self.add("Concat", branches, sum(self.channels[branch] for branch in branches), axis=1)

    def linear(self, x: str, k: int, n: int) -> str:
        weights = self.normal((n, k), np.sqrt(2 / k))
        bias = self.normal((n,), 0.1)
        return self.add("Gemm", [x, self.constant(weights), self.constant(bias)], n, transB=1)

    def classifier(self, x: str, classes: int) -> str:
        """Add global average pooling and one linear layer."""
        flat = self.add("Flatten", [self.add("GlobalAveragePool", [x])])
        return self.linear(flat, self.channels[x], classes)

    def model(self, output: str) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes, self.name, [self.input], [onnx.ValueInfoProto(name=output)], self.constants
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
        return onnx.shape_inference.infer_shapes(model)


def _pair(value: Extent) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value


def conv_bn_relu(b: NetworkBuilder, x: str, channels: int, kernel: Extent, stride: int = 1, padding: Extent = 0) -> str:
    """Add a convolution without bias, its channels scaled by the network's width, and normalise its result."""
    return b.relu(b.batch_norm(b.conv(x, b.wide(channels), kernel, stride, padding)))
