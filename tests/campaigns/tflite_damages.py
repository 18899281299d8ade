"""Damaged TFLite files: each is read, or refused in three lines at most."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from damages import read_damaged
from outcomes import Outcome
from tflite_writer import Writer

Random = np.random.Generator
Step = Callable[[Writer, int, Random], int]
"""Adds an operator that reads an image; the image that it makes."""


def _weights(writer: Writer, random: Random, *shape: int) -> int:
    """Constants, of integers with a scale in every second case."""
    if random.integers(0, 2):
        return writer.constant(random.standard_normal(shape, np.float32))
    integers = random.integers(-127, 128, shape, np.int8)
    return writer.constant(integers, random.uniform(0.01, 0.1, random.choice([1, shape[0]])).tolist())


def _convolution(writer: Writer, x: int, random: Random) -> int:
    batch, height, width, channels = writer.shape(x)
    strides = {"strideH": 1, "strideW": 1, "dilationHFactor": 1, "dilationWFactor": 1}
    operands = [x, _weights(writer, random, 6, 3, 3, channels), writer.constant(np.zeros(6, np.float32))]
    return writer.add("CONV_2D", operands, (batch, height, width, 6), "Conv2D", fusedActivationFunction=1, **strides)


def _pool(writer: Writer, x: int, _: Random) -> int:
    batch, height, width, channels = writer.shape(x)
    shape = (batch, -(-height // 2), -(-width // 2), channels)
    window = {"filterHeight": 2, "filterWidth": 2, "strideH": 2, "strideW": 2}
    return writer.add("MAX_POOL_2D", [x], shape, "Pool2D", **window)


def _resize(writer: Writer, x: int, _: Random) -> int:
    batch, height, width, channels = writer.shape(x)
    sizes = (height + 3, 2 * width)
    shape = (batch, *sizes, channels)
    return writer.add("RESIZE_BILINEAR", [x, writer.integers(sizes)], shape, "ResizeBilinear", halfPixelCenters=True)


def _pad(writer: Writer, x: int, _: Random) -> int:
    batch, height, width, channels = writer.shape(x)
    widths = [[0, 0], [1, 2], [0, 1], [0, 0]]
    return writer.add("PAD", [x, writer.integers(widths)], (batch, height + 3, width + 1, channels), "Pad")


def _transpose(writer: Writer, x: int, random: Random) -> int:
    return writer.transposed(x, [0, *(1 + random.permutation(3)).tolist()])


def _slice(writer: Writer, x: int, _: Random) -> int:
    return writer.sliced(x, 1, 0, -(-writer.shape(x)[1] // 2))


def _rows(writer: Writer, x: int, random: Random) -> int:
    """A linear layer of all of the image, as an image of one pixel."""
    features = math.prod(writer.shape(x))
    row = writer.reshaped(x, (1, features))
    made = writer.add("FULLY_CONNECTED", [row, _weights(writer, random, 5, features), -1], (1, 5), "FullyConnected")
    return writer.reshaped(writer.add("SOFTMAX", [made], (1, 5), "Softmax", beta=1.0), (1, 1, 1, 5))


def _joined(writer: Writer, x: int, _: Random) -> int:
    *sizes, channels = writer.shape(x)
    other = writer.add("TANH", [x], writer.shape(x))
    return writer.add("CONCATENATION", [x, other], (*sizes, 2 * channels), "Concatenation", axis=3)


def _sum(writer: Writer, x: int, random: Random) -> int:
    shape = writer.shape(x)
    return writer.add("ADD", [x, _weights(writer, random, shape[-1])], shape, "Add")


def _mean(writer: Writer, x: int, _: Random) -> int:
    batch, _, _, channels = writer.shape(x)
    return writer.add("MEAN", [x, writer.integers([1, 2])], (batch, 1, 1, channels), "Reducer", keepDims=True)


STEPS: list[Step] = [_convolution, _pool, _resize, _pad, _transpose, _slice, _rows, _joined, _sum, _mean]


def content(random: Random) -> bytes:
    """A file of some operators, one after the other."""
    writer = Writer()
    first = last = writer.tensor("x", (1, 6, 7, 3))
    for step in random.choice(np.arange(len(STEPS)), random.integers(1, 6)):
        last = STEPS[step](writer, last, random)
    return writer.finish([first], [last])


def trial(seed: int) -> Outcome:
    """Read one file."""
    random = np.random.default_rng(seed)
    return read_damaged(content(random), ".tflite", random)
