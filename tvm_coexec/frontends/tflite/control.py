"""TFLite's choice between two graphs of a file, and what it reads of its variables."""

from __future__ import annotations

from collections.abc import Callable

from tvm import relax

from tvm_coexec.errors import ModelError
from tvm_coexec.frontends.relax.calls import static_type

from .importer import Conversion


def _if(step: Conversion) -> list[relax.Expr]:
    """The results of the graph that is taken; where the model computes which, a choice of what both make."""
    condition, values = step.importer.constant(step.operator.inputs[0]), step.operands()[1:]
    numbers = (step.options.ThenSubgraphIndex(), step.options.ElseSubgraphIndex())
    if condition is not None:
        return step.importer.inside(numbers[0 if condition.reshape(-1)[0] else 1], values)
    yes, no = (step.importer.inside(number, values) for number in numbers)
    for pair in zip(yes, no, strict=True):
        if len({static_type(result.ty, str(step.source)) for result in pair}) > 1:
            raise ModelError(
                f"{step.source} has branches of other types or shapes, between which a condition chooses that the "
                "model computes; let both make tensors of one shape"
            )
    chosen = relax.op.reshape(step.operand(0), ())
    return [relax.op.where(chosen, *pair) for pair in zip(yes, no, strict=True)]


def _read_variable(step: Conversion) -> list[relax.Expr]:
    """What was assigned before, by ``states.py`` the operand."""
    return [step.operand(0)]


CONVERTERS: dict[str, Callable[[Conversion], list[relax.Expr]]] = {"IF": _if, "READ_VARIABLE": _read_variable}
"""Operators whose operands and results are in the file's own order of axes."""
