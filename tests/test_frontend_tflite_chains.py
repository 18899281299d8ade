"""Random networks for images in TFLite files compute what LiteRT computes, whatever follows what."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from litert import CONVOLUTION, WINDOW, check
from tflite_writer import Writer


@dataclass
class Chain:
    """A network while it grows: what was made last, and what was made before in the same shape."""

    draw: st.DrawFn
    writer: Writer = field(default_factory=Writer)
    last: int = 0
    made: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.integer(0, 99))
        shape = (self.integer(1, 2), self.integer(4, 9), self.integer(4, 9), self.integer(1, 9))
        self.last = self.writer.tensor("image", shape)

    def integer(self, low: int, high: int) -> int:
        return self.draw(st.integers(low, high))

    @property
    def shape(self) -> tuple[int, ...]:
        return self.writer.shape(self.last)

    def numbers(self, *shape: int) -> int:
        return self.writer.constant((self.random.standard_normal(shape) / 2).astype(np.float32))

    def earlier(self, shapes: list[tuple[int, ...]]) -> int | None:
        fitting = [made for made in self.made if self.writer.shape(made) in shapes]
        return self.draw(st.sampled_from(fitting)) if fitting else None


def convolution(chain: Chain) -> int:
    batch, h, w, channels = chain.shape
    out, kernel = chain.integer(1, 9), chain.integer(1, 3)
    operands = [chain.last, chain.numbers(out, kernel, kernel, channels), chain.numbers(out)]
    activation = chain.draw(st.sampled_from([0, 1, 3]))
    options = CONVOLUTION | {"padding": 0, "fusedActivationFunction": activation}
    return chain.writer.add("CONV_2D", operands, (batch, h, w, out), "Conv2D", **options)


def depthwise(chain: Chain) -> int:
    batch, h, w, channels = chain.shape
    operands = [chain.last, chain.numbers(1, 3, 3, channels), chain.numbers(channels)]
    size = (batch, -(-h // 2), -(-w // 2), channels)
    options = {
        "padding": 0,
        "depthMultiplier": 1,
        "strideH": 2,
        "strideW": 2,
        "dilationHFactor": 1,
        "dilationWFactor": 1,
    }
    return chain.writer.add("DEPTHWISE_CONV_2D", operands, size, "DepthwiseConv2D", **options)


def pooling(chain: Chain) -> int:
    operator = chain.draw(st.sampled_from(["AVERAGE_POOL_2D", "MAX_POOL_2D"]))
    options = WINDOW | {"filterHeight": 2, "filterWidth": 3, "padding": 0}
    return chain.writer.add(operator, [chain.last], chain.shape, "Pool2D", **options)


def slopes(chain: Chain) -> int:
    return chain.writer.add("PRELU", [chain.last, chain.numbers(1, 1, chain.shape[3])], chain.shape)


def function(chain: Chain) -> int:
    operator = chain.draw(st.sampled_from(["LOGISTIC", "TANH", "HARD_SWISH", "RELU6", "ABS", "NEG", "ELU"]))
    return chain.writer.add(operator, [chain.last], chain.shape)


def scaled(chain: Chain) -> int:
    operator = chain.draw(st.sampled_from(["Add", "Mul", "Sub"]))
    shape = chain.draw(st.sampled_from([(chain.shape[3],), (1,), chain.shape[1:]]))
    operands = [chain.last, chain.numbers(*shape)]
    if chain.draw(st.booleans()):
        operands.reverse()
    return chain.writer.add(operator.upper(), operands, chain.shape, operator)


def combined(chain: Chain) -> int | None:
    """With an earlier image, or with one pixel of each image."""
    batch, _, _, channels = chain.shape
    other = chain.earlier([chain.shape, (batch, 1, 1, channels)])
    operator = chain.draw(st.sampled_from(["Add", "Mul", "Sub"]))
    if other is None:
        return None
    return chain.writer.add(operator.upper(), [chain.last, other], chain.shape, operator)


def joined(chain: Chain) -> int | None:
    other = chain.earlier([chain.shape])
    if other is None or chain.shape[3] > 20:
        return None
    axis = chain.draw(st.sampled_from([1, 3, -1]))
    shape = list(chain.shape)
    shape[axis] *= 2
    return chain.writer.add("CONCATENATION", [chain.last, other], shape, "Concatenation", axis=axis)


def padded(chain: Chain) -> int:
    widths = [[0, 0], *[[chain.integer(0, 2), chain.integer(0, 2)] for _ in range(2)], [0, chain.integer(0, 3)]]
    shape = [size + sum(pair) for size, pair in zip(chain.shape, widths, strict=True)]
    return chain.writer.add("PAD", [chain.last, chain.writer.integers(widths)], shape, "Pad")


def resized(chain: Chain) -> int:
    batch, h, w, channels = chain.shape
    size = chain.draw(st.sampled_from([(2 * h, 2 * w), (h + 1, w), (3, 5)]))
    method = chain.draw(st.sampled_from(["Bilinear", "NearestNeighbor"]))
    operator = "RESIZE_BILINEAR" if method == "Bilinear" else "RESIZE_NEAREST_NEIGHBOR"
    options = {"halfPixelCenters": chain.draw(st.booleans())}
    operands = [chain.last, chain.writer.integers(size)]
    return chain.writer.add(operator, operands, (batch, *size, channels), f"Resize{method}", **options)


def averaged(chain: Chain) -> int:
    batch, _, _, channels = chain.shape
    operands = [chain.last, chain.writer.integers([1, 2])]
    return chain.writer.add("MEAN", operands, (batch, 1, 1, channels), "Reducer", keepDims=True)


def cut(chain: Chain) -> int:
    axis = chain.integer(1, 3)
    begin = chain.integer(0, chain.shape[axis] - 1)
    return chain.writer.sliced(chain.last, axis, begin, chain.integer(1, chain.shape[axis] - begin))


def turned(chain: Chain) -> int:
    return chain.writer.transposed(chain.last, chain.draw(st.permutations([0, 1, 2, 3])))


def reshaped(chain: Chain) -> int:
    batch, h, w, channels = chain.shape
    return chain.writer.reshaped(
        chain.last, chain.draw(st.sampled_from([(batch, w, h, channels), (batch, h, channels, w)]))
    )


def softmax(chain: Chain) -> int:
    return chain.writer.add("SOFTMAX", [chain.last], chain.shape, "Softmax", beta=1.0)


STEPS: list[Callable[[Chain], int | None]] = [
    *(convolution, convolution, depthwise, pooling, slopes, function, scaled, combined, joined, padded, resized),
    *(averaged, cut, turned, reshaped, softmax),
]


@st.composite
def networks(draw: st.DrawFn) -> bytes:
    chain = Chain(draw)
    image = chain.last
    for step in [convolution, *draw(st.lists(st.sampled_from(STEPS), min_size=2, max_size=8))]:
        made = step(chain)
        if made is not None and np.prod(chain.writer.shape(made)) < 4000:
            chain.made.append(chain.last)
            chain.last = made
    chain.made.append(chain.last)
    outputs = [chain.last, *draw(st.lists(st.sampled_from(chain.made[1:]), max_size=1))]
    return chain.writer.finish([image], list(dict.fromkeys(outputs)))


@settings(max_examples=8, deadline=None)
@given(networks())
def test_random_networks(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        check(content, Path(folder), tolerance=1e-5, may_cancel=True)
