"""ONNX operators over windows and images: pools, their places, sizes and grids, compared with ONNX Runtime."""

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper
from onnx_builder import OnnxBuilder, check_against_onnxruntime, random_inputs
from reference import evaluate

import tvm_coexec
from tvm_coexec.errors import ModelError
from tvm_coexec.frontends import to_graph
from tvm_coexec.runtime.device import Device

pytestmark = pytest.mark.one_runtime


@pytest.mark.parametrize("power", [1, 2, 3])
@pytest.mark.parametrize("shape", [(1, 2, 6), (2, 3, 6, 5), (1, 2, 6, 5, 4)])
def test_lengths_of_windows_that_reach_beyond_the_padding(shape: tuple[int, ...], power: int) -> None:
    b, axes = OnnxBuilder(x=shape), len(shape) - 2
    window = {"kernel_shape": [3] * axes, "strides": [2] * axes, "pads": [1] * 2 * axes}
    check_against_onnxruntime(b.model(b.add("LpPool", "x", p=power, ceil_mode=1, **window)))


@pytest.mark.parametrize("declared", [[1, 2, 4, 4], [1, 2, 4, 5]])
@pytest.mark.parametrize("operator", ["LpPool", "AveragePool", "MaxPool"])
def test_a_window_over_padding_alone_is_left_out(operator: str, declared: list[int]) -> None:
    window = {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 0, 1], "ceil_mode": 1}
    b = OnnxBuilder(x=(1, 2, 7, 8))
    model = b.model(b.add(operator, "x", **window))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info(model.graph.output[0].name, 1, declared))
    check_against_onnxruntime(model)


@pytest.mark.parametrize("rule", ["SAME_UPPER", "SAME_LOWER"])
def test_a_transposed_convolution_whose_windows_leave_gaps(rule: str) -> None:
    b = OnnxBuilder(x=(1, 3, 7, 3))
    check_against_onnxruntime(
        b.model(b.add("ConvTranspose", "x", b.weights(3, 2, 2, 3), auto_pad=rule, strides=[3, 3]))
    )


PLACES: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "a line": ((2, 3, 7), {"kernel_shape": [3], "strides": [2], "pads": [1, 1]}),
    "an image": ((2, 3, 7, 6), {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 0, 0, 1]}),
    "columns first": ((2, 3, 7, 6), {"kernel_shape": [2, 3], "dilations": [2, 2], "storage_order": 1}),
    "rounded up": ((2, 3, 7, 6), {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}),
    "padded by rule": ((1, 3, 7, 6), {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_LOWER"}),
    "a volume": ((1, 2, 5, 4, 6), {"kernel_shape": [2, 2, 3], "storage_order": 1, "pads": [0, 1, 0, 1, 0, 1]}),
}


@pytest.mark.parametrize("name", PLACES)
def test_places_of_maxima(name: str) -> None:
    shape, window = PLACES[name]
    b = OnnxBuilder(x=shape, opset=12)
    rounded = b.add("Floor", "x")  # so that some are equal
    pooled = b.add("MaxPool", rounded, outputs=2, **window)
    check_against_onnxruntime(b.model(pooled, f"{pooled}.1"))


def test_places_of_maxima_are_of_numbers_that_are_none(device: Device) -> None:
    b = OnnxBuilder(x=(1, 1, 2, 8), opset=12)
    pooled = b.add("MaxPool", "x", kernel_shape=[2, 2], strides=[2, 2], outputs=2)
    x = np.array([[1, 2, np.nan, 4, -1, -1, 5, np.nan], [3, 0, 9, np.nan, -1, -1, 8, 9]], np.float32)
    results = list(tvm_coexec.build(b.model(pooled, f"{pooled}.1"), device=device, split="cpu")(x[None, None]).values())
    np.testing.assert_array_equal(results[0].reshape(-1), [3, np.nan, -1, np.nan])
    np.testing.assert_array_equal(results[1].reshape(-1), [8, 2, 4, 7])


@pytest.mark.parametrize(
    ("operator", "rule"),
    [
        ("LpPool", "SAME_UPPER"),
        ("LpPool", "VALID"),
        ("AveragePool", "SAME_LOWER"),
        ("AveragePool", "SAME_UPPER"),
        ("AveragePool", "VALID"),
        ("MaxPool", "VALID"),
    ],
)
def test_windows_that_a_rule_places_are_rounded_up_by_it(operator: str, rule: str) -> None:
    b = OnnxBuilder(x=(1, 2, 7, 6))
    pooled = b.add(operator, "x", kernel_shape=[2, 2], strides=[2, 3], auto_pad=rule, ceil_mode=1)
    check_against_onnxruntime(b.model(pooled))


@pytest.mark.parametrize("axes", [{}, {"axes": [1, -1]}])
def test_images_are_normalised_over_axes(axes: dict[str, Any]) -> None:
    b = OnnxBuilder(x=(2, 3, 4, 5))
    b.nodes.append(helper.make_node("MeanVarianceNormalization", ["x"], ["y"], "n0", **axes))
    model = helper.make_model(
        helper.make_graph(b.nodes, "test", b.inputs, [helper.make_tensor_value_info("y", 1, (2, 3, 4, 5))]),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=9,
    )
    check_against_onnxruntime(model)


RESIZES = st.fixed_dictionaries(
    {
        "mode": st.sampled_from(["nearest", "linear", "cubic"]),
        "coordinate_transformation_mode": st.sampled_from(
            ["half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel", "half_pixel_symmetric"]
        ),
        "nearest_mode": st.sampled_from(["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"]),
        "exclude_outside": st.integers(0, 1),
        "antialias": st.integers(0, 1),
    }
)


@pytest.mark.parametrize(
    ("axes", "sizes", "values"),
    [
        ([2, 3], [9, 6], {"mode": "linear"}),
        ([-1], [10], {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}),
        ([3, 2], [20, 13], {"mode": "linear", "keep_aspect_ratio_policy": "not_larger"}),
    ],
)
def test_listed_axes_of_an_image_are_resized(axes: list[int], sizes: list[int], values: dict[str, Any]) -> None:
    b = OnnxBuilder(x=(1, 4, 6, 5))
    check_against_onnxruntime(b.model(b.add("Resize", "x", "", "", b.const(sizes, "int64"), axes=axes, **values)))


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize(("operator", "opset"), [("Upsample", 9), ("Resize", 10)])
def test_images_of_old_models_are_divided_as_they_grow(operator: str, opset: int, mode: str) -> None:
    b = OnnxBuilder(opset, x=(1, 4, 6, 5))
    graph = check_against_onnxruntime(b.model(b.add(operator, "x", b.const([1.0, 1.0, 2.0, 3.0]), mode=mode)))
    assert all(node.layer.op != "opaque" for node in graph.nodes)


@pytest.mark.slow
@settings(max_examples=5)
@given(values=RESIZES, sizes=st.lists(st.integers(1, 9), min_size=2, max_size=2), axes=st.permutations(range(4)))
def test_any_two_axes_are_resized(values: dict[str, Any], sizes: list[int], axes: list[int]) -> None:
    linear = values["mode"] == "linear"
    values["exclude_outside"] *= values["mode"] == "cubic"
    values["antialias"] *= values["mode"] != "nearest"
    if values["coordinate_transformation_mode"] == "pytorch_half_pixel":
        sizes = [max(size, 2) for size in sizes]  # the evaluator takes -0.5 for an only place, where the standard has 0
    b = OnnxBuilder(x=(3, 4, 2, 5))
    shape = [3, 4, 2, 5]
    for axis, size in zip(axes, sizes, strict=False):
        shape[axis] = size
    model = b.model(b.add("Resize", "x", "", "", b.const(shape, "int64"), **values))
    x = random_inputs(model)["x"]
    graph = to_graph(model)
    expected = onnx.reference.ReferenceEvaluator(model).run(None, {"x": x})[0]
    (result,) = evaluate(graph, {"x": x}).values()
    np.testing.assert_allclose(result, expected, rtol=1e-3, atol=1e-4 if linear else 1e-3)


@pytest.mark.parametrize("sizes", [(1, 3, 8, 5), (2, 3, 4, 5, 6), (1, 3, 1, 4)])
@pytest.mark.parametrize("corners", [0, 1])
def test_grids_of_any_number_of_images(sizes: tuple[int, ...], corners: int) -> None:
    axes = len(sizes) - 2
    b = OnnxBuilder(x=(sizes[0], axes, axes + 1))
    check_against_onnxruntime(b.model(b.add("AffineGrid", "x", b.const(sizes, "int64"), align_corners=corners)))


def test_a_grid_without_points_is_refused() -> None:
    b = OnnxBuilder(x=(1, 2, 3))
    with pytest.raises(ModelError, match=r"^AffineGrid \(node 'n0'\) has the size \[1, 3, 0, 4\], and takes"):
        to_graph(b.model(b.add("AffineGrid", "x", b.const([1, 3, 0, 4], "int64"))))


def test_a_grid_of_other_images_than_there_are_matrices_is_refused() -> None:
    b = OnnxBuilder(x=(2, 2, 3))
    with pytest.raises(ModelError, match=r"^AffineGrid \(node 'n0'\) has 2 matrices for a grid of 3 images; give"):
        to_graph(b.model(b.add("AffineGrid", "x", b.const([3, 1, 2, 4], "int64"))))


@pytest.mark.parametrize("scales", [[1, 1, 0.6, 0.5], [1, 1, 0.4, 1.5]])
def test_images_of_old_models_shrink_to_the_next_pixel(scales: list[float]) -> None:
    b = OnnxBuilder(opset=10, x=(1, 3, 7, 6))
    check_against_onnxruntime(b.model(b.add("Resize", "x", b.const(scales))))


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("scales", [[1, 1, 1.3, 0.7], [1, 1, 0.6, 2.6], [1, 1.7, 1.1, 1]])
def test_sizes_are_products_of_float32(mode: str, scales: list[float]) -> None:
    """What the file says is what ONNX infers, of some one less than ONNX Runtime makes."""
    b = OnnxBuilder(x=(2, 10, 10, 10))
    check_against_onnxruntime(b.model(b.add("Resize", "x", "", b.const(scales), mode=mode)))


def test_sizes_of_old_models_are_products_of_float32() -> None:
    b = OnnxBuilder(opset=9, x=(1, 1, 10, 10))
    check_against_onnxruntime(b.model(b.add("Relu", b.add("Upsample", "x", b.const([1, 1, 1.3, 1.3])))))


def test_sizes_beyond_all_memory_are_refused() -> None:
    b = OnnxBuilder(x=(1, 1, 4, 4))
    model = b.model(b.add("Resize", "x", "", b.const([1, 1, 3e38, 1])))
    with pytest.raises(ModelError, match=r"^[^\n]*$"):
        to_graph(model)
