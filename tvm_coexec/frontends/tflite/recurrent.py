"""TFLite's long short-term memory is written step by step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import tflite
from tvm import relax

from tvm_coexec.errors import ModelError

from .elementwise import FUSED, clipped
from .importer import Conversion

_GATES = ("input", "forget", "cell", "output")
_WEIGHTS, _RECURRENT, _PEEPHOLES, _BIASES, _PROJECTION, _STATES, _NORMS = 1, 5, 9, 12, 16, 18, 20
"""The first of each kind of operands."""


@dataclass(frozen=True)
class _Cell:
    """What does not change from step to step; gates that the file leaves out follow from the others."""

    step: Conversion
    gates: tuple[str, ...]
    recurrent: relax.Expr
    units: int

    def advance(self, driven: relax.Expr, hidden: relax.Expr, cell: relax.Expr) -> tuple[relax.Expr, relax.Expr]:
        """Hidden state and cell after a step, of which ``driven`` is what the input does to all gates."""
        emit, clip = self.step.importer.builder.emit, self.step.options.CellClip()
        sums = emit(relax.op.add(driven, relax.op.matmul(hidden, self.recurrent)))
        of = {gate: self._columns(sums, position) for position, gate in enumerate(self.gates)}
        forget = emit(relax.op.sigmoid(self._seeing("forget", of["forget"], cell)))
        if "input" in of:
            taken = relax.op.sigmoid(self._seeing("input", of["input"], cell))
        else:
            taken = relax.op.subtract(relax.const(1.0, "float32"), forget)
        candidate = self._activated(of["cell"])
        cell = emit(relax.op.add(relax.op.multiply(forget, cell), relax.op.multiply(taken, candidate)))
        if clip > 0:
            cell = emit(clipped(cell, -clip, clip))
        shown = relax.op.sigmoid(self._seeing("output", of["output"], cell))
        return self._projected(emit(relax.op.multiply(shown, self._activated(cell)))), cell

    def _columns(self, sums: relax.Expr, position: int) -> relax.Expr:
        return relax.op.strided_slice(sums, [1], [position * self.units], [(position + 1) * self.units])

    def _seeing(self, gate: str, value: relax.Expr, cell: relax.Expr) -> relax.Expr:
        """The gate's sum and what it sees of the cell, if it has a peephole."""
        position = _PEEPHOLES + ("input", "forget", "output").index(gate)
        if not self.step.has(position):
            return value
        return relax.op.add(value, relax.op.multiply(cell, relax.const(self.step.constant(position), "float32")))

    def _activated(self, value: relax.Expr) -> relax.Expr:
        kind = self.step.options.FusedActivationFunction()
        return value if kind == tflite.ActivationFunctionType.NONE else FUSED[kind](value)

    def _projected(self, hidden: relax.Expr) -> relax.Expr:
        if not self.step.has(_PROJECTION):
            return hidden
        emit, clip = self.step.importer.builder.emit, self.step.options.ProjClip()
        hidden = emit(relax.op.matmul(hidden, relax.const(self.step.constant(_PROJECTION).T.copy(), "float32")))
        if self.step.has(_PROJECTION + 1):
            hidden = emit(relax.op.add(hidden, relax.const(self.step.constant(_PROJECTION + 1), "float32")))
        return emit(clipped(hidden, -clip, clip)) if clip > 0 else hidden


def _sequence(step: Conversion) -> relax.Expr:
    if any(map(step.has, range(_NORMS, _NORMS + 4))):
        raise ModelError(f"{step.source} normalises its gates, which nothing here computes; convert it without")
    gates = tuple(gate for position, gate in enumerate(_GATES) if step.has(_WEIGHTS + position))
    positions = [_GATES.index(gate) for gate in gates]
    weights, recurrent = (
        np.concatenate([step.constant(first + position) for position in positions]).T.copy()
        for first in (_WEIGHTS, _RECURRENT)
    )
    bias = np.concatenate([step.constant(_BIASES + position) for position in positions])
    emit, shape = step.importer.builder.emit, step.shape(0)
    is_time_first = step.options.TimeMajor()
    steps, batch = (shape[0], shape[1]) if is_time_first else (shape[1], shape[0])
    rows = step.operand(0) if is_time_first else relax.op.permute_dims(step.operand(0), [1, 0, 2])
    driven = relax.op.matmul(relax.op.reshape(rows, (steps * batch, shape[2])), relax.const(weights, "float32"))
    driven = emit(relax.op.add(driven, relax.const(bias, "float32")))
    cell = _Cell(step, gates, relax.const(recurrent, "float32"), len(bias) // len(gates))
    hidden, state = (relax.const(step.constant(_STATES + position), "float32") for position in (0, 1))
    shown = []
    for number in range(steps):
        part = relax.op.strided_slice(driven, [0], [number * batch], [(number + 1) * batch])
        hidden, state = cell.advance(part, hidden, state)
        shown.append(relax.op.expand_dims(hidden, 0 if is_time_first else 1))
    return relax.op.concat(shown, 0 if is_time_first else 1)


CONVERTERS: dict[str, Callable[[Conversion], relax.Expr]] = {"UNIDIRECTIONAL_SEQUENCE_LSTM": _sequence}
"""Operators for which the file's own order of axes matters. TVM 0.27 refuses all but those without an input gate."""
