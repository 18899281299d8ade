"""Operands that do not fit each other are refused, and places that there are not are kept within their tensors."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from litert import check_operator, file_of, graph_of, run_litert
from onnx_builder import OnnxBuilder, run_onnx
from tflite_writer import Writer

import tvm_coexec
from tvm_coexec.errors import ModelError
from tvm_coexec.frontends import read_model
from tvm_coexec.runtime.device import Device


def whole(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.int64)


def number(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


MISFITS: dict[str, tuple[tuple[int, ...], str, list[np.ndarray | None], dict[str, Any]]] = {
    "updates": ((5, 3), "ScatterElements", [whole(4, 3), number(1, 1)], {}),
    "updates beside a row": ((5, 3), "ScatterElements", [whole(1, 4), number(1, 4)], {}),
    "updates of parts": ((5, 3), "ScatterND", [whole(4, 1), number(1, 3)], {}),
    "places": ((1, 1, 2, 2), "MaxUnpool", [whole(1, 1, 1, 1)], {"kernel_shape": [2, 2], "strides": [2, 2]}),
    "lengths": ((5, 3), "ReverseSequence", [whole(2)], {}),
    "scores": ((1, 6, 4), "NonMaxSuppression", [number(1, 1, 60), whole(1) + 3], {}),
    "an index alone": ((5, 3), "ScatterND", [whole(), number(3)], {}),
    "scores of one class": ((1, 6, 4), "NonMaxSuppression", [number(1, 6), whole(1) + 3], {}),
    "a score alone": ((1, 6, 4), "NonMaxSuppression", [number(), whole(1) + 3], {}),
    "indices": ((5, 3), "GatherElements", [whole(2, 9)], {}),
    "a new shape": ((5, 3), "Reshape", [whole(1) + 7], {}),
    "a bias": ((1, 3, 8, 8), "Conv", [number(4, 3, 3, 3), number(3)], {}),
    "channels": ((1, 5, 8, 8), "Conv", [number(4, 3, 3, 3)], {}),
    "scales of channels": ((1, 4, 2, 2), "InstanceNormalization", [number(3), number(3)], {}),
    "weights": ((5, 2, 4), "LSTM", [number(1, 12, 7), number(1, 12, 3)], {"hidden_size": 3}),
    "a weight alone": ((5, 2, 4), "LSTM", [number(1, 12, 4), number()], {"hidden_size": 3}),
    "a bias of both": ((5, 2, 4), "GRU", [number(1, 9, 4), number(1, 9, 3), number(1, 9)], {"hidden_size": 3}),
    "a state": (
        *((5, 2, 4), "RNN", [number(1, 3, 4), number(1, 3, 3), None, None, number(1, 1, 3)]),
        {"hidden_size": 3},
    ),
    "activations": (
        *((5, 2, 4), "RNN", [number(1, 3, 4), number(1, 3, 3)]),
        {"hidden_size": 3, "activations": ["Tanh", "Relu"]},
    ),
    "directions": (
        *((5, 2, 4), "RNN", [number(1, 3, 4), number(1, 3, 3)]),
        {"hidden_size": 3, "direction": "bidirectional"},
    ),
}


@pytest.mark.parametrize("name", MISFITS)
def test_operands_that_do_not_fit_each_other_are_refused(name: str) -> None:
    shape, operator, operands, attributes = MISFITS[name]
    b = OnnxBuilder(x=shape)
    others = ["" if array is None else b.const(array, str(array.dtype)) for array in operands]
    made = b.add(operator, "x", *others, **attributes)
    told = (
        rf"^{operator} \(node 'n0'\) breaks the rules of ONNX \(.* has shape .* instead of .*\); export the model again"
    )
    with pytest.raises(ModelError, match=told):
        read_model(b.model(made))


@pytest.mark.parametrize("places", [[0, 1], [[[0]]]])
@pytest.mark.parametrize("operator", ["GatherElements", "ScatterElements"])
def test_indices_of_elements_that_have_other_axes_are_refused(operator: str, places: list[Any]) -> None:
    b = OnnxBuilder(x=(3, 4))
    others = [b.const(np.ones(np.shape(places)))] if operator == "ScatterElements" else []
    made = b.add(operator, "x", b.const(places, "int64"), *others)
    told = rf"^{operator} \(node 'n0'\) breaks the rules of ONNX \(the tensor of indices has [13] axes instead of 2\)"
    with pytest.raises(ModelError, match=told):
        read_model(b.model(made))


@pytest.mark.parametrize("axis", [2, -3])
@pytest.mark.parametrize("operator", ["QuantizeLinear", "DequantizeLinear"])
def test_scales_of_axes_that_there_are_not_are_refused(operator: str, axis: int) -> None:
    b = OnnxBuilder(x=(4, 8))
    x = b.add("QuantizeLinear", "x", b.const(0.1), b.const(0, "int8")) if operator == "DequantizeLinear" else "x"
    made = b.add(operator, x, b.const(number(8)), b.const(np.zeros(8), "int8"), axis=axis)
    with pytest.raises(ModelError, match=rf"\(the axis {axis} is none of a tensor with 2 axes\); export"):
        read_model(b.model(made))


@pytest.mark.parametrize("operator", ["QuantizeLinear", "DequantizeLinear"])
@pytest.mark.parametrize(("scales", "zeros"), [(3, 3), (9, 9), (8, 9)])
def test_scales_that_do_not_fit_their_axis_are_refused(operator: str, scales: int, zeros: int) -> None:
    b = OnnxBuilder(x=(4, 8))
    x = b.add("QuantizeLinear", "x", b.const(0.1), b.const(0, "int8")) if operator == "DequantizeLinear" else "x"
    made = b.add(operator, x, b.const(number(scales)), b.const(np.zeros(zeros), "int8"), axis=1)
    with pytest.raises(ModelError, match=r"\(the (scale|zero point) has shape \[\d\] instead of \[8\]\); export"):
        read_model(b.model(made))


def constant(*numbers: Any) -> np.ndarray:
    return np.array(numbers, np.int64)


BEYOND: dict[str, tuple[str, list[np.ndarray | None], dict[str, Any], str]] = {
    "index": ("Gather", [constant(0, 9)], {"axis": -1}, "the index 9 is none of an axis of 8 elements"),
    "index from the end": ("Gather", [constant(-5)], {}, "the index -5 is none of an axis of 4 elements"),
    "index of each": ("GatherElements", [constant([0, 4])], {}, "the index 4 is none of an axis of 4 elements"),
    "tuple": ("GatherND", [constant([0, 8])], {}, "the index 8 is none of an axis of 8 elements"),
    "written tuple": ("ScatterND", [constant([-5, 0]), number(1)], {}, "the index -5 is none of an axis of 4"),
    "written": ("ScatterElements", [constant([4]), number(1, 1)], {}, "the index 4 is none of an axis of 4 elements"),
    "reflection": ("Pad", [constant(0, 0, 0, 8)], {"mode": "reflect"}, "8 elements are reflected into"),
    "reflection of an axis": ("Pad", [constant(4, 0), None, constant(0)], {"mode": "reflect"}, "4 elements are"),
    "reflection of a part": ("Pad", [constant(0, -6, 0, 2)], {"mode": "reflect"}, "2 elements are reflected .* of 2"),
    "size": ("Resize", [None, None, constant(4, 0)], {}, "the size 0 is not above zero"),
    "scale": ("Resize", [None, np.array([1, -2], np.float32)], {}, r"the scale -2\.0 is not above zero"),
}


@pytest.mark.parametrize("name", BEYOND)
def test_constants_that_reach_beyond_what_is_read_are_refused(name: str) -> None:
    operator, operands, attributes, told = BEYOND[name]
    b = OnnxBuilder(x=(4, 8))
    others = ["" if array is None else b.const(array, str(array.dtype)) for array in operands]
    model = b.model()
    model.graph.node.append(onnx.helper.make_node(operator, ["x", *others], ["y"], name="n", **attributes))
    model.graph.output.append(onnx.ValueInfoProto(name="y"))
    with pytest.raises(ModelError, match=rf"^{operator} \(node 'n'\) breaks the rules of ONNX \({told}.*; export"):
        read_model(model)


def test_constants_are_not_reflected_beyond_their_elements_either() -> None:
    b = OnnxBuilder(x=(4, 8))
    wide = b.add("Pad", b.const(number(1, 4)), b.const([0, 0, 0, 4], "int64"), mode="reflect")
    with pytest.raises(ModelError, match=r"^Pad \(node 'n0'\) breaks the rules of ONNX \(4 elements are reflected"):
        read_model(b.model(b.add("Add", "x", wide)))


def test_constants_that_reach_to_the_ends_are_taken(device: Device) -> None:
    b = OnnxBuilder(x=(4, 8))
    ends = [b.const([index], "int64") for index in ([-4, -8], [3, 7])]
    made = [b.add("GatherND", "x", each) for each in ends] + [b.add("Gather", "x", b.const([-8, 7], "int64"), axis=1)]
    made.append(b.add("Pad", "x", b.const([3, 7, 3, 7], "int64"), mode="reflect"))
    model, x = b.model(*made), np.random.default_rng(0).standard_normal((4, 8), np.float32)
    results = tvm_coexec.build(model, device=device, split="cpu")(x)
    for name, array in run_onnx(model, {"x": x}).items():
        np.testing.assert_array_equal(results[name], array)


@pytest.mark.parametrize("are_constant", [True, False])
def test_places_beyond_the_end_are_no_other_memory(are_constant: bool, device: Device) -> None:
    b = OnnxBuilder(x=(1, 1, 2, 2))
    places = np.array([[[[5, 10**9], [-(10**9), 2]]]], np.int64)
    if are_constant:
        given = {}
        made = b.add("MaxUnpool", "x", b.const(places, "int64"), kernel_shape=[2, 2], strides=[2, 2])
    else:
        given = {"i": places}
        b.inputs.append(onnx.helper.make_tensor_value_info("i", onnx.TensorProto.INT64, places.shape))
        made = b.add("MaxUnpool", "x", "i", kernel_shape=[2, 2], strides=[2, 2])
    result = tvm_coexec.build(b.model(made), device=device, split="cpu")(x=number(1, 1, 2, 2) * 3, **given)
    expected = np.zeros((1, 1, 4, 4), np.float32)
    expected.reshape(-1)[[5, 15, 0, 2]] = 3
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_indices_of_onnx_that_only_the_run_tells_are_no_other_memory(dtype: str, device: Device) -> None:
    b = OnnxBuilder(x=(3, 4))
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    b.inputs.append(onnx.helper.make_tensor_value_info("i", kind, (2, 1)))
    wide = b.add("Cast", "i", to=onnx.TensorProto.INT64)
    made = {
        b.add("Gather", "x", "i"): TABLE[[2, 0]][:, None],
        b.add("GatherElements", "x", "i"): TABLE[[2, 0], :1],
        b.add("GatherND", "x", wide): TABLE[[2, 0]],
        b.add("ScatterElements", "x", "i", b.const(number(2, 1))): np.where(np.isin(TABLE, (0, 8)), 1, TABLE),
        b.add("ScatterND", "x", wide, b.const(number(2, 4))): np.where(np.eye(3)[1][:, None] > 0, TABLE, 1),
    }
    limits = np.iinfo(dtype)
    for beyond, before in ((limits.max, limits.min), (3, -5)):
        places = np.array([[beyond], [before]], dtype)
        results = tvm_coexec.build(b.model(*made), device=device, split="cpu")(x=TABLE, i=places)
        for name, expected in made.items():
            np.testing.assert_array_equal(results[name], expected, err_msg=name)


def test_regions_of_images_that_there_are_not_are_no_other_memory(device: Device) -> None:
    b = OnnxBuilder(x=(2, 1, 4, 4), boxes=(3, 4))
    b.inputs.append(onnx.helper.make_tensor_value_info("i", onnx.TensorProto.INT64, (3,)))
    made = b.add("RoiAlign", "x", "boxes", "i", output_height=1, output_width=1, sampling_ratio=1)
    x = np.stack([np.full((1, 4, 4), value, np.float32) for value in (3, 5)])
    boxes = np.array([[0, 0, 3, 3]] * 3, np.float32)
    places = np.array([2**62, -(2**62), 1], np.int64)
    result = tvm_coexec.build(b.model(made), device=device, split="cpu")(x=x, boxes=boxes, i=places)
    np.testing.assert_array_equal(result.reshape(-1), [5, 3, 5])


def test_what_was_pooled_returns_to_its_places(device: Device) -> None:
    b = OnnxBuilder(x=(2, 3, 6, 6))
    pooled = b.add("MaxPool", "x", outputs=2, kernel_shape=[2, 2], strides=[2, 2])
    made = b.add("MaxUnpool", pooled, "v0.1", kernel_shape=[2, 2], strides=[2, 2])
    model, x = b.model(made), np.random.default_rng(0).standard_normal((2, 3, 6, 6), np.float32)
    result = tvm_coexec.build(model, device=device, split="cpu")(x)
    np.testing.assert_array_equal(result, run_onnx(model, {"x": x})[made])


TABLE = np.arange(12, dtype=np.float32).reshape(3, 4)
PLACES = np.array([10**9, -5], np.int32)
READ_IN_TFLITE: dict[str, tuple[tuple[int, ...], str, list[int]]] = {
    "GATHER": ((2,), "Gather", [0, 1]),
    "GATHER_ND": ((2, 1), "GatherNd", [0, 1]),
    "EMBEDDING_LOOKUP": ((2,), "", [1, 0]),
}


def tflite_of(folder: Path, dtype: str, operator: str, places: tuple[int, ...], options: str, order: list[int]) -> Path:
    """A file of one operator that reads rows of a table of three, or sums rows up in one."""
    writer = Writer()
    is_written = operator == "SCATTER_ND"
    given = [writer.tensor("x", (2 if is_written else 3, 4)), writer.tensor("places", places, dtype)]
    operands = [given[position] for position in order] + ([writer.integers([3, 4])] if is_written else [])
    rows = writer.add(operator, operands, (3 if is_written else 2, 4), options=options)
    path = folder / "indexed.tflite"
    path.write_bytes(writer.finish(given, [rows]))
    return path


@pytest.mark.parametrize("operator", READ_IN_TFLITE)
def test_places_that_tflite_reads_are_no_other_memory(operator: str, tmp_path: Path, device: Device) -> None:
    path = tflite_of(tmp_path, "int32", operator, *READ_IN_TFLITE[operator])
    places = PLACES.reshape(READ_IN_TFLITE[operator][0])
    result = tvm_coexec.build(path, device=device, split="cpu")(x=TABLE, places=places)
    np.testing.assert_array_equal(result, TABLE[[2, 0]])


@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_places_that_tflite_writes_are_no_other_memory(dtype: str, tmp_path: Path, device: Device) -> None:
    path = tflite_of(tmp_path, dtype, "SCATTER_ND", (2, 1), "ScatterNd", [1, 0])
    module = tvm_coexec.build(path, device=device, split="cpu")
    for beyond, row in ((2**31 - 1, 2), (3, 2), (-5, 0), (-(2**31), 0)):
        result = module(x=TABLE[:2], places=np.array([[beyond], [1]], dtype))
        expected = np.zeros((3, 4), np.float32)
        expected[[row, 1]] = TABLE[:2]
        np.testing.assert_array_equal(result, expected)


def whole32(*numbers: Any) -> np.ndarray:
    return np.array(numbers, np.int32)


BEYOND_IN_TFLITE: dict[str, tuple[str, list[Any], tuple[int, ...], dict[str, Any], str]] = {
    "index": ("GATHER", [(3, 4), whole32(3, 0)], (2, 4), {"options": "Gather"}, "the index 3 is none of an axis of 3"),
    "index from the end": ("GATHER", [(3, 4), whole32(-1)], (1, 4), {"options": "Gather"}, "the index -1 is none of"),
    "index of a batch": (
        *("GATHER", [(2, 3), whole32([0, 1], [2, 3])], (2, 2), {"options": "Gather", "axis": 1, "batchDims": 1}),
        "the index 3 is none of an axis of 3 elements",
    ),
    "tuple": (
        "GATHER_ND",
        [(3, 4), whole32([0, 4])],
        (1,),
        {"options": "GatherNd"},
        "the index 4 is none of an axis of 4",
    ),
    "row": ("EMBEDDING_LOOKUP", [whole32(0, 7), (3, 4)], (2, 4), {}, "the index 7 is none of an axis of 3 elements"),
    "written": (
        *("SCATTER_ND", [whole32([-1], [0]), (2, 4), whole32(3, 4)], (3, 4), {"options": "ScatterNd"}),
        "the index -1 is none of an axis of 3 elements",
    ),
    "reflection": (
        *("MIRROR_PAD", [(2, 4), whole32([0, 0], [4, 0])], (2, 8), {"options": "MirrorPad", "mode": 0}),
        "axis 1 is padded by 4 of its elements, of which 3 can be",
    ),
    "reflection of the edge": (
        *("MIRROR_PAD", [(2, 4), whole32([0, 3], [0, 0])], (5, 4), {"options": "MirrorPad", "mode": 1}),
        "axis 0 is padded by 3 of its elements, of which 2 can be",
    ),
    "padding": (
        "PAD",
        [(2, 4), whole32([0, 0], [-1, 0])],
        (2, 3),
        {"options": "Pad"},
        "axis 1 is padded by -1 elements",
    ),
    "begin": (
        "SLICE",
        [(2, 4), whole32(0, 5), whole32(2, -1)],
        (2, 1),
        {"options": "Slice"},
        "-1 elements are taken from 5",
    ),
    "size": (
        "SLICE",
        [(2, 4), whole32(0, 1), whole32(2, -2)],
        (2, 3),
        {"options": "Slice"},
        "-2 elements are taken from 1",
    ),
}


@pytest.mark.parametrize("name", BEYOND_IN_TFLITE)
def test_constants_that_litert_refuses_are_refused(name: str, tmp_path: Path) -> None:
    operator, operands, shape, options, told = BEYOND_IN_TFLITE[name]
    content = file_of(operator, operands, [shape], **options)
    with pytest.raises((RuntimeError, ValueError)):
        run_litert(content)
    with pytest.raises(ModelError, match=rf"^{operator} \(tensor .*\) breaks the rules of TFLite \({told}.*; convert"):
        graph_of(content, tmp_path)


def test_constants_that_reach_to_the_ends_are_taken_in_tflite(tmp_path: Path) -> None:
    check_operator("MIRROR_PAD", [(2, 4), whole32([1, 0], [3, 3])], tmp_path, options="MirrorPad", mode=0)
    check_operator("MIRROR_PAD", [(2, 4), whole32([2, 0], [4, 3])], tmp_path, options="MirrorPad", mode=1)
    check_operator("GATHER", [(3, 4), whole32(2, 0)], tmp_path, options="Gather", axis=0)


def test_a_part_without_elements_is_refused(tmp_path: Path) -> None:
    content = file_of("SLICE", [(2, 4), whole32(0, 4), whole32(2, 0)], [(2, 0)], options="Slice")
    with pytest.raises(ModelError, match=r"^SLICE .* makes a tensor without elements; remove it from the model$"):
        graph_of(content, tmp_path)
