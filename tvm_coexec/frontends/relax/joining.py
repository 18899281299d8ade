"""Concatenations of many operands as several of a few, and single parts of what is split into many.

TVM's loops nest one condition for each operand, so that compilers give up, and make all parts where one is read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from tvm import relax

from tvm_coexec.frontends.trace import OpaqueCall, Operation, Source, Trace

from .opaque import written

MOST_OPERANDS = 16
"""Operands of one concatenation; more are joined in groups first."""


def add_concat(trace: Trace, inputs: Sequence[str], output: str, axis: int, source: Source) -> Operation:
    """Add the operations that join groups of operands, and return the one that joins these."""
    names, level = list(inputs), 0
    while len(names) > MOST_OPERANDS:
        groups = [names[first : first + MOST_OPERANDS] for first in range(0, len(names), MOST_OPERANDS)]
        names = [_joined(trace, group, f"{output}/{level}.{i}", axis, source) for i, group in enumerate(groups)]
        level += 1
    return _operation(trace, names, output, axis, source)


def part_of(trace: Trace, name: str, axis: int, begin: int, count: int) -> Callable[[], OpaqueCall]:
    """What makes the program of a range of an axis."""

    def compute(x: relax.Var) -> relax.Expr:
        return relax.op.strided_slice(x, [axis], [begin], [begin + count])

    return lambda: OpaqueCall(written([_type(trace, name)], compute), (name,))


def _joined(trace: Trace, group: Sequence[str], name: str, axis: int, source: Source) -> str:
    """The name of what a group is together."""
    if len(group) == 1:
        return group[0]
    constants = [trace.constants[each] for each in group if each in trace.constants]
    if len(constants) == len(group):
        trace.constants[name] = np.concatenate(constants, axis)
        return name
    shapes = [_type(trace, each).shape for each in group]
    shape = [int(size) for size in shapes[0]]
    shape[axis] = sum(int(each[axis]) for each in shapes)
    trace.shapes[name] = tuple(shape)
    if (dtype := str(_type(trace, group[0]).dtype)) != "float32":
        trace.dtypes[name] = dtype
    trace.operations.append(_operation(trace, group, name, axis, source))
    return name


def _operation(trace: Trace, names: Sequence[str], output: str, axis: int, source: Source) -> Operation:
    operation = Operation("concat", tuple(names), output, source, {"axis": axis})
    return replace(operation, opaque=_opaque(trace, operation.inputs, axis))


def _opaque(trace: Trace, names: Sequence[str], axis: int) -> Callable[[], OpaqueCall]:
    def make() -> OpaqueCall:
        inputs = list(dict.fromkeys(name for name in names if name not in trace.constants))
        constants = list(dict.fromkeys(name for name in names if name in trace.constants))
        indices = {name: index for index, name in enumerate([*inputs, *constants])}

        def compute(*parameters: relax.Var) -> relax.Expr:
            return relax.op.concat([parameters[indices[name]] for name in names], axis)

        text = written([_type(trace, name) for name in indices], compute)
        return OpaqueCall(text, tuple(inputs), tuple(trace.constants[name] for name in constants))

    return make


def _type(trace: Trace, name: str) -> relax.TensorType:
    if name in trace.constants:
        return relax.TensorType(trace.constants[name].shape, str(trace.constants[name].dtype))
    return relax.TensorType(trace.shapes[name], trace.dtypes.get(name, "float32"))
