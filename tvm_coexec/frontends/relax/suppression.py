"""These loops choose boxes by their scores, and leave out those that overlap a better one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

NONE = -3e38
"""The score of no box at all."""


def chosen_boxes(
    boxes: int, lists: int, count: int, least_score: float, most_overlap: float, *, keeps_bounds: bool
) -> Callable[[te.Tensor, te.Tensor], Any]:
    """Places (int32) and scores of the best boxes, ``[lists, count]`` of each; a third result is room to work in.

    The function takes boxes ``[boxes, 5]`` (top, left, bottom, right and area) and scores ``[lists, boxes]``. A box is
    left out whose intersection with a better one of its list is more than ``most_overlap`` of their union, or whose
    score is below ``least_score``; one that is just so is left out unless the function ``keeps_bounds``. Behind the
    last, places are 0 and scores :data:`NONE`.
    """

    def statement(boxed: Any, scores: Any, indices: Any, values: Any, left: Any) -> Any:
        box, given, index, value, open_ = map(T.buffer_proxy, (boxed, scores, indices, values, left))
        none = tirx.const(NONE, "float32")
        with IRBuilder() as builder, T.serial(0, lists) as number, T.seq_scope():
            with T.serial(0, boxes) as i:
                score = given[number * boxes + i]
                is_enough = score >= least_score if keeps_bounds else score > least_score
                open_[number * boxes + i] = tirx.if_then_else(is_enough, score, none)
            with T.serial(0, count) as k, T.seq_scope():
                at = number * count + k
                index[at], value[at] = tirx.const(0, "int32"), none
                with T.serial(0, boxes) as i, T.If(open_[number * boxes + i] > value[at]), T.Then(), T.seq_scope():
                    value[at] = open_[number * boxes + i]
                    index[at] = i.astype("int32")
                with T.If(value[at] > none), T.Then(), T.serial(0, boxes) as i:
                    best = index[at]
                    shared = _shared_side(box, best, i, 0) * _shared_side(box, best, i, 1)
                    areas = box[best * 5 + 4], box[i * 5 + 4]
                    has_area = tirx.all(areas[0] > 0, areas[1] > 0)
                    part = tirx.if_then_else(
                        has_area, shared / (areas[0] + areas[1] - shared), tirx.const(0.0, "float32")
                    )
                    is_covered = part > most_overlap if keeps_bounds else part >= most_overlap
                    with T.If(tirx.any(i == best, is_covered)), T.Then():
                        open_[number * boxes + i] = none
        return builder.get()

    def compute(box: te.Tensor, scores: te.Tensor) -> Any:
        sizes, types = [(lists, count), (lists, count), (lists, boxes)], ["int32", "float32", "float32"]
        return te.extern(
            sizes, [box, scores], lambda ins, outs: statement(*ins, *outs), dtype=types, name="chosen_boxes"
        )

    return compute


def _shared_side(box: Any, one: Any, other: Any, axis: int) -> Any:
    """Height or width of what two boxes share."""
    start = tirx.max(box[one * 5 + axis], box[other * 5 + axis])
    end = tirx.min(box[one * 5 + axis + 2], box[other * 5 + axis + 2])
    return tirx.max(end - start, tirx.const(0.0, "float32"))
