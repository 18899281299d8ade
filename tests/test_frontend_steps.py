"""Functions of one value become steps of the layer before them, and arithmetic of two activations a layer."""

from collections.abc import Callable

import numpy as np
import pytest
from onnx_builder import OnnxBuilder, check_against_onnxruntime, layers

Build = Callable[[OnnxBuilder, str], str]


STEPS: dict[str, Build] = {
    "abs": lambda b, x: b.add("Abs", x),
    "clip(-0.5,0.25)": lambda b, x: b.add("Clip", x, b.const(-0.5), b.const(0.25)),
    "clip(-inf,0.5)": lambda b, x: b.add("Min", x, b.const(0.5)),
    "clip(0.25,inf)": lambda b, x: b.add("Clip", x, b.const(0.25)),
    "elu(0.5,1.0)": lambda b, x: b.add("Elu", x, alpha=0.5),
    "erf": lambda b, x: b.add("Erf", x),
    "exp": lambda b, x: b.add("Exp", x),
    "hard_sigmoid": lambda b, x: b.add("HardSigmoid", x, alpha=0.3, beta=0.4),
    "hard_swish": lambda b, x: b.add("HardSwish", x),
    "leaky_relu": lambda b, x: b.add("LeakyRelu", x, alpha=0.3),
    "mish": lambda b, x: b.add("Mish", x),
    "negative": lambda b, x: b.add("Neg", x),
    "selu": lambda b, x: b.add("Selu", x),
    "softplus": lambda b, x: b.add("Softplus", x),
    "square": lambda b, x: b.add("Pow", x, b.const(2)),
    "tanh": lambda b, x: b.add("Tanh", x),
}


def conv(b: OnnxBuilder, x: str, channels: int = 6, outputs: int = 10) -> str:
    return b.add("Conv", x, b.weights(outputs, channels, 3, 3), b.weights(outputs), pads=[1] * 4)


@pytest.mark.parametrize("name", STEPS)
def test_a_function_is_a_step_of_a_convolution(name: str) -> None:
    b = OnnxBuilder(x=(2, 6, 4, 5))
    graph = check_against_onnxruntime(b.model(STEPS[name](b, conv(b, "x"))))
    if name != "clip(-inf,0.5)":  # TVM stacks the operands of a minimum
        assert len(graph.nodes) == 1
        assert graph.nodes[0].layer.epilogue[0] == "bias" and len(graph.nodes[0].layer.epilogue) == 2


@pytest.mark.parametrize("shape", [(10, 1, 1), (1, 10, 1, 1), (1,)], ids=str)
def test_prelu_has_a_slope_for_each_channel(shape: tuple[int, ...]) -> None:
    b = OnnxBuilder(x=(1, 6, 4, 5))
    graph = check_against_onnxruntime(
        b.model(b.add("PRelu", conv(b, "x"), b.const(np.linspace(-1, 1, 10)[: np.prod(shape)].reshape(shape))))
    )
    assert layers(graph) == [("conv2d", ("bias", "prelu"))]


def test_prelu_with_a_slope_for_each_pixel_is_no_step() -> None:
    b = OnnxBuilder(x=(1, 6, 4, 5))
    graph = check_against_onnxruntime(b.model(b.add("PRelu", conv(b, "x"), b.weights(10, 4, 5))))
    assert {kind for kind, _ in layers(graph)} == {"conv2d", "opaque"}


def test_an_affine_function_after_an_activation_is_two_steps() -> None:
    b = OnnxBuilder(x=(1, 6, 4, 5))
    hidden = b.add("Relu", conv(b, "x"))
    hidden = b.add("Add", b.add("Mul", hidden, b.weights(10, 1, 1)), b.weights(10, 1, 1))
    graph = check_against_onnxruntime(b.model(conv(b, b.add("Relu", hidden), 10)))
    assert layers(graph) == [("conv2d", ("bias", "relu", "scale", "bias", "relu")), ("conv2d", ("bias",))]


def test_what_several_read_after_different_functions_keeps_its_value() -> None:
    b = OnnxBuilder(x=(1, 6, 4, 5))
    hidden = b.add("Relu", conv(b, "x"))
    doubled = b.add("Mul", hidden, b.const(2))
    shifted = b.add("Add", doubled, b.weights(10, 1, 1))
    out = b.add("Add", b.add("Tanh", shifted), b.add("Add", b.add("Abs", doubled), b.add("Relu", hidden)))
    assert "opaque" not in dict(layers(check_against_onnxruntime(b.model(out))))


ARITHMETIC: dict[str, tuple[str, tuple[int, ...], tuple[int, ...]]] = {
    "for each channel": ("Sub", (2, 6, 4, 5), (2, 6, 1, 1)),
    "from each channel": ("Sub", (1, 6, 1, 1), (2, 6, 4, 5)),
    "for each pixel": ("Mul", (2, 6, 4, 5), (2, 1, 4, 5)),
    "for all": ("Div", (2, 6, 4, 5), (1, 1, 1, 1)),
    "alike": ("Div", (2, 6, 4, 5), (2, 6, 4, 5)),
    "lines and columns": ("Mul", (1, 6, 4, 1), (1, 6, 1, 5)),
    "fewer axes": ("Add", (2, 6, 4, 5), (6, 1, 1)),
    "rows": ("Mul", (3, 4, 6), (3, 1, 6)),
    "columns": ("Sub", (3, 4, 6), (3, 4, 1)),
    "one of each": ("Add", (3, 4, 6), (3, 1, 1)),
    "matrices": ("Sub", (4, 6), (4, 6)),
}


@pytest.mark.parametrize("name", ARITHMETIC)
def test_arithmetic_of_two_activations_is_a_layer(name: str) -> None:
    operator, first, second = ARITHMETIC[name]
    b = OnnxBuilder(x=first, y=second)
    y = b.add("Exp", "y")
    graph = check_against_onnxruntime(b.model(b.add("Relu", b.add(operator, "x", y))))
    assert layers(graph)[-1][1] == ("relu",)
    assert "opaque" not in dict(layers(graph))


def test_squeeze_and_excitation_by_a_hard_sigmoid() -> None:
    b = OnnxBuilder(x=(1, 6, 4, 5))
    hidden = conv(b, "x")
    gate = b.add("Conv", b.add("GlobalAveragePool", hidden), b.weights(10, 10, 1, 1), b.weights(10))
    graph = check_against_onnxruntime(b.model(b.add("Mul", hidden, b.add("HardSigmoid", gate))))
    assert [kind for kind, _ in layers(graph)] == ["conv2d", "average", "conv2d", "multiply"]


@pytest.mark.parametrize("allowed", [[0.0, -np.inf], [1.0, np.nan]])
def test_a_choice_may_be_between_constants_that_are_not_finite(allowed: list[float]) -> None:
    """Masks of attention are made so: what is left out is the least number of all."""
    b = OnnxBuilder(x=(3, 8))
    least = b.add("Max", "x", b.const(-np.inf))
    chosen = b.add("Where", b.add("Less", least, b.const(0.4)), *(b.const(number) for number in allowed))
    kept = b.add("Where", b.add("IsNaN", chosen), b.const(2.0), chosen)
    check_against_onnxruntime(b.model(b.add("Softmax", b.add("Add", "x", kept))))
