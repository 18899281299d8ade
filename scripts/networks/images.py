"""Convolutional networks for images are chains of blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx

from .builder import NetworkBuilder, conv_bn_relu

ADDED = 0.3
"""Scale of what a residual block adds: with 1, activations would grow with every block."""


def _residual(b: NetworkBuilder, x: str, main: str, stride: int) -> str:
    """The sum of a block and what it reads, projected where their shapes differ."""
    if stride > 1 or b.channels[main] != b.channels[x]:
        x = b.batch_norm(b.conv(x, b.channels[main], 1, stride))
    return b.relu(b.add("Add", [main, x]))


def _basic_block(b: NetworkBuilder, x: str, channels: int, stride: int) -> str:
    hidden = conv_bn_relu(b, x, channels, 3, stride, 1)
    return _residual(b, x, b.batch_norm(b.conv(hidden, b.wide(channels), 3, 1, 1), ADDED), stride)


def _bottleneck(b: NetworkBuilder, x: str, channels: int, stride: int) -> str:
    hidden = conv_bn_relu(b, conv_bn_relu(b, x, channels, 1), channels, 3, stride, 1)
    return _residual(b, x, b.batch_norm(b.conv(hidden, 4 * b.wide(channels), 1), ADDED), stride)


def _resnet(
    name: str,
    block: Callable[[NetworkBuilder, str, int, int], str],
    repeats: Sequence[int],
    size: int,
    width: float,
    classes: int,
) -> onnx.ModelProto:
    b = NetworkBuilder.for_images(name, size, width)
    x = b.max_pool(conv_bn_relu(b, "input", 64, 7, 2, 3), 3, 2, 1)
    for stage, count in enumerate(repeats):
        for index in range(count):
            x = block(b, x, 64 * 2**stage, 2 if stage and not index else 1)
    return b.model(b.classifier(x, classes))


def resnet18(size: int = 224, width: float = 1.0, classes: int = 1000) -> onnx.ModelProto:
    """Make the network of He et al., 2016."""
    return _resnet("resnet18", _basic_block, (2, 2, 2, 2), size, width, classes)


def resnet50(size: int = 224, width: float = 1.0, classes: int = 1000) -> onnx.ModelProto:
    """Make the network of He et al., 2016, with the stride in the 3×3 convolutions."""
    return _resnet("resnet50", _bottleneck, (3, 4, 6, 3), size, width, classes)


def vgg16(size: int = 224, width: float = 1.0, classes: int = 1000) -> onnx.ModelProto:
    """Make the network of Simonyan and Zisserman, 2015, configuration D."""
    b = NetworkBuilder.for_images("vgg16", size, width)
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
    """Make the network of Sandler et al., 2018, table 2."""
    b = NetworkBuilder.for_images("mobilenet_v2", size, width)
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
    """Make the network of Iandola et al., 2016, version 1.1."""
    b = NetworkBuilder.for_images("squeezenet", size, width)
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
