"""TFLite's operators compute what LiteRT computes."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from litert import check, check_operator, graph_of, integers, numbers, ops
from reference import evaluate
from tflite_writer import TYPES, Writer

from tvm_coexec.errors import ModelError
from tvm_coexec.frontends import to_graph

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


@pytest.mark.parametrize("axes", [(), (1, 2), (2, 1), (3,), (-1, 0), (0, 1, 2, 3)])
@pytest.mark.parametrize("keeps", [False, True])
def test_reductions(axes: tuple[int, ...], keeps: bool, tmp_path: Path) -> None:
    for operator in ("MEAN", "SUM", "REDUCE_PROD", "REDUCE_MAX", "REDUCE_MIN"):
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
    indices = np.array([[0, 1], [2, 3]], np.int32)
    check_operator("GATHER_ND", [(3, 4), indices], tmp_path, options="GatherNd")
    check_operator("GATHER", [(2, 9, 4), indices], tmp_path, options="Gather", axis=1, batchDims=1)
    check_operator("GATHER", [(2, 9, 4), indices], tmp_path, options="Gather", axis=1, batchDims=-1)
    bounds = [integers(1, 4), integers(2, -3), integers(1, -1)]
    check_operator("STRIDED_SLICE", [(4, 6), *bounds], tmp_path, options="StridedSlice", offset=True)
    check_operator("SCATTER_ND", [indices, (2,), integers(3, 4)], tmp_path, options="ScatterNd")


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


def test_complex_numbers_change_shape_and_are_multiplied(tmp_path: Path) -> None:
    writer = Writer()
    x = writer.tensor("sound", (2, 1, 12))

    def made(operator: str, inputs: list[int], shape: tuple[int, ...], options: str = "", **values: Any) -> int:
        number = writer.add(operator, inputs, shape, options, **values)
        writer.tensors[number].type = TYPES["complex64"]
        return number

    spectrum = made("RFFT2D", [x, writer.integers((1, 12))], (2, 1, 7), "Rfft2d")
    squeezed = made("SQUEEZE", [spectrum], (2, 7), "Squeeze", squeezeDims=[-2])
    turned = made("TRANSPOSE", [squeezed, writer.integers([1, 0])], (7, 2), "Transpose")
    spread = made("EXPAND_DIMS", [turned, writer.integers([-1])], (7, 2, 1), "ExpandDims")
    flat = made("RESHAPE", [spread, writer.integers([-1])], (14,), "Reshape", newShape=[-1])
    product = made("MUL", [flat, flat], (14,), "Mul")
    total = made("ADD", [product, flat], (14,), "Add")
    parts = [writer.add(operator, [total], (14,)) for operator in ("REAL", "IMAG")]
    parts.append(writer.add("CAST", [made("SUB", [total, flat], (14,), "Sub")], (14,), "Cast"))
    graph = graph_of(writer.finish([x], parts), tmp_path)
    sound = numbers(2, 1, 12)
    expected = np.fft.rfft(sound).reshape(2, 7).T.reshape(-1)
    total_of_both = expected * expected + expected
    found = evaluate(graph, {"sound": sound}).values()
    for result, array in zip(found, (total_of_both.real, total_of_both.imag, (expected**2).real), strict=True):
        np.testing.assert_allclose(result, array, atol=1e-4)


def test_complex_numbers_are_multiplied_by_constants(tmp_path: Path) -> None:
    writer = Writer()
    x = writer.tensor("sound", (2, 1, 12))
    spectrum = writer.add("RFFT2D", [x, writer.integers((1, 12))], (2, 1, 7), "Rfft2d")
    factors = (numbers(1, 7) + 1j * numbers(1, 7)).astype(np.complex64)
    product = writer.add("MUL", [spectrum, writer.constant(factors)], (2, 1, 7), "Mul")
    for number in (spectrum, product):
        writer.tensors[number].type = TYPES["complex64"]
    parts = [writer.add(operator, [product], (2, 1, 7)) for operator in ("REAL", "IMAG")]
    graph = graph_of(writer.finish([x], parts), tmp_path)
    sound = numbers(2, 1, 12)
    expected = np.fft.rfft(sound) * factors
    for result, part in zip(evaluate(graph, {"sound": sound}).values(), (expected.real, expected.imag), strict=True):
        np.testing.assert_allclose(result, part, atol=1e-4)


def test_shapes_that_a_file_leaves_open_are_told(tmp_path: Path) -> None:
    writer = Writer()
    x = writer.tensor("x", (1, 4))
    writer.tensors[x].shapeSignature = [-1, 4]
    path = tmp_path / "model.tflite"
    path.write_bytes(writer.finish([x], [writer.add("RELU", [x], (1, 4))]))
    with pytest.warns(UserWarning, match=r"that the model leaves open: built is for --shape x=1,4"):
        assert to_graph(path).tensors["x"].shape == (1, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert to_graph(path, {"x": (3, 4)}).tensors["x"].shape == (3, 4)


def test_what_is_not_known_of_complex_numbers_is_refused(tmp_path: Path) -> None:
    writer = Writer()
    x = writer.tensor("sound", (2, 1, 12))
    spectrum = writer.add("RFFT2D", [x, writer.integers((1, 12))], (2, 1, 7), "Rfft2d")
    divided = writer.add("DIV", [spectrum, spectrum], (2, 1, 7), "Div")
    for number in (spectrum, divided):
        writer.tensors[number].type = TYPES["complex64"]
    content = writer.finish([x], [writer.add("REAL", [divided], (2, 1, 7))])
    with pytest.raises(ModelError, match=r"^DIV \(tensor '\w+'\) is given complex numbers, which only ADD, "):
        graph_of(content, tmp_path)


def test_a_reshape_to_another_number_of_elements_is_refused(tmp_path: Path) -> None:
    writer = Writer()
    x = writer.tensor("x", (4, 4))
    content = writer.finish([x], [writer.add("RESHAPE", [x, writer.integers([3, 5])], (3, 5), "Reshape")])
    with pytest.raises(
        ModelError, match=r"^RESHAPE .*\[4, 4\] to \[3, 5\], which has 15 elements instead of 16; convert"
    ):
        graph_of(content, tmp_path)


def test_places_that_only_a_run_tells_are_refused(tmp_path: Path) -> None:
    writer = Writer()
    x = writer.tensor("x", (4,))
    content = writer.finish([x], [writer.add("WHERE", [x], (4, 1), "Where")])
    with pytest.raises(
        ModelError, match=r"^WHERE .* makes as many rows as its input has places .*; leave it out of the"
    ):
        graph_of(content, tmp_path)


@pytest.mark.parametrize("axis", [2, -3])
def test_axes_that_there_are_not_are_refused(axis: int, tmp_path: Path) -> None:
    writer = Writer()
    x = writer.tensor("x", (4, 4))
    sums = writer.add("SUM", [x, writer.integers([axis])], (4,), "Reducer")
    with pytest.raises(
        ModelError, match=rf"^SUM \(tensor '\w+'\) has the axis {axis}, of a tensor with 2 axes; export"
    ):
        graph_of(writer.finish([x], [sums]), tmp_path)


def test_the_shape_of_a_scalar_has_no_elements(tmp_path: Path) -> None:
    """Such a constant has no buffer in the file."""
    writer = Writer()
    x = writer.tensor("x", (1, 1))
    shape = writer.tensor("shape", (0,), "int32")
    scalar = writer.add("RESHAPE", [x, shape], (), "Reshape")
    row = writer.constant(numbers(5))
    check(writer.finish([x], [writer.add("MUL", [scalar, row], (5,), "Mul")]), tmp_path)


def test_constant_that_the_process_may_not_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = Writer()
    x, shape = writer.tensor("x", (1, 1)), (20_000, 20_000)
    filled = writer.add("FILL", [writer.integers(shape), writer.constant(np.float32(0.5))], shape, "Fill")
    content = writer.finish([x], [writer.add("ADD", [x, filled], shape, "Add")])
    monkeypatch.setattr("resource.getrlimit", lambda which: (1 << 30, 1 << 30))
    with pytest.raises(ModelError, match=r"^FILL \(tensor '\w+'\) makes a constant of 400000000 elements, more"):
        graph_of(content, tmp_path)


@pytest.mark.parametrize("options", ["Equal", "NotEqual"])
def test_comparisons_with_nan_and_of_truth_values(options: str, tmp_path: Path) -> None:
    operator = {"Equal": "EQUAL", "NotEqual": "NOT_EQUAL"}[options]
    other = numbers(2, 8)
    other[0, 3] = np.nan
    writer = Writer()
    x = writer.tensor("x", (2, 8))
    compared = [writer.add(operator, [x, writer.constant(other)], (2, 8), options)]
    compared += [writer.add("LESS", [x, writer.constant(bound)], (2, 8), "Less") for bound in (other, -other)]
    compared.append(writer.add(operator, compared[1:], (2, 8), options))
    for result in compared:
        writer.tensors[result].type = TYPES["bool"]
    check(writer.finish([x], [compared[0], compared[3]]), tmp_path)


@pytest.mark.parametrize("is_constant", [False, True])
def test_a_choice_between_graphs(is_constant: bool, tmp_path: Path) -> None:
    writer = Writer()
    x = writer.tensor("x", (2, 8))
    weights = writer.constant(numbers(4, 8))
    operands = [x, writer.constant(numbers(2, 8))]
    if is_constant:
        operands = [writer.constant(operand) for operand in (numbers(2, 8), np.float32([[4] * 8] * 2))]
    first = [writer.add("REDUCE_MAX", [each, writer.integers([0, 1])], (), "Reducer") for each in operands]
    condition = writer.add("LESS", first, (), "Less")
    writer.tensors[condition].type = TYPES["bool"]
    options = {"thenSubgraphIndex": 1, "elseSubgraphIndex": 2}
    chosen = writer.add("IF", [condition, x, weights], (2, 4), "If", **options)
    inner = []
    for activation in (0, 1):
        graph = Writer(writer)
        given = [graph.tensor("given", (2, 8)), graph.tensor("weights", (4, 8))]
        shared = {"fusedActivationFunction": activation}
        inner.append((graph, given, [graph.add("FULLY_CONNECTED", [*given, -1], (2, 4), "FullyConnected", **shared)]))
    content = writer.finish([x], [chosen], inner)
    for low in (-3, 2.5):
        check(content, tmp_path, low)


def test_a_choice_between_graphs_that_make_other_shapes_is_refused(tmp_path: Path) -> None:
    writer = Writer()
    condition, x = writer.tensor("condition", (), "bool"), writer.tensor("x", (2, 4))
    chosen = writer.add("IF", [condition, x], (2, 4), "If", thenSubgraphIndex=1, elseSubgraphIndex=2)
    first, second = Writer(writer), Writer(writer)
    given = [graph.tensor("given", (2, 4)) for graph in (first, second)]
    row = first.add("SUM", [given[0], first.integers([0])], (1, 4), "Reducer", keepDims=True)
    others = [(first, given[:1], [row]), (second, given[1:], [second.add("RELU", given[1:], (2, 4))])]
    with pytest.raises(ModelError, match=r"^IF \(tensor '\w+'\) has branches of other types or shapes"):
        graph_of(writer.finish([condition, x], [chosen], others), tmp_path)


def test_tensors_of_a_chosen_graph_are_told_from_those_around_it(tmp_path: Path) -> None:
    """Else the check would compare one with another of the same name."""
    writer = Writer()
    condition, x = writer.tensor("condition", (), "bool"), writer.tensor("x", (2, 4))
    chosen = writer.add("IF", [condition, x], (2, 4), "If", thenSubgraphIndex=1, elseSubgraphIndex=1)
    inner = Writer(writer)
    given = inner.tensor("x", (2, 4))
    made = inner.add("TANH", [given], (2, 4))
    inner.tensors[made].name = writer.tensors[chosen].name = "y"
    graph = graph_of(writer.finish([condition, x], [chosen], [(inner, [given], [made])]), tmp_path)
    assert {node.output for node in graph.nodes if node.layer.op == "rowwise"} == {"graph1/y", "graph1/y_2"}


def test_variables_that_outlive_a_run_are_refused(tmp_path: Path) -> None:
    writer = Writer()
    x = writer.tensor("x", (2, 4))
    writer.add("CALL_ONCE", [], (), "CallOnce", initSubgraphIndex=0)
    with pytest.raises(ModelError, match=r"^CALL_ONCE .* keeps a state from one run to the next; pass it as an input"):
        graph_of(writer.finish([x], [writer.add("RELU", [x], (2, 4))]), tmp_path)


def test_a_graph_that_runs_itself_is_refused(tmp_path: Path) -> None:
    writer = Writer()
    condition, x = writer.tensor("condition", (), "bool"), writer.tensor("x", (2, 4))
    chosen = writer.add("IF", [condition, x], (2, 4), "If", thenSubgraphIndex=0, elseSubgraphIndex=0)
    with pytest.raises(ModelError, match="graph 0 of the file runs itself"):
        graph_of(writer.finish([condition, x], [chosen]), tmp_path)


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
        operands += [weights(units, depth, absent=is_coupled and not index) for index in range(4)]
    operands += [weights(units, absent=not is_coupled or not index) for index in range(3)]
    operands += [weights(units, absent=is_coupled and not index) for index in range(4)]
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
