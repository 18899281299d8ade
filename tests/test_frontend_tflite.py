"""TFLite files compute what LiteRT computes, and images in them lie between layers as layers want them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from reference import evaluate
from tflite_writer import TYPES, Writer

from tvm_coexec.errors import ModelError
from tvm_coexec.frontends import to_graph
from tvm_coexec.frontends.fuse import fuse
from tvm_coexec.frontends.tflite import trace_tflite
from tvm_coexec.graph import Graph

WINDOW = {"strideH": 1, "strideW": 1}
CONVOLUTION = WINDOW | {"dilationHFactor": 1, "dilationWFactor": 1}
random = np.random.default_rng(0)


def numbers(*shape: int) -> np.ndarray:
    return random.standard_normal(shape, np.float32)


def integers(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def random_input(detail: dict[str, Any], low: float = -3) -> np.ndarray:
    """Small numbers of whatever type."""
    generator, dtype = np.random.default_rng(1), np.dtype(detail["dtype"])
    if dtype.kind == "f":
        return generator.uniform(low, 3, detail["shape"]).astype(dtype)
    limit = 100 if dtype.itemsize == 1 else 3
    return generator.integers(0 if dtype.kind == "b" else -limit, limit, detail["shape"]).astype(dtype)


def run_litert(content: bytes, low: float = -3) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Random inputs and what LiteRT makes of them."""
    interpreter = Interpreter(model_content=content)
    interpreter.allocate_tensors()
    inputs = [random_input(detail, low) for detail in interpreter.get_input_details()]
    for detail, array in zip(interpreter.get_input_details(), inputs, strict=True):
        interpreter.set_tensor(detail["index"], array)
    interpreter.invoke()
    return inputs, [interpreter.get_tensor(detail["index"]) for detail in interpreter.get_output_details()]


def graph_of(content: bytes, folder: Path) -> Graph:
    path = folder / "model.tflite"
    path.write_bytes(content)
    return to_graph(path)


def check(content: bytes, folder: Path, low: float = -3, tolerance: float = 2e-6) -> Graph:
    """The graph of a file that computes what LiteRT computes, up to ``tolerance`` of the largest number."""
    graph = graph_of(content, folder)
    inputs, expected = run_litert(content, low)
    results = evaluate(graph, dict(zip(graph.inputs, inputs, strict=True)))
    for result, array in zip(results.values(), expected, strict=True):
        assert result.shape == array.shape
        np.testing.assert_allclose(result, array, rtol=0, atol=tolerance * max(np.abs(array.astype(float)).max(), 1e-9))
    return graph


def operands_of(writer: Writer, operands: Sequence[Any]) -> list[int]:
    """Arrays are constants, shapes are inputs of the model, None is an operand left out."""
    made = []
    for place, operand in enumerate(operands):
        if isinstance(operand, np.ndarray):
            made.append(writer.constant(operand))
        else:
            made.append(-1 if operand is None else writer.tensor(f"x{place}", operand))
    return made


def file_of(operator: str, operands: Sequence[Any], shapes: Sequence[Sequence[int]], **options: Any) -> bytes:
    writer = Writer()
    read = operands_of(writer, operands)
    dtype = options.pop("dtype", "float32")
    outputs = [writer.add(operator, read, shapes[0], **options)]
    for place, shape in enumerate(shapes[1:]):
        outputs.append(writer.tensor(f"part{place}", shape))
        writer.operators[-1].outputs.append(outputs[-1])
    for output in outputs:
        writer.tensors[output].type = TYPES[dtype]
    given = [number for number, operand in zip(read, operands, strict=True) if isinstance(operand, tuple)]
    return writer.finish(given, outputs)


def check_operator(
    operator: str, operands: Sequence[Any], folder: Path, low: float = -3, parts: int = 1, **options: Any
) -> Graph:
    """A file of one operator, for whose results LiteRT itself tells the shapes."""
    _, results = run_litert(file_of(operator, operands, [[1]] * parts, **options), low)
    return check(file_of(operator, operands, [result.shape for result in results], **options), folder, low)


def ops(graph: Graph) -> list[str]:
    """What layers there are; of opaque ones, the operator that they are in the file."""
    return [getattr(node.layer, "operator", node.layer.op) for node in graph.nodes]


X = (1, 6, 7, 5)


@pytest.mark.parametrize("operator", ["ABS", "ELU", "HARD_SWISH", "RELU", "RELU6", "RELU_0_TO_1", "ROUND", "TANH"])
def test_functions_of_each_element(operator: str, tmp_path: Path) -> None:
    check_operator(operator, [X], tmp_path)


@pytest.mark.parametrize("operator", ["Add", "Sub", "Mul", "Div"])
@pytest.mark.parametrize("other", [X, (5,), (1, 1, 1, 5), (6, 7, 1), numbers(7, 5)])
def test_arithmetic_of_two(operator: str, other: Any, tmp_path: Path) -> None:
    check_operator(operator.upper(), [X, other], tmp_path, 0.5, options=operator, fusedActivationFunction=1)


@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("stride", [1, 2])
def test_windows(padding: int, stride: int, tmp_path: Path) -> None:
    shape, window = (1, 9, 8, 4), {"padding": padding, "strideH": stride, "strideW": stride}
    dilation = {"dilationHFactor": 1, "dilationWFactor": 1}
    convolution = [shape, numbers(6, 3, 2, 4), numbers(6)]
    check_operator("CONV_2D", convolution, tmp_path, options="Conv2D", **window, **dilation)
    depthwise = [shape, numbers(1, 3, 2, 8), numbers(8)]
    options = window | dilation | {"depthMultiplier": 2}
    check_operator("DEPTHWISE_CONV_2D", depthwise, tmp_path, options="DepthwiseConv2D", **options)
    for operator in ("AVERAGE_POOL_2D", "MAX_POOL_2D"):
        graph = check_operator(operator, [shape], tmp_path, options="Pool2D", filterHeight=3, filterWidth=2, **window)
        assert ops(graph) == ["pool"]


@pytest.mark.parametrize("kernel", [2, 3])
@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_transposed_convolutions(kernel: int, padding: int, stride: int, tmp_path: Path) -> None:
    sizes = [extent * stride if padding == 0 else (extent - 1) * stride + kernel for extent in (5, 4)]
    operands = [integers(1, *sizes, 6), numbers(6, kernel, kernel, 3), (1, 5, 4, 3), numbers(6)]
    window = {"padding": padding, "strideH": stride, "strideW": stride}
    check_operator("TRANSPOSE_CONV", operands, tmp_path, options="TransposeConv", **window)


@pytest.mark.parametrize("method", ["Bilinear", "NearestNeighbor"])
@pytest.mark.parametrize("corners", [{}, {"alignCorners": True}, {"halfPixelCenters": True}])
@pytest.mark.parametrize("size", [(12, 14), (9, 5), (1, 3)])
def test_resizing(method: str, corners: dict[str, bool], size: tuple[int, int], tmp_path: Path) -> None:
    operator = {"Bilinear": "RESIZE_BILINEAR", "NearestNeighbor": "RESIZE_NEAREST_NEIGHBOR"}[method]
    check_operator(operator, [X, integers(*size)], tmp_path, options=f"Resize{method}", **corners)


@pytest.mark.parametrize("axes", [(1, 2), (2, 1), (3,), (-1, 0), (0, 1, 2, 3)])
@pytest.mark.parametrize("keeps", [False, True])
def test_reductions(axes: tuple[int, ...], keeps: bool, tmp_path: Path) -> None:
    for operator in ("MEAN", "REDUCE_MAX"):
        check_operator(operator, [X, integers(*axes)], tmp_path, options="Reducer", keepDims=keeps)


@pytest.mark.parametrize("widths", [[[0, 0], [1, 2], [3, 0], [0, 0]], [[0, 0], [0, 0], [0, 0], [0, 4]]])
def test_padding(widths: list[list[int]], tmp_path: Path) -> None:
    pads = np.array(widths, np.int32)
    check_operator("PAD", [X, pads], tmp_path, options="Pad")
    check_operator("PADV2", [X, pads, np.float32([-2.5])], tmp_path, options="PadV2")
    for mode in (0, 1):
        check_operator("MIRROR_PAD", [X, pads], tmp_path, options="MirrorPad", mode=mode)


STRIDED = [
    ((0, 1, 0, 0), (1, 6, 7, 5), (1, 2, 1, 1), {}),
    ((0, -1, 0, 0), (0, -6, 0, 0), (1, -2, 1, -1), {"beginMask": 9, "endMask": 13}),
    ((0, 2), (0, 3), (1, 1), {"ellipsisMask": 1, "shrinkAxisMask": 2}),
    ((0, 0, 1), (0, 0, 3), (1, 1, 1), {"ellipsisMask": 1, "newAxisMask": 2}),
]


@pytest.mark.parametrize(("begin", "end", "stride", "masks"), STRIDED)
def test_strided_slices(begin: Any, end: Any, stride: Any, masks: dict[str, int], tmp_path: Path) -> None:
    operands = [X, *(integers(*values) for values in (begin, end, stride))]
    check_operator("STRIDED_SLICE", operands, tmp_path, options="StridedSlice", **masks)


@pytest.mark.parametrize("axis", [1, -2, 3])
def test_joins_and_parts(axis: int, tmp_path: Path) -> None:
    check_operator("CONCATENATION", [X, X, numbers(*X)], tmp_path, options="Concatenation", axis=axis)
    halves = [integers(axis), (2, 6, 8, 4)]
    check_operator("SPLIT", halves, tmp_path, parts=2, options="Split", numSplits=2)
    sizes = [(2, 6, 8, 4), integers(1, -1, 1), integers(axis)]
    check_operator("SPLIT_V", sizes, tmp_path, parts=3, options="SplitV", numSplits=3)
    check_operator("PACK", [(3, 4), (3, 4)], tmp_path, options="Pack", valuesCount=2, axis=axis % 3)


def test_elements_in_other_places(tmp_path: Path) -> None:
    check_operator("DEPTH_TO_SPACE", [(2, 3, 4, 12)], tmp_path, options="DepthToSpace", blockSize=2)
    check_operator("SPACE_TO_DEPTH", [(2, 4, 6, 3)], tmp_path, options="SpaceToDepth", blockSize=2)
    blocks = integers(2, 2)
    pads = np.array([[0, 1], [2, 2]], np.int32)
    check_operator("SPACE_TO_BATCH_ND", [(1, 5, 8, 3), blocks, pads], tmp_path, options="SpaceToBatchND")
    crops = np.array([[0, 0], [1, 0]], np.int32)
    check_operator("BATCH_TO_SPACE_ND", [(4, 3, 4, 3), blocks, crops], tmp_path, options="BatchToSpaceND")
    check_operator("EXPAND_DIMS", [(3, 4), integers(-1)], tmp_path, options="ExpandDims")
    places = np.array([[0, 1], [2, 3]], np.int32)
    check_operator("GATHER_ND", [(3, 4), places], tmp_path, options="GatherNd")
    check_operator("GATHER", [(2, 9, 4), places], tmp_path, options="Gather", axis=1, batchDims=1)
    check_operator("SCATTER_ND", [places, (2,), integers(3, 4)], tmp_path, options="ScatterNd")


def test_sums_before_each_place(tmp_path: Path) -> None:
    for exclusive, reverse in ((False, True), (True, False)):
        flags = {"exclusive": exclusive, "reverse": reverse}
        check_operator("CUMSUM", [(3, 7), integers(1)], tmp_path, options="Cumsum", **flags)


def test_a_range_that_is_not_quite_as_asked_for(tmp_path: Path) -> None:
    for low, high in ((-2.0, 2.0), (-2.0, 1.3)):
        check_operator("FAKE_QUANT", [X], tmp_path, options="FakeQuant", min=low, max=high, numBits=8)


@pytest.mark.parametrize(("shape", "length"), [((2, 1, 12), (1, 12)), ((2, 4, 6), (4, 8)), ((3, 5, 8), (4, 8))])
def test_spectra(shape: tuple[int, ...], length: tuple[int, int], tmp_path: Path) -> None:
    writer = Writer()
    x = writer.tensor("sound", shape)
    kept = (*shape[:-2], length[0], length[1] // 2 + 1)
    spectrum = writer.add("RFFT2D", [x, writer.integers(length)], kept, "Rfft2d")
    writer.tensors[spectrum].type = TYPES["complex64"]
    parts = [writer.add(operator, [spectrum], kept) for operator in ("REAL", "IMAG", "COMPLEX_ABS")]
    graph = graph_of(writer.finish([x], parts), tmp_path)
    sound = numbers(*shape)
    padded = np.pad(sound, ((0, 0), (0, max(length[0] - shape[1], 0)), (0, max(length[1] - shape[2], 0))))
    expected = np.fft.rfft2(padded[:, : length[0], : length[1]])
    for result, part in zip(evaluate(graph, {"sound": sound}).values(), (np.real, np.imag, np.abs), strict=True):
        np.testing.assert_allclose(result, part(expected), atol=1e-4)


@pytest.mark.parametrize("is_time_first", [False, True])
@pytest.mark.parametrize("gates", ["four", "three, with peepholes, projected"])
def test_long_short_term_memory(is_time_first: bool, gates: str, tmp_path: Path) -> None:
    units, channels, is_coupled = 4, 5, gates != "four"
    writer = Writer()
    x = writer.tensor("x", (3, 2, channels) if is_time_first else (2, 3, channels))
    hidden = 3 if is_coupled else units

    def weights(*shape: int, absent: bool = False) -> int:
        return -1 if absent else writer.constant(numbers(*shape))

    operands = [x]
    for depth in (channels, hidden):
        operands += [weights(units, depth, absent=is_coupled and not place) for place in range(4)]
    operands += [weights(units, absent=not is_coupled or not place) for place in range(3)]
    operands += [weights(units, absent=is_coupled and not place) for place in range(4)]
    operands += [weights(hidden, units, absent=not is_coupled), weights(hidden, absent=not is_coupled)]
    for name, size in (("hidden", hidden), ("cell", units)):
        operands.append(writer.tensor(name, (2, size)))
        writer.tensors[operands[-1]].isVariable = True
    shape = (3, 2, hidden) if is_time_first else (2, 3, hidden)
    settings = {"fusedActivationFunction": 4, "timeMajor": is_time_first, "cellClip": 0.5 * is_coupled, "projClip": 0.0}
    name = "UnidirectionalSequenceLSTM"
    result = writer.add("UNIDIRECTIONAL_SEQUENCE_LSTM", [*operands, -1, -1, -1, -1], shape, name, **settings)
    check(writer.finish([x], [result]), tmp_path)


def test_largest_places_have_the_type_of_the_file(tmp_path: Path) -> None:
    check_operator("ARG_MAX", [X, integers(1)], tmp_path, options="ArgMax", outputType=TYPES["int32"], dtype="int32")


@pytest.mark.parametrize("adjoined", [(False, False), (True, False), (False, True)])
def test_products_of_two_activations(adjoined: tuple[bool, bool], tmp_path: Path) -> None:
    first = (2, 3, 4, 5) if adjoined[0] else (2, 3, 5, 4)
    second = (3, 6, 4) if adjoined[1] else (3, 4, 6)
    options = {"adjX": adjoined[0], "adjY": adjoined[1]}
    check_operator("BATCH_MATMUL", [first, second], tmp_path, options="BatchMatMul", **options)


def test_rows_keep_their_axes_if_told(tmp_path: Path) -> None:
    operands = [(2, 6, 7, 5), numbers(8, 5), numbers(8)]
    for keeps in (False, True):
        check_operator("FULLY_CONNECTED", operands, tmp_path, options="FullyConnected", keepNumDims=keeps)


def convolved(writer: Writer, source: int, channels: int, kernel: int = 1, scales: Sequence[float] = ()) -> int:
    """A convolution without padding's loss, in whatever type of weights."""
    shape = writer.shape(source)
    weights = numbers(channels, kernel, kernel, shape[3])
    held = writer.constant(weights)
    if scales:
        small = np.clip(np.round(weights * 30), -127, 127).astype(np.int8)
        held = writer.constant(small, scales)
    operands = [source, held, writer.constant(numbers(channels))]
    return writer.add("CONV_2D", operands, (*shape[:3], channels), "Conv2D", padding=0, **CONVOLUTION)


def network(body: str) -> bytes:
    """A network for images with something between two convolutions."""
    writer = Writer()
    x = writer.tensor("image", (1, 8, 8, 3))
    first = convolved(writer, x, 8, 3)
    if body == "residual with more channels":
        pads = writer.integers([[0, 0], [0, 0], [0, 0], [0, 4]])
        padded = writer.add("PAD", [first, pads], (1, 8, 8, 12), "Pad")
        result = writer.add("ADD", [convolved(writer, first, 12), padded], (1, 8, 8, 12), "Add")
    elif body == "squeeze and excite":
        mean = writer.add("MEAN", [first, writer.integers([1, 2])], (1, 1, 1, 8), "Reducer", keepDims=True)
        gate = writer.add("LOGISTIC", [convolved(writer, mean, 8)], (1, 1, 1, 8))
        result = writer.add("MUL", [first, gate], (1, 8, 8, 8), "Mul")
    elif body == "pool and flatten":
        window = WINDOW | {"filterHeight": 8, "filterWidth": 8, "padding": 1}
        pooled = writer.add("AVERAGE_POOL_2D", [first], (1, 1, 1, 8), "Pool2D", **window)
        rows = writer.reshaped(pooled, (1, 8))
        result = writer.add("FULLY_CONNECTED", [rows, writer.constant(numbers(4, 8)), -1], (1, 4), "FullyConnected")
        return writer.finish([x], [result])
    else:
        slopes = writer.constant(numbers(1, 1, 8))
        result = writer.add("PRELU", [first, slopes], (1, 8, 8, 8))
    return writer.finish([x], [convolved(writer, result, 4, 3)])


@pytest.mark.parametrize("body", ["residual with more channels", "squeeze and excite", "pool and flatten", "slopes"])
def test_no_transpose_is_left_in_a_network_for_images(body: str, tmp_path: Path) -> None:
    graph = check(network(body), tmp_path)
    assert "TRANSPOSE" not in ops(graph) and ops(graph).count("conv2d") >= 1
    assert graph.tensors[graph.inputs[0]].shape == (1, 8, 8, 3) and graph.inputs == ["image"]


def test_weights_of_fewer_bits_are_widened_when_built(tmp_path: Path) -> None:
    writer = Writer()
    x = writer.tensor("image", (1, 8, 8, 3))
    half = writer.constant(numbers(6, 1, 1, 3).astype(np.float16))
    weights = writer.add("DEQUANTIZE", [half], (6, 1, 1, 3))
    operands = [x, weights, writer.constant(numbers(6))]
    hidden = writer.add("CONV_2D", operands, (1, 8, 8, 6), "Conv2D", **CONVOLUTION)
    small = writer.constant(np.arange(-60, 60, dtype=np.int8).reshape(4, 5, 1, 6), [0.01, 0.02, 0.03, 0.04])
    weights = writer.add("DEQUANTIZE", [small], (4, 5, 1, 6))
    operands = [hidden, weights, writer.constant(numbers(4))]
    result = writer.add("CONV_2D", operands, (1, 8, 8, 4), "Conv2D", padding=0, **CONVOLUTION)
    assert ops(check(writer.finish([x], [result]), tmp_path)) == ["conv2d", "conv2d"]


def test_weights_of_eight_bits_beside_float_activations(tmp_path: Path) -> None:
    """LiteRT makes integers of the activations, too, which costs it more than the tolerance here."""
    writer = Writer()
    x = writer.tensor("rows", (3, 8))
    weights = np.arange(-64, 64, dtype=np.int8).reshape(16, 8)
    operands = [x, writer.constant(weights, [0.02]), -1]
    content = writer.finish([x], [writer.add("FULLY_CONNECTED", operands, (3, 16), "FullyConnected")])
    graph = graph_of(content, tmp_path)
    rows = numbers(3, 8)
    (result,) = evaluate(graph, {"rows": rows}).values()
    np.testing.assert_allclose(result, rows @ (weights.T * np.float32(0.02)), rtol=1e-5)
    assert ops(graph) == ["linear"]


def test_integers_between_layers_are_kept_to_their_grid(tmp_path: Path) -> None:
    writer = Writer()
    x = writer.tensor("image", (1, 6, 6, 3), "int8", [0.05])
    small = np.random.default_rng(2).integers(-127, 127, (8, 3, 3, 3)).astype(np.int8)
    weights = writer.constant(small, list(np.linspace(0.01, 0.02, 8)))
    bias = writer.constant(np.arange(8, dtype=np.int32) * 50, list(0.05 * np.linspace(0.01, 0.02, 8)))
    hidden = writer.add("CONV_2D", [x, weights, bias], (1, 6, 6, 8), "Conv2D", padding=0, **CONVOLUTION)
    pool = WINDOW | {"filterHeight": 2, "filterWidth": 2, "padding": 1}
    result = writer.add("MAX_POOL_2D", [hidden], (1, 5, 5, 8), "Pool2D", **pool)
    for tensor in (hidden, result):
        made = writer.tensor("", (), "int8", [0.2])
        held = writer.tensors.pop(made)
        writer.tensors[tensor].quantization, writer.tensors[tensor].type = held.quantization, held.type
    content = writer.finish([x], [result])
    graph = graph_of(content, tmp_path)
    inputs, (expected,) = run_litert(content)
    (found,) = evaluate(graph, dict(zip(graph.inputs, inputs, strict=True))).values()
    assert found.dtype == np.int8 and np.abs(found.astype(int) - expected).max() <= 1
    assert (found == expected).mean() > 0.97


def test_shapes_that_are_computed_are_known_when_built(tmp_path: Path) -> None:
    """Keras writes the batch of a Flatten so."""
    writer = Writer()
    x = writer.tensor("rows", (2, 3, 4))
    shape = writer.add("SHAPE", [x], (3,), "Shape", outType=TYPES["int32"])
    bounds = [writer.integers(value) for value in ([0], [1], [1])]
    batch = writer.add("STRIDED_SLICE", [shape, *bounds], (), "StridedSlice", shrinkAxisMask=1)
    packed = writer.add("PACK", [batch, writer.constant(np.array(12, np.int32))], (2,), "Pack", valuesCount=2)
    for tensor in (shape, batch, packed):
        writer.tensors[tensor].type = TYPES["int32"]
    check(writer.finish([x], [writer.add("RESHAPE", [x, packed], (2, 12), "Reshape")]), tmp_path)


def test_inputs_take_other_shapes(tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    path.write_bytes(network("squeeze and excite"))
    graph = fuse(trace_tflite(path, {"image": (2, 5, 7, 3)}))
    assert graph.tensors["image"].shape == (2, 5, 7, 3)
    interpreter = Interpreter(str(path))
    interpreter.resize_tensor_input(interpreter.get_input_details()[0]["index"], (2, 5, 7, 3))
    interpreter.allocate_tensors()
    image = numbers(2, 5, 7, 3)
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], image)
    interpreter.invoke()
    expected = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    (result,) = evaluate(graph, {"image": image}).values()
    np.testing.assert_allclose(result, expected, atol=1e-4)
    with pytest.raises(ModelError, match=r"input 'image' is \[1, 8, 8, 3\]; the shape \[5, 7, 3\] does not fit"):
        trace_tflite(path, {"image": (5, 7, 3)})
    with pytest.raises(ModelError, match="a shape is given for 'x'; the inputs are image"):
        trace_tflite(path, {"x": (5, 7, 3)})


def test_what_a_model_cannot_tell_before_it_runs(tmp_path: Path) -> None:
    content = file_of("RESHAPE", [(2, 3), (2,)], [(3, 2)], options="Reshape")
    with pytest.raises(
        ModelError, match=r"^RESHAPE \(tensor 'reshape2'\) reads 'x1', which depends on the model's inp"
    ):
        graph_of(content, tmp_path)


def test_results_are_what_the_file_says(tmp_path: Path) -> None:
    content = file_of("ABS", [(2, 3)], [(2, 4)])
    with pytest.raises(ModelError, match=r"ABS \(tensor 'abs1'\) makes float32 of shape \[2, 3\], where the file has"):
        graph_of(content, tmp_path)
