"""What ends networks for detection chooses the boxes that LiteRT chooses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from flatbuffers import flexbuffers
from litert import check
from tflite_writer import TYPES, Writer


def further_output(writer: Writer, name: str, shape: tuple[int, ...], dtype: str = "float32") -> int:
    """One more result of the operator that was added last."""
    number = writer.tensor(name, shape, dtype)
    writer.operators[-1].outputs.append(number)
    return number


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
