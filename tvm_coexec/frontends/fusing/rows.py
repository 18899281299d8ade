"""Form the layers of transformers: attention, slices of rows, and constants put beside or added to rows."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from tvm_coexec.errors import ModelError
from tvm_coexec.frontends.trace import Operation, Source
from tvm_coexec.layers import Attention, MatMul, Matrices, PlaceRows

from .drafts import DraftTensor, may_add
from .state import State

if TYPE_CHECKING:
    from tvm_coexec.frontends.patterns.views import View

    from .values import Value


def add(state: State, operation: Operation) -> bool:
    """Form the layer of an operation, if it is one of this module's."""
    has_constant = any(name in state.trace.constants for name in operation.inputs)
    if operation.op == "attention":
        add_attention(state, operation)
    elif operation.op == "matrix_product":
        add_matrix_product(state, operation)
    elif operation.op == "slice":
        add_slice(state, operation)
    elif operation.op == "concat" and has_constant:
        add_constant_rows(state, operation)
    elif (summand := row_summand(state, operation)) is not None:
        add_summand(state, operation, *summand)
    else:
        return False
    return True


def add_attention(state: State, operation: Operation) -> None:
    """One layer, its operands the tensors whose columns are queries, keys and values."""
    source, attributes = operation.source, dict(operation.attributes)
    *channels_first, result_channels_first = attributes.pop("channels_first")
    values = [state.materialised(name, source) for name in operation.inputs[:3]]
    rows = [attributes["batch"] * attributes[name] for name in ("queries", "keys", "keys")]
    for value, count, is_first in zip(values, rows, channels_first, strict=True):
        fits = value.batch == attributes["batch"] and value.has_channels_at(1) if is_first else value.channels_last
        if not fits or value.tensor.rows != count:
            raise ModelError(
                f"{source} reads shape {list(value.shape)} as {count} rows, but others read it in another way; let "
                "all read rows of one length"
            )
    mask = operation.inputs[3] if len(operation.inputs) > 3 else None
    constant = state.trace.constants.get(mask) if mask else None
    kind = "none" if mask is None else "input" if constant is None else "constant"
    q, k, v = (value.tensor.channels for value in values)
    layer = Attention(channels=(q, k, v), mask=kind, **attributes)
    others = [value.tensor for value in values[1:]]
    if mask is not None and constant is None:
        others.append(_mask(state, mask, (layer.mask_rows, layer.keys), source))
    shape = state.trace.shapes[operation.output]
    draft = state.new_draft(layer, values[0].tensor, shape, layer.out_channels, source)
    draft.others = tuple(others)
    if constant is not None:
        draft.params["mask"] = constant.reshape(layer.mask_rows, layer.keys)
    state.set(operation, draft)
    if result_channels_first:
        state.values[operation.output] = replace(state.values[operation.output], batch=layer.batch)


def _mask(state: State, name: str, size: tuple[int, int], source: Source) -> DraftTensor:
    """Give the tensor of a computed mask: rows of keys."""
    refusal = ModelError(f"{source} has a mask that others read in another way; let all read rows of keys")
    value = state.concrete(name)
    if not value.channels_last or (value.tensor.rows, value.tensor.channels) != size:
        raise refusal
    return value.tensor


def add_matrix_product(state: State, operation: Operation) -> None:
    """One layer, its operands the tensors that the matrices of both factors are in."""
    attributes = dict(operation.attributes)
    views, channels_first = attributes.pop("views"), attributes.pop("channels_first")
    values = [state.materialised(name, operation.source) for name in operation.inputs]
    left, right = (_matrices(*of, operation.source) for of in zip(values, views, strict=True))
    layer = MatMul(left=left, right=right, **attributes)
    shape = state.trace.shapes[operation.output]
    draft = state.new_draft(layer, values[0].tensor, shape, layer.out_channels, operation.source)
    draft.others = (values[1].tensor,)
    state.set(operation, draft)
    if channels_first:
        state.values[operation.output] = replace(state.values[operation.output], batch=layer.batch)


def _matrices(value: Value, view: View, source: Source) -> Matrices:
    """Where the elements of a view are in the value's tensor, whose channels come last."""
    rows, channels = value.tensor.rows, value.tensor.channels
    pixels = 1 if value.channels_last else rows // value.batch

    def row(distance: int) -> int:
        return distance // (channels * pixels) * pixels + distance % pixels

    def channel(distance: int) -> int:
        return distance // pixels % channels

    beyond = [size - 1 for size in view.shape]
    last_pixel = view.offset % pixels + sum(n * (step % pixels) for n, step in zip(beyond, view.strides, strict=True))
    last_channel = channel(view.offset) + sum(n * channel(step) for n, step in zip(beyond, view.strides, strict=True))
    if last_pixel >= pixels or last_channel >= channels:
        raise ModelError(f"{source} reads matrices whose rows and columns are no rows and channels; reshape less")
    item, head, i, j = (0 if size == 1 else step for size, step in zip(view.shape, view.strides, strict=True))
    of_rows, of_channels = ((of(item), of(head), of(i), of(j)) for of in (row, channel))
    return Matrices((rows, channels), (row(view.offset), channel(view.offset)), of_rows, of_channels)


def add_slice(state: State, operation: Operation) -> None:
    """Copy some rows of each item, since the layer that follows may need them in memory one behind the other."""
    source, axis = operation.source, operation.attributes["axis"]
    value = state.materialised(operation.inputs[0], source)
    channels = value.tensor.channels
    if not value.channels_last or math.prod(value.shape[axis + 1 :]) != channels:
        raise ModelError(
            f"{source} cuts axis {axis} of {list(value.shape)}; supported are slices of rows, and columns as operands "
            "of attention"
        )
    begin, count = operation.attributes["begin"], operation.attributes["count"]
    layer = PlaceRows(math.prod(value.shape[:axis]), value.shape[axis], count, channels, -begin)
    draft = state.new_draft(layer, value.tensor, state.trace.shapes[operation.output], channels, source)
    state.set(operation, draft)


def add_constant_rows(state: State, operation: Operation) -> None:
    """Add a concatenation of rows with constant ones, in either order."""
    source, axis = operation.source, operation.attributes["axis"]
    names = [name for name in operation.inputs if name not in state.trace.constants]
    if len(names) != 1:
        raise ModelError(f"{source} joins {len(names)} activations and constants; supported is one activation")
    value = state.materialised(names[0], source)
    channels, shape = value.tensor.channels, value.shape
    if not value.channels_last or math.prod(shape[axis + 1 :]) != channels or axis >= len(shape):
        raise ModelError(f"{source} puts a constant to axis {axis} of {list(shape)}; supported is the axis of the rows")
    batch, rows, total = math.prod(shape[:axis]), shape[axis], state.trace.shapes[operation.output][axis]
    position = operation.inputs.index(names[0])
    parts = [
        np.zeros((batch, rows, channels))
        if name == names[0]
        else state.trace.constants[name].astype(np.float64).reshape(batch, -1, channels)
        for name in operation.inputs
    ]
    summand = np.concatenate(parts, axis=1)
    if np.any(summand != summand[:1]):
        raise ModelError(f"{source} puts other constants to each item of the batch; supported are equal ones")
    layer = PlaceRows(batch, rows, total, channels, sum(part.shape[1] for part in parts[:position]), True)
    draft = state.new_draft(layer, value.tensor, state.trace.shapes[operation.output], channels, source)
    draft.params["summand"] = summand[0]
    state.set(operation, draft)


def row_summand(state: State, operation: Operation) -> tuple[str, np.ndarray] | None:
    """Find the activation and the constant of a sum of one number for each row and channel, of each item or of all.

    The constant has a row for each pixel where the model sees channels before pixels. Of a difference with the
    constant first, the activation is yet to be negated.
    """
    constants = [name for name in operation.inputs if name in state.trace.constants]
    if operation.op not in ("add", "subtract") or len(constants) != 1:
        return None
    name = next(name for name in operation.inputs if name != constants[0])
    array, value = state.trace.constants[constants[0]], state.values[name]
    first = next((axis for axis, size in enumerate(array.shape) if size > 1), array.ndim)
    shape, channels = array.shape[first:], value.tensor.channels
    if value.shape[len(value.shape) - len(shape) :] != shape or array.size <= channels or array.size % channels:
        return None
    if not value.channels_last:
        if not value.has_channels_at(len(value.shape) - len(shape)):
            return None
        array = array.reshape(channels, -1).T
    return name, -array if operation.op == "subtract" and operation.inputs[1] == constants[0] else array


def add_summand(state: State, operation: Operation, name: str, array: np.ndarray) -> None:
    """Add a constant to rows: to what is already added where rows were placed, or in a layer of its own."""
    value = state.materialised(name, operation.source)
    if operation.op == "subtract" and operation.inputs[1] == name:
        before, value = state.open_draft(name, operation.source)
        before.append("negative")
        value = replace(value, tensor=before.output)
    summand = array.astype(np.float64).reshape(-1, value.tensor.channels)
    draft = value.tensor.producer if state.is_only_reader(name) else None
    layer = draft.layer if draft is not None and not draft.epilogue else None
    if (
        draft is not None
        and isinstance(layer, PlaceRows)
        and layer.out_rows == len(summand)
        and may_add(draft.params.get("summand"), summand)
    ):
        draft.params["summand"] = draft.params.get("summand", 0.0) + summand
        draft.layer = replace(layer, has_summand=True)
    else:
        rows = len(summand)
        layer = PlaceRows(value.tensor.rows // rows, rows, rows, value.tensor.channels, 0, True)
        draft = state.new_draft(layer, value.tensor, value.shape, value.tensor.channels, operation.source)
        draft.params["summand"] = summand
        draft.output.image = value.tensor.image
    state.set(operation, draft, value)
