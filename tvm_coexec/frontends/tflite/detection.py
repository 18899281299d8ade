"""TFLite's operators that end networks for detection: of many boxes, the best that do not overlap."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from flatbuffers import flexbuffers
from tvm import relax

from tvm_coexec.errors import ModelError
from tvm_coexec.frontends.relax.sorting import extreme_indices
from tvm_coexec.frontends.relax.suppression import NONE, chosen_boxes

from .importer import Conversion


def _suppressed(step: Conversion) -> list[relax.Expr]:
    """NON_MAX_SUPPRESSION_V4 gives indices, as many as may be, and how many there are; V5 has scores between them."""
    has_scores = len(step.operator.outputs) == 3
    if has_scores and step.has(5) and float(step.constant(5).item()):
        raise ModelError(f"{step.source} lowers the scores of boxes that overlap (sigma); set sigma to 0")
    count, overlap, least = (float(step.constant(index).item()) for index in (2, 3, 4))
    boxes = step.shape(0)[0]
    scores = relax.op.reshape(step.operand(1), (1, boxes))
    indices, values = _chosen(step, step.operand(0), scores, (boxes, 1, int(count)), least, overlap, keeps_bounds=False)
    found = relax.op.greater(values, _number(NONE))
    results = [relax.op.reshape(indices, (int(count),)), relax.op.sum(relax.op.astype(found, "int32"))]
    if has_scores:
        results.insert(1, relax.op.reshape(relax.op.where(found, values, _number(0.0)), (int(count),)))
    return results


def _detections(step: Conversion) -> list[relax.Expr]:
    """``TFLite_Detection_PostProcess`` gives boxes, classes, scores and how many there are, of one image."""
    options, boxes = flexbuffers.Loads(step.operator.custom_options), step.shape(0)[1]
    classes, most = options["num_classes"], options["max_detections"]
    emit = step.importer.builder.emit
    corners = emit(_corners(step, options))
    # what stands before the classes is the background
    kept = relax.op.strided_slice(step.operand(1), [2], [step.shape(1)[2] - classes], [step.shape(1)[2]])
    scores = emit(relax.op.reshape(kept, (boxes, classes)))
    limits = (options["nms_score_threshold"], options["nms_iou_threshold"])
    if options.get("use_regular_nms", False):
        each = min(options.get("detections_per_class", 100), boxes)
        by_class = emit(relax.op.permute_dims(scores))
        indices, values = _chosen(step, corners, by_class, (boxes, classes, each), *limits, keeps_bounds=True)
        of_class = np.repeat(np.arange(classes, dtype="float32"), each)
        kinds = relax.const(of_class, "float32")
        indices, values = (relax.op.reshape(found, (classes * each,)) for found in (indices, values))
        best = min(most, classes * each)
        order = emit(step.importer.builder.call_te(extreme_indices((classes * each,), 0, best), emit(values)))
        indices, values, kinds = (relax.op.take(found, order, axis=0) for found in (indices, values, kinds))
    else:
        best = min(most, boxes)
        highest = emit(relax.op.reshape(relax.op.max(scores, [1]), (1, boxes)))
        indices, values = _chosen(step, corners, highest, (boxes, 1, best), *limits, keeps_bounds=True)
        indices, values = (relax.op.reshape(found, (best,)) for found in (indices, values))
        kinds = relax.op.take(relax.op.astype(relax.op.argmax(scores, axis=1), "float32"), indices, axis=0)
    indices, values, kinds = (emit(found) for found in (indices, values, kinds))
    found = emit(relax.op.greater(values, _number(NONE)))
    shown = relax.op.take(corners, indices, axis=0)
    results = [relax.op.where(relax.op.reshape(found, (best, 1)), shown, _number(0.0))]
    results += [relax.op.where(found, numbers, _number(0.0)) for numbers in (kinds, values)]
    padded = [
        relax.op.nn.pad(result, [0, most - best] + [0, 0] * rank)
        for rank, result in zip((1, 0, 0), results, strict=True)
    ]
    shaped = [relax.op.expand_dims(result, 0) for result in (padded if most > best else results)]
    return [*shaped, relax.op.reshape(relax.op.sum(relax.op.astype(found, "float32")), (1,))]


def _chosen(
    step: Conversion,
    corners: relax.Expr,
    scores: relax.Expr,
    sizes: tuple[int, int, int],
    least_score: float,
    most_overlap: float,
    *,
    keeps_bounds: bool,
) -> tuple[relax.Expr, relax.Expr]:
    builder = step.importer.builder
    compute = chosen_boxes(*sizes, least_score, most_overlap, keeps_bounds=keeps_bounds)
    first, second = (relax.op.strided_slice(corners, [1], [begin], [begin + 2]) for begin in (0, 2))
    starts, ends = builder.emit(relax.op.minimum(first, second)), builder.emit(relax.op.maximum(first, second))
    areas = relax.op.prod(relax.op.subtract(ends, starts), [1], keepdims=True)
    boxes = builder.emit(relax.op.concat([starts, ends, areas], 1))
    results = builder.emit(builder.call_te(compute, boxes, builder.emit(scores)))
    return builder.emit(relax.TupleGetItem(results, 0)), builder.emit(relax.TupleGetItem(results, 1))


def _corners(step: Conversion, options: dict[str, float]) -> relax.Expr:
    """Boxes by top, left, bottom and right, from how they differ from anchors given by centre and size."""
    boxes = step.shape(0)[1]
    given = relax.op.reshape(step.operand(0), (boxes, step.shape(0)[2]))
    factors = np.array([options[f"{name}_scale"] for name in ("y", "x", "h", "w")], np.float32)
    codes = relax.op.divide(relax.op.strided_slice(given, [1], [0], [4]), relax.const(factors, "float32"))
    anchors = step.constant(2).reshape(boxes, 4)
    centres, sizes = (relax.const(np.ascontiguousarray(part), "float32") for part in (anchors[:, :2], anchors[:, 2:]))
    moves, grows = (relax.op.strided_slice(codes, [1], [begin], [begin + 2]) for begin in (0, 2))
    middle = relax.op.add(relax.op.multiply(moves, sizes), centres)
    half = relax.op.multiply(relax.op.multiply(relax.op.exp(grows), sizes), _number(0.5))
    return relax.op.concat([relax.op.subtract(middle, half), relax.op.add(middle, half)], 1)


def _number(number: float) -> relax.Expr:
    return relax.const(number, "float32")


CONVERTERS: dict[str, Callable[[Conversion], relax.Expr | list[relax.Expr]]] = {
    "NON_MAX_SUPPRESSION_V4": _suppressed,
    "NON_MAX_SUPPRESSION_V5": _suppressed,
    "TFLite_Detection_PostProcess": _detections,
}
"""Operators for which the file's own order of axes matters."""
