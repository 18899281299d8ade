"""What ends networks for detection chooses the boxes that LiteRT chooses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from flatbuffers import flexbuffers
from litert import check, graph_of
from reference import evaluate
from slow import slow_except
from tflite_writer import TYPES, Writer


def further_output(writer: Writer, name: str, shape: tuple[int, ...], dtype: str = "float32") -> int:
    """One more result of the operator that was added last."""
    number = writer.tensor(name, shape, dtype)
    writer.operators[-1].outputs.append(number)
    return number


@pytest.mark.slow
@pytest.mark.parametrize("regular", [False, True])
def test_boxes_of_an_image(regular: bool, tmp_path: Path) -> None:
    boxes, classes, most = 12, 3, 14 if regular else 5
    writer, random = Writer(), np.random.default_rng(0)
    moves, scores = writer.tensor("moves", (1, boxes, 4)), writer.tensor("scores", (1, boxes, classes + 1))
    anchors = np.concatenate([random.random((boxes, 2)), np.full((boxes, 2), 0.3)], 1).astype(np.float32)
    options = {f"{name}_scale": scale for name, scale in (("x", 10.0), ("y", 10.0), ("h", 5.0), ("w", 5.0))}
    options |= {"max_detections": most, "max_classes_per_detection": 1, "detections_per_class": 4}
    options |= {"num_classes": classes, "use_regular_nms": regular}
    options |= {"nms_score_threshold": 0.8, "nms_iou_threshold": 0.4}
    operands = [moves, scores, writer.constant(anchors)]
    found = [writer.add("TFLite_Detection_PostProcess", operands, (1, most, 4), custom=flexbuffers.Dumps(options))]
    found += [further_output(writer, name, (1, most)) for name in ("kinds", "values")]
    found.append(further_output(writer, "count", (1,)))
    check(writer.finish([moves, scores], found), tmp_path, low=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("version", [4, 5])
def test_boxes_that_do_not_overlap(version: int, tmp_path: Path) -> None:
    writer = Writer()
    boxes, scores = writer.tensor("boxes", (10, 4)), writer.tensor("scores", (10,))
    limits = [np.array(6, np.int32), np.float32(0.3), np.float32(0.9), np.float32(0)][: version - 1]
    operands = [boxes, scores, *(writer.constant(np.asarray(limit)) for limit in limits)]
    operator = f"NON_MAX_SUPPRESSION_V{version}"
    found = [writer.add(operator, operands, (6,), f"NonMaxSuppressionV{version}")]
    writer.tensors[found[0]].type = TYPES["int32"]
    if version == 5:
        found.append(further_output(writer, "values", (6,)))
    found.append(further_output(writer, "count", (), "int32"))
    check(writer.finish([boxes, scores], found), tmp_path, low=0.1)


@pytest.mark.slow
@pytest.mark.parametrize(("overlap", "least"), slow_except([(0.5, 0.375), (0.0, 0.5), (1.0, 0.0)], 0))
def test_boxes_that_are_just_at_the_bounds(overlap: float, least: float, tmp_path: Path) -> None:
    """Boxes that share half, nothing or all, and scores as low as the least."""
    corners = np.array(
        [[0, 0, 4, 4], [0, 0, 4, 2], [0, 0, 4, 4], [6, 6, 8, 8], [6, 6, 7, 8], [8, 8, 6, 6], [0, 2, 4, 4]], np.float32
    )
    values = np.array([0.75, 0.4375, 0.5, 0.25, 0.625, 0.375, 1], np.float32)
    writer = Writer()
    boxes, scores = writer.tensor("boxes", (7, 4)), writer.tensor("scores", (7,))
    limits = [np.array(7, np.int32), np.float32(overlap), np.float32(least)]
    operands = [boxes, scores, *(writer.constant(np.asarray(limit)) for limit in limits)]
    found = [writer.add("NON_MAX_SUPPRESSION_V4", operands, (7,), "NonMaxSuppressionV4")]
    writer.tensors[found[0]].type = TYPES["int32"]
    found.append(further_output(writer, "count", (), "int32"))
    content = writer.finish([boxes, scores], found)
    graph = graph_of(content, tmp_path)
    results = list(evaluate(graph, dict(zip(graph.inputs, (corners, values), strict=True))).values())
    interpreter = Interpreter(model_content=content)
    interpreter.allocate_tensors()
    for detail, array in zip(interpreter.get_input_details(), (corners, values), strict=True):
        interpreter.set_tensor(detail["index"], array)
    interpreter.invoke()
    expected = [interpreter.get_tensor(detail["index"]) for detail in interpreter.get_output_details()]
    assert int(results[1]) == int(expected[1])
    assert results[0][: int(expected[1])].tolist() == expected[0][: int(expected[1])].tolist()


def test_infinite_numbers_on_a_diagonal(tmp_path: Path) -> None:
    writer = Writer()
    x = writer.tensor("x", (3,))
    graph = graph_of(writer.finish([x], [writer.add("MATRIX_DIAG", [x], (3, 3), "MatrixDiag")]), tmp_path)
    numbers = np.array([1, np.inf, np.nan], np.float32)
    (result,) = evaluate(graph, {graph.inputs[0]: numbers}).values()
    np.testing.assert_array_equal(result, np.where(np.eye(3, dtype=bool), numbers, 0))


def test_the_largest_and_where_they_are(tmp_path: Path) -> None:
    writer = Writer()
    x = writer.tensor("x", (3, 9))
    found = [writer.add("TOPK_V2", [x, writer.constant(np.array(4, np.int32))], (3, 4), "TopKV2")]
    found.append(further_output(writer, "places", (3, 4), "int32"))
    check(writer.finish([x], found), tmp_path)


def test_matrices_with_other_numbers_in_places(tmp_path: Path) -> None:
    writer = Writer()
    index, update = writer.integers([1, 1]), writer.constant(np.ones((1, 2), np.float32))
    rows, matrices = writer.tensor("rows", (2, 3)), writer.tensor("matrices", (2, 3, 4))
    results = [
        writer.add("MATRIX_DIAG", [rows], (2, 3, 3), "MatrixDiag"),
        writer.add("MATRIX_SET_DIAG", [matrices, rows], (2, 3, 4), "MatrixSetDiag"),
        writer.add("DYNAMIC_UPDATE_SLICE", [rows, update, index], (2, 3)),
    ]
    check(writer.finish([rows, matrices], results), tmp_path)
