"""Form layers: the operations of a trace become nodes, and what follows a node becomes its epilogue.

Constant factors and summands are folded into the weights of the layer before them, or of the layers after
them. Until these are known, a value is an affine function of a tensor.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from tvm_coexec.errors import ModelError
from tvm_coexec.frontends.trace import Operation, Source, Trace
from tvm_coexec.graph import Graph
from tvm_coexec.layers import ACTIVATIONS, Linear, Rearrange, RowWise, clip, step

from . import arithmetic as fuse_arithmetic
from . import convolutions as fuse_convolutions
from . import images as fuse_images
from . import moves as fuse_moves
from . import norms as fuse_norms
from . import rows as fuse_rows
from .drafts import LARGEST, Affine, finish_graph
from .opaque import add_opaque, copied
from .reads import VIEWS
from .state import State
from .values import Value, claim_image

_PARTS = {
    "sqrt": "layer normalisation over the last axis",
}
"""Operations that no kernel knows, and what they may be a part of."""


def fuse(trace: Trace) -> Graph:
    """Make the graph of a trace.

    Raises
    ------
    ModelError
        For an operation that fits into no layer, naming it.
    """
    fuser = Fuser(trace)
    for operation in trace.operations:
        fuser.add(operation)
    return fuser.graph()


class Fuser(State):
    """Takes in one operation after another; each kind of layers is formed in a module of its own."""

    def add(self, operation: Operation) -> None:
        """Form a layer, or of what fits into none the layers of its parts, or else an opaque one."""
        if fuse_moves.go_on(self, operation):
            return
        self.fresh = []
        refusal = self._foreign(operation)
        if refusal is None:
            try:
                self._form(operation)
            except ModelError as error:
                refusal = error
            except ValueError as error:  # a layer that there is not
                refusal = ModelError(f"{operation.source} fits no layer ({error})")
        if refusal is None:
            return
        for draft in self.fresh:
            if not self.values.of(draft.output) and draft in self.drafts:
                self.drafts.remove(draft)
        if fuse_moves.put_off(self, operation):
            return
        if operation.parts:
            self._add_parts(operation)
        else:
            add_opaque(self, operation, refusal)

    def _add_parts(self, pattern: Operation) -> None:
        """Form layers of what a pattern stands for; what others read too has its layers already."""
        parts = [part for part in pattern.parts if part.output not in self.values]
        self.reads.replace(pattern, parts)
        for part in parts:
            self.add(part)

    def _foreign(self, operation: Operation) -> ModelError | None:
        """Why only Relax can know what an operation does, if that is so."""
        if operation.op == "opaque":
            return ModelError(f"{operation.source} is an operator that no layer knows")
        for name in () if operation.op in VIEWS else (*operation.inputs, operation.output):
            dtype = self.trace.dtypes.get(name, "float32")
            if dtype != "float32":
                return ModelError(f"{operation.source} works on {dtype}, of which no layer but Relax's own can be")
        return None

    def _form(self, operation: Operation) -> None:
        op, source = operation.op, operation.source
        if any(module.add(self, operation) for module in (fuse_rows, fuse_moves, fuse_convolutions, fuse_norms)):
            return
        if op == "reshape":
            self._view(operation, self.values[operation.inputs[0]].reshaped(self.shape_of(operation), source))
        elif op == "transpose":
            self._view(
                operation, self.value(operation.inputs[0], source).transposed(operation.attributes["axes"], source)
            )
        elif op == "matmul":
            self._add_linear(operation)
        elif op in ("layer_norm", "softmax"):
            self._add_row_wise(operation)
        elif op in ("concat", "max", "mean") or (op in fuse_images.HANDLERS and operation.is_on_images):
            fuse_images.HANDLERS[op](self, operation)
        elif op in (*ACTIVATIONS, "prelu"):
            self._add_function(operation)
        elif op in (*_PARTS, "cut"):
            raise ModelError(f"{source} is supported only as a part of {_PARTS.get(op, 'chains of views')}")
        elif any(name in self.trace.constants for name in operation.inputs):
            self._add_with_constant(operation)
        elif op == "add" and len({self.trace.shapes[name] for name in operation.inputs}) == 1:
            self._add_residual(operation)
        elif op in fuse_arithmetic.OPERATIONS:
            fuse_arithmetic.add_arithmetic(self, operation)
        else:
            raise ModelError(f"{source} is an operation that no layer knows")

    def _view(self, operation: Operation, value: Value) -> None:
        self.values[operation.output] = value

    def graph(self) -> Graph:
        outputs = []
        for name, value_name in self.trace.outputs:
            source = Source("output", name, "value")
            if value_name in self.waiting:
                fuse_moves.settle(self, value_name)
            value = self.concrete(value_name)
            copy = replace(source, name=f"copy_{name}")
            if value.tensor in self.inputs or value.tensor in outputs:
                if value.tensor.dtype == "float32":
                    value = replace(value, tensor=self.new_map(value, copy).output)
                else:
                    value = copied(self, value, name, copy)
            try:
                value.name_output(name, source)
            except ModelError:
                # its channels are where no output can have them
                value = copied(self, value, name, copy)
                value.name_output(name, source)
            outputs.append(value.tensor)
        by_name = dict(zip((name for name, _ in self.trace.outputs), outputs, strict=True))
        for name, count in self.trace.counts.items():
            by_name[name].counted_by = by_name[count]
        return finish_graph(self.inputs, outputs, self.drafts)

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
        value = self.value(activation, operation.source)
        k, n = (int(size) for size in weights.shape[-2:])
        weights = weights.reshape(k, n)
        if value.is_flat_image:
            fuse_images.add_covering_convolution(self, operation, value, weights)
            return
        self._check_last_axis(value, operation.source)
        value = self.readable_by(weights, value)
        layer = Linear(value.tensor.rows, k, n)
        draft = self.new_draft(layer, value.tensor, self.shape_of(operation), n, operation.source)
        draft.params["weights"] = weights
        if value.pending is not None:
            draft.absorb_before(value.pending)
        self.set(operation, draft)

    def _add_row_wise(self, operation: Operation) -> None:
        source = operation.source
        value = self.materialised(operation.inputs[0], source)
        axes = operation.attributes["axes"]
        if operation.attributes.get("empty_is_zero"):
            raise ModelError(f"{source} makes zeros where nothing counts, which only attention does")
        if len(axes) == 1 and value.tensor.dtype == "float32":
            value = fuse_moves.with_channels_at(self, value, axes[0], source)
        if len(axes) != 1 or not value.has_channels_at(axes[0]):
            raise ModelError(f"{source} works on axes {list(axes)} of {list(value.shape)}; supported is a single axis")
        tensor = value.tensor
        epsilon = operation.attributes.get("epsilon", 0.0)
        layer = RowWise(operation.op, tensor.rows, tensor.channels, (), epsilon)
        draft = self.new_draft(layer, tensor, value.shape, tensor.channels, source)
        if operation.op == "layer_norm":
            scale, shift = self._scale_and_shift(operation, tensor.channels)
            draft.params |= {"gamma": scale, "beta": shift}
        self.set(operation, draft, value)

    def _scale_and_shift(self, operation: Operation, channels: int) -> list[np.ndarray]:
        """Gamma and beta of a layer normalisation; ones and zeros where it was spelled out."""
        if len(operation.inputs) == 1:
            return [np.ones(channels), np.zeros(channels)]
        arrays = [self.trace.constants.get(name) for name in operation.inputs[1:]]
        if any(array is None or array.shape != (channels,) for array in arrays):
            raise ModelError(f"{operation.source} must have a constant scale and shift of shape [{channels}]")
        return [array.astype(np.float64) for array in arrays if array is not None]

    def _add_with_constant(self, operation: Operation) -> None:
        """Add arithmetic of an activation and a constant: an affine function, a limit, or a square."""
        name, number = operation.inputs[0], self.trace.scalar(operation.inputs[1])
        if operation.op == "power":
            if number != 2:
                raise ModelError(f"{operation.source} raises to another power than 2, which is no part of GELU")
            self.append_step(operation, name, "square")
        elif operation.op in ("maximum", "minimum"):
            if number is None:
                name, number = operation.inputs[1], self.trace.scalar(operation.inputs[0])
            if number is None:
                raise ModelError(f"{operation.source} limits to more than one number; supported is one for all")
            limit = clip(low=number) if operation.op == "maximum" else clip(high=number)
            self.append_step(operation, name, limit)
        else:
            self._add_affine(operation)

    def _add_affine(self, operation: Operation) -> None:
        """Add a sum, difference, product or quotient of an activation and a constant."""
        first_is_constant = operation.inputs[0] in self.trace.constants
        name, constant = operation.inputs[::-1] if first_is_constant else operation.inputs
        value = self.value(name, operation.source)
        affine = _affine(operation, self._per_channel(constant, value, operation), first_is_constant)
        draft = self.producer_to_extend(name)
        if draft is not None and draft.can_fold(affine):
            draft.absorb(affine)
            self.set(operation, draft, value)
        else:
            pending = affine.after(value.pending)
            if pending is None:
                value, pending = self.materialised(name, operation.source), affine
            self.values[operation.output] = replace(value, shape=self.shape_of(operation), pending=pending)

    def _add_function(self, operation: Operation) -> None:
        """A function of one value, which is a step of the layer before it."""
        name = operation.inputs[0]
        if operation.op != "prelu":
            self.append_step(operation, name, step(operation.op, *operation.attributes.get("numbers", ())))
            return
        slope = operation.inputs[1]
        if slope not in self.trace.constants:
            raise ModelError(f"{operation.source} has a slope that is no constant; make it one")
        draft, value = self.open_draft(name, operation.source)
        draft.append_constant("prelu", self._per_channel(slope, value, operation))
        self.set(operation, draft, value)

    def _add_residual(self, operation: Operation) -> None:
        """Make a sum of two activations a step of the node that makes one of them, the later one if both can take it.

        One that computes takes it before one that moves, which may come to cost nothing.
        """
        source = operation.source
        values = self._equal_operands(operation)
        drafts = [self.producer_to_extend(name) for name in operation.inputs]
        candidates = [draft for draft in drafts if draft is not None and draft.residual is None]
        later = sorted(candidates, key=lambda one: (not isinstance(one.layer, Rearrange), self.drafts.index(one)))
        draft = later[-1] if later else self.new_map(values[0], source)
        draft.residual = values[1 if draft.output is values[0].tensor or not candidates else 0].tensor
        # nothing but this sum reads what the draft makes, so it may run after the other summand
        self.drafts.remove(draft)
        self.drafts.append(draft)
        draft.append("residual")
        self.set(operation, draft, values[0])

    def _equal_operands(self, operation: Operation) -> list[Value]:
        """See two activations of one shape in the same way."""
        source = operation.source
        values = [self.materialised(name, source) for name in operation.inputs]
        first, second = values
        if (first.tensor.channels, first.batch) != (second.tensor.channels, second.batch):
            raise ModelError(
                f"{source} adds rows of {first.tensor.channels} channels to rows of {second.tensor.channels}, or in "
                "another order; reshape and transpose its operands in the same way"
            )
        image = first.tensor.image or second.tensor.image
        if image is not None:
            for value in values:
                claim_image(value.tensor, image, source)
        return values

    def _per_channel(self, constant: str, value: Value, operation: Operation) -> np.ndarray:
        """Give a constant operand as one float64 number a channel."""
        array = self.trace.constants[constant]
        vector = value.per_channel(array)
        if vector is None or math.prod(self.shape_of(operation)) != math.prod(value.shape):
            raise ModelError(
                f"{operation.source} has a constant operand of shape {list(array.shape)} beside an activation of shape "
                f"{list(value.shape)}; supported are scalars and one number for each channel"
            )
        return vector

    def _check_last_axis(self, value: Value, source: Source) -> None:
        if not value.has_channels_at(len(value.shape) - 1):
            raise ModelError(
                f"{source} reads shape {list(value.shape)} from a tensor that others read as rows of "
                f"{value.tensor.channels} channels; let all read rows of one length"
            )


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
    if np.abs(1 / vector).max(initial=0.0) > LARGEST:
        raise ModelError(f"{source} divides by a number whose reciprocal float32 does not hold")
    return Affine(1 / vector, None, source)
