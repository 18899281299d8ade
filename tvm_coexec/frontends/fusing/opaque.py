"""Operations that fit into no layer with kernels of its own become opaque layers, if Relax can make loops of them."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from tvm_coexec.errors import ModelError, last_line
from tvm_coexec.frontends.trace import OpaqueCall, Operation, Source
from tvm_coexec.layers import Opaque, Operand, constant_name

from .drafts import DraftTensor
from .values import NO_PADDING, Value

if TYPE_CHECKING:
    from .fuser import Fuser


def add_opaque(fuser: Fuser, operation: Operation, refusal: ModelError) -> None:
    """Compute an operation as Relax does, or raise the refusal that it met.

    Raises
    ------
    ModelError
        Relax has no loops for the operation either.
    """
    opaque = None if operation.opaque is None else operation.opaque()
    if opaque is None or not opaque.inputs:
        raise refusal
    _check_legal(opaque, operation.source, refusal)
    values = [concrete(fuser, name) for name in opaque.inputs]
    tensor = _output(fuser, operation, values)
    _append(fuser, opaque, values, tensor, operation.source)
    batch = tensor.image[0] if tensor.image else tensor.rows
    fuser.values[operation.output] = Value(tensor, fuser.trace.shapes[operation.output], batch)


def copied(fuser: Fuser, value: Value, name: str, source: Source) -> Value:
    """A copy of a value whose elements are in the order in which the model sees them."""
    from tvm import relax

    from tvm_coexec.frontends.relax.opaque import written

    text = written([_relax_type(value)], lambda x: relax.op.reshape(x, value.shape))
    channels = value.shape[-1] if value.shape else 1
    tensor = DraftTensor(name, value.shape, channels, dtype=value.tensor.dtype)
    _append(fuser, OpaqueCall(text, ()), [value], tensor, source)
    return Value(tensor, value.shape, tensor.rows)


def concrete(fuser: Fuser, name: str) -> Value:
    """A value with nothing pending and no padding; what was is applied by a layer."""
    value = fuser.values[name]
    if value.padding != NO_PADDING:
        value = _padded(fuser, value)
    elif value.pending is not None:
        value = fuser.materialised(name, value.pending.source)
    fuser.values[name] = value
    return value


def _check_legal(opaque: OpaqueCall, source: Source, refusal: ModelError) -> None:
    reason = _illegal(opaque.text, len(opaque.inputs) + len(opaque.constants))
    if reason:
        raise ModelError(f"{refusal}; nor can Relax compute {source} for the CPU: {reason}")


@lru_cache(maxsize=1024)
def _illegal(program: str, operands: int) -> str:
    """Why Relax can make no loops of a program; empty if it can."""
    from tvm_coexec.schedules.opaque_kernels import legalised, program_steps

    try:
        program_steps(legalised(program), [str(position) for position in range(operands)], "output")
    except (RuntimeError, TypeError, ValueError) as error:
        return last_line(error) or type(error).__name__
    return ""


def _output(fuser: Fuser, operation: Operation, values: list[Value]) -> DraftTensor:
    """An image if its readers take it as one, or if it is made of images; rows of its last axis otherwise."""
    tensor = fuser.readers.tensor(operation.output)
    shape = tensor.shape
    comes_from_image = any(value.has_channels_at(1) and value.tensor.image is not None for value in values)
    if tensor.image is None and len(shape) == 4 and comes_from_image and tensor.dtype == "float32":
        tensor = DraftTensor(tensor.name, shape, shape[1], image=(shape[0], shape[2], shape[3], shape[1]))
    tensor.channels_first = False
    tensor.dtype = fuser.trace.dtypes.get(operation.output, "float32")
    return tensor


def _append(fuser: Fuser, opaque: OpaqueCall, values: list[Value], tensor: DraftTensor, source: Source) -> None:
    batch = tensor.image[0] if tensor.image else tensor.rows
    result = _operand(Value(tensor, tensor.shape, batch))
    constants = tuple((array.shape, str(array.dtype)) for array in opaque.constants)
    layer = Opaque(source.operator, opaque.text, tuple(map(_operand, values)), result, constants)
    draft = fuser.new_draft(layer, values[0].tensor, tensor.shape, tensor.channels, source)
    draft.output = tensor
    tensor.producer = draft
    draft.others = tuple(value.tensor for value in values[1:])
    draft.params = {constant_name(index): array for index, array in enumerate(opaque.constants)}


def _operand(value: Value) -> Operand:
    tensor = value.tensor
    size = tensor.image or (tensor.rows, tensor.channels)
    first = not value.channels_last
    return Operand(value.shape, size, tensor.dtype, first, value.batch if first else 1)


def _relax_type(value: Value) -> Any:
    from tvm import relax

    return relax.TensorType(value.shape, value.tensor.dtype)


def _padded(fuser: Fuser, value: Value) -> Value:
    from tvm import relax

    from tvm_coexec.frontends.relax.opaque import written

    top, left, bottom, right = value.padding
    batch, channels, h, w = value.shape
    inner = (batch, channels, h - top - bottom, w - left - right)
    seen = fuser.settled(replace(value, shape=inner, padding=NO_PADDING))
    widths = (0, 0, 0, 0, top, bottom, left, right)
    text = written([_relax_type(seen)], lambda x: relax.op.nn.pad(x, widths))
    tensor = DraftTensor(f"{value.tensor.name}/padded", value.shape, channels, image=(batch, h, w, channels))
    _append(fuser, OpaqueCall(text, ()), [seen], tensor, Source("Pad", tensor.name, "value"))
    return Value(tensor, value.shape, batch)
