"""Chains of views, padding, resizing, transposed convolutions and normalisations of images become layers."""

from collections.abc import Callable

import pytest
from onnx_builder import OnnxBuilder, check_against_onnxruntime, layers

Build = Callable[[OnnxBuilder], str]
Shape = tuple[int, ...]


def ints(b: OnnxBuilder, *values: int) -> str:
    return b.const(list(values), "int64")


def conv(b: OnnxBuilder, channels: int) -> str:
    return b.add("Conv", "x", b.weights(channels, channels, 1, 1))


def shuffled(b: OnnxBuilder) -> str:
    parts = b.add("Reshape", conv(b, 12), ints(b, 1, 3, 4, 4, 5))
    return b.add("Reshape", b.add("Transpose", parts, perm=[0, 2, 1, 3, 4]), ints(b, 1, 12, 4, 5))


def windows(b: OnnxBuilder) -> str:
    parts = b.add("Reshape", conv(b, 8), ints(b, 1, 8, 2, 2, 3, 2))
    return b.add("Reshape", b.add("Transpose", parts, perm=[0, 2, 4, 3, 5, 1]), ints(b, 6, 4, 8))


def cut(b: OnnxBuilder, begins: list[int], ends: list[int], axes: list[int], steps: list[int]) -> str:
    bounds = (ints(b, *values) for values in (begins, ends, axes, steps))
    return b.add("Relu", b.add("Slice", conv(b, 12), *bounds))


def heads(b: OnnxBuilder) -> str:
    return b.add("Relu", b.add("Transpose", b.add("Reshape", "x", ints(b, 2, 6, 2, 4)), perm=[0, 2, 1, 3]))


def resized(b: OnnxBuilder, scale: float, mode: str, **attributes: str) -> str:
    return b.add("Resize", conv(b, 6), "", b.const([1, 1, scale, scale]), mode=mode, **attributes)


NEAREST = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}

MOVES: dict[str, tuple[Shape, Build, str]] = {
    "depth to space": ((1, 16, 4, 5), lambda b: b.add("DepthToSpace", conv(b, 16), blocksize=2), "rearrange"),
    "pixel shuffle": (
        (2, 16, 4, 5),
        lambda b: b.add("DepthToSpace", conv(b, 16), blocksize=2, mode="CRD"),
        "rearrange",
    ),
    "space to depth": ((1, 4, 4, 6), lambda b: b.add("SpaceToDepth", conv(b, 4), blocksize=2), "rearrange"),
    "channel shuffle": ((1, 12, 4, 5), shuffled, "rearrange"),
    "windows": ((1, 8, 4, 6), windows, "rearrange"),
    "some channels": ((2, 12, 4, 5), lambda b: cut(b, [2], [9], [1], [1]), "rearrange"),
    "a part of the image": ((2, 12, 4, 5), lambda b: cut(b, [1, -4], [3, 5], [2, 3], [1, 1]), "rearrange"),
    "every second line": ((1, 12, 4, 6), lambda b: cut(b, [1, 0], [4, 6], [2, 3], [2, 2]), "rearrange"),
    "lines and columns swapped": (
        (2, 4, 5, 3),
        lambda b: b.add("Transpose", conv(b, 4), perm=[0, 1, 3, 2]),
        "rearrange",
    ),
    "heads of rows": ((2, 6, 8), heads, "rearrange"),
    "rows of another length": ((4, 4), lambda b: b.add("Reshape", "x", ints(b, 2, 8)), "rearrange"),
    "more channels": ((1, 6, 4, 5), lambda b: b.add("Pad", conv(b, 6), ints(b, 0, 2, 0, 0, 0, 3, 0, 0)), "rearrange"),
    "ones around": (
        (1, 6, 4, 5),
        lambda b: b.add("Pad", conv(b, 6), ints(b, 0, 0, 1, 2, 0, 0, 0, -1), b.const(1.5)),
        "rearrange",
    ),
    "more rows": ((2, 3, 6), lambda b: b.add("Pad", "x", ints(b, 0, 1, 2, 1, 0, 1)), "rearrange"),
    "repeated pixels": ((1, 6, 4, 5), lambda b: resized(b, 2, "nearest", **NEAREST), "rearrange"),
    "between pixels": ((2, 6, 4, 5), lambda b: resized(b, 2, "linear"), "resize"),
    "fewer pixels": (
        (1, 6, 4, 8),
        lambda b: resized(b, 0.5, "linear", coordinate_transformation_mode="align_corners"),
        "resize",
    ),
}


@pytest.mark.parametrize("name", MOVES)
def test_elements_of_other_places(name: str) -> None:
    shape, build, kind = MOVES[name]
    b = OnnxBuilder(x=shape)
    graph = check_against_onnxruntime(b.model(build(b)))
    assert layers(graph)[-1][0] == kind
    assert {found for found, _ in layers(graph)} <= {"conv2d", kind}


def transposed(b: OnnxBuilder, channels: int, outputs: int, kernel: int, **attributes: object) -> str:
    groups = attributes.get("group", 1)
    assert isinstance(groups, int)
    weights = b.weights(channels, outputs // groups, kernel, kernel)
    return b.add("ConvTranspose", conv(b, channels), weights, b.weights(outputs), **attributes)


TRANSPOSED: dict[str, Build] = {
    "windows side by side": lambda b: transposed(b, 6, 8, 2, strides=[2, 2]),
    "overlapping": lambda b: transposed(b, 6, 8, 3, strides=[2, 2], pads=[1] * 4, output_padding=[1, 1]),
    "even": lambda b: transposed(b, 6, 8, 4, strides=[2, 2], pads=[1] * 4),
    "strides and pads of all kinds": lambda b: transposed(b, 6, 8, 4, strides=[3, 1], pads=[1, 2, 0, 1]),
    "gaps": lambda b: transposed(b, 6, 8, 2, strides=[3, 3]),
    "groups": lambda b: transposed(b, 6, 8, 4, strides=[2, 2], pads=[1] * 4, group=2),
    "depthwise": lambda b: transposed(b, 6, 6, 3, strides=[2, 2], group=6),
    "cut off": lambda b: transposed(b, 6, 8, 3, strides=[2, 2], pads=[3] * 4),
}


@pytest.mark.parametrize("name", TRANSPOSED)
def test_transposed_convolutions(name: str) -> None:
    b = OnnxBuilder(x=(2, 6, 4, 5))
    graph = check_against_onnxruntime(b.model(b.add("Relu", TRANSPOSED[name](b))))
    assert layers(graph) == [("conv2d", ()), ("conv2d", ()), ("rearrange", ("bias", "relu"))]


def test_convolutions_of_lines() -> None:
    b = OnnxBuilder(x=(2, 6, 9))
    hidden = b.add("Relu", b.add("Conv", "x", b.weights(8, 6, 3), b.weights(8), pads=[1, 1], strides=[2]))
    hidden = b.add("Conv", hidden, b.weights(8, 4, 3), b.weights(8), group=2, dilations=[2], pads=[2, 2])
    graph = check_against_onnxruntime(b.model(b.add("Flatten", b.add("GlobalAveragePool", b.add("Relu", hidden)))))
    assert layers(graph) == [("conv2d", ("bias", "relu"))] * 2 + [("average", ())]


def test_a_residual_sum_and_a_product_of_lines() -> None:
    b = OnnxBuilder(x=(2, 6, 9))
    hidden = b.add("Add", "x", b.add("Conv", "x", b.weights(6, 6, 3), pads=[1, 1]))
    graph = check_against_onnxruntime(b.model(b.add("Mul", hidden, "x")))
    assert layers(graph) == [("conv2d", ("residual",)), ("multiply", ())]


MEANS: dict[str, tuple[Shape, Build]] = {
    "columns": ((2, 6, 4, 5), lambda b: b.add("ReduceMean", conv(b, 6), ints(b, 3))),
    "lines": ((2, 6, 4, 5), lambda b: b.add("ReduceMax", conv(b, 6), ints(b, 2), keepdims=0)),
    "rows": ((2, 6, 4), lambda b: b.add("ReduceMean", "x", ints(b, 1))),
    "two axes of rows": ((2, 3, 6, 4), lambda b: b.add("ReduceMean", b.add("Relu", "x"), ints(b, 1, 2), keepdims=0)),
}


@pytest.mark.parametrize("name", MEANS)
def test_means_over_some_axes_are_poolings(name: str) -> None:
    shape, build = MEANS[name]
    b = OnnxBuilder(x=shape)
    graph = check_against_onnxruntime(b.model(b.add("Relu", build(b))))
    assert layers(graph)[-1][0] in ("average", "max") and layers(graph)[-1][1] == ("relu",)
    assert "opaque" not in dict(layers(graph))


@pytest.mark.parametrize("shape", [(2, 6, 4, 5), (2, 6, 9)], ids=str)
def test_instance_normalisation(shape: Shape) -> None:
    b = OnnxBuilder(x=shape)
    graph = check_against_onnxruntime(b.model(b.add("InstanceNormalization", "x", b.weights(6), b.weights(6))))
    assert [kind for kind, _ in layers(graph)] == ["average", "subtract", "mean_square", "multiply"]


def test_group_normalisation_as_torch_writes_it() -> None:
    b = OnnxBuilder(x=(1, 8, 4, 5))
    hidden = b.add("Reshape", conv(b, 8), ints(b, 1, 2, 80))
    hidden = b.add("InstanceNormalization", hidden, b.weights(2), b.weights(2))
    hidden = b.add("Mul", b.add("Reshape", hidden, ints(b, 1, 8, 4, 5)), b.weights(8, 1, 1))
    graph = check_against_onnxruntime(b.model(b.add("Add", hidden, b.weights(8, 1, 1))))
    kinds = ["conv2d", "average", "conv2d", "subtract", "mean_square", "conv2d", "multiply"]
    assert [kind for kind, _ in layers(graph)] == kinds


def test_a_convolution_of_what_was_read_as_rows() -> None:
    b = OnnxBuilder(x=(2, 3, 4, 5))
    rows = b.add("LayerNormalization", "x", b.weights(5), b.weights(5))
    graph = check_against_onnxruntime(b.model(b.add("Conv", b.add("Softmax", rows), b.weights(4, 3, 3, 3))))
    assert [kind for kind, _ in layers(graph)] == ["layer_norm", "softmax", "rearrange", "conv2d"]


JOINED: dict[str, tuple[Shape, Build]] = {
    "rows": ((2, 3, 6), lambda b: b.add("Concat", b.add("Relu", "x"), b.add("Tanh", "x"), "x", axis=1)),
    "lines": ((2, 6, 4, 5), lambda b: b.add("Concat", conv(b, 6), b.add("Abs", conv(b, 6)), axis=2)),
    "columns": ((1, 6, 4, 5), lambda b: b.add("Concat", conv(b, 6), cut_columns(b), axis=3)),
    "pixels": ((2, 6, 4, 5), lambda b: b.add("Concat", pixels(b, conv(b, 6)), pixels(b, "x"), axis=2)),
    "batches": ((2, 3, 6), lambda b: b.add("Concat", b.add("Relu", "x"), "x", axis=0)),
}


def pixels(b: OnnxBuilder, name: str) -> str:
    return b.add("Reshape", name, ints(b, 0, 0, -1))


def cut_columns(b: OnnxBuilder) -> str:
    return b.add("Slice", conv(b, 6), ints(b, 1), ints(b, 3), ints(b, 3))


def test_an_image_and_rows_are_joined_as_an_image() -> None:
    b = OnnxBuilder(x=(1, 1, 5, 4))
    lines = b.add("Slice", "x", ints(b, -1), ints(b, -9), ints(b, 2), ints(b, -1))
    joined = b.add("Relu", b.add("Concat", "x", lines, axis=2))
    graph = check_against_onnxruntime(b.model(joined, b.add("LRN", lines, size=1)))
    assert ("rearrange", ("residual", "relu")) in layers(graph)


@pytest.mark.parametrize("name", JOINED)
def test_concatenations_along_other_axes_are_sums_of_what_is_padded(name: str) -> None:
    shape, build = JOINED[name]
    b = OnnxBuilder(x=shape)
    graph = check_against_onnxruntime(b.model(b.add("Relu", build(b))))
    assert layers(graph)[-1] == ("rearrange", ("residual", "relu"))
    assert "opaque" not in dict(layers(graph))


@pytest.mark.parametrize("axis", [0, 1, 2, 3])
@pytest.mark.parametrize("operator", ["Softmax", "LogSoftmax"])
def test_softmax_along_any_axis(operator: str, axis: int) -> None:
    b = OnnxBuilder(x=(2, 6, 4, 5))
    graph = check_against_onnxruntime(b.model(b.add("Relu", b.add(operator, conv(b, 6), axis=axis))))
    assert operator == "LogSoftmax" or "opaque" not in dict(layers(graph))


def test_the_distribution_that_yolo_ends_with() -> None:
    """A softmax over the bins of each side of a box, and the sum that a convolution makes of them."""
    b = OnnxBuilder(x=(1, 32, 4, 5))
    sides = b.add("Reshape", conv(b, 32), ints(b, 1, 4, 8, 20))
    bins = b.add("Softmax", b.add("Transpose", sides, perm=[0, 2, 1, 3]), axis=1)
    distances = b.add("Reshape", b.add("Conv", bins, b.weights(1, 8, 1, 1)), ints(b, 1, 4, 20))
    graph = check_against_onnxruntime(b.model(distances))
    assert "opaque" not in dict(layers(graph))


SUMMANDS: dict[str, tuple[Shape, Build]] = {
    "pixels and channels": ((2, 6, 4, 5), lambda b: b.add("Add", conv(b, 6), b.weights(6, 4, 5))),
    "less a constant": ((2, 6, 4, 5), lambda b: b.add("Sub", conv(b, 6), b.weights(1, 6, 4, 5))),
    "a constant less": ((2, 6, 4, 5), lambda b: b.add("Sub", b.weights(6, 4, 5), conv(b, 6))),
    "a constant less an input": ((2, 3, 6), lambda b: b.add("Sub", b.weights(3, 6), "x")),
    "pixels in a row": ((1, 6, 4, 5), lambda b: b.add("Sub", b.weights(1, 6, 20), pixels(b, conv(b, 6)))),
    "of an image that others read": ((1, 6, 4, 5), lambda b: b.add("Add", *_read_twice(b))),
}


def _read_twice(b: OnnxBuilder) -> tuple[str, str]:
    image = conv(b, 6)
    return b.add("Sub", b.weights(6, 4, 5), image), image


@pytest.mark.parametrize("name", SUMMANDS)
def test_a_constant_for_each_pixel_and_channel(name: str) -> None:
    shape, build = SUMMANDS[name]
    b = OnnxBuilder(x=shape)
    graph = check_against_onnxruntime(b.model(b.add("Relu", build(b))))
    assert "opaque" not in dict(layers(graph))


def test_a_map_that_is_an_image_to_one_reader_and_rows_to_another() -> None:
    b = OnnxBuilder(x=(2, 32))
    mapped = b.add("Sigmoid", "x")
    summed = b.add("ReduceL1", b.add("HardSwish", mapped), b.const([-1], "int64"))
    check_against_onnxruntime(b.model(b.add("Transpose", mapped, perm=[1, 0]), summed))


@pytest.mark.parametrize("axis", [2, 3])
def test_a_factor_whose_channels_are_on_another_axis(axis: int) -> None:
    """Weights of pixels, each a softmax of its line or column, as in separable attention."""
    b = OnnxBuilder(x=(1, 6, 4, 5))
    weights = b.add("Softmax", b.add("Conv", "x", b.weights(1, 6, 1, 1)), axis=axis)
    graph = check_against_onnxruntime(b.model(b.add("Mul", weights, conv(b, 6))))
    assert "opaque" not in dict(layers(graph))
