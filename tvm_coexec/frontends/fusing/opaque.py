"""Operations that fit into no layer with kernels of its own become opaque layers, if Relax can make loops of them."""

from __future__ import annotations

from functools import lru_cache

from tvm_coexec.errors import ModelError, last_line
from tvm_coexec.frontends.trace import OpaqueCall, Operation, Source

from .drafts import DraftTensor
from .state import State, relax_type
from .values import Value


def add_opaque(state: State, operation: Operation, refusal: ModelError) -> None:
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
    values = [state.concrete(name) for name in opaque.inputs]
    tensor = _output(state, operation, values)
    state.new_opaque(opaque, values, tensor, operation.source)
    batch = tensor.image[0] if tensor.image else tensor.rows
    state.values[operation.output] = Value(tensor, state.trace.shapes[operation.output], batch)


def copied(state: State, value: Value, name: str, source: Source) -> Value:
    """A copy of a value whose elements are in the order in which the model sees them."""
    from tvm import relax

    from tvm_coexec.frontends.relax.opaque import written

    text = written([relax_type(value)], lambda x: relax.op.reshape(x, value.shape))
    channels = value.shape[-1] if value.shape else 1
    tensor = DraftTensor(name, value.shape, channels, dtype=value.tensor.dtype)
    state.new_opaque(OpaqueCall(text, ()), [value], tensor, source)
    return Value(tensor, value.shape, tensor.rows)


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
    except Exception as error:  # TVM's operators raise whatever they stumble over
        return last_line(error, type(error).__name__)
    return ""


def _output(state: State, operation: Operation, values: list[Value]) -> DraftTensor:
    """An image if its readers take it as one, or if it is made of images; rows of its last axis otherwise."""
    tensor = state.readers.tensor(operation.output)
    shape = tensor.shape
    comes_from_image = any(value.has_channels_at(1) and value.tensor.image is not None for value in values)
    if tensor.image is None and len(shape) == 4 and comes_from_image and tensor.dtype == "float32":
        tensor = DraftTensor(tensor.name, shape, shape[1], image=(shape[0], shape[2], shape[3], shape[1]))
    tensor.channels_first = False
    tensor.dtype = state.trace.dtypes.get(operation.output, "float32")
    return tensor
