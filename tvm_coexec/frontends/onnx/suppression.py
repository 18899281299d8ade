"""The boxes that a suppression selects, the best first, and how many: as loops, since TVM's own lacks the count."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tvm import relax, te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from tvm_coexec.errors import ModelError

from .call import Call, Converter


def _non_max_suppression(call: Call) -> Any:
    """The rows, one more with their number, and the boxes that are left in scratch memory behind them."""
    rows = call.result.shape[0]
    batch, classes, boxes = call.type(1).shape
    limits = [array.reshape(-1)[0] if (array := call.array(index)) is not None else None for index in (2, 3, 4)]
    if any(limit is None and call.operand(index) is not None for index, limit in enumerate(limits, 2)):
        raise ModelError(f"{call.node.source} has a threshold that the model computes; make it a constant")
    most = min(int(limits[0] or 0), boxes)
    overlap = float(limits[1]) if limits[1] is not None else 0.0
    least = None if limits[2] is None else float(limits[2])
    centred = bool(call.attributes.get("center_point_box", 0))
    loops = _Suppression((batch, classes, boxes), most, overlap, least, centred, rows)

    def compute(corners: te.Tensor, scores: te.Tensor) -> list[te.Tensor]:
        made: list[te.Tensor] = te.extern(
            [(rows + 1, 3), (boxes + 1,)],
            [corners, scores],
            lambda ins, outs: loops.statement(*ins, *outs),
            dtype=["int64", "int32"],
            name="suppressed",
        )
        return made

    made = call.builder.emit(relax.TupleGetItem(call.loops(compute, call.operand(0), call.operand(1)), 0))
    count = relax.op.strided_slice(made, [0, 1], [rows, 0], [rows + 1, 1])
    return [relax.op.strided_slice(made, [0], [0], [rows]), relax.op.reshape(count, (1,))]


class _Suppression:
    """Takes the best box that is left, again and again, and drops those that it covers."""

    def __init__(
        self,
        size: tuple[int, int, int],
        most: int,
        overlap: float,
        least: float | None,
        centred: bool,
        rows: int,
    ) -> None:
        self.batch, self.classes, self.boxes = size
        self.most, self.overlap, self.least, self.centred, self.rows = most, overlap, least, centred, rows

    def statement(self, corners: Any, scores: Any, selected: Any, scratch: Any) -> Any:
        """Write the loops; ``scratch`` says of each box whether it is left, and last which is the best."""
        self.corners, self.scores, self.selected, self.left = (
            T.buffer_proxy(buffer) for buffer in (corners, scores, selected, scratch)
        )
        with IRBuilder() as builder, T.seq_scope():
            with T.serial(0, 3 * (self.rows + 1)) as i:
                self.selected[i] = tirx.const(0, "int64")
            with T.serial(0, self.batch) as b, T.serial(0, self.classes) as c:
                with T.serial(0, self.boxes) as i:
                    self.left[i] = tirx.const(1, "int32")
                with T.serial(0, self.most):
                    self._take_best(b, c)
        return builder.get()

    def _take_best(self, b: Any, c: Any) -> None:
        best = self.boxes
        row = (b * self.classes + c) * self.boxes
        self.left[best] = tirx.const(-1, "int32")
        with T.serial(0, self.boxes) as i:
            score = self.scores[row + i]
            is_better = tirx.any(self.left[best] < 0, score > self.scores[row + tirx.max(self.left[best], 0)])
            conditions = [self.left[i] > 0, is_better]
            conditions += [] if self.least is None else [score > tirx.const(self.least, "float32")]
            with T.If(tirx.all(*conditions)), T.Then():
                self.left[best] = i.astype("int32")
        with T.If(self.left[best] >= 0), T.Then():
            count = 3 * self.rows
            index = self.selected[count] * 3
            for offset, number in enumerate((b, c, self.left[best])):
                self.selected[index + offset] = number.astype("int64")
            self.selected[count] = self.selected[count] + tirx.const(1, "int64")
            with T.serial(0, self.boxes) as i, T.If(self._is_covered(b, self.left[best], i)), T.Then():
                self.left[i] = tirx.const(0, "int32")
            self.left[self.left[best]] = tirx.const(0, "int32")

    def _corners(self, b: Any, box: Any) -> list[Any]:
        """Lower and upper bounds of a box along both axes."""
        one, two, three, four = (self.corners[(b * self.boxes + box) * 4 + index] for index in range(4))
        if self.centred:
            half = tirx.const(0.5, "float32")
            return [one - three * half, two - four * half, one + three * half, two + four * half]
        return [tirx.min(one, three), tirx.min(two, four), tirx.max(one, three), tirx.max(two, four)]

    def _is_covered(self, b: Any, best: Any, box: Any) -> Any:
        first, second, zero = self._corners(b, best), self._corners(b, box), tirx.const(0, "float32")
        sides = [tirx.min(first[2 + k], second[2 + k]) - tirx.max(first[k], second[k]) for k in (0, 1)]
        common = tirx.max(sides[0], zero) * tirx.max(sides[1], zero)
        areas = [(each[2] - each[0]) * (each[3] - each[1]) for each in (first, second)]
        union = areas[0] + areas[1] - common
        return tirx.all(common > zero, union > zero, common > tirx.const(self.overlap, "float32") * union)


CONVERTERS: Mapping[str, Converter] = {"NonMaxSuppression": _non_max_suppression}
