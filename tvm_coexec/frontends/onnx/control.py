"""Control flow of ONNX models, resolved while a model is simplified."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
from onnx import GraphProto, NodeProto, helper

from tvm_coexec.errors import ModelError
from tvm_coexec.frontends.trace import Source, axis_within

from .simplifier import Handler, RulesError, Simplifier
from .values import Meaning, Scope, attributes, to_array

_MOST_ITERATIONS = 4096
"""A loop is written out, body by body: a model with more is refused rather than built for hours."""


def body_results(
    simplifier: Simplifier, body: GraphProto, meanings: Sequence[Meaning], around: Scope, source: Source
) -> list[Meaning]:
    """What a body gives whose inputs have these meanings, after its nodes have been taken in."""
    scope = Scope(around, source, around.opset)
    for tensor in body.initializer:
        scope.meanings[tensor.name] = simplifier.add_constant(tensor.name, to_array(tensor))
    for value, meaning in zip(body.input, meanings, strict=False):
        scope.meanings[value.name] = meaning
    simplifier.add_nodes(body.node, scope)
    return [scope.find(value.name) for value in body.output]


def set_outputs(node: NodeProto, meanings: Sequence[Meaning], scope: Scope) -> bool:
    """Say what the outputs of a node are; there may be more meanings than outputs."""
    for name, meaning in zip(node.output, meanings, strict=False):
        if name:
            scope.meanings[name] = meaning
    return True


def new_value(
    simplifier: Simplifier, op: str, inputs: Sequence[str], scope: Scope, source: Source, **values: object
) -> str:
    """Add one more node, or a constant operation, and name its result."""
    inner = Scope(scope, source, scope.opset)
    inner.meanings |= {name: name for name in inputs}
    result = f"{source.name}/{op.lower()}"
    simplifier.add_plain(helper.make_node(op, list(inputs), [result], **values), inner, source)
    return str(inner.find(result))


def whole_number(simplifier: Simplifier, meaning: Meaning, what: str, source: Source) -> int:
    """The constant integer that a value is; ``what`` names it where the model computes it instead."""
    array = simplifier.constant(meaning)
    if array is None:
        raise ModelError(f"{source} has {what} that the model computes; make it a constant")
    return int(array.reshape(()))


def new_constant(simplifier: Simplifier, array: object, name: str) -> str:
    """Add a constant to the model, under a name like this one."""
    return simplifier.add_constant(name, np.asarray(array))


def _if(simplifier: Simplifier, node: NodeProto, scope: Scope, source: Source) -> bool:
    """The branch that is taken; where the model computes which, both, and a choice of their results."""
    values = attributes(node)
    condition = scope.find(node.input[0])
    known = simplifier.constant(condition)
    if known is not None:
        branch = values["then_branch" if bool(known.reshape(-1)[0]) else "else_branch"]
        return set_outputs(node, body_results(simplifier, branch, [], scope, source), scope)
    results: dict[str, list[Meaning]] = {}
    refusals: dict[str, RulesError] = {}
    for name in ("then_branch", "else_branch"):
        try:
            results[name] = body_results(simplifier, values[name], [], scope, source)
        except RulesError as error:
            refusals[name] = error
    for name, refusal in refusals.items():
        other = "else_branch" if name == "then_branch" else "then_branch"
        if other not in results:
            raise refusal
        results[name] = _not_numbers(simplifier, results[other], source, refusal)
        warnings.warn(
            f"{source} gives NaN where its {name} would be taken, which these shapes do not fit ({refusal.reason}); if "
            "an input says which, `--value` or values={...} makes it a constant",
            stacklevel=2,
        )
    pairs = zip(results["then_branch"], results["else_branch"], strict=True)
    chosen = [_choice(simplifier, condition, yes, no, scope, source) for yes, no in pairs]
    return set_outputs(node, chosen, scope)


def _not_numbers(
    simplifier: Simplifier, results: Sequence[Meaning], source: Source, refusal: RulesError
) -> list[Meaning]:
    """NaN in place of each result, which any engine would refuse to compute."""
    made: list[Meaning] = []
    for meaning in results:
        known = simplifier.model.types.get(meaning) if isinstance(meaning, str) else None
        if known is None or np.dtype(known.dtype).kind != "f":
            raise refusal
        made.append(new_constant(simplifier, np.full(known.shape, np.nan, known.dtype), f"{source.name}/nan"))
    return made


def _choice(
    simplifier: Simplifier, condition: Meaning, yes: Meaning, no: Meaning, scope: Scope, source: Source
) -> Meaning:
    """``yes`` or ``no``, whichever the condition says."""
    types = simplifier.model.types
    if not isinstance(yes, str) or not isinstance(no, str) or types[yes] != types[no]:
        raise ModelError(
            f"{source} has branches of other types or shapes, between which a condition chooses that the model "
            "computes; let both make tensors of one shape"
        )
    return yes if yes == no else new_value(simplifier, "Where", [str(condition), yes, no], scope, source)


def _loop(simplifier: Simplifier, node: NodeProto, scope: Scope, source: Source) -> bool:
    """Write the iterations out one after another; those that may not happen change nothing if they do not."""
    body = attributes(node)["body"]
    limit, condition, *state = [scope.find(name) for name in [*node.input, "", ""][: max(len(node.input), 2)]]
    most = (
        _MOST_ITERATIONS + 1
        if limit in ("", None)
        else whole_number(simplifier, limit, "a number of iterations", source)
    )
    goes_on: Meaning = condition or new_constant(simplifier, True, f"{source.name}/true")
    listed: list[list[str]] = [[] for _ in range(len(body.output) - 1 - len(state))]
    for index in range(max(most, 0)):
        known = simplifier.constant(goes_on)
        if known is not None and not bool(known.reshape(-1)[0]):
            break
        if index == _MOST_ITERATIONS or (known is None and (listed or most > _MOST_ITERATIONS)):
            raise ModelError(
                f"{source} runs as often as the model computes, or more than {_MOST_ITERATIONS} times; give it a "
                "constant number of iterations"
            )
        counted = new_constant(simplifier, np.int64(index), f"{source.name}/iteration")
        next_condition, *results = body_results(simplifier, body, [counted, goes_on, *state], scope, source)
        if known is None:
            results = [
                _choice(simplifier, goes_on, new, old, scope, source) for new, old in zip(results, state, strict=True)
            ]
            next_condition = new_value(simplifier, "And", [str(goes_on), str(next_condition)], scope, source)
        state, goes_on = results[: len(state)], next_condition
        for items, item in zip(listed, results[len(state) :], strict=True):
            items.append(str(item))
    outputs = [*state, *(stacked(simplifier, items, 0, scope, source) for items in listed)]
    return set_outputs(node, outputs, scope)


def stacked(simplifier: Simplifier, items: list[str], axis: int, scope: Scope, source: Source) -> str:
    """Stack the items side by side along a new axis."""
    if not items:
        raise ModelError(f"{source} never runs, so that its outputs have no elements; leave it out of the model")
    rows = [unsqueezed(simplifier, item, axis, scope, source) for item in items]
    return rows[0] if len(rows) == 1 else new_value(simplifier, "Concat", rows, scope, source, axis=axis)


def unsqueezed(simplifier: Simplifier, item: str, axis: int, scope: Scope, source: Source) -> str:
    """A value with one axis more, by the node that the version of the operators has for it."""
    if scope.opset < 13:
        return new_value(simplifier, "Unsqueeze", [item], scope, source, axes=[axis])
    axes = new_constant(simplifier, np.array([axis]), f"{source.name}/axes")
    return new_value(simplifier, "Unsqueeze", [item, axes], scope, source)


def _scan(simplifier: Simplifier, node: NodeProto, scope: Scope, source: Source) -> bool:
    values = attributes(node)
    if scope.opset < 9:
        raise ModelError(f"{source} is of opset 8; convert the model with onnx.version_converter")
    body, count = values["body"], values["num_scan_inputs"]
    found = [str(scope.find(name)) for name in node.input]
    state: list[Meaning] = list(found[: len(found) - count])
    scanned = found[len(found) - count :]
    ranks = [len(simplifier.model.types[name].shape) for name in scanned]
    given_axes = values.get("scan_input_axes", [0] * count)
    axes = [axis_within(axis, rank, source) for axis, rank in zip(given_axes, ranks, strict=True)]
    length = simplifier.model.types[scanned[0]].shape[axes[0]]
    backwards = values.get("scan_input_directions", [0] * count)
    outputs = len(body.output) - len(state)
    listed: list[list[str]] = [[] for _ in range(outputs)]
    for index in range(length):
        items = []
        for name, axis, back in zip(scanned, axes, backwards, strict=True):
            position = new_constant(
                simplifier, np.int64(length - 1 - index if back else index), f"{source.name}/iteration"
            )
            items.append(new_value(simplifier, "Gather", [name, position], scope, source, axis=axis))
        results = body_results(simplifier, body, [*state, *items], scope, source)
        state = results[: len(state)]
        for kept, item in zip(listed, results[len(state) :], strict=True):
            kept.append(str(item))
    directions = values.get("scan_output_directions", [0] * outputs)
    lists: list[Meaning] = []
    for items, axis, back in zip(listed, values.get("scan_output_axes", [0] * outputs), directions, strict=True):
        rank = len(simplifier.model.types[items[0]].shape) + 1
        ordered = items[::-1] if back else items
        lists.append(stacked(simplifier, ordered, axis_within(axis, rank, source), scope, source))
    return set_outputs(node, [*state, *lists], scope)


HANDLERS: Mapping[str, Handler] = {
    "If": _if,
    "Loop": _loop,
    "Scan": _scan,
}
