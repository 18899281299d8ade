"""Loops that choose boxes by their scores, and leave out those that overlap a better one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

NONE = -3e38
"""The score of no box at all."""


def chosen_boxes(
    boxes: int, lists: int, count: int, least_score: float, most_overlap: float
) -> Callable[[te.Tensor, te.Tensor], Any]:
    """Places (int32) and scores of the best boxes, ``[lists, count]`` of each; a third result is room to work in.

    The function takes corners ``[boxes, 4]`` (top, left, bottom, right) and scores ``[lists, boxes]``. A box is left
    out whose intersection with a better one of its list is more than ``most_overlap`` of their union, or whose score
    is below ``least_score``. Behind the last, places are 0 and scores :data:`NONE`.
    """

    def statement(corners: Any, scores: Any, places: Any, values: Any, left: Any) -> Any:
        box, given, place, value, open_ = map(T.buffer_proxy, (corners, scores, places, values, left))
        none = tirx.const(NONE, "float32")
        with IRBuilder() as builder, T.serial(0, lists) as number, T.seq_scope():
            with T.serial(0, boxes) as i:
                score = given[number * boxes + i]
                open_[number * boxes + i] = tirx.if_then_else(score >= least_score, score, none)
            with T.serial(0, count) as k, T.seq_scope():
                at = number * count + k
                place[at], value[at] = tirx.const(0, "int32"), none
                with T.serial(0, boxes) as i, T.If(open_[number * boxes + i] > value[at]), T.Then(), T.seq_scope():
                    value[at] = open_[number * boxes + i]
                    place[at] = i.astype("int32")
                with T.If(value[at] > none), T.Then(), T.serial(0, boxes) as i:
                    best = place[at]
                    is_out = tirx.any(i == best, _overlap(box, best, i) > most_overlap)
                    with T.If(is_out), T.Then():
                        open_[number * boxes + i] = none
        return builder.get()

    def compute(corners: te.Tensor, scores: te.Tensor) -> Any:
        sizes, types = [(lists, count), (lists, count), (lists, boxes)], ["int32", "float32", "float32"]
        return te.extern(
            sizes, [corners, scores], lambda ins, outs: statement(*ins, *outs), dtype=types, name="chosen_boxes"
        )

    return compute


def _overlap(box: Any, one: Any, other: Any) -> Any:
    """Intersection over union; 0 beside a box without area."""

    def edges(place: Any, axis: int) -> tuple[Any, Any]:
        first, second = box[place * 4 + axis], box[place * 4 + axis + 2]
        return tirx.min(first, second), tirx.max(first, second)

    areas = []
    for place in (one, other):
        (top, bottom), (left, right) = edges(place, 0), edges(place, 1)
        areas.append((bottom - top) * (right - left))
    sides = []
    for axis in (0, 1):
        (start, end), (other_start, other_end) = edges(one, axis), edges(other, axis)
        side = tirx.min(end, other_end) - tirx.max(start, other_start)
        sides.append(tirx.max(side, tirx.const(0.0, "float32")))
    shared = sides[0] * sides[1]
    union = areas[0] + areas[1] - shared
    has_area = tirx.all(areas[0] > 0.0, areas[1] > 0.0)
    return tirx.if_then_else(has_area, shared / tirx.if_then_else(has_area, union, 1.0), 0.0)
