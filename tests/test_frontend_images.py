"""Operators of networks for images: which layers they become, that these compute the same, and what is refused."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onnx_builder import OnnxBuilder, check_against_onnxruntime, layers, linear

from tvm_coexec.errors import ModelError
from tvm_coexec.frontends import to_graph
from tvm_coexec.layers import Concat, Conv2d, Elementwise, Pool

Build = Callable[[OnnxBuilder], str]
WINDOW = {"kernel_shape": [3, 3], "strides": [2, 2]}


def conv(b: OnnxBuilder, x: str, inputs: int, outputs: int, kernel: int = 3, groups: int = 1, **attributes: Any) -> str:
    operands = [x, b.weights(outputs, inputs // groups, kernel, kernel), b.weights(outputs)]
    return b.add("Conv", *operands, group=groups, **attributes)


def batch_norm(b: OnnxBuilder, x: str, channels: int) -> str:
    return b.add(
        "BatchNormalization", x, *(b.weights(channels) for _ in range(3)), b.const(np.linspace(0.5, 1.5, channels))
    )


def pad(b: OnnxBuilder, x: str, top: int, left: int, bottom: int, right: int) -> str:
    return b.add("Pad", x, b.const([0, 0, top, left, 0, 0, bottom, right], "int64"))


def ints(b: OnnxBuilder, *numbers: int) -> str:
    return b.const(numbers, "int64")


def silu(b: OnnxBuilder) -> str:
    hidden = conv(b, "x", 6, 8)
    return b.add("Mul", hidden, b.add("Sigmoid", hidden))


def pre_activation(b: OnnxBuilder) -> str:
    hidden = conv(b, "x", 6, 6, pads=[1] * 4)
    return b.add("Add", conv(b, b.add("Relu", batch_norm(b, hidden, 6)), 6, 6, pads=[1] * 4), hidden)


def dense_block(b: OnnxBuilder) -> str:
    joined = b.add("Concat", "x", b.add("Concat", conv(b, "x", 6, 6, 1), conv(b, "x", 6, 4, 1), axis=1), axis=1)
    return conv(b, b.add("Relu", batch_norm(b, joined, 16)), 16, 12)


def excitation(b: OnnxBuilder) -> str:
    hidden = b.add("Relu", conv(b, "x", 6, 8))
    squeezed = b.add("Relu", linear(b, b.add("Flatten", b.add("GlobalAveragePool", hidden)), 8, 4))
    factor = b.add("Reshape", b.add("Sigmoid", linear(b, squeezed, 4, 8)), ints(b, 2, 8, 1, 1))
    return b.add("Relu", b.add("Mul", factor, hidden))


def patches(b: OnnxBuilder) -> str:
    hidden = b.add("Reshape", conv(b, "x", 6, 8, strides=[3, 3]), ints(b, 2, 8, -1))
    return linear(b, b.add("Transpose", hidden, perm=[0, 2, 1]), 8, 5)


def normalised_input(b: OnnxBuilder) -> str:
    centred = b.add("Sub", "x", b.const(np.arange(6).reshape(1, 6, 1, 1)))
    return conv(b, b.add("Div", centred, b.const(np.arange(1, 7).reshape(6, 1, 1))), 6, 8, pads=[1] * 4)


def two_pools(b: OnnxBuilder) -> str:
    pools = [b.add("MaxPool", conv(b, "x", 6, 8), kernel_shape=[2, 2]) for _ in range(2)]
    return b.add("Relu", b.add("Add", *pools))


CASES: dict[str, tuple[Build, list[tuple[str, tuple[str, ...]]]]] = {
    "silu": (silu, [("conv2d", ("bias", "silu"))]),
    "hard swish": (lambda b: b.add("HardSwish", conv(b, "x", 6, 8)), [("conv2d", ("bias", "hard_swish"))]),
    "relu6": (lambda b: b.add("Clip", conv(b, "x", 6, 8), b.const(0), b.const(6)), [("conv2d", ("bias", "relu6"))]),
    "relu as clip": (lambda b: b.add("Clip", conv(b, "x", 6, 8), b.const(0)), [("conv2d", ("bias", "relu"))]),
    "asymmetric": (lambda b: conv(b, "x", 6, 8, pads=[0, 1, 2, 1], strides=[2, 1]), [("conv2d", ("bias",))]),
    "dilated groups": (lambda b: conv(b, "x", 6, 8, groups=2, dilations=[2, 1]), [("conv2d", ("bias",))]),
    "depthwise": (lambda b: conv(b, "x", 6, 12, groups=6), [("conv2d", ("bias",))]),
    "automatic padding": (
        lambda b: conv(b, conv(b, "x", 6, 8, 4, strides=[2, 2], auto_pad="SAME_UPPER"), 8, 8, 2, auto_pad="SAME_LOWER"),
        [("conv2d", ("bias",))] * 2,
    ),
    "batch norm after": (lambda b: b.add("Relu", batch_norm(b, conv(b, "x", 6, 8), 8)), [("conv2d", ("bias", "relu"))]),
    "batch norm before": (lambda b: conv(b, batch_norm(b, "x", 6), 6, 8, groups=2), [("conv2d", ("bias",))]),
    "batch norm before padding": (
        lambda b: conv(b, batch_norm(b, "x", 6), 6, 8, pads=[1] * 4),
        [("average", ("scale", "bias")), ("conv2d", ("bias",))],
    ),
    "batch norm alone": (lambda b: batch_norm(b, "x", 6), [("average", ("scale", "bias"))]),
    "pre-activation": (
        pre_activation,
        [("conv2d", ("bias",)), ("average", ("scale", "bias", "relu")), ("conv2d", ("bias", "residual"))],
    ),
    "dense block": (
        dense_block,
        [("conv2d", ("bias",))] * 2 + [("concat", ()), ("average", ("scale", "bias", "relu")), ("conv2d", ("bias",))],
    ),
    "excitation": (
        excitation,
        [
            ("conv2d", ("bias", "relu")),
            ("average", ()),
            ("linear", ("bias", "relu")),
            ("linear", ("bias", "sigmoid")),
            ("multiply", ("relu",)),
        ],
    ),
    "product": (
        lambda b: b.add("Mul", conv(b, "x", 6, 8), conv(b, "x", 6, 8)),
        [("conv2d", ("bias",)), ("conv2d", ("bias",)), ("multiply", ())],
    ),
    "normalised input": (normalised_input, [("average", ("scale", "bias")), ("conv2d", ("bias",))]),
    "scaled input": (lambda b: conv(b, b.add("Mul", "x", b.const(0.5)), 6, 8, pads=[1] * 4), [("conv2d", ("bias",))]),
    "activation of the input": (
        lambda b: conv(b, b.add("Relu", "x"), 6, 8),
        [("average", ("relu",)), ("conv2d", ("bias",))],
    ),
    "two pools": (
        two_pools,
        [("conv2d", ("bias",)), ("max", ()), ("conv2d", ("bias",)), ("max", ("residual", "relu"))],
    ),
    "sum": (lambda b: b.add("Sum", conv(b, "x", 6, 6, 1), "x"), [("conv2d", ("bias", "residual"))]),
    "patches": (patches, [("conv2d", ("bias",)), ("linear", ("bias",))]),
    "flattened output": (lambda b: b.add("Flatten", conv(b, "x", 6, 8)), [("conv2d", ("bias",))]),
    "channels last": (
        lambda b: b.add("Transpose", conv(b, "x", 6, 8), perm=[0, 2, 3, 1]),
        [("conv2d", ("bias",))],
    ),
    "padded convolution": (
        lambda b: conv(b, pad(b, "x", 1, 2, 0, 1), 6, 8, pads=[0, 1, 1, 0]),
        [("conv2d", ("bias",))],
    ),
    "flattened classifier": (
        lambda b: linear(b, b.add("Relu", b.add("Flatten", conv(b, "x", 6, 8))), 8 * 49, 5),
        [("conv2d", ("bias", "relu")), ("conv2d", ("bias",))],
    ),
    "softmax of channels": (
        lambda b: b.add("Softmax", conv(b, "x", 6, 8), axis=1),
        [("conv2d", ("bias",)), ("softmax", ())],
    ),
    "local norm": (
        lambda b: b.add("LRN", conv(b, "x", 6, 8), size=5, alpha=0.5),
        [("conv2d", ("bias",)), ("local_norm", ())],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_operators(name: str) -> None:
    build, expected = CASES[name]
    b = OnnxBuilder(x=(2, 6, 9, 9))
    assert layers(check_against_onnxruntime(b.model(build(b)))) == expected


POOLS: dict[str, tuple[str, dict[str, Any]]] = {
    "max": ("MaxPool", {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 0, 0, 1]}),
    "dilated": ("MaxPool", {"kernel_shape": [2, 3], "dilations": [2, 2]}),
    "rounded up": ("MaxPool", {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}),
    "rounded up by rule": (
        "MaxPool",
        {"kernel_shape": [2, 2], "strides": [2, 4], "auto_pad": "SAME_LOWER", "ceil_mode": 1},
    ),
    "same": ("MaxPool", {"kernel_shape": [2, 2], "strides": [2, 2], "auto_pad": "SAME_LOWER"}),
    "average": ("AveragePool", {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 0]}),
    "counted": ("AveragePool", {"kernel_shape": [3, 3], "pads": [1] * 4, "count_include_pad": 1}),
    "average, rounded up": ("AveragePool", {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}),
    "global maximum": ("GlobalMaxPool", {}),
    "global average": ("GlobalAveragePool", {}),
}


@pytest.mark.parametrize("name", POOLS)
def test_pooling(name: str) -> None:
    op, attributes = POOLS[name]
    b = OnnxBuilder(x=(2, 6, 9, 9))
    graph = check_against_onnxruntime(b.model(b.add(op, "x", **attributes)))
    assert [node.layer.op for node in graph.nodes] == ["pool"]


@pytest.mark.parametrize("keep", [0, 1])
def test_mean_over_the_image_is_pooling(keep: int) -> None:
    b = OnnxBuilder(x=(2, 6, 9, 9))
    graph = check_against_onnxruntime(b.model(b.add("ReduceMean", "x", ints(b, -2, -1), keepdims=keep)))
    assert graph.nodes[0].layer == Pool("average", 9, 9, 6, (9, 9), batch=2)


def test_zeros_before_pooling() -> None:
    b = OnnxBuilder(x=(2, 6, 9, 9))
    peak = b.add("MaxPool", pad(b, b.add("Relu", conv(b, "x", 6, 8)), 0, 0, 1, 1), **WINDOW)
    mean = b.add("AveragePool", pad(b, conv(b, "x", 6, 8), 0, 0, 1, 1), **WINDOW)
    graph = check_against_onnxruntime(b.model(peak, mean))
    assert sorted(layers(graph))[:1] == [("average", ())]


def test_only_inputs_and_outputs_have_their_channels_first() -> None:
    b = OnnxBuilder(x=(1, 3, 8, 8))
    hidden = b.add("Relu", conv(b, "x", 3, 4, pads=[1] * 4))
    graph = check_against_onnxruntime(b.model(b.add("MaxPool", hidden, kernel_shape=[2, 2], strides=[2, 2])))
    x, inner, y = (graph.tensors[name] for name in ("x", hidden, graph.outputs[0]))
    assert (x.shape, x.image, x.channels_first) == ((1, 3, 8, 8), (1, 8, 8, 3), True)
    assert (inner.shape, inner.image, inner.channels_first) == ((1, 8, 8, 4), (1, 8, 8, 4), False)
    assert (y.shape, y.image, y.channels_first) == ((1, 4, 4, 4), (1, 4, 4, 4), True)
    assert (inner.rows, inner.channels) == (64, 4)


def test_an_input_in_the_order_of_the_kernels() -> None:
    b = OnnxBuilder(x=(1, 8, 8, 3))
    graph = check_against_onnxruntime(b.model(conv(b, b.add("Transpose", "x", perm=[0, 3, 1, 2]), 3, 4)))
    assert not graph.tensors["x"].channels_first
    assert graph.nodes[0].layer == Conv2d(8, 8, 3, 4, (3, 3), epilogue=("bias",))


def test_concatenation_names_its_operands_in_order() -> None:
    b = OnnxBuilder(x=(1, 3, 4, 4), y=(1, 5, 4, 4))
    (node,) = check_against_onnxruntime(b.model(b.add("Concat", "y", "x", "y", axis=1))).nodes
    assert node.layer == Concat(4, 4, (5, 3, 5))
    assert node.reads == ("y", "x", "y")


def test_a_concatenation_that_others_read_stays() -> None:
    b = OnnxBuilder(x=(1, 3, 4, 4))
    inner = b.add("Concat", "x", "x", axis=1)
    graph = check_against_onnxruntime(b.model(inner, b.add("Concat", "x", inner, axis=1)))
    assert [node.reads for node in graph.nodes] == [("x", "x"), ("x", inner)]


def test_either_factor_may_be_the_smaller_one() -> None:
    b = OnnxBuilder(x=(2, 6, 4, 4))
    graph = check_against_onnxruntime(b.model(b.add("Mul", b.add("GlobalAveragePool", "x"), "x")))
    assert graph.nodes[-1].layer == Elementwise("multiply", (2, 1, 1, 6), (2, 4, 4, 6))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda b: b.add("BatchNormalization", "x", *(b.weights(4) for _ in range(4)), training_mode=1),
            r"^BatchNormalization \(node 'n0'\) is in training mode",
        ),
    ],
)
def test_what_no_layer_takes(build: Build, message: str) -> None:
    b = OnnxBuilder(x=(1, 4, 5, 5), w=(4, 4, 3, 3), v=(4,), one=(1,))
    out = build(b)
    b.inputs = [value for value in b.inputs if any(value.name in node.input for node in b.nodes)]
    with pytest.raises(ModelError, match=message):
        to_graph(b.model(out))


@pytest.mark.parametrize(
    "build",
    [
        lambda b: b.add("Conv", "x", "w"),
        lambda b: pad(b, "x", 1, 1, 1, 1),
        lambda b: b.add("MaxPool", pad(b, "x", 1, 1, 1, 1), kernel_shape=[2, 2]),
        lambda b: b.add("Pad", conv(b, "x", 4, 4), ints(b, 0, 0, 1, 1, 0, 0, 1, 1), mode="reflect"),
        lambda b: b.add("Relu", b.add("Add", conv(b, "x", 4, 4), b.weights(3, 3))),
        lambda b: b.add("AveragePool", "x", **WINDOW, pads=[1, 1, 0, 0], count_include_pad=1, ceil_mode=1),
        lambda b: linear(b, b.add("Reshape", conv(b, "x", 4, 4), ints(b, 2, 18)), 18, 3),
        lambda b: b.add("BatchNormalization", "x", *["v"] * 3, b.add("Exp", "v")),
    ],
)
def test_what_only_relax_takes(build: Build) -> None:
    b = OnnxBuilder(x=(1, 4, 5, 5), w=(4, 4, 3, 3), v=(4,), one=(1,))
    out = build(b)
    b.inputs = [value for value in b.inputs if any(value.name in node.input for node in b.nodes)]
    assert "opaque" in dict(layers(check_against_onnxruntime(b.model(out))))


def test_padding_by_nothing_is_left_out() -> None:
    b = OnnxBuilder(x=(1, 3, 6, 5))
    rows = b.add("Transpose", b.add("Conv", "x", b.weights(8, 3, 1, 1)), perm=[0, 2, 3, 1])
    padded = b.add("Pad", rows, b.const([0] * 8, "int64"))
    graph = check_against_onnxruntime(b.model(linear(b, b.add("Add", padded, rows), 8, 4)))
    assert "opaque" not in {kind for kind, _ in layers(graph)}
