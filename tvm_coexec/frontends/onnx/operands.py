"""Operands whose shapes have to fit each other, where ONNX's inference does not look: loops would read beyond some."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from onnx import NodeProto

from .values import attributes

_Shape = tuple[int, ...]
_Fit = tuple[str, _Shape, _Shape]
"""What an operand is, its shape, and the one that it has to have."""
_Checked = Iterator[_Fit | str]
"""What is to be compared, or what is wrong."""

_GATES = {"GRU": 3, "LSTM": 4, "RNN": 1}
_FUNCTIONS = {3: 2, 4: 3, 1: 1}
"""How many activations a direction has, by its gates."""


def misfit(node: NodeProto, shapes: Sequence[_Shape | None], result: _Shape) -> str | None:
    """What does not fit, of a node's operands of these shapes; None are those that are left out."""
    check = _CHECKS.get(node.op_type)
    padded = [*shapes, *[None] * (8 - len(shapes))]
    for checked in check(attributes(node), padded, result) if check else ():
        if isinstance(checked, str):
            return checked
        what, found, wanted = checked
        if found != wanted:
            return f"{what} has shape {list(found)} instead of {list(wanted)}"
    return None


def _reshape(values: Mapping[str, Any], shapes: Sequence[Any], result: _Shape) -> _Checked:
    if math.prod(result) != math.prod(shapes[0]):
        yield "its operand, by its result,", shapes[0], result


def _scatter_elements(values: Mapping[str, Any], shapes: Sequence[Any], result: _Shape) -> _Checked:
    yield "the tensor of updates", shapes[2], shapes[1]
    yield from _indices_of_elements(values, shapes, result)


def _indices_of_elements(values: Mapping[str, Any], shapes: Sequence[Any], result: _Shape) -> _Checked:
    """Indices have the axes of what they index, and but for one as many places at most."""
    data, indices = shapes[:2]
    axis = values.get("axis", 0)
    if len(data) != len(indices):
        yield f"the tensor of indices has {len(indices)} axes instead of {len(data)}"
    elif -len(data) <= axis < len(data):  # else its number is refused
        fitting = [min(pair) for pair in zip(data, indices, strict=True)]
        fitting[axis] = indices[axis]
        yield "the tensor of indices", indices, tuple(fitting)


def _scatter_parts(values: Mapping[str, Any], shapes: Sequence[Any], result: _Shape) -> _Checked:
    data, indices, updates = shapes[:3]
    if not indices:
        yield "the tensor of indices", indices, (len(data),)
    else:
        yield "the tensor of updates", updates, (*indices[:-1], *data[indices[-1] :])


def _quantise(values: Mapping[str, Any], shapes: Sequence[Any], result: _Shape) -> _Checked:
    rank = len(shapes[0])
    axis = values.get("axis", min(rank - 1, 1))
    if not -rank <= axis < rank and any(found not in (None, (), (1,)) for found in shapes[1:3]):
        yield f"the axis {axis} is none of a tensor with {rank} axes"
    if values.get("block_size", 0) or not -rank <= axis < rank:  # whose converter looks at blocks
        return
    for what, found in zip(("the scale", "the zero point"), shapes[1:3], strict=True):
        if found is not None and len(found) == 1 and found != (1,):
            yield what, found, (shapes[0][axis],)


def _convolve_integers(values: Mapping[str, Any], shapes: Sequence[Any], result: _Shape) -> _Checked:
    x, weights = shapes[:2]
    yield "the weights' second axis", weights[1:2], (x[1] // max(values.get("group", 1), 1),)


def _convolve(values: Mapping[str, Any], shapes: Sequence[Any], result: _Shape) -> _Checked:
    yield from _convolve_integers(values, shapes, result)
    if shapes[2] is not None:
        yield "the bias", shapes[2], shapes[1][:1]


def _normalise_instance(values: Mapping[str, Any], shapes: Sequence[Any], result: _Shape) -> _Checked:
    for what, found in zip(("the scale", "the bias"), shapes[1:3], strict=True):
        yield what, found, shapes[0][1:2]


def _pool_regions(values: Mapping[str, Any], shapes: Sequence[Any], result: _Shape) -> _Checked:
    _, regions, batch = shapes[:3]
    yield "the tensor of regions", regions, (*batch, 4)


def _reverse(values: Mapping[str, Any], shapes: Sequence[Any], result: _Shape) -> _Checked:
    axis = values.get("batch_axis", 1)
    if -len(shapes[0]) <= axis < len(shapes[0]):  # else its number is refused
        yield "the tensor of lengths", shapes[1], (shapes[0][axis],)


def _unpool(values: Mapping[str, Any], shapes: Sequence[Any], result: _Shape) -> _Checked:
    yield "the tensor of places", shapes[1], shapes[0]


def _suppress(values: Mapping[str, Any], shapes: Sequence[Any], result: _Shape) -> _Checked:
    boxes, scores = shapes[:2]
    if len(scores) != 3:
        yield "the tensor of scores", scores, (*boxes[:1], 1, *boxes[1:2])
    else:
        yield "the tensor of boxes", boxes, (scores[0], scores[-1], 4)


def _sample(values: Mapping[str, Any], shapes: Sequence[Any], result: _Shape) -> _Checked:
    x, grid = shapes[:2]
    yield "the grid", grid, (x[0], *grid[1:-1], len(x) - 2)


def _one_hot(values: Mapping[str, Any], shapes: Sequence[Any], result: _Shape) -> _Checked:
    yield "the tensor of both values", shapes[2], (2,)


def _recur(gates: int) -> Callable[[Mapping[str, Any], Sequence[Any], _Shape], _Checked]:
    def check(values: Mapping[str, Any], shapes: Sequence[Any], result: _Shape) -> _Checked:
        x, weights, recurrent, bias, lengths, state, cell, peepholes = shapes
        hidden = recurrent[-1] if recurrent else values.get("hidden_size", 1)
        batch = x[0 if values.get("layout", 0) else 1]
        directions = 2 if values.get("direction", "forward") == "bidirectional" else 1
        states = (batch, directions, hidden) if values.get("layout", 0) else (directions, batch, hidden)
        rows = gates * values.get("hidden_size", hidden)
        yield "the tensor of recurrent weights", recurrent, (directions, rows, hidden)
        yield "the tensor of weights", weights, (directions, gates * hidden, x[-1])
        functions = values.get("activations")
        if functions is not None:
            yield "its list of activations", (len(functions),), (directions * _FUNCTIONS[gates],)
        optional = [("the bias", bias, (directions, 2 * gates * hidden)), ("the tensor of lengths", lengths, (batch,))]
        optional += [("the first state", state, states), ("the first cell state", cell, states)]
        optional += [("the tensor of peepholes", peepholes, (directions, 3 * hidden))]
        yield from (fit for fit in optional if fit[1] is not None)

    return check


_CHECKS: Mapping[str, Callable[[Mapping[str, Any], Sequence[Any], _Shape], _Checked]] = {
    **{operator: _recur(gates) for operator, gates in _GATES.items()},
    **dict.fromkeys(("DequantizeLinear", "QuantizeLinear"), _quantise),
    **dict.fromkeys(("Scatter", "ScatterElements"), _scatter_elements),
    "Conv": _convolve,
    "ConvInteger": _convolve_integers,
    "GatherElements": _indices_of_elements,
    "GridSample": _sample,
    "InstanceNormalization": _normalise_instance,
    "MaxUnpool": _unpool,
    "NonMaxSuppression": _suppress,
    "OneHot": _one_hot,
    "Reshape": _reshape,
    "ReverseSequence": _reverse,
    "RoiAlign": _pool_regions,
    "ScatterND": _scatter_parts,
}
