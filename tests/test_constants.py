"""Constants that follow each other become one where that is the same function, and layers take them in."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx.compose
import pytest
from onnx_builder import OnnxBuilder, check_against_onnxruntime, random_inputs, run_onnx

import tvm_coexec
from tvm_coexec.runtime.device import Device

ROUNDED: dict[str, Callable[[OnnxBuilder], str]] = {
    "whole numbers by a large summand": lambda b: in_turn(b, "x", WHOLE, -WHOLE),
    "whole numbers after a product": lambda b: in_turn(b, b.add("MatMul", "x", b.weights(8, 8)), WHOLE, -WHOLE),
    "summands whose sum is too large": lambda b: in_turn(
        b, b.add("Mul", b.add("Sign", "x"), b.const(-3e38)), 3e38, 3e38
    ),
    "factors whose product is too large": lambda b: b.add(
        "Mul", b.add("Mul", b.add("Mul", "x", b.const(1e-30)), b.const(1e30)), b.const(1e30)
    ),
    "a factor that is too large for the weights": lambda b: b.add(
        "MatMul", b.add("Mul", b.add("Mul", "x", b.const(1e-30)), b.const(1e30)), b.const(np.full((8, 5), 1e30))
    ),
    "factors whose product is too small": lambda b: b.add(
        "MatMul", b.add("Mul", b.add("Mul", "x", b.const(1e30)), b.const(1e-30)), b.const(np.full((8, 5), 1e-30))
    ),
    "an infinite factor before a convolution": lambda b: b.add(
        "Conv",
        b.add("Mul", b.add("Reshape", "x", b.const([1, 2, 4, 4], "int64")), b.const([[[np.inf]], [[1.0]]])),
        b.const(np.abs(b.random.standard_normal((3, 2, 3, 3)))),
        pads=[1, 1, 1, 1],
    ),
    "a quotient by less than float32's reciprocals": lambda b: b.add(
        "Div", b.add("Mul", "x", b.const(1e-38)), b.const(1e-40)
    ),
    "tenths before a product": lambda b: b.add("MatMul", tenths(b, "x"), b.weights(8, 5)),
    "whole numbers before a product": lambda b: b.add(
        "MatMul", in_turn(b, b.add("Mul", "x", b.const(9.0)), WHOLE, -WHOLE), b.weights(8, 5)
    ),
    "tenths before a convolution": lambda b: b.add(
        "Conv", tenths(b, as_image(b, "x")), b.weights(3, 2, 3, 3), pads=[1, 1, 1, 1]
    ),
    "tenths before a convolution without padding": lambda b: b.add(
        "Conv", tenths(b, as_image(b, "x")), b.weights(3, 2, 3, 3)
    ),
    "tenths before a softmax": lambda b: b.add("Softmax", tenths(b, "x")),
    "a factor after a large summand": lambda b: b.add("Mul", b.add("Sub", "x", b.const(1e5)), b.const(3.3)),
    "a product after a large summand": lambda b: b.add("MatMul", b.add("Sub", "x", b.const(1e6)), b.weights(8, 5)),
    "a small summand before a large one": lambda b: in_turn(b, "x", 0.4, WHOLE, -WHOLE),
    "a bias before a large summand": lambda b: in_turn(
        b, b.add("Conv", as_image(b, "x"), b.weights(3, 2, 3, 3), b.weights(3)), WHOLE, -WHOLE
    ),
    "the summand of a Gemm before a large one": lambda b: in_turn(
        b, b.add("Gemm", "x", b.weights(8, 5), b.weights(5)), WHOLE, -WHOLE
    ),
    "a factor and small summands before a large one": lambda b: b.add(
        "Relu", in_turn(b, b.add("Mul", "x", b.const(0.4)), 0.5, WHOLE, -WHOLE)
    ),
    "summands that cancel in one channel": lambda b: in_turn(b, "x", WHOLE, [-WHOLE, *[0.0] * 7], [0.0, *[-WHOLE] * 7]),
    "summands of which no two cancel": lambda b: in_turn(b, "x", WHOLE, *[-WHOLE / 3] * 3),
    "summands of which no two cancel, after a product": lambda b: in_turn(
        b, b.add("MatMul", "x", b.weights(8, 5)), WHOLE, *[-WHOLE / 3] * 3
    ),
    "a large summand that a factor made small": lambda b: b.add(
        "Mul", in_turn(b, b.add("Mul", b.add("Add", "x", b.const(WHOLE)), b.const(2.0**-24)), -0.75), b.const(2.0**24)
    ),
    "a small factor before small summands": lambda b: b.add(
        "Mul", in_turn(b, b.add("Mul", "x", b.const(2.0**-24)), 0.75, -0.75), b.const(2.0**24)
    ),
    "small weights before small summands": lambda b: b.add(
        "Mul", in_turn(b, b.add("MatMul", "x", b.const(np.eye(8) * 2.0**-24)), 0.75, -0.75), b.const(2.0**24)
    ),
    "a large summand of a layer before a factor": lambda b: b.add(
        "Mul", b.add("Add", b.add("MatMul", "x", b.weights(8, 5)), b.const(WHOLE)), b.const(0.3)
    ),
    "rows of large summands": lambda b: in_turn(
        b, "x", np.full((4, 8), WHOLE) + 2 * np.arange(4)[:, None], np.full((4, 8), -WHOLE)
    ),
}

WHOLE = 12582912.0
"""1.5 · 2²³, beside which float32 has whole numbers alone."""


def in_turn(b: OnnxBuilder, name: str, *summands: Any) -> str:
    """Add one constant after the other."""
    for summand in summands:
        name = b.add("Add", name, b.const(summand))
    return name


def tenths(b: OnnxBuilder, name: str) -> str:
    """Round to tenths, as networks do that were trained to be quantised."""
    return b.add("Mul", in_turn(b, b.add("Div", name, b.const(0.1)), WHOLE, -WHOLE), b.const(0.1))


def as_image(b: OnnxBuilder, name: str) -> str:
    return b.add("Reshape", name, b.const([1, 2, 4, 4], "int64"))


@pytest.mark.slow
def test_constants_are_joined_where_that_is_the_same_function(device: Device) -> None:
    """The networks share nothing but the module, which takes less than half of what modules of their own take."""
    models = {name: ends.model(make(ends)) for name, make in ROUNDED.items() for ends in [OnnxBuilder(x=(4, 8))]}
    given = {name: random_inputs(model) for name, model in models.items()}
    together = onnx.ModelProto()
    together.CopyFrom(models["whole numbers before a product"])
    together.graph.Clear()
    together.graph.name = "together"
    inputs = {}
    for number, (name, model) in enumerate(models.items()):
        own = onnx.compose.add_prefix(model, f"{number}.").graph
        for field in ("node", "initializer", "input", "output"):
            getattr(together.graph, field).extend(getattr(own, field))
        inputs |= {f"{number}.{key}": array for key, array in given[name].items()}
    results = tvm_coexec.build(together, device=device, split=0.5)(**inputs)
    for result, (name, model) in zip(results.values(), models.items(), strict=True):
        (expected,) = run_onnx(model, given[name]).values()
        largest = np.abs(expected[np.isfinite(expected)]).max(initial=0)
        np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6 * largest, err_msg=name)


JOINED: dict[str, tuple[Callable[[OnnxBuilder], str], int]] = {
    "batch norms after a convolution with a bias": (
        lambda b: b.add(
            "BatchNormalization",
            b.add("Conv", as_image(b, "x"), b.weights(3, 2, 3, 3), b.const([0.5, -3.0, 9.0])),
            *(b.const(numbers) for numbers in ([0.3, 1.0, 2.0], [0.1, -0.5, 3.0], [0.49, -3.1, 8.0], [0.1, 1.0, 4.0])),
        ),
        1,
    ),
    "a channel whose bias is its mean": (
        lambda b: b.add(
            "Mul",
            in_turn(
                b,
                b.add("Conv", as_image(b, "x"), b.weights(3, 2, 3, 3), b.const([0.3, 2.0, 0.1])),
                [[[-0.3]], [[-2.0]], [[0.1]]],
            ),
            b.const([[[1.5]], [[0.2]], [[3.0]]]),
        ),
        1,
    ),
    "means of pixels before a convolution": (
        lambda b: b.add(
            "Conv",
            b.add(
                "Mul", b.add("Sub", as_image(b, "x"), b.const([[[123.7]], [[255.0]]])), b.const([[[0.017]], [[0.02]]])
            ),
            b.weights(3, 2, 3, 3),
            b.weights(3),
        ),
        1,
    ),
    "means of pixels of 1 before a product": (
        lambda b: b.add(
            "Gemm",
            b.add("Div", b.add("Sub", b.add("Div", "x", b.const(255.0)), b.const(0.485)), b.const(0.229)),
            b.weights(8, 5),
            b.weights(5),
        ),
        1,
    ),
    "a norm of pixels after their normalisation": (
        lambda b: b.add(
            "MatMul",
            in_turn(
                b, b.add("Mul", b.add("Mul", b.add("Sub", "x", b.const(123.7)), b.const(0.017)), b.const(0.6)), 0.3
            ),
            b.weights(8, 5),
        ),
        1,
    ),
    "pixels of a product": (
        lambda b: in_turn(
            b, b.add("Mul", b.add("Gemm", "x", b.weights(8, 5), b.weights(5)), b.const(58.0)), [103.0, 116, 124, 255, 0]
        ),
        1,
    ),
}
"""What usual networks have, and the number of layers that it becomes."""


@pytest.mark.parametrize("name", JOINED)
def test_usual_constants_are_joined(name: str) -> None:
    build, layers = JOINED[name]
    b = OnnxBuilder(x=(4, 8))
    graph = check_against_onnxruntime(b.model(build(b)))
    assert len(graph.nodes) == layers
    for node in graph.nodes:
        assert set(node.layer.epilogue) <= {"bias"}
        assert len(node.layer.epilogue) <= 1
