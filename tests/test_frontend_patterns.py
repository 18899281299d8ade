"""Activations and layer normalisation that a model spells out become one operation, in whatever spelling."""

import math

import numpy as np
import pytest
from onnx_builder import OnnxBuilder, check_against_onnxruntime, layers, linear


def erf_of_quotient(b, x):
    return b.add("Erf", b.add("Div", x, b.const(math.sqrt(2))))


def erf_of_product(b, x):
    return b.add("Erf", b.add("Mul", b.const([0.70710678]), x))


def tanh_of_power(b, x):
    cubic = b.add("Mul", b.add("Pow", x, b.const(3)), b.const(0.044715))
    return b.add("Tanh", b.add("Mul", b.add("Add", x, cubic), b.const(0.797885)))


def tanh_of_products(b, x):
    square = b.add("Mul", b.const(0.044715), b.add("Mul", x, x))
    factor = b.add("Mul", x, b.add("Add", b.const(1), square))
    return b.add("Tanh", b.add("Mul", factor, b.const(math.sqrt(2 / math.pi))))


FUNCTIONS = {
    erf_of_quotient: "gelu",
    erf_of_product: "gelu",
    tanh_of_power: "gelu_tanh",
    tanh_of_products: "gelu_tanh",
}


def half_last(b, x, f):
    return b.add("Mul", b.add("Mul", x, b.add("Add", f, b.const(1))), b.const(0.5))


def half_on_x(b, x, f):
    return b.add("Mul", b.add("Mul", b.const(0.5), x), b.add("Add", b.const(1), f))


def half_on_sum(b, x, f):
    return b.add("Mul", b.add("Div", b.add("Add", f, b.const(1)), b.const(2)), x)


def half_in_both_terms(b, x, f):
    half = b.add("Mul", x, b.const(0.5))
    return b.add("Add", half, b.add("Mul", half, f))


@pytest.mark.parametrize("finish", [half_last, half_on_x, half_on_sum, half_in_both_terms])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_gelu(function, finish):
    b = OnnxBuilder(x=(4, 6))
    hidden = linear(b, "x", 6, 9)
    out = finish(b, hidden, function(b, hidden))
    assert layers(check_against_onnxruntime(b.model(out))) == [("linear", ("bias", FUNCTIONS[function]))]


def test_gelu_as_a_sigmoid():
    b = OnnxBuilder(x=(4, 6))
    cubic = b.add("Mul", b.add("Pow", "x", b.const(3)), b.const(0.044715))
    argument = b.add("Mul", b.add("Add", "x", cubic), b.const(math.sqrt(8 / math.pi)))
    out = b.add("Mul", b.add("Sigmoid", argument), "x")
    assert layers(check_against_onnxruntime(b.model(out))) == [("map", ("gelu_tanh",))]


@pytest.mark.parametrize("operands", [0, 1])
def test_silu(operands):
    b = OnnxBuilder(x=(4, 6))
    hidden = linear(b, "x", 6, 9)
    pair = [hidden, b.add("Sigmoid", hidden)]
    out = b.add("Mul", *(pair[::-1] if operands else pair))
    assert layers(check_against_onnxruntime(b.model(out))) == [("linear", ("bias", "silu"))]


def test_gelu_after_a_residual_sum_finds_its_operand():
    b = OnnxBuilder(x=(4, 6))
    hidden = b.add("Add", linear(b, "x", 6, 6), "x")
    out = b.add("Add", half_last(b, hidden, erf_of_quotient(b, hidden)), b.weights(6))
    graph = check_against_onnxruntime(b.model(linear(b, out, 6, 3)))
    assert layers(graph) == [("linear", ("bias", "residual", "gelu")), ("linear", ("bias",))]


@pytest.mark.parametrize("factor", [0.5001, 1.0])
def test_what_only_resembles_gelu_is_none(factor):
    b = OnnxBuilder(x=(4, 6))
    product = b.add("Mul", "x", b.add("Add", erf_of_quotient(b, "x"), b.const(1)))
    graph = check_against_onnxruntime(b.model(b.add("Mul", product, b.const(factor))))
    assert [kind for kind, _ in layers(graph)] == ["map", "multiply"]


def test_a_product_with_another_sigmoid_than_silus():
    b = OnnxBuilder(x=(4, 6))
    model = b.model(b.add("Mul", "x", b.add("Sigmoid", b.add("Mul", "x", b.const(1.702)))))
    graph = check_against_onnxruntime(model)
    assert layers(graph) == [("map", ("scale", "sigmoid")), ("multiply", ())]


def spelled_layer_norm(b, x, *, power, two_centres, epsilon_first=False, last_axis=-1):
    def mean(value):
        return b.add("ReduceMean", value, b.const([last_axis], "int64"))

    centred = b.add("Sub", x, mean(x))
    squared = b.add("Pow", centred, b.const(2)) if power else b.add("Mul", centred, centred)
    summands = (mean(squared), b.const(1e-3))
    deviation = b.add("Sqrt", b.add("Add", *(summands[::-1] if epsilon_first else summands)))
    return b.add("Div", b.add("Sub", x, mean(x)) if two_centres else centred, deviation)


@pytest.mark.parametrize("power", [False, True])
@pytest.mark.parametrize("two_centres", [False, True])
@pytest.mark.parametrize("affine", [False, True])
def test_layer_norm(power, two_centres, affine):
    b = OnnxBuilder(x=(2, 3, 7))
    out = spelled_layer_norm(b, "x", power=power, two_centres=two_centres, epsilon_first=power)
    if affine:
        out = b.add("Add", b.add("Mul", out, b.weights(7)), b.weights(7))
    graph = check_against_onnxruntime(b.model(out))
    assert layers(graph) == [("layer_norm", ())]
    assert graph.nodes[0].layer.epsilon == pytest.approx(1e-3)
    assert np.all(graph.nodes[0].params["gamma"] == 1) != affine


def test_layer_norm_whose_mean_is_an_output():
    b = OnnxBuilder(x=(4, 7))
    out = spelled_layer_norm(b, "x", power=True, two_centres=False)
    assert "opaque" in dict(layers(check_against_onnxruntime(b.model(out, "v0"))))


def test_layer_norm_over_another_axis():
    b = OnnxBuilder(x=(2, 3, 7))
    out = spelled_layer_norm(b, "x", power=True, two_centres=False, last_axis=1)
    graph = check_against_onnxruntime(b.model(out))
    assert [kind for kind, _ in layers(graph)] == ["rearrange", "layer_norm"]


def test_spelled_out_transformer_block_of_opset_12():
    b = OnnxBuilder(opset=12, x=(2, 3, 8))
    mean = b.add("ReduceMean", "x", axes=[-1])
    centred = b.add("Sub", "x", mean)
    variance = b.add("ReduceMean", b.add("Pow", centred, b.const(2)), axes=[-1])
    normal = b.add("Div", centred, b.add("Sqrt", b.add("Add", variance, b.const(1e-6))))
    normal = b.add("Add", b.add("Mul", normal, b.weights(8)), b.weights(8))
    hidden = linear(b, normal, 8, 16)
    out = b.add("Add", "x", linear(b, half_last(b, hidden, erf_of_quotient(b, hidden)), 16, 8))
    assert layers(check_against_onnxruntime(b.model(out))) == [
        ("layer_norm", ()),
        ("linear", ("bias", "gelu")),
        ("linear", ("bias", "residual")),
    ]


def spelled_out_norm(b: OnnxBuilder, x: str, axes: list[int]) -> str:
    indices = b.const(axes, "int64")
    centred = b.add("Sub", x, b.add("ReduceMean", x, indices))
    variance = b.add("ReduceMean", b.add("Mul", centred, centred), indices)
    return b.add("Div", centred, b.add("Sqrt", b.add("Add", variance, b.const(1e-5))))


@pytest.mark.parametrize("axes", [[-1], [2], [1], [1, 2, 3]], ids=str)
def test_normalisation_of_images_over_any_axes(axes: list[int]) -> None:
    b = OnnxBuilder(x=(2, 3, 6, 5))
    image = b.add("Conv", "x", b.weights(8, 3, 3, 3))
    out = b.add("Conv", spelled_out_norm(b, image, axes), b.weights(4, 8, 1, 1))
    graph = check_against_onnxruntime(b.model(out))
    assert (layers(graph)[1][0] == "layer_norm") == (axes == [1])


@pytest.mark.parametrize("op", ["Sigmoid", "HardSwish", "Mul"])
def test_what_reads_a_padded_image(op: str) -> None:
    b = OnnxBuilder(x=(1, 4, 5, 6))
    padded = b.add("Pad", "x", b.const([0, 0, 1, 2, 0, 0, 1, 0], "int64"))
    steps = {
        "Sigmoid": lambda: b.add("Mul", padded, b.add("Sigmoid", padded)),
        "HardSwish": lambda: b.add("HardSwish", padded),
        "Mul": lambda: b.add("Add", b.add("Mul", padded, b.weights(4, 1, 1)), b.weights(4, 1, 1)),
    }
    check_against_onnxruntime(b.model(b.add("Conv", steps[op](), b.weights(8, 4, 3, 3))))


@pytest.mark.parametrize("axis", [0, 1, 2, 3])
def test_softmax_over_any_axis_between_others(axis: int) -> None:
    b = OnnxBuilder(x=(2, 3, 4, 7))
    turned = b.add("Transpose", "x", perm=[0, 2, 3, 1])
    probabilities = b.add("Softmax", turned, axis=axis)
    check_against_onnxruntime(b.model(b.add("MatMul", probabilities, b.weights(3, 5))))


def test_softmax_over_what_were_channels() -> None:
    b = OnnxBuilder(x=(1, 4, 7))
    probabilities = b.add("Softmax", b.add("Transpose", "x", perm=[0, 2, 1]), axis=1)
    check_against_onnxruntime(b.model(b.add("MatMul", probabilities, b.weights(4, 64))))


def test_others_may_read_parts_of_a_pattern_that_fits_no_layer() -> None:
    b = OnnxBuilder(x=(2, 3, 6, 5))
    image = b.add("Conv", "x", b.weights(8, 3, 3, 3))
    centred = b.add("Sub", image, b.add("ReduceMean", image, b.const([3], "int64")))
    variance = b.add("ReduceMean", b.add("Mul", centred, centred), b.const([3], "int64"))
    norm = b.add("Div", centred, b.add("Sqrt", b.add("Add", variance, b.const(1e-5))))
    check_against_onnxruntime(b.model(b.add("Relu", norm), b.add("Abs", centred), b.add("Add", image, norm)))
