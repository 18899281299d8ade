"""What a call of one of Relax's operators says: its type, its axes, its attributes, and what it makes of constants."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from tvm import ir, relax, tirx

from tvm_coexec.errors import ModelError
from tvm_coexec.frontends.trace import Source

from . import images as relax_images
from . import moves as relax_moves
from . import steps as relax_steps

OPERATIONS = {
    "relax.add": "add",
    "relax.astype": "reshape",
    "relax.broadcast_to": "broadcast",
    "relax.divide": "divide",
    "relax.expand_dims": "reshape",
    "relax.flatten": "reshape",
    "relax.matmul": "matmul",
    "relax.maximum": "maximum",
    "relax.mean": "mean",
    "relax.minimum": "minimum",
    "relax.multiply": "multiply",
    "relax.nn.dropout": "reshape",
    "relax.nn.layer_norm": "layer_norm",
    "relax.nn.softmax": "softmax",
    "relax.permute_dims": "reshape",
    "relax.power": "power",
    "relax.reshape": "reshape",
    "relax.sqrt": "sqrt",
    "relax.squeeze": "reshape",
    "relax.subtract": "subtract",
    **relax_images.OPERATIONS,
    **relax_moves.OPERATIONS,
    **relax_steps.OPERATIONS,
}
"""Relax's operators that can be part of a layer, and the operations that they become."""

_FOLDS: dict[str, Callable[..., np.ndarray]] = {
    "add": np.add,
    "divide": np.divide,
    "matmul": np.matmul,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "multiply": np.multiply,
    "power": np.power,
    "sqrt": np.sqrt,
    "subtract": np.subtract,
}


def operator_name(value: relax.Expr) -> str:
    """Relax's name of the operator that is called, or what a value is that is no call."""
    if not isinstance(value, relax.Call):
        return f"relax.{type(value).__name__}"
    return value.op.name if isinstance(value.op, ir.Op) else f"call of {getattr(value.op, 'name_hint', value.op)}"


def static_type(tensor_type: ir.Type, owner: str) -> tuple[tuple[int, ...], str]:
    """Give shape and type of elements; refused where a size is not fixed."""
    if not isinstance(tensor_type, relax.TensorType) or not isinstance(tensor_type.shape, relax.ShapeExpr):
        raise ModelError(f"{owner} is no tensor of known shape (it is {tensor_type}); give every tensor a fixed shape")
    for axis, size in enumerate(tensor_type.shape.values):
        if not isinstance(size, tirx.IntImm):
            raise ModelError(
                f"{owner} has the dynamic dimension {str(size)!r} (axis {axis}); "
                "fix it with tvm.relax.transform.BindSymbolicVars before building"
            )
    return tuple(int(size) for size in tensor_type.shape.values), str(tensor_type.dtype)


def check_float32(dtype: str, owner: str) -> None:
    """Refuse elements that layers with kernels of their own do not take."""
    if dtype != "float32":
        raise ModelError(f"{owner} is {dtype}; layers with kernels of their own take float32 alone")


def transpose_or_reshape(axes: list[int], shape: tuple[int, ...]) -> str:
    """What a permutation of axes is: if it keeps the order of the elements, a reshape."""
    moved = [axis for axis in axes if shape[axis] > 1]
    return "reshape" if moved == sorted(moved) else "transpose"


def can_fold(op: str) -> bool:
    """Whether :func:`folded` knows an operation."""
    return op in ("broadcast", "concat", "reshape") or op in _FOLDS


def folded(call: relax.Call, op: str, constants: list[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """What an operation makes of constants alone."""
    if op == "concat":
        return np.concatenate(constants, axis=relax_images.concat_axis(call))
    if op == "broadcast":
        return np.broadcast_to(constants[0], shape)
    if op != "reshape":
        return np.asarray(_FOLDS[op](*constants))
    if operator_name(call) == "relax.permute_dims":
        return constants[0].transpose(axes_of(call, len(shape)))
    return constants[0].reshape(shape)


def axes_of(call: relax.Call, rank: int) -> list[int]:
    """The axes that a call names, all of them in reverse if it names none."""
    axes = call.attrs.axes if hasattr(call.attrs, "axes") else call.attrs.axis
    if axes is None:
        return list(reversed(range(rank)))
    return [int(axis) % rank for axis in ([axes] if isinstance(axes, int) else axes)]


def attributes_of(op: str, call: relax.Call, rank: int, source: Source) -> dict[str, Any]:
    """What an operation has to know besides its operands."""
    if op == "transpose":
        return {"axes": tuple(axes_of(call, rank))}
    if op not in ("mean", "max", "softmax", "layer_norm"):
        readers = (relax_images.attributes, relax_moves.attributes, relax_steps.numbers)
        return {name: value for reader in readers for name, value in reader(op, call, source).items()}
    rank = len(call.args[0].ty.shape)
    attributes: dict[str, Any] = {"axes": tuple(sorted(axes_of(call, rank)))}
    if op in ("mean", "max"):
        attributes["keep_axes"] = bool(call.attrs.keepdims)
    if op == "layer_norm":
        if not (call.attrs.center and call.attrs.scale):
            raise ModelError(f"{source} leaves out its scale or its shift; give it ones or zeros and let it use both")
        attributes["epsilon"] = float(call.attrs.epsilon)
    return attributes
