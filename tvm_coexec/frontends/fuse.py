"""Form layers: the operations of a trace become nodes, and what follows a node becomes its epilogue.

Constant factors and summands are folded into the weights of the layer before them, or of the layers after
them. Until these are known, a value is an affine function of a tensor.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np

from ..errors import ModelError
from ..graph import Graph
from ..layers import ACTIVATIONS
from .drafts import Affine, Draft, DraftTensor, finish_graph, trailing_axes
from .trace import Operation, Source, Trace

_PARTS = {
    "erf": "GELU",
    "mean": "layer normalisation over the last axis",
    "power": "layer normalisation or the tanh form of GELU",
    "sqrt": "layer normalisation over the last axis",
    "tanh": "the tanh form of GELU",
}
"""Operations that no kernel knows, and what they may be a part of."""


@dataclass(frozen=True)
class _Value:
    """A traced value: a tensor, the shape in which it is seen, and what is still to be applied to it."""

    tensor: DraftTensor
    shape: tuple[int, ...]
    pending: Affine | None = None


def fuse(trace: Trace) -> Graph:
    """Make the graph of a trace.

    Raises
    ------
    ModelError
        For an operation that fits into no layer, naming it.
    """
    fuser = _Fuser(trace)
    for operation in trace.operations:
        fuser.add(operation)
    return fuser.graph()


class _Fuser:
    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.drafts: list[Draft] = []
        self.roots = _reshape_roots(trace)
        self.reads = _count_reads(trace, self.roots)
        self.inputs = [DraftTensor(name, trace.shapes[name], self._input_channels(name)) for name in trace.inputs]
        self.values = {tensor.name: _Value(tensor, tensor.shape) for tensor in self.inputs}

    def add(self, operation: Operation) -> None:
        if operation.op == "reshape":
            self._add_reshape(operation)
        elif operation.op == "matmul":
            self._add_linear(operation)
        elif operation.op in ("layer_norm", "softmax"):
            self._add_row_wise(operation)
        elif operation.op in ACTIVATIONS:
            self._add_step(operation, operation.op, self._open_draft(operation.inputs[0], operation.source))
        elif operation.op in _PARTS:
            raise ModelError(f"{operation.source} is supported only as a part of {_PARTS[operation.op]}")
        elif any(name in self.trace.constants for name in operation.inputs):
            self._add_affine(operation)
        else:
            self._add_residual(operation)

    def graph(self) -> Graph:
        outputs = []
        for name, value_name in self.trace.outputs:
            source = Source("output", name, "value")
            tensor = self._tensor(value_name, source)
            if tensor in self.inputs or tensor in outputs:
                tensor = self._new_draft("map", tensor, tensor.shape, replace(source, name=f"copy_{name}")).output
            tensor.name, tensor.shape = name, self.values[value_name].shape
            outputs.append(tensor)
        return finish_graph(self.inputs, outputs, self.drafts)

    def _add_reshape(self, operation: Operation) -> None:
        value = self.values[operation.inputs[0]]
        shape = self.trace.shapes[operation.output]
        if trailing_axes(shape, value.tensor.channels) is None:
            raise ModelError(
                f"{operation.source} reshapes {list(value.shape)} to {list(shape)}, which breaks its rows of "
                f"{value.tensor.channels} channels; supported are reshapes that keep rows whole or flatten an input"
            )
        self.values[operation.output] = replace(value, shape=shape)

    def _add_linear(self, operation: Operation) -> None:
        activation, constant = operation.inputs
        weights = self.trace.constants.get(constant)
        if weights is None or activation in self.trace.constants:
            raise ModelError(
                f"{operation.source} must multiply an activation by constant weights, in this order; "
                "make its second operand a constant (parameters of a Relax function: tvm.relax.transform.BindParams)"
            )
        if weights.ndim < 2 or weights.size != weights.shape[-2] * weights.shape[-1]:
            raise ModelError(
                f"{operation.source} has weights of shape {list(weights.shape)}; supported is one matrix [k, n]"
            )
        value = self.values[activation]
        self._check_last_axis(value, operation.source)
        weights = weights.reshape(weights.shape[-2:])
        draft = self._new_draft("linear", value.tensor, self.trace.shapes[operation.output], operation.source)
        draft.params["weights"] = weights
        if value.pending is not None:
            draft.absorb_before(value.pending)
        self._set(operation, draft)

    def _add_row_wise(self, operation: Operation) -> None:
        source = operation.source
        tensor = self._tensor(operation.inputs[0], source)
        value = self.values[operation.inputs[0]]
        self._check_last_axis(value, source)
        if operation.attributes["axes"] != (len(value.shape) - 1,):
            raise ModelError(
                f"{source} works on axes {list(operation.attributes['axes'])}; only the last axis is supported"
            )
        draft = self._new_draft(operation.op, tensor, value.shape, source)
        if operation.op == "layer_norm":
            scale, shift = self._scale_and_shift(operation, tensor.channels)
            draft.params |= {"gamma": scale, "beta": shift}
            draft.epsilon = operation.attributes["epsilon"]
        self._set(operation, draft)

    def _scale_and_shift(self, operation: Operation, channels: int) -> list[np.ndarray]:
        """Gamma and beta of a layer normalisation; ones and zeros where it was spelled out."""
        if len(operation.inputs) == 1:
            return [np.ones(channels), np.zeros(channels)]
        arrays = [self.trace.constants.get(name) for name in operation.inputs[1:]]
        if any(array is None or array.shape != (channels,) for array in arrays):
            raise ModelError(f"{operation.source} must have a constant scale and shift of shape [{channels}]")
        return [array.astype(np.float64) for array in arrays if array is not None]

    def _add_affine(self, operation: Operation) -> None:
        """A sum, difference, product or quotient of an activation and a constant."""
        first_is_constant = operation.inputs[0] in self.trace.constants
        name, constant = operation.inputs[::-1] if first_is_constant else operation.inputs
        value = self.values[name]
        vector = self._per_channel(constant, value, operation)
        affine = _affine(operation, vector, first_is_constant)
        shape = self.trace.shapes[operation.output]
        draft = self._producer_to_extend(name)
        if draft is not None and draft.absorb(affine):
            self._set(operation, draft)
        else:
            self.values[operation.output] = _Value(value.tensor, shape, affine.after(value.pending))

    def _add_residual(self, operation: Operation) -> None:
        """A sum of two activations: a step of the node that makes one of them, the later one if both can take it."""
        source = operation.source
        if operation.op != "add":
            raise ModelError(f"{source} combines two activations; supported are sums of two, and constants as operands")
        shapes = [self.values[name].shape for name in operation.inputs]
        if shapes[0] != shapes[1]:
            raise ModelError(
                f"{source} adds activations of shapes {list(shapes[0])} and {list(shapes[1])}; they must be equal"
            )
        tensors = [self._tensor(name, source) for name in operation.inputs]
        if tensors[0].channels != tensors[1].channels:
            raise ModelError(
                f"{source} adds rows of {tensors[0].channels} channels to rows of {tensors[1].channels}; "
                "reshape its operands in the same way"
            )
        drafts = [self._producer_to_extend(name) for name in operation.inputs]
        candidates = [draft for draft in drafts if draft is not None and draft.residual is None]
        if candidates:
            draft = max(candidates, key=self.drafts.index)
        else:
            draft = self._new_draft("map", tensors[0], shapes[0], source)
        draft.residual = tensors[1] if draft.output is tensors[0] or not candidates else tensors[0]
        # nothing but this sum reads what the draft makes, so it may run after the other summand
        self.drafts.remove(draft)
        self.drafts.append(draft)
        self._add_step(operation, "residual", draft)

    def _add_step(self, operation: Operation, step: str, draft: Draft) -> None:
        draft.append(step)
        self._set(operation, draft)

    def _set(self, operation: Operation, draft: Draft) -> None:
        """Let the operation's result be what the draft makes."""
        draft.output.name, draft.output.shape = operation.output, self.trace.shapes[operation.output]
        self.values[operation.output] = _Value(draft.output, draft.output.shape)

    def _new_draft(self, kind: str, tensor: DraftTensor, shape: tuple[int, ...], source: Source) -> Draft:
        channels = shape[-1] if kind == "linear" else tensor.channels
        draft = Draft(source.name, kind, tensor, DraftTensor(source.name, shape, channels))
        self.drafts.append(draft)
        return draft

    def _producer_to_extend(self, name: str) -> Draft | None:
        """The draft that makes a value, if nothing but the operation that asks reads the value."""
        value = self.values[name]
        only_reader = self.reads[self.roots.get(name, name)] == 1
        return value.tensor.producer if only_reader and value.pending is None else None

    def _open_draft(self, name: str, source: Source) -> Draft:
        """A draft whose result is the value and that can take one more step: its producer, or a new map."""
        tensor = self._tensor(name, source)
        return self._producer_to_extend(name) or self._new_draft("map", tensor, self.values[name].shape, source)

    def _tensor(self, name: str, source: Source) -> DraftTensor:
        """The tensor that holds a value, what was pending applied by a map."""
        if name in self.trace.constants:
            raise ModelError(f"{source} is applied to a constant; replace it by its result")
        value = self.values[name]
        if value.pending is None:
            return value.tensor
        if value.pending.scale is not None:
            raise ModelError(
                f"{value.pending.source} multiplies by a constant, which neither the layer before it nor {source} "
                "can take into its weights; supported next to linear layers and layer normalisation"
            )
        draft = self._new_draft("map", value.tensor, value.shape, value.pending.source)
        draft.output.name = name
        draft.absorb(value.pending)
        self.values[name] = _Value(draft.output, value.shape)
        return draft.output

    def _per_channel(self, constant: str, value: _Value, operation: Operation) -> np.ndarray:
        """A constant operand as one float64 number a channel."""
        array = self.trace.constants[constant]
        axes = trailing_axes(value.shape, value.tensor.channels) or 0
        lead = array.shape[: max(array.ndim - axes, 0)]
        if math.prod(lead) != 1 or math.prod(self.trace.shapes[operation.output]) != math.prod(value.shape):
            raise ModelError(
                f"{operation.source} has a constant operand of shape {list(array.shape)} beside an activation of shape "
                f"{list(value.shape)}; supported are scalars and one number for each channel"
            )
        vector = array.reshape(array.shape[len(lead) :]).astype(np.float64)
        return np.broadcast_to(vector, value.shape[len(value.shape) - axes :]).reshape(-1)

    def _check_last_axis(self, value: _Value, source: Source) -> None:
        if value.shape[-1:] != (value.tensor.channels,):
            raise ModelError(
                f"{source} reads shape {list(value.shape)} from a tensor that others read as rows of "
                f"{value.tensor.channels} channels; let all read rows of one length"
            )

    def _input_channels(self, name: str) -> int:
        """Channels of an input: those that its readers see, so that a model may begin by flattening it."""
        shape = self.trace.shapes[name]
        seen = {
            self.trace.shapes[read][-1]
            for operation in self.trace.operations
            if operation.op != "reshape"
            for read in operation.inputs
            if self.roots.get(read, read) == name and self.trace.shapes[read]
        }
        channels = seen.pop() if len(seen) == 1 else shape[-1]
        return channels if trailing_axes(shape, channels) else shape[-1]


def _reshape_roots(trace: Trace) -> dict[str, str]:
    """The value that each reshaped value is, seen in another shape."""
    roots: dict[str, str] = {}
    for operation in trace.operations:
        if operation.op == "reshape":
            roots[operation.output] = roots.get(operation.inputs[0], operation.inputs[0])
    return roots


def _count_reads(trace: Trace, roots: dict[str, str]) -> Counter[str]:
    """How often each value is read, in whatever shape, being a model output included."""
    reads = [name for operation in trace.operations if operation.op != "reshape" for name in operation.inputs]
    reads += [value for _, value in trace.outputs]
    return Counter(roots.get(name, name) for name in reads)


def _affine(operation: Operation, vector: np.ndarray, constant_first: bool) -> Affine:
    op, source = operation.op, operation.source
    if op == "add":
        return Affine(None, vector, source)
    if op == "multiply":
        return Affine(vector, None, source)
    if op == "subtract":
        return Affine(np.full_like(vector, -1), vector, source) if constant_first else Affine(None, -vector, source)
    if constant_first or not vector.all():
        raise ModelError(f"{source} divides by an activation or by zero; supported is division by constants")
    return Affine(1 / vector, None, source)
