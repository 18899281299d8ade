"""What is known while layers are formed, and the steps by which all kinds of layers are."""

from __future__ import annotations

from dataclasses import replace
from itertools import takewhile
from typing import Any

import numpy as np

from tvm_coexec.errors import ModelError
from tvm_coexec.frontends.trace import OpaqueCall, Operation, Source, Trace
from tvm_coexec.graph.graph import AnyLayer
from tvm_coexec.layers import Opaque, Operand, RowWise, constant_name

from .drafts import Draft, DraftTensor
from .inputs import Readers
from .reads import Reads
from .values import NO_PADDING, Value, Values
from .waiting import Waiting


class State:
    """The trace, the drafts of nodes that were formed so far, and what each value is of them.

    Attributes
    ----------
    waiting
        Values that are made when an operation needs them.
    fresh
        Drafts of the operation that is being formed, which are taken back if it fits into no layer.
    """

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.waiting: dict[str, Waiting] = {}
        self.drafts: list[Draft] = []
        self.fresh: list[Draft] = []
        self.reads = Reads(trace)
        self.readers = Readers(trace)
        self.inputs = [self.readers.tensor(name) for name in trace.inputs]
        self.values = Values()
        for tensor in self.inputs:
            self.values[tensor.name] = Value(tensor, tensor.shape, tensor.image[0] if tensor.image else tensor.rows)

    def shape_of(self, operation: Operation) -> tuple[int, ...]:
        return self.trace.shapes[operation.output]

    def new_draft(
        self, layer: AnyLayer, tensor: DraftTensor, shape: tuple[int, ...], channels: int, source: Source
    ) -> Draft:
        """A node that makes a tensor of a shape, so many of whose last elements are channels."""
        draft = Draft(source.name, layer, tensor, DraftTensor(source.name, shape, channels))
        self.drafts.append(draft)
        self.fresh.append(draft)
        return draft

    def new_opaque(self, opaque: OpaqueCall, values: list[Value], tensor: DraftTensor, source: Source) -> None:
        """Let the tensor be what an opaque layer makes of the values.

        Raises
        ------
        ModelError
            The tensor has negative extents: TVM only subtracts, say a window from an image that is smaller.
        """
        if min(tensor.shape, default=0) < 0:
            raise ModelError(
                f"{source} makes a tensor of shape {tensor.shape}, which there is not; is a window or what is cut off "
                "larger than the input?"
            )
        batch = tensor.image[0] if tensor.image else tensor.rows
        result = _operand(Value(tensor, tensor.shape, batch))
        constants = tuple((array.shape, str(array.dtype)) for array in opaque.constants)
        layer = Opaque(source.operator, opaque.text, tuple(map(_operand, values)), result, constants)
        draft = self.new_draft(layer, values[0].tensor, tensor.shape, tensor.channels, source)
        draft.output = tensor
        tensor.producer = draft
        draft.others = tuple(value.tensor for value in values[1:])
        draft.params = {constant_name(index): array for index, array in enumerate(opaque.constants)}

    def new_map(self, value: Value, source: Source) -> Draft:
        """Make a layer that changes nothing yet."""
        tensor = value.tensor
        layer = RowWise("map", tensor.rows, tensor.channels)
        draft = self.new_draft(layer, tensor, value.shape, tensor.channels, source)
        draft.output.image = tensor.image
        return draft

    def append_step(self, operation: Operation, name: str, text: str) -> None:
        """Let a step follow a value."""
        draft, value = self.open_draft(name, operation.source)
        draft.append(text)
        self.set(operation, draft, value)

    def set(self, operation: Operation, draft: Draft, seen_as: Value | None = None) -> None:
        """Let the operation's result be what the draft makes, its channels last or where they are in ``seen_as``."""
        draft.output.name, draft.output.shape = operation.output, self.shape_of(operation)
        batch = draft.output.rows if seen_as is None else seen_as.batch
        self.values[operation.output] = Value(draft.output, draft.output.shape, batch)

    def open_draft(self, name: str, source: Source) -> tuple[Draft, Value]:
        """A draft whose result is the value and that can take one more step: its producer, or a new map."""
        value = self.materialised(name, source)
        draft = self.producer_to_extend(name) or self.new_map(value, source)
        return draft, value

    def producer_to_extend(self, name: str) -> Draft | None:
        """The draft that makes a value, if nothing but the operation that asks reads the value."""
        value = self.values[name]
        producer = value.tensor.producer
        if not self.is_only_reader(name) or value.pending is not None:
            return None
        return producer if producer is not None and producer.takes_steps else None

    def is_only_reader(self, name: str) -> bool:
        """Whether nothing but the operation that asks reads a value, in whatever view."""
        return self.reads.has_one(name)

    def value(self, name: str, source: Source) -> Value:
        """A value that is read as it is; padding that waits for a convolution or pooling is written out."""
        if name in self.trace.constants:
            raise ModelError(f"{source} is applied to a constant; replace it by its result")
        value = self.values[name]
        if value.padding == NO_PADDING:
            return value
        return self.concrete(name)

    def materialised(self, name: str, source: Source) -> Value:
        """Give a value with nothing pending: what was is applied by a map."""
        value = self.value(name, source)
        if value.pending is None:
            return value
        self.values[name] = self.settled(value)
        self.values[name].tensor.name = name
        return self.values[name]

    def readable_by(self, weights: np.ndarray, value: Value) -> Value:
        """A value with something pending at most that these weights of the layer which reads it can take in."""
        return value if value.pending is None or value.pending.fits_before(weights) else self.settled(value)

    def settled(self, value: Value) -> Value:
        """The value with what is pending applied: by the layer that makes its tensor, or else by a map."""
        if value.pending is None:
            return value
        seen = self.values.of(value.tensor)
        producer = value.tensor.producer
        if producer is not None and producer.takes_steps and self._is_read_only_after(value, seen):
            producer.absorb(value.pending)
            for name in seen:
                self.values[name] = replace(self.values[name], pending=None)
            return replace(value, pending=None)
        draft = self.new_map(value, value.pending.source)
        draft.absorb(value.pending)
        return replace(value, tensor=draft.output, pending=None)

    def _is_read_only_after(self, value: Value, seen: list[str]) -> bool:
        """Whether nothing reads a tensor, which the model has as the values ``seen``, but after what is pending.

        Values stand in the order in which the model makes them: those before are each read by the next alone.
        """
        later = takewhile(lambda draft: draft.output is not value.tensor, reversed(self.drafts))
        if any(value.tensor in (draft.input, draft.residual, *draft.others) for draft in later):
            return False
        are_after = [self.values[name].pending is value.pending for name in seen]
        first = are_after.index(True)
        return all(are_after[first:]) and all(self.is_only_reader(name) for name in seen[:first])

    def concrete(self, name: str) -> Value:
        """A value with nothing pending and no padding; what was is applied by a layer."""
        value = self.values[name]
        if value.padding != NO_PADDING:
            value = self._padded(value)
        elif value.pending is not None:
            value = self.materialised(name, value.pending.source)
        self.values[name] = value
        return value

    def _padded(self, value: Value) -> Value:
        """Have Relax write out the padding of a value."""
        from tvm import relax

        from tvm_coexec.frontends.relax.opaque import written

        top, left, bottom, right = value.padding
        batch, channels, h, w = value.shape
        inner = (batch, channels, h - top - bottom, w - left - right)
        seen = self.settled(replace(value, shape=inner, padding=NO_PADDING))
        widths = (0, 0, 0, 0, top, bottom, left, right)
        text = written([relax_type(seen)], lambda x: relax.op.nn.pad(x, widths))
        tensor = DraftTensor(f"{value.tensor.name}/padded", value.shape, channels, image=(batch, h, w, channels))
        self.new_opaque(OpaqueCall(text, ()), [seen], tensor, Source("Pad", tensor.name, "value"))
        return Value(tensor, value.shape, batch)


def _operand(value: Value) -> Operand:
    tensor = value.tensor
    size = tensor.image or (tensor.rows, tensor.channels)
    first = not value.channels_last
    return Operand(value.shape, size, tensor.dtype, first, value.batch if first else 1)


def relax_type(value: Value) -> Any:
    """Relax's type of a value, as the model sees it."""
    from tvm import relax

    return relax.TensorType(value.shape, value.tensor.dtype)
