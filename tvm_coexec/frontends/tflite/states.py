"""Variables of a TFLite file keep their values from run to run: modules are given them, and give them back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tvm_coexec.errors import ModelError
from tvm_coexec.frontends.trace import claim_name
from tvm_coexec.graph import State

from .file import FileOperator, TfliteFile
from .refused import check_operators

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

_NEXT = "/next"
"""What stands behind the name of a variable in that of the output that has its next value."""


def read_tflite(
    path: Path, shapes: Mapping[str, Sequence[int]], values: Mapping[str, ArrayLike] | None = None
) -> TfliteFile:
    """Read a file whose variables become inputs and outputs.

    ``shapes`` has those of inputs, and ``values`` what other inputs always are, by name.
    """
    file = TfliteFile(path)
    try:
        _expose_variables(file)
    except (AttributeError, IndexError) as error:  # an operator of variables lacks its options or operands
        raise ModelError(f"{str(path)!r} is a damaged TFLite model ({error}); convert it again") from error
    file.bind_inputs(shapes, values or {})
    for index in file.inputs:
        name = file.tensors[index].name
        if (state := file.states.get(name)) is not None:
            file.states[name] = replace(state, initial=_in_shape(file.input_shapes[index], name, state.initial))
    check_operators(file.operators, file.tensors)
    return file


def _in_shape(shape: tuple[int, ...], name: str, initial: np.ndarray) -> np.ndarray:
    """The first values of a variable; where these are all the same, it may have another shape than they."""
    if initial.shape == shape:
        return initial
    if initial.size and (initial == initial.flat[0]).all():
        return np.full(shape, initial.flat[0])
    raise ModelError(
        f"variable {name!r} is {list(shape)}, and its first values are {list(initial.shape)}; give it their shape, or "
        "convert the model with others"
    )


def _expose_variables(file: TfliteFile) -> None:
    """Let each variable that the graph assigns be an input where it is read first, and an output as it is left."""
    kept: list[FileOperator] = []
    names: dict[int, str] = {}
    initial: dict[str, np.ndarray] = {}
    first: dict[str, int] = {}
    present: dict[str, int] = {}
    assigned: dict[str, FileOperator] = {}
    for operator in file.operators:
        name = names.get(operator.inputs[0]) if operator.inputs else None
        if operator.code == "VAR_HANDLE":
            names[operator.outputs[0]] = _name(operator)
        elif operator.code == "CALL_ONCE" and (values := _initial_values(file, operator)) is not None:
            initial |= values
        elif operator.code == "READ_VARIABLE" and name is not None:
            if name not in present:
                first[name] = present[name] = operator.outputs[0]
            else:
                kept.append(_as_assigned(file, operator, present[name]))
        elif operator.code == "ASSIGN_VARIABLE" and name is not None:
            present[name], assigned[name] = operator.inputs[1], operator
        else:
            kept.append(operator)
    file.operators = kept
    taken = {tensor.name for tensor in file.tensors if tensor.index not in names}
    for name, index in first.items():
        if name not in initial:
            raise ModelError(f"variable {name!r} is read before it has a value; convert the model with its first one")
        tensor, value = file.tensors[index], initial[name]
        if name not in assigned:
            file.tensors[index] = replace(tensor, stored=value)
            continue
        if {file.tensors[present[name]].stored_dtype, str(value.dtype)} != {tensor.stored_dtype}:
            raise ModelError(f"{assigned[name].source} changes the type of {name!r}; convert the model again")
        own, following = claim_name(name, taken), claim_name(name + _NEXT, taken)
        file.tensors[index] = replace(tensor, name=own)
        file.inputs += (index,)
        file.input_shapes[index] = tensor.shape
        file.outputs += (present[name],)
        file.output_names.append(following)
        file.states[own] = State(following, value)


def _name(operator: FileOperator) -> str:
    """What the file calls a variable."""
    return bytes(operator.options.SharedName() or b"").decode(errors="replace") or "state"


def _initial_values(file: TfliteFile, call: FileOperator) -> dict[str, np.ndarray] | None:
    """The constants that a graph assigns to variables before the first run; None if it does anything else."""
    graph = file.inner(call.options.InitSubgraphIndex())
    names, values = dict[int, str](), dict[str, np.ndarray]()
    for operator in graph.operators:
        if operator.code == "VAR_HANDLE":
            names[operator.outputs[0]] = _name(operator)
            continue
        constant = graph.tensors[operator.inputs[1]].stored if operator.code == "ASSIGN_VARIABLE" else None
        if constant is None or operator.inputs[0] not in names:
            return None
        values[names[operator.inputs[0]]] = constant
    return values


def _as_assigned(file: TfliteFile, operator: FileOperator, index: int) -> FileOperator:
    """A variable that is read after it was assigned, or once more: the same numbers."""
    value, read = file.tensors[index], file.tensors[operator.outputs[0]]
    is_same = value.quantisation is not None and value.quantisation.is_same(read.quantisation)
    if value.stored_dtype != read.stored_dtype or (read.is_quantised and not is_same):
        raise ModelError(f"{operator.source} reads a variable in another type than it has; convert the model again")
    return replace(operator, inputs=(index,))
