"""Shapes of a model's inputs, and values: those that it leaves open are given by the user."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from onnx import GraphProto, TensorProto, ValueInfoProto, numpy_helper

from tvm_coexec.errors import ModelError
from tvm_coexec.frontends.fixed import as_constant, check_values, shapes_of_values

from .values import DTYPES

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

_Dimension = int | str
"""A size, or the name of what is open (empty if it has none)."""


def bind_inputs(
    graph: GraphProto, shapes: Mapping[str, Sequence[int]], values: Mapping[str, ArrayLike]
) -> dict[str, np.ndarray]:
    """Write the given shapes into the graph's inputs, and make constants of those whose values are given.

    Dimensions of one name are given by any input that has it. What some exporters write as a size below 0 is open.

    Returns
    -------
    The constants.

    Raises
    ------
    ModelError
        Naming every input that still has an open dimension, or the first whose shape does not fit.
    """
    for value in (*graph.input, *graph.output):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_value < 0:
                dimension.Clear()
    constants = {tensor.name for tensor in graph.initializer}
    inputs = {value.name: value for value in graph.input if value.name not in constants}
    unknown = sorted(set(shapes) - set(inputs), key=str)
    if unknown:
        raise ModelError(f"a shape is given for {', '.join(map(repr, unknown))}; the inputs are {', '.join(inputs)}")
    arrays = check_values(values, inputs)
    shapes = shapes_of_values(arrays, shapes, (name for name, value in inputs.items() if _is_open(value)))
    named: dict[str, int] = {}
    for name, value in inputs.items():
        _check_type(value, name in shapes)
        if name in shapes:
            _bind(value, tuple(shapes[name]), named)
    for value in inputs.values():
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param in named:
                dimension.dim_value = named[dimension.dim_param]
    _check_bound(inputs)
    return _fixed(graph, inputs, arrays)


def _is_open(value: ValueInfoProto) -> bool:
    return not value.type.tensor_type.HasField("shape") or any(isinstance(size, str) for size in _dimensions(value))


def _fixed(
    graph: GraphProto, inputs: Mapping[str, ValueInfoProto], values: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Put constants in the places of inputs."""
    fixed = {}
    for name, value in values.items():
        tensor = inputs[name].type.tensor_type
        sizes = [size.dim_value for size in tensor.shape.dim]
        fixed[name] = as_constant(name, value, DTYPES[tensor.elem_type], sizes)
        graph.initializer.append(numpy_helper.from_array(fixed[name], name))
        graph.input.remove(inputs[name])
    return fixed


def _check_type(value: ValueInfoProto, is_given: bool) -> None:
    tensor = value.type.tensor_type
    if value.type.WhichOneof("value") not in (None, "tensor_type"):
        raise ModelError(f"input {value.name!r} is no tensor but a {value.type.WhichOneof('value')}; give it tensors")
    if tensor.elem_type not in DTYPES:
        known = {number: name.lower() for name, number in TensorProto.DataType.items()}
        found = known.get(tensor.elem_type, f"of type {tensor.elem_type}, which ONNX does not know")
        raise ModelError(f"input {value.name!r} is {found}; supported are {', '.join(DTYPES.values())}")
    if not tensor.HasField("shape") and not is_given:
        raise ModelError(
            f"input {value.name!r} has no shape; give it one with --shape {value.name}=... or shapes={{...}}"
        )


def _dimensions(value: ValueInfoProto) -> list[_Dimension]:
    return [
        dimension.dim_value if dimension.WhichOneof("value") == "dim_value" else dimension.dim_param
        for dimension in value.type.tensor_type.shape.dim
    ]


def _bind(value: ValueInfoProto, shape: tuple[int, ...], named: dict[str, int]) -> None:
    tensor = value.type.tensor_type
    declared = _dimensions(value) if tensor.HasField("shape") else [""] * len(shape)
    fits = len(declared) == len(shape) and all(
        size > 0 and (not isinstance(own, int) or own == size) and named.get(str(own), size) == size
        for own, size in zip(declared, shape, strict=True)
    )
    if not fits:
        raise ModelError(f"input {value.name!r} is {_written(declared)}; the shape {list(shape)} does not fit")
    named |= {own: size for own, size in zip(declared, shape, strict=True) if isinstance(own, str) and own}
    tensor.ClearField("shape")
    tensor.shape.SetInParent()
    for size in shape:
        tensor.shape.dim.add().dim_value = size


def _check_bound(inputs: Mapping[str, ValueInfoProto]) -> None:
    shapes = {name: _dimensions(value) for name, value in inputs.items()}
    for name, shape in shapes.items():
        for axis, size in enumerate(shape):
            if isinstance(size, int) and size < 1:
                raise ModelError(f"input {name!r} has a dimension of {size} (axis {axis}); give it one above 0")
    unbound = {name: shape for name, shape in shapes.items() if any(isinstance(size, str) for size in shape)}
    if unbound:
        described = ", ".join(f"{name!r} {_written(shape)}" for name, shape in unbound.items())
        options = " ".join(f"--shape {name}={','.join(map(_label, shape))}" for name, shape in unbound.items())
        raise ModelError(
            f"these inputs have dynamic dimensions: {described}; fix them with {options}, a number in place of each "
            "name, or with shapes={...} in Python"
        )


def _written(shape: Sequence[_Dimension]) -> str:
    return f"[{', '.join(map(_label, shape))}]"


def _label(size: _Dimension) -> str:
    return str(size) if size != "" else "?"
