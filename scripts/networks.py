"""The networks that comparisons measure, as ONNX models: the published topologies with random weights.

Weights are scaled so that activations stay near 1, and batch normalisation has statistics that change something.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
Extent = int | tuple[int, int]


class NetworkBuilder:
    """Collects nodes; every method gives the name of the value that it adds.

    Parameters
    ----------
    width
        Factor on the published numbers of channels.
    """

    def __init__(self, name: str, size: int, width: float = 1.0, seed: int = 0) -> None:
        self.name, self.width = name, width
        self.random = np.random.default_rng(seed)
        self.input = helper.make_tensor_value_info("input", TensorProto.FLOAT, (1, 3, size, size))
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.channels = {"input": 3}

    def wide(self, channels: int) -> int:
        """A published number of channels, scaled."""
        return max(round(channels * self.width), 1)

    def constant(self, array: np.ndarray) -> str:
        name = f"constant{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(array.astype(np.float32), name))
        return name

    def add(self, op: str, inputs: Sequence[str], channels: int | None = None, **attributes: Any) -> str:
        """A node; ``channels`` are those of its first input if left out."""
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
        weights = self.random.standard_normal((channels, self.channels[x] // groups, *kernel)) * np.sqrt(2 / taps)
        inputs = [x, self.constant(weights)]
        if bias:
            inputs.append(self.constant(self.random.standard_normal(channels) * 0.1))
        return self.add(
            "Conv",
            inputs,
            channels,
            kernel_shape=kernel,
            strides=(stride, stride),
            pads=(*padding, *padding),
            group=groups,
        )

    def batch_norm(self, x: str, epsilon: float = 1e-5) -> str:
        channels = self.channels[x]
        low, high = (0.6, 0.0, -0.2, 0.6), (1.2, 0.3, 0.2, 1.4)  # scale, shift, mean, variance
        vectors = [self.random.uniform(*bounds, channels) for bounds in zip(low, high, strict=True)]
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
        weights = self.random.standard_normal((n, k)) * np.sqrt(2 / k)
        bias = self.random.standard_normal(n) * 0.1
        return self.add("Gemm", [x, self.constant(weights), self.constant(bias)], n, transB=1)

    def classifier(self, x: str, classes: int) -> str:
        """Global average pooling and one linear layer."""
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


def _conv_bn_relu(
    b: NetworkBuilder, x: str, channels: int, kernel: Extent, stride: int = 1, padding: Extent = 0
) -> str:
    return b.relu(b.batch_norm(b.conv(x, b.wide(channels), kernel, stride, padding)))


def _residual(b: NetworkBuilder, x: str, main: str, stride: int) -> str:
    """The sum of a block and what it reads, projected where their shapes differ."""
    if stride > 1 or b.channels[main] != b.channels[x]:
        x = b.batch_norm(b.conv(x, b.channels[main], 1, stride))
    return b.relu(b.add("Add", [main, x]))


def _basic_block(b: NetworkBuilder, x: str, channels: int, stride: int) -> str:
    hidden = _conv_bn_relu(b, x, channels, 3, stride, 1)
    return _residual(b, x, b.batch_norm(b.conv(hidden, b.wide(channels), 3, 1, 1)), stride)


def _bottleneck(b: NetworkBuilder, x: str, channels: int, stride: int) -> str:
    hidden = _conv_bn_relu(b, _conv_bn_relu(b, x, channels, 1), channels, 3, stride, 1)
    return _residual(b, x, b.batch_norm(b.conv(hidden, 4 * b.wide(channels), 1)), stride)


def _resnet(
    name: str,
    block: Callable[[NetworkBuilder, str, int, int], str],
    repeats: Sequence[int],
    size: int,
    width: float,
    classes: int,
) -> onnx.ModelProto:
    b = NetworkBuilder(name, size, width)
    x = b.max_pool(_conv_bn_relu(b, "input", 64, 7, 2, 3), 3, 2, 1)
    for stage, count in enumerate(repeats):
        for index in range(count):
            x = block(b, x, 64 * 2**stage, 2 if stage and not index else 1)
    return b.model(b.classifier(x, classes))


def resnet18(size: int = 224, width: float = 1.0, classes: int = 1000) -> onnx.ModelProto:
    """He et al., 2016."""
    return _resnet("resnet18", _basic_block, (2, 2, 2, 2), size, width, classes)


def resnet50(size: int = 224, width: float = 1.0, classes: int = 1000) -> onnx.ModelProto:
    """He et al., 2016, with the stride in the 3×3 convolutions."""
    return _resnet("resnet50", _bottleneck, (3, 4, 6, 3), size, width, classes)


def vgg16(size: int = 224, width: float = 1.0, classes: int = 1000) -> onnx.ModelProto:
    """Simonyan and Zisserman, 2015, configuration D."""
    b = NetworkBuilder("vgg16", size, width)
    x = "input"
    for channels, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(count):
            x = b.relu(b.conv(x, b.wide(channels), 3, padding=1, bias=True))
        x = b.max_pool(x, 2, 2)
    pixels = (size // 32) ** 2
    hidden = b.wide(4096)
    flat = b.add("Flatten", [x])
    flat = b.relu(b.linear(flat, b.channels[x] * pixels, hidden))
    flat = b.relu(b.linear(b.add("Dropout", [flat]), hidden, hidden))
    return b.model(b.linear(b.add("Dropout", [flat]), hidden, classes))


def mobilenet_v2(size: int = 224, width: float = 1.0, classes: int = 1000) -> onnx.ModelProto:
    """Sandler et al., 2018, table 2."""
    b = NetworkBuilder("mobilenet_v2", size, width)
    x = b.relu6(b.batch_norm(b.conv("input", b.wide(32), 3, 2, 1)))
    stages = (
        (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
    )  # fmt: skip
    for expansion, channels, count, stride in stages:
        for index in range(count):
            x = _inverted_residual(b, x, expansion, b.wide(channels), 1 if index else stride)
    return b.model(b.classifier(b.relu6(b.batch_norm(b.conv(x, b.wide(1280), 1))), classes))


def _inverted_residual(b: NetworkBuilder, x: str, expansion: int, channels: int, stride: int) -> str:
    hidden, width = x, b.channels[x] * expansion
    if expansion > 1:
        hidden = b.relu6(b.batch_norm(b.conv(x, width, 1)))
    hidden = b.relu6(b.batch_norm(b.conv(hidden, width, 3, stride, 1, groups=width)))
    hidden = b.batch_norm(b.conv(hidden, channels, 1))
    return b.add("Add", [x, hidden]) if stride == 1 and b.channels[x] == channels else hidden


def squeezenet(size: int = 224, width: float = 1.0, classes: int = 1000) -> onnx.ModelProto:
    """Iandola et al., 2016, version 1.1."""
    b = NetworkBuilder("squeezenet", size, width)
    x = b.relu(b.conv("input", b.wide(64), 3, 2, bias=True))
    for squeeze, expand, pooled in (
        (16, 64, True), (16, 64, False), (32, 128, True), (32, 128, False),
        (48, 192, True), (48, 192, False), (64, 256, False), (64, 256, False),
    ):  # fmt: skip
        x = b.max_pool(x, 3, 2, ceil_mode=1) if pooled else x
        squeezed = b.relu(b.conv(x, b.wide(squeeze), 1, bias=True))
        branches = [b.relu(b.conv(squeezed, b.wide(expand), k, padding=k // 2, bias=True)) for k in (1, 3)]
        x = b.concat(*branches)
    scores = b.relu(b.conv(b.add("Dropout", [x]), classes, 1, bias=True))
    return b.model(b.add("Flatten", [b.add("GlobalAveragePool", [scores])]))


def inception_v3(size: int = 299, width: float = 1.0, classes: int = 1000) -> onnx.ModelProto:
    """Szegedy et al., 2016, without the auxiliary classifier."""
    b = NetworkBuilder("inception_v3", size, width)
    x = _conv_bn_relu(b, _conv_bn_relu(b, "input", 32, 3, 2), 32, 3)
    x = b.max_pool(_conv_bn_relu(b, x, 64, 3, 1, 1), 3, 2)
    x = b.max_pool(_conv_bn_relu(b, _conv_bn_relu(b, x, 80, 1), 192, 3), 3, 2)
    for pooled in (32, 64, 64):
        x = _inception_a(b, x, pooled)
    x = _chains(b, x, [(384, 3, 2, 0)], [(64, 1, 1, 0), (96, 3, 1, 1), (96, 3, 2, 0)], pool=b.max_pool(x, 3, 2))
    for channels in (128, 160, 160, 192):
        x = _inception_b(b, x, channels)
    reduced = [(192, 1, 1, 0), (192, (1, 7), 1, (0, 3)), (192, (7, 1), 1, (3, 0)), (192, 3, 2, 0)]
    x = _chains(b, x, [(192, 1, 1, 0), (320, 3, 2, 0)], reduced, pool=b.max_pool(x, 3, 2))
    for _ in range(2):
        x = _inception_c(b, x)
    return b.model(b.classifier(x, classes))


Step = tuple[int, Extent, int, Extent]
"""Channels, kernel, stride and padding of one convolution."""


def _chain(b: NetworkBuilder, x: str, steps: Sequence[Step]) -> str:
    for channels, kernel, stride, padding in steps:
        x = _conv_bn_relu(b, x, channels, kernel, stride, padding)
    return x


def _chains(b: NetworkBuilder, x: str, *chains: Sequence[Step], pool: str) -> str:
    return b.concat(*(_chain(b, x, chain) for chain in chains), pool)


def _pooled(b: NetworkBuilder, x: str, channels: int) -> str:
    return _conv_bn_relu(b, b.average_pool(x, 3, 1, 1, count_include_pad=1), channels, 1)


def _inception_a(b: NetworkBuilder, x: str, pooled: int) -> str:
    five = [(48, 1, 1, 0), (64, 5, 1, 2)]
    threes = [(64, 1, 1, 0), (96, 3, 1, 1), (96, 3, 1, 1)]
    return _chains(b, x, [(64, 1, 1, 0)], five, threes, pool=_pooled(b, x, pooled))


def _inception_b(b: NetworkBuilder, x: str, channels: int) -> str:
    def row(n: int) -> Step:
        return n, (1, 7), 1, (0, 3)

    def column(n: int) -> Step:
        return n, (7, 1), 1, (3, 0)

    first: Step = (channels, 1, 1, 0)
    short = [first, row(channels), column(192)]
    long = [first, column(channels), row(channels), column(channels), row(192)]
    return _chains(b, x, [(192, 1, 1, 0)], short, long, pool=_pooled(b, x, 192))


def _inception_c(b: NetworkBuilder, x: str) -> str:
    def both(hidden: str) -> list[str]:
        return [_conv_bn_relu(b, hidden, 384, (1, 3), 1, (0, 1)), _conv_bn_relu(b, hidden, 384, (3, 1), 1, (1, 0))]

    one = _conv_bn_relu(b, x, 320, 1)
    short = both(_conv_bn_relu(b, x, 384, 1))
    long = both(_chain(b, x, [(448, 1, 1, 0), (384, 3, 1, 1)]))
    return b.concat(one, b.concat(*short), b.concat(*long), _pooled(b, x, 192))


NETWORKS: dict[str, Callable[..., onnx.ModelProto]] = {
    "resnet18": resnet18,
    "resnet50": resnet50,
    "vgg16": vgg16,
    "mobilenet_v2": mobilenet_v2,
    "squeezenet": squeezenet,
    "inception_v3": inception_v3,
}
"""Networks by name; each takes ``size``, ``width`` and ``classes``."""
