"""The parts of networks for phones, built and run: every way to divide them gives what ONNX Runtime gives."""

from collections.abc import Callable

import numpy as np
import pytest
from onnx_builder import OnnxBuilder, random_inputs, run_onnx
from poison import poison

import tvm_coexec
from tvm_coexec.compiler import buffers
from tvm_coexec.runtime.device import open_device

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def all_memory_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffers, "_CLEARING_WORDS", 0)
    monkeypatch.setattr(buffers, "_WAITING_WORDS", 0)


def ints(b: OnnxBuilder, *values: int) -> str:
    return b.const(list(values), "int64")


def conv(b: OnnxBuilder, x: str, inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> str:
    weights = b.weights(outputs, inputs, kernel, kernel)
    return b.add("Conv", x, weights, b.weights(outputs), pads=[kernel // 2] * 4, strides=[stride] * 2)


def excited(b: OnnxBuilder, x: str, channels: int) -> str:
    """Squeeze and excitation by a hard sigmoid, as in MobileNet-v3 and PP-OCR."""
    gate = b.add("Relu", conv(b, b.add("GlobalAveragePool", x), channels, 8, 1))
    return b.add("Mul", x, b.add("HardSigmoid", conv(b, gate, 8, channels, 1), alpha=0.2, beta=0.5))


def attended(b: OnnxBuilder, x: str, channels: int) -> str:
    """A factor for each pixel, as in spatial attention."""
    return b.add("Mul", x, b.add("Sigmoid", conv(b, x, channels, 1)))


def classifier(b: OnnxBuilder) -> str:
    hidden = b.add("PRelu", conv(b, "x", 3, 40, stride=2), b.weights(40, 1, 1))
    hidden = attended(b, excited(b, hidden, 40), 40)
    shortcut = b.add(
        "Pad", b.add("MaxPool", hidden, kernel_shape=[2, 2], strides=[2, 2]), ints(b, 0, 0, 0, 0, 0, 30, 0, 1)
    )
    inner = b.add("LeakyRelu", conv(b, hidden, 40, 70, stride=2), alpha=0.1)
    hidden = b.add("Add", inner, shortcut)
    hidden = b.add("Add", b.add("Mul", b.add("Tanh", hidden), b.weights(70, 1, 1)), b.weights(70, 1, 1))
    hidden = b.add("InstanceNormalization", conv(b, hidden, 70, 40), b.weights(40), b.weights(40))
    return b.add("Flatten", b.add("GlobalMaxPool", b.add("Clip", hidden, b.const(-1), b.const(2))))


def pyramid(b: OnnxBuilder) -> str:
    """Halves of channels, a channel shuffle, and an image made larger in three ways."""
    hidden = b.add("Mish", conv(b, "x", 3, 48, stride=2))
    first, second = (b.add("Slice", hidden, ints(b, begin), ints(b, begin + 24), ints(b, 1)) for begin in (0, 24))
    joined = b.add("Concat", conv(b, first, 24, 24), second, axis=1)
    parts = b.add("Transpose", b.add("Reshape", joined, ints(b, 1, 2, 24, 8, 9)), perm=[0, 2, 1, 3, 4])
    hidden = b.add("Reshape", parts, ints(b, 1, 48, 8, 9))
    deep = b.add("DepthToSpace", conv(b, hidden, 48, 48), blocksize=2)
    wide = b.add("Resize", conv(b, hidden, 48, 12), "", b.const([1, 1, 2, 2]), mode="linear")
    weights = b.weights(48, 12, 4, 4)
    transposed = b.add("ConvTranspose", hidden, weights, b.weights(12), strides=[2, 2], pads=[1] * 4)
    return conv(b, b.add("Sub", b.add("Max", deep, wide), b.add("Elu", transposed)), 12, 5)


def heard(b: OnnxBuilder) -> str:
    """Convolutions of lines, and means over some axes of rows."""
    lines = b.add("Reshape", "x", ints(b, 1, 3, 288))
    hidden = b.add("Conv", lines, b.weights(40, 3, 5), b.weights(40), pads=[2, 2], strides=[16])
    hidden = b.add("Div", b.add("Softplus", hidden), b.add("Exp", b.add("ReduceMax", hidden, ints(b, 2))))
    rows = b.add("Transpose", hidden, perm=[0, 2, 1])
    return b.add("Relu", b.add("Sub", rows, b.add("ReduceMean", rows, ints(b, 1))))


@pytest.mark.parametrize("build", [classifier, pyramid, heard])
def test_every_split_gives_the_same(build: Callable[[OnnxBuilder], str]) -> None:
    b = OnnxBuilder(x=(1, 3, 16, 18))
    model = b.model(build(b))
    inputs = random_inputs(model)
    (expected,) = run_onnx(model, inputs).values()
    module = tvm_coexec.build(model, device=open_device("pocl"), split=0.5)
    steps = module.manifest.steps
    assert not [step.name for step in steps if step.layer["op"] == "opaque"]
    random = np.random.default_rng(3)
    for choose in (
        lambda units: units // 2,
        lambda units: 0,
        lambda units: units,
        lambda units: min(1, units),
        lambda units: int(random.integers(units + 1)),
    ):
        module.set_splits({step.name: choose(step.units) for step in steps if step.gpu and step.cpu})
        poison(module)
        np.testing.assert_allclose(module(**inputs), expected, rtol=0, atol=1e-4 * np.abs(expected).max())
