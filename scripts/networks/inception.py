"""Inception-v3 consists of blocks of parallel chains of convolutions."""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from .builder import Extent, NetworkBuilder, conv_bn_relu


def inception_v3(size: int = 299, width: float = 1.0, classes: int = 1000) -> onnx.ModelProto:
    """Make the network of Szegedy et al., 2016, without the auxiliary classifier."""
    b = NetworkBuilder.for_images("inception_v3", size, width)
    x = conv_bn_relu(b, conv_bn_relu(b, "input", 32, 3, 2), 32, 3)
    x = b.max_pool(conv_bn_relu(b, x, 64, 3, 1, 1), 3, 2)
    x = b.max_pool(conv_bn_relu(b, conv_bn_relu(b, x, 80, 1), 192, 3), 3, 2)
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
        x = conv_bn_relu(b, x, channels, kernel, stride, padding)
    return x


def _chains(b: NetworkBuilder, x: str, *chains: Sequence[Step], pool: str) -> str:
    return b.concat(*(_chain(b, x, chain) for chain in chains), pool)


def _pooled(b: NetworkBuilder, x: str, channels: int) -> str:
    return conv_bn_relu(b, b.average_pool(x, 3, 1, 1, count_include_pad=1), channels, 1)


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
        return [conv_bn_relu(b, hidden, 384, (1, 3), 1, (0, 1)), conv_bn_relu(b, hidden, 384, (3, 1), 1, (1, 0))]

    one = conv_bn_relu(b, x, 320, 1)
    short = both(conv_bn_relu(b, x, 384, 1))
    long = both(_chain(b, x, [(448, 1, 1, 0), (384, 3, 1, 1)]))
    return b.concat(one, b.concat(*short), b.concat(*long), _pooled(b, x, 192))
