"""LSTM, GRU and RNN: the products with the inputs as one layer, and a loop over time for what each step needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import relax, te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from tvm_coexec.errors import ModelError

from .call import Call, Converter

_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
"""Parts of the weights of each operator, side by side."""

_DEFAULT_ACTIVATIONS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}

_Function = Callable[[Any], Any]


@dataclass(frozen=True)
class _Cell:
    """One direction of a recurrent operator.

    Attributes
    ----------
    operator
        LSTM, GRU or RNN.
    hidden
        Elements of the state.
    functions
        Activations of the gates, in ONNX's order.
    backwards
        Begins with the last step.
    resets_after_product
        ``linear_before_reset`` of GRU.
    couples
        ``input_forget`` of LSTM.
    clip
        Bound on what activations are applied to.
    has_peepholes, has_lengths
        Which of the optional operands there are.
    kept
        States that are given back behind the outputs of all steps: 0, 1 (hidden) or 2 (hidden and cell).
    """

    operator: str
    hidden: int
    functions: tuple[_Function, ...]
    backwards: bool
    resets_after_product: bool
    couples: bool
    clip: float | None
    has_peepholes: bool
    has_lengths: bool
    kept: int


def _recurrent(call: Call) -> Any:
    proto, values = call.node.proto, call.attributes
    x = call.operand(0)
    batch_first = values.get("layout", 0) == 1
    if batch_first:
        x = relax.op.permute_dims(x, [1, 0, 2])
    shape = call.type(0).shape
    steps, batch = (shape[1], shape[0]) if batch_first else shape[:2]
    directions, hidden = call.type(2).shape[0], call.type(2).shape[2]
    names = [*proto.output, "", ""]
    kept = 2 if names[2] else 1 if names[1] else 0
    packed = [
        _direction(call, call.builder.emit(x), index, (steps, batch, hidden), kept) for index in range(directions)
    ]

    def part(begin: int, count: int) -> relax.Expr:
        """Give the rows of all directions: ``[count, directions, batch, hidden]``."""
        rows = [relax.op.strided_slice(each, [0], [begin], [begin + count]) if kept else each for each in packed]
        rows = [relax.op.reshape(each, (count, 1, batch, hidden)) for each in rows]
        return rows[0] if directions == 1 else relax.op.concat(rows, axis=1)

    results = [part(0, steps)] if names[0] else [relax.const(np.zeros((), np.float32))]
    for position in range(kept):
        results.append(relax.op.reshape(part(steps + position, 1), (directions, batch, hidden)))
    if batch_first:
        if names[0]:
            results[0] = relax.op.permute_dims(results[0], [2, 0, 1, 3])
        results[1:] = [relax.op.permute_dims(each, [1, 0, 2]) for each in results[1:]]
    return results


def _direction(call: Call, x: relax.Expr, index: int, size: tuple[int, int, int], kept: int) -> relax.Expr:
    """Outputs of all steps, then the states that are kept: ``[steps + kept, batch, hidden]``."""
    operator = call.node.proto.op_type
    _, batch, hidden = size
    gates = _GATES[operator]
    dtype = call.type(0).dtype
    lstm = operator == "LSTM"

    def own(position: int, shape: tuple[int, ...]) -> relax.Expr | None:
        """Give an optional operand's part for this direction."""
        operand, array = call.operand(position), call.array(position)
        if array is not None:
            return call.constant(array[index].reshape(shape), dtype)
        if operand is None:
            return None
        part = relax.op.strided_slice(operand, [0], [index], [index + 1])
        return call.builder.emit(relax.op.reshape(part, shape))

    def state(position: int) -> relax.Expr:
        if call.attributes.get("layout", 0) == 1 and call.operand(position) is not None:
            part = relax.op.strided_slice(call.operand(position), [1], [index], [index + 1])
            return call.builder.emit(relax.op.reshape(part, (batch, hidden)))
        given = own(position, (batch, hidden))
        return call.constant(np.zeros((batch, hidden)), dtype) if given is None else given

    weights = _transposed(call, 1, index)
    product = relax.op.matmul(x, weights)
    bias, recurrent_bias = _biases(call, index, gates * hidden, dtype)
    if bias is not None:
        product = relax.op.add(call.builder.emit(product), bias)
    operands = [call.builder.emit(product), _transposed(call, 2, index), state(5)]
    operands += [recurrent_bias] if recurrent_bias is not None else []
    operands += [state(6)] if lstm else []
    peepholes = own(7, (3 * hidden,)) if lstm else None
    operands += [peepholes] if peepholes is not None else []
    lengths = call.operand(4)
    operands += [lengths] if lengths is not None else []
    cell = _cell(call, index, hidden, kept, peepholes is not None)
    # a tuple whose first item alone is read: the others are where the loop keeps its state
    made = call.loops(_loop(cell, recurrent_bias is not None), *operands)
    return call.builder.emit(relax.TupleGetItem(made, 0))


def _transposed(call: Call, position: int, index: int) -> relax.Expr:
    """Transpose the weights of a direction to ``[inputs, gates]``."""
    array = call.array(position)
    if array is not None:
        return call.constant(np.ascontiguousarray(array[index].T), str(array.dtype))
    _, rows, columns = call.type(position).shape
    part = relax.op.strided_slice(call.operand(position), [0], [index], [index + 1])
    return call.builder.emit(relax.op.permute_dims(relax.op.reshape(part, (rows, columns)), [1, 0]))


def _biases(call: Call, index: int, count: int, dtype: str) -> tuple[relax.Expr | None, relax.Expr | None]:
    """What is added to the products with the inputs, and what of GRU is added to the product that is reset."""
    if call.operand(3) is None:
        return None, None
    array = call.array(3)
    if array is None:
        raise ModelError(f"{call.node.source} has a bias that the model computes; make it a constant")
    inputs, states = array[index, :count].astype(np.float64), array[index, count:].astype(np.float64)
    if call.node.proto.op_type == "GRU" and call.attributes.get("linear_before_reset", 0):
        last = count // 3 * 2
        summed = np.concatenate([inputs[:last] + states[:last], inputs[last:]])
        return call.constant(summed, dtype), call.constant(states[last:], dtype)
    return call.constant(inputs + states, dtype), None


def _cell(call: Call, index: int, hidden: int, kept: int, has_peepholes: bool) -> _Cell:
    operator, values = call.node.proto.op_type, call.attributes
    defaults = _DEFAULT_ACTIVATIONS[operator]
    count = len(defaults)
    named = list(values.get("activations", defaults * 2))[index * count : (index + 1) * count]
    numbers = [list(values.get(name, [])) for name in ("activation_alpha", "activation_beta")]
    earlier = list(values.get("activations", []))[: index * count]
    for name in earlier:
        _take_numbers(name, numbers)
    direction = values.get("direction", "forward")
    return _Cell(
        operator,
        hidden,
        tuple(_function(name, *_take_numbers(name, numbers), call) for name in named),
        direction == "reverse" or index == 1,
        bool(values.get("linear_before_reset", 0)),
        bool(values.get("input_forget", 0)),
        float(values["clip"]) if "clip" in values else None,
        has_peepholes,
        call.operand(4) is not None,
        kept,
    )


_NUMBERS = {
    "Affine": (1.0, 0.0),
    "Elu": (1.0, None),
    "HardSigmoid": (0.2, 0.5),
    "LeakyRelu": (0.01, None),
    "ScaledTanh": (1.0, 1.0),
    "ThresholdedRelu": (1.0, None),
}
"""Default ``alpha`` and ``beta`` of the activations that have them."""


def _take_numbers(name: str, given: Sequence[list[float]]) -> tuple[float, float]:
    """The next numbers that are given, of those that an activation has."""
    found = [
        (numbers.pop(0) if numbers else default) if default is not None else 0.0
        for default, numbers in zip(_NUMBERS.get(name, (None, None)), given, strict=True)
    ]
    return found[0], found[1]


def _function(name: str, alpha: float, beta: float, call: Call) -> _Function:
    tanh = _tanh if call.type(0).dtype == "float32" else tirx.tanh
    return {
        "Affine": lambda x: x * alpha + beta,
        "Elu": lambda x: tirx.Select(x > 0, x, alpha * (tirx.exp(x) - 1)),
        "HardSigmoid": lambda x: tirx.max(tirx.min(x * alpha + beta, 1.0), 0.0),
        "LeakyRelu": lambda x: tirx.Select(x > 0, x, x * alpha),
        "Relu": lambda x: tirx.max(x, 0.0),
        "ScaledTanh": lambda x: tanh(x * beta) * alpha,
        "Sigmoid": lambda x: 1.0 / (1.0 + tirx.exp(-x)),
        "Softplus": lambda x: tirx.log(1.0 + tirx.exp(x)),
        "Softsign": lambda x: x / (1.0 + tirx.abs(x)),
        "Tanh": tanh,
        "ThresholdedRelu": lambda x: tirx.Select(x > alpha, x, x * 0.0),
    }[name]


def _tanh(x: Any) -> Any:
    """Take the series near 0, where TVM's difference of powers loses what float32 has of small numbers."""
    square = x * x
    series = x * (1.0 + square * (square * (2 / 15 - square * (17 / 315)) - 1 / 3))
    return tirx.Select(tirx.abs(x) < _NEAR_ZERO, series, tirx.tanh(x))


_NEAR_ZERO = 0.2
"""Up to here the first term that the series lacks, 62 x⁹ / 2835, is at most 6e-8 of the result: float32 has no more."""


def _loop(cell: _Cell, has_recurrent_bias: bool) -> Callable[..., list[te.Tensor]]:
    def compute(product: te.Tensor, weights: te.Tensor, *rest: te.Tensor) -> list[te.Tensor]:
        steps, batch, width = (int(extent) for extent in product.shape)
        shapes = [(steps + cell.kept, batch, cell.hidden), (2 * width,), (2, batch, cell.hidden)]
        made: list[te.Tensor] = te.extern(
            shapes,
            [product, weights, *rest],
            lambda ins, outs: _Body(cell, has_recurrent_bias, ins, outs).statement(),
            dtype=[product.dtype] * 3,
            name="recurrent",
        )
        return made

    return compute


class _Body:
    """The loops of a cell over time, batch and elements."""

    def __init__(self, cell: _Cell, has_recurrent_bias: bool, inputs: Any, outputs: Any) -> None:
        self.cell = cell
        self.steps, self.batch, self.width = (int(extent) for extent in inputs[0].shape)
        proxies = [T.buffer_proxy(buffer) for buffer in inputs]
        self.product, self.weights, self.first, *rest = proxies
        self.bias = rest.pop(0) if has_recurrent_bias else None
        self.first_cell = rest.pop(0) if cell.operator == "LSTM" else None
        self.peepholes = rest.pop(0) if cell.has_peepholes else None
        self.lengths = rest.pop(0) if cell.has_lengths else None
        self.output, self.gates, self.state = (T.buffer_proxy(buffer) for buffer in outputs)

    def statement(self) -> Any:
        rows = self.batch * self.cell.hidden
        with IRBuilder() as builder, T.seq_scope():
            with T.serial(0, rows) as i:
                self.state[i] = self.first[i]
                if self.first_cell is not None:
                    self.state[rows + i] = self.first_cell[i]
            with T.serial(0, self.steps) as step, T.serial(0, self.batch) as b:
                self._step(step, b)
            for kept in range(self.cell.kept):
                with T.serial(0, rows) as i:
                    self.output[(self.steps + kept) * rows + i] = self.state[kept * rows + i]
        return builder.get()

    def _step(self, step: Any, b: Any) -> None:
        last = self.steps - 1
        if self.lengths is None:
            self._at(last - step if self.cell.backwards else step, b)
            return
        length = self.lengths[b].astype("int32")
        with T.If(step < length):
            with T.Then():
                self._at(length - 1 - step if self.cell.backwards else step, b)
            with T.Else(), T.serial(0, self.cell.hidden) as j:
                self.output[(step * self.batch + b) * self.cell.hidden + j] = tirx.const(0, self.output.dtype)

    def _at(self, t: Any, b: Any) -> None:
        """Compute one step of one item: gates from the state before, then the state."""
        hidden, width = self.cell.hidden, self.width
        row = (t * self.batch + b) * width
        gru = self.cell.operator == "GRU"
        with T.serial(0, width) as n:
            self.gates[n] = self.product[row + n]
        first = width - hidden if gru else width
        if gru and self.cell.resets_after_product:
            with T.serial(0, hidden) as j:
                self.gates[width + j] = self.bias[j] if self.bias is not None else tirx.const(0, self.gates.dtype)
            self._add_product(hidden, first, width, lambda k: self.state[b * hidden + k])
        self._add_product(first, 0, 0, lambda k: self.state[b * hidden + k])
        {"LSTM": self._lstm, "GRU": self._gru, "RNN": self._rnn}[self.cell.operator](t, b)

    def _add_product(self, columns: int, source: int, target: int, factor: Callable[[Any], Any]) -> None:
        """Add the state's product with some columns of the weights to as many gates."""
        with T.serial(0, self.cell.hidden) as k, T.serial(0, columns) as n:
            self.gates[target + n] = self.gates[target + n] + factor(k) * self.weights[k * self.width + source + n]

    def _bounded(self, value: Any) -> Any:
        bound = self.cell.clip
        return value if bound is None else tirx.max(tirx.min(value, bound), -bound)

    def _lstm(self, t: Any, b: Any) -> None:
        hidden = self.cell.hidden
        f, g, h = self.cell.functions
        position, rows = b * hidden, self.batch * hidden
        with T.serial(0, hidden) as j:
            old = self.state[rows + position + j]

            def gate(number: int, peephole: int | None, cell: Any) -> Any:
                value = self.gates[number * hidden + j]
                if self.peepholes is not None and peephole is not None:
                    value = value + self.peepholes[peephole * hidden + j] * cell
                return self._bounded(value)

            take = f(gate(0, 0, old))
            keep = 1.0 - take if self.cell.couples else f(gate(2, 2, old))
            self.state[rows + position + j] = keep * old + take * g(gate(3, None, old))
            new = self.state[rows + position + j]
            self.state[position + j] = f(gate(1, 1, new)) * h(new)
            self.output[(t * self.batch + b) * hidden + j] = self.state[position + j]

    def _gru(self, t: Any, b: Any) -> None:
        hidden, width = self.cell.hidden, self.width
        f, g = self.cell.functions
        position, last = b * hidden, width - hidden
        with T.serial(0, last) as n:
            self.gates[n] = f(self._bounded(self.gates[n]))
        with T.serial(0, hidden) as j:
            reset = self.gates[hidden + j]
            if self.cell.resets_after_product:
                self.gates[last + j] = self.gates[last + j] + reset * self.gates[width + j]
            else:
                self.gates[width + j] = reset * self.state[position + j]
        if not self.cell.resets_after_product:
            self._add_product(hidden, last, last, lambda k: self.gates[width + k])
        with T.serial(0, hidden) as j:
            update = self.gates[j]
            new = g(self._bounded(self.gates[last + j]))
            self.state[position + j] = (1.0 - update) * new + update * self.state[position + j]
            self.output[(t * self.batch + b) * hidden + j] = self.state[position + j]

    def _rnn(self, t: Any, b: Any) -> None:
        hidden, (f,) = self.cell.hidden, self.cell.functions
        with T.serial(0, hidden) as j:
            self.state[b * hidden + j] = f(self._bounded(self.gates[j]))
            self.output[(t * self.batch + b) * hidden + j] = self.state[b * hidden + j]


CONVERTERS: Mapping[str, Converter] = dict.fromkeys(_GATES, _recurrent)
