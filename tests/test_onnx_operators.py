"""ONNX operators with converters of our own, compared with ONNX Runtime."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx_builder import OnnxBuilder, check_against_onnxruntime, random_inputs, run_onnx
from reference import evaluate

import tvm_coexec
from tvm_coexec.errors import ModelError
from tvm_coexec.frontends import to_graph
from tvm_coexec.runtime.device import Device

pytestmark = pytest.mark.one_runtime

Build = Callable[[OnnxBuilder], str]


def whole(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


INDEXING: dict[str, Build] = {
    "gather, all from the end": lambda b: b.add("Gather", "x", b.const([-1, -3], "int64"), axis=-2),
    "gather, one from the end": lambda b: b.add("Gather", "x", b.const(-2, "int64"), axis=-1),
    "gather elements": lambda b: b.add("GatherElements", "x", b.const(-np.ones((2, 4, 2)), "int64"), axis=1),
    "gather rows by index": lambda b: b.add("GatherND", "x", b.const([[1, -1], [0, 2]], "int64")),
    "scatter rows": lambda b: b.add("ScatterND", "x", b.const([[-1], [0]], "int64"), b.weights(2, 5, 6)),
    "scatter and add": lambda b: b.add(
        "ScatterElements", "x", b.const(np.full((3, 2, 6), -1), "int64"), b.weights(3, 2, 6), axis=1, reduction="add"
    ),
    "one-hot by a first axis": lambda b: b.add(
        "OneHot", b.add("ArgMax", "x", axis=1, keepdims=0), b.const(5, "int64"), b.const([-1.0, 2.0]), axis=0
    ),
    "reverse sequences": lambda b: b.add("ReverseSequence", "x", b.const([2, 3, 1, 0, 3], "int64")),
    "reverse rows": lambda b: b.add("ReverseSequence", "x", b.const([5, 1, 4], "int64"), batch_axis=0, time_axis=1),
    "average regions": lambda b: b.add(
        "RoiAlign",
        b.add("Unsqueeze", "x", b.const([0], "int64")),
        b.const([[0.5, 1, 9, 8], [0, 0, 12, 11.5]]),
        b.const([0, 0], "int64"),
        output_height=2,
        output_width=3,
        sampling_ratio=2,
        spatial_scale=0.5,
    ),
    "average regions that end before they begin": lambda b: b.add(
        "RoiAlign",
        b.add("Unsqueeze", "x", b.const([0], "int64")),
        b.const([[4, 3, 1, 1], [5, 4, 0.5, 3.5], [0, 0, 4, 4]]),
        b.const([0, 0, 0], "int64"),
        output_height=2,
        output_width=3,
    ),
    "slice from beyond": lambda b: b.add("Slice", "x", b.const([-9, 1], "int64"), b.const([9, 99], "int64")),
    "slice backwards": lambda b: b.add(
        "Slice", "x", *(b.const(each, "int64") for each in ([9, -1], [-9, 0], [2, 1], [-2, -1]))
    ),
    "tile all axes": lambda b: b.add("Tile", "x", b.const([6, 4, 2], "int64")),
    "largest": lambda b: b.add("TopK", "x", b.const([3], "int64"), axis=1, outputs=2),
    "smallest": lambda b: b.add("TopK", "x", b.const([6], "int64"), largest=0, outputs=2) + ".1",
}


@pytest.mark.parametrize("name", INDEXING)
def test_indexing(name: str) -> None:
    b = OnnxBuilder(x=(3, 5, 6))
    check_against_onnxruntime(b.model(INDEXING[name](b)))


def test_a_remainder_whose_quotient_is_nearly_whole() -> None:
    b = OnnxBuilder(x=(4,))
    model = b.model(
        b.add(
            "Mod", b.const([5.0, 1.0, -7.0, 1e6]), b.add("Add", b.add("Mul", "x", b.const(0.0)), b.const(0.1)), fmod=1
        )
    )
    check_against_onnxruntime(model)


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("ways", [{}, {"exclusive": 1}, {"reverse": 1}, {"exclusive": 1, "reverse": 1}])
def test_sums_of_all_before(axis: int, ways: dict[str, int]) -> None:
    b = OnnxBuilder(x=(3, 5, 6))
    check_against_onnxruntime(b.model(b.add("CumSum", "x", b.const(axis, "int64"), **ways)))


@pytest.mark.parametrize("ways", [{}, {"exclusive": 1}, {"reverse": 1}, {"exclusive": 1, "reverse": 1}])
def test_products_of_all_before(ways: dict[str, int]) -> None:
    b = OnnxBuilder(opset=26, x=(3, 5))
    model = b.model(b.add("CumProd", "x", b.const(-1, "int64"), **ways))
    inputs = random_inputs(model)
    expected = onnx.reference.ReferenceEvaluator(model).run(None, inputs)[0]
    (result,) = evaluate(to_graph(model), inputs).values()
    np.testing.assert_allclose(result, expected, rtol=1e-6)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_hardmax_of_old_opsets_is_of_all_from_an_axis_on(axis: int) -> None:
    b = OnnxBuilder(opset=11, x=(3, 4, 5))
    check_against_onnxruntime(b.model(b.add("Hardmax", "x", axis=axis)))


def test_the_upper_bound_of_a_range_is_the_last_word() -> None:
    b = OnnxBuilder(x=(9,))
    check_against_onnxruntime(b.model(b.add("Clip", "x", b.const(2.0), b.const(1.0))))


def test_whole_numbers_have_bounds() -> None:
    b = OnnxBuilder(x=(3, 4))
    whole_numbers = b.add("Cast", b.add("Mul", "x", b.const(9.0)), to=TensorProto.INT64)
    limited = b.add("Clip", whole_numbers, b.const(-2, "int64"), b.const(3, "int64"))
    check_against_onnxruntime(b.model(limited))


@pytest.mark.parametrize("dtype", ["uint8", "uint64"])
def test_whole_numbers_without_a_sign_have_one(dtype: str) -> None:
    b = OnnxBuilder(x=(4, 5))
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    whole_numbers = b.add("Cast", b.add("Abs", b.add("Mul", "x", b.const(4.0))), to=kind)
    check_against_onnxruntime(b.model(b.add("Sign", whole_numbers)))


def test_truth_values_are_compared() -> None:
    b = OnnxBuilder(x=(3, 4))
    positive, small = (b.add("Greater", "x", b.const(limit)) for limit in (0.0, 1.0))
    check_against_onnxruntime(b.model(b.add("Cast", b.add("Equal", positive, small), to=TensorProto.FLOAT)))


@pytest.mark.parametrize("operator", ["ReduceMax", "ReduceMin"])
@pytest.mark.parametrize(("axes", "values"), [([-1], {"keepdims": 0}), ([], {}), ([], {"noop_with_empty_axes": 1})])
def test_truth_values_are_reduced(operator: str, axes: list[int], values: dict[str, int]) -> None:
    b = OnnxBuilder(x=(4, 5))
    reduced = b.add(operator, b.add("Less", "x", b.const(0.6)), b.const(axes, "int64"), **values)
    check_against_onnxruntime(b.model(b.add("Cast", reduced, to=TensorProto.FLOAT)))


def test_a_group_normalisation_that_onnx_withdrew_is_refused() -> None:
    b = OnnxBuilder(x=(1, 4, 5), opset=18)
    normal = b.add("GroupNormalization", "x", b.weights(2), b.weights(2), num_groups=2)
    with pytest.raises(ModelError, match=r"^GroupNormalization \(node 'n0'\) is of opset 18, .* with opset 21"):
        to_graph(b.model(normal))


@pytest.mark.parametrize("values", [{"alpha": np.inf}, {"alpha": 1e38}, {"beta": -np.inf}, {"alpha": 0.5, "beta": 2.0}])
def test_the_factors_of_a_product_come_after_it(values: dict[str, float]) -> None:
    b = OnnxBuilder(x=(4, 8))
    check_against_onnxruntime(b.model(b.add("Gemm", "x", b.weights(8, 5), b.weights(5), **values)))


def test_a_summand_with_the_factor_zero_is_left_out() -> None:
    b = OnnxBuilder(x=(4, 8), y=(5,))
    endless = b.add("Log", b.add("Mul", "y", b.const(0.0)))
    for summand in (b.const([np.nan, np.inf, 1, 2, 3]), endless):
        product = b.add("Gemm", "x", b.weights(8, 5), summand, beta=0.0)
    check_against_onnxruntime(b.model(b.add("Gemm", "x", b.weights(8, 5), b.const([np.nan] * 5), beta=0.0), product))


@pytest.mark.slow
def test_a_factor_of_no_summand_is_not_looked_at(device: Device) -> None:
    b = OnnxBuilder(x=(4, 8))
    table = np.arange(40).reshape(8, 5)
    product = b.add("Gemm", b.add("Cast", "x", to=TensorProto.INT32), b.const(table, "int32"), beta=0.5)
    model = b.model(b.add("Cast", product, to=TensorProto.FLOAT))
    x = np.arange(-16, 16, dtype=np.float32).reshape(4, 8)  # ONNX Runtime multiplies no int32
    np.testing.assert_array_equal(tvm_coexec.build(model, device=device, split="cpu")(x), x @ table)


@pytest.mark.parametrize("reverse", [0, 1])
def test_sums_of_infinite_numbers(reverse: int) -> None:
    b = OnnxBuilder(x=(2, 6))
    graph = to_graph(b.model(b.add("CumSum", "x", b.const(1, "int64"), reverse=reverse)))
    x = np.array([[1, 2, np.inf, 3, 4, 5], [1, np.nan, 2, 3, -np.inf, 4]], np.float32)
    (result,) = evaluate(graph, {"x": x}).values()
    expected = x[:, ::-1].cumsum(1)[:, ::-1] if reverse else x.cumsum(1)
    np.testing.assert_array_equal(result, expected)


def test_sums_of_whole_numbers() -> None:
    b = OnnxBuilder(x=(3, 5, 6))
    numbers = b.add("Cast", b.add("Greater", "x", b.const(0)), to=TensorProto.INT64)
    check_against_onnxruntime(
        b.model(b.add("Cast", b.add("CumSum", numbers, b.const(1, "int64")), to=TensorProto.FLOAT))
    )


@pytest.mark.parametrize("shape", [(1, 3, 9), (2, 3, 4, 5), (1, 3, 4, 5, 3)])
def test_batch_norm_of_any_rank_after_a_convolution(shape: tuple[int, ...]) -> None:
    b = OnnxBuilder(x=shape)
    convolved = b.add("Conv", "x", b.weights(4, 3, *[2] * (len(shape) - 2)))
    parameters = [b.const(np.linspace(0.5, 1.5, 4)) for _ in range(4)]
    check_against_onnxruntime(b.model(b.add("Relu", b.add("BatchNormalization", convolved, *parameters))))


@pytest.mark.parametrize("perm", [[0, 2, 1, 3], [2, 1, 0, 3], [0, 2, 3, 1], [3, 1, 2, 0]])
def test_a_convolution_is_transposed_in_any_way(perm: list[int]) -> None:
    b = OnnxBuilder(x=(1, 3, 4, 5))
    check_against_onnxruntime(b.model(b.add("Transpose", b.add("Conv", "x", b.weights(6, 3, 1, 1)), perm=perm)))


@pytest.mark.parametrize("opset", [12, 16])
@pytest.mark.parametrize("operator", ["GreaterOrEqual", "LessOrEqual"])
def test_comparisons_that_older_versions_define_by_others(operator: str, opset: int) -> None:
    b = OnnxBuilder(opset=opset, x=(4, 5))
    check_against_onnxruntime(b.model(b.add("Where", b.add(operator, "x", b.const(0.2)), "x", b.const(-1.0))))


def quantised(b: OnnxBuilder, x: str, dtype: str = "uint8", scale: Any = 0.05, axis: int = 1) -> str:
    """A value that goes through whole numbers."""
    table = [b.const(scale), b.const(np.full(np.shape(scale), 3), dtype)]
    return b.add("DequantizeLinear", b.add("QuantizeLinear", x, *table, axis=axis), *table, axis=axis)


QUANTISED: dict[str, Build] = {
    "one scale": lambda b: quantised(b, "x"),
    "unsigned scalar": lambda b: b.add("Add", b.add("QuantizeLinear", "x", b.const(1.0)), b.const(3, "uint8")),
    "signed, by channel": lambda b: quantised(b, "x", "int8", np.linspace(0.02, 0.1, 4)),
    "whole convolution": lambda b: b.add(
        "QLinearConv",
        b.add("QuantizeLinear", "x", b.const(0.02), b.const(120, "uint8")),
        *(b.const(0.02), b.const(120, "uint8"), b.const(np.arange(80).reshape(5, 4, 2, 2) - 40, "int8")),
        *(b.const(np.linspace(0.01, 0.03, 5)), b.const(np.zeros(5), "int8"), b.const(0.1), b.const(7, "uint8")),
        b.const(np.arange(5) * 100 - 200, "int32"),
        pads=[1, 0, 0, 1],
    ),
    "dynamic": lambda b: dynamic(b, "ConvInteger", np.arange(80).reshape(5, 4, 2, 2)),
    "dynamic product": lambda b: dynamic(b, "MatMulInteger", np.arange(30).reshape(6, 5)),
}


def dynamic(b: OnnxBuilder, operator: str, weights: np.ndarray) -> str:
    x = b.add("DynamicQuantizeLinear", "x", outputs=3)
    product = b.add(operator, x, b.const(weights, "uint8"), f"{x}.2", b.const(9, "uint8"))
    scale = b.add("Mul", f"{x}.1", b.const(0.1))
    return b.add("Mul", b.add("Cast", product, to=TensorProto.FLOAT), scale)


@pytest.mark.parametrize("name", QUANTISED)
def test_quantised_operators(name: str) -> None:
    b = OnnxBuilder(opset=14, x=(2, 4, 3, 6))
    check_against_onnxruntime(b.model(QUANTISED[name](b)))


@pytest.mark.parametrize(
    ("operator", "attributes"), [("Softmax", {}), ("ReduceMin", {"keepdims": 0}), ("MaxPool", {"kernel_shape": [2, 2]})]
)
def test_the_largest_of_doubles_is_found(operator: str, attributes: dict[str, Any]) -> None:
    """Their least and largest number are none of float32."""
    b = OnnxBuilder(x=(1, 2, 4, 4))
    found = b.add(operator, b.add("Cast", "x", to=TensorProto.DOUBLE), **attributes)
    check_against_onnxruntime(b.model(b.add("Cast", found, to=TensorProto.FLOAT)))


def test_halves_are_computed_in_float32_between_inputs_and_outputs_of_their_own_type() -> None:
    b = OnnxBuilder()
    b.inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT16, (2, 4, 5, 5))]
    out = b.add("Relu", b.add("Conv", "x", b.const(np.ones((3, 4, 2, 2)) / 16, "float16")))
    model = b.model(out)
    with pytest.warns(UserWarning, match="computed in float32"):
        graph = to_graph(model)
    assert [node.layer.op for node in graph.nodes] == ["opaque", "conv2d", "opaque"]
    x = random_inputs(model)
    (result,), (expected,) = evaluate(graph, x).values(), run_onnx(model, x).values()
    assert result.dtype == expected.dtype == np.float16
    np.testing.assert_allclose(result, expected, rtol=2e-3, atol=2e-3)


def test_lengths_that_are_computed_are_cut_to_what_there_is() -> None:
    b = OnnxBuilder(x=(4, 3))
    b.inputs.append(helper.make_tensor_value_info("lengths", TensorProto.INT64, (3,)))
    graph = to_graph(b.model(b.add("ReverseSequence", "x", "lengths")))
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    (result,) = evaluate(graph, {"x": x, "lengths": np.array([100, 2, -3])}).values()
    np.testing.assert_array_equal(result, np.stack([x[::-1, 0], x[[1, 0, 2, 3], 1], x[:, 2]], 1))


def boxes(b: OnnxBuilder, **values: Any) -> str:
    """Overlapping boxes, two classes and two images, of which some are selected."""
    b.inputs = [
        helper.make_tensor_value_info("places", TensorProto.FLOAT, (2, 9, 4)),
        helper.make_tensor_value_info("scores", TensorProto.FLOAT, (2, 2, 9)),
    ]
    limits = [b.const([9], "int64"), b.const([0.1]), b.const([0.2])]
    return b.add("NonMaxSuppression", "places", "scores", *limits, **values)


@pytest.mark.slow
@pytest.mark.parametrize("centred", [0, 1])
def test_as_many_boxes_are_given_back_as_are_selected(centred: int, device: Device, tmp_path: Path) -> None:
    b = OnnxBuilder()
    rows = boxes(b, center_point_box=centred)
    column = b.add("Squeeze", b.add("Gather", rows, b.const([2], "int64"), axis=1), b.const([1], "int64"))
    table = b.const(np.arange(18).reshape(9, 2))
    model = b.model(rows, b.add("Gather", table, column, axis=0))
    module = tvm_coexec.build(model, device=device, split="cpu")
    module.export(tmp_path / "m.coexec")
    loaded = tvm_coexec.load(tmp_path / "m.coexec", device=device)
    counts = set()
    for seed in range(4):
        random = np.random.default_rng(seed)
        scores = random.random((2, 2, 9), np.float32) * (seed > 0)
        given = {"places": random.random((2, 9, 4), np.float32), "scores": scores}
        for name, expected in run_onnx(model, given).items():
            np.testing.assert_array_equal(module(**given)[name], expected)
            np.testing.assert_array_equal(loaded(**given)[name], expected)
            counts.add(len(expected))
    assert len(counts) > 2 and 0 in counts


def test_what_reads_all_rows_of_which_some_do_not_count_is_named() -> None:
    b = OnnxBuilder()
    total = b.add("ReduceSum", boxes(b))
    with pytest.raises(ModelError, match=r"^ReduceSum \(node 'n1'\) reads 'v0', which has as many rows as the model"):
        to_graph(b.model(total))


def gathered_rows(b: OnnxBuilder) -> str:
    return b.add("Gather", boxes(b), b.const([1, 0, 0], "int64"), axis=-2)


def a_new_first_axis(b: OnnxBuilder) -> str:
    return b.add("Squeeze", b.add("Unsqueeze", boxes(b), b.const([0], "int64")), b.const([0], "int64"))


@pytest.mark.parametrize("build", [gathered_rows, a_new_first_axis])
def test_other_rows_than_those_that_count_are_refused(build: Build) -> None:
    b = OnnxBuilder()
    with pytest.raises(ModelError, match="has as many rows as the model computes"):
        to_graph(b.model(build(b)))


@pytest.mark.parametrize("name", ["class", "None", "слой/1:0", "T"])
def test_values_may_have_any_names(name: str) -> None:
    b = OnnxBuilder(**{name: (4, 5)})
    check_against_onnxruntime(b.model(b.add("TopK", name, b.const([2], "int64"), outputs=2)))


def test_every_result_is_compared_with_what_onnx_infers(monkeypatch: pytest.MonkeyPatch) -> None:
    from tvm import relax

    from tvm_coexec.frontends.onnx import importer as onnx_import

    wrong = {**onnx_import.CONVERTERS, "Relu": lambda call: relax.op.reshape(call.operands[0], (5, 4))}
    monkeypatch.setattr(onnx_import, "CONVERTERS", wrong)
    b = OnnxBuilder(x=(4, 5))
    with pytest.raises(
        ModelError, match=r"^Relu \(node 'n0'\) would make float32\[5, 4\] where ONNX says float32\[4, 5\]"
    ):
        to_graph(b.model(b.add("Relu", "x")))


def test_nothing_of_tvms_own_reaches_the_user(capfd: pytest.CaptureFixture[str]) -> None:
    b = OnnxBuilder(x=(4, 5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ModelError) as raised:
            to_graph(b.model(b.add("LayerNormalization", "x", b.weights(1, 5))))
    assert str(raised.value).count("\n") < 3
    assert capfd.readouterr() == ("", "")
