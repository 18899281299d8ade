"""Sequences, optional values and what changes nothing: names, and lists of them, while a model is simplified."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from onnx import NodeProto

from tvm_coexec.errors import ModelError
from tvm_coexec.frontends.trace import Source, axis_within

from .control import body_results, new_constant, new_value, set_outputs, stacked, whole_number
from .functions import is_no_number, summed
from .simplifier import Handler, Simplifier
from .values import Meaning, Scope, attributes


def _items(node: NodeProto, scope: Scope, source: Source, position: int = 0) -> list[Meaning]:
    meaning = scope.find(node.input[position])
    if not isinstance(meaning, list):
        raise ModelError(f"{source} reads {node.input[position]!r}, which is no sequence; give it one")
    return meaning


def _identity(simplifier: Simplifier, node: NodeProto, scope: Scope, source: Source) -> bool:
    return set_outputs(node, [scope.find(node.input[0])], scope)


def _clip(simplifier: Simplifier, node: NodeProto, scope: Scope, source: Source) -> bool:
    """Without bounds it gives its operand; with one that is no number, no numbers."""
    if any(is_no_number(simplifier.constant(scope.find(name))) for name in node.input[1:]):
        names = [str(scope.find(name)) for name in node.input if name]
        return set_outputs(node, [summed(simplifier, names, scope, source)], scope)
    return not any(node.input[1:]) and not node.attribute and _identity(simplifier, node, scope, source)


def _dropout(simplifier: Simplifier, node: NodeProto, scope: Scope, source: Source) -> bool:
    """In inference it does nothing: the mask lets everything through."""
    meaning = scope.find(node.input[0])
    training = scope.find(node.input[2]) if len(node.input) > 2 else ""
    ratio = simplifier.constant(scope.find(node.input[1])) if len(node.input) > 1 else None
    known = np.zeros(1) if training == "" else simplifier.constant(training)
    if (known is None or known.any()) and not (ratio is not None and not ratio.any()):
        raise ModelError(f"{source} may be in training mode; export the model for inference")
    mask: Meaning = ""
    if len(node.output) > 1 and node.output[1] and isinstance(meaning, str):
        ones = np.ones(simplifier.model.types[meaning].shape, bool)
        mask = new_constant(simplifier, ones, f"{source.name}/mask")
    return set_outputs(node, [meaning, mask], scope)


def _optional(simplifier: Simplifier, node: NodeProto, scope: Scope, source: Source) -> bool:
    return set_outputs(node, [scope.find(node.input[0]) if node.input else None], scope)


def _has_element(simplifier: Simplifier, node: NodeProto, scope: Scope, source: Source) -> bool:
    found = scope.find(node.input[0]) if node.input else None
    answer = new_constant(simplifier, np.array(found not in (None, "")), f"{source.name}/has_element")
    return set_outputs(node, [answer], scope)


def _get_element(simplifier: Simplifier, node: NodeProto, scope: Scope, source: Source) -> bool:
    found = scope.find(node.input[0])
    if found in (None, ""):
        raise ModelError(f"{source} takes the element of an optional value that has none; export the model again")
    return set_outputs(node, [found], scope)


def _construct(simplifier: Simplifier, node: NodeProto, scope: Scope, source: Source) -> bool:
    return set_outputs(node, [[scope.find(name) for name in node.input]], scope)


def _position(simplifier: Simplifier, node: NodeProto, index: int, count: int, scope: Scope, source: Source) -> int:
    """Count a position in a sequence from its start."""
    position = whole_number(simplifier, scope.find(node.input[index]), "a position in a sequence", source)
    if not -count <= position < count:
        raise ModelError(f"{source} takes element {position} of a sequence of {count}; export the model again")
    return position % count


def _at(simplifier: Simplifier, node: NodeProto, scope: Scope, source: Source) -> bool:
    items = _items(node, scope, source)
    return set_outputs(node, [items[_position(simplifier, node, 1, len(items), scope, source)]], scope)


def _insert(simplifier: Simplifier, node: NodeProto, scope: Scope, source: Source) -> bool:
    items = list(_items(node, scope, source))
    has_position = len(node.input) > 2 and node.input[2]
    position = whole_number(simplifier, scope.find(node.input[2]), "a position", source) if has_position else len(items)
    items.insert(position, scope.find(node.input[1]))
    return set_outputs(node, [items], scope)


def _erase(simplifier: Simplifier, node: NodeProto, scope: Scope, source: Source) -> bool:
    items = list(_items(node, scope, source))
    has_position = len(node.input) > 1 and node.input[1]
    del items[_position(simplifier, node, 1, len(items), scope, source) if has_position else -1]
    return set_outputs(node, [items], scope)


def _length(simplifier: Simplifier, node: NodeProto, scope: Scope, source: Source) -> bool:
    count = np.int64(len(_items(node, scope, source)))
    return set_outputs(node, [new_constant(simplifier, count, f"{source.name}/length")], scope)


def _concat(simplifier: Simplifier, node: NodeProto, scope: Scope, source: Source) -> bool:
    values, items = attributes(node), [str(item) for item in _items(node, scope, source)]
    axis = values["axis"]
    if values.get("new_axis", 0):
        rank = len(simplifier.model.types[items[0]].shape) + 1
        return set_outputs(node, [stacked(simplifier, items, axis_within(axis, rank, source), scope, source)], scope)
    return set_outputs(node, [new_value(simplifier, "Concat", items, scope, source, axis=axis)], scope)


def _split(simplifier: Simplifier, node: NodeProto, scope: Scope, source: Source) -> bool:
    values, name = attributes(node), str(scope.find(node.input[0]))
    shape = simplifier.model.types[name].shape
    axis = axis_within(values.get("axis", 0), len(shape), source)
    sizes = [1] * shape[axis]
    keeps = values.get("keepdims", 1) or len(node.input) > 1
    if len(node.input) > 1 and node.input[1]:
        given = simplifier.constant(scope.find(node.input[1]))
        if given is None:
            raise ModelError(f"{source} splits by sizes that the model computes; make them constants")
        size = int(given.reshape(-1)[0])
        sizes = (
            [int(part) for part in given]
            if given.ndim
            else [min(size, shape[axis] - start) for start in range(0, shape[axis], size)]
        )
    items: list[Meaning] = []
    for position, size in enumerate(sizes):
        start = sum(sizes[:position])
        if keeps:
            bounds = [new_constant(simplifier, [at], f"{source.name}/bound") for at in (start, start + size, axis)]
            items.append(new_value(simplifier, "Slice", [name, *bounds], scope, source))
        else:
            index = new_constant(simplifier, np.int64(start), f"{source.name}/index")
            items.append(new_value(simplifier, "Gather", [name, index], scope, source, axis=axis))
    return set_outputs(node, [items], scope)


def _map(simplifier: Simplifier, node: NodeProto, scope: Scope, source: Source) -> bool:
    """Run the body once for each item of the first sequence."""
    body = attributes(node)["body"]
    inputs = [scope.find(name) for name in node.input]
    count = len(_items(node, scope, source))
    made: list[list[Meaning]] = [[] for _ in body.output]
    for position in range(count):
        given = [meaning[position] if isinstance(meaning, list) else meaning for meaning in inputs]
        for items, item in zip(made, body_results(simplifier, body, given, scope, source), strict=True):
            items.append(item)
    return set_outputs(node, list(made), scope)


HANDLERS: Mapping[str, Handler] = {
    "Clip": _clip,
    "ConcatFromSequence": _concat,
    "Dropout": _dropout,
    "Identity": _identity,
    "Optional": _optional,
    "OptionalGetElement": _get_element,
    "OptionalHasElement": _has_element,
    "SequenceAt": _at,
    "SequenceConstruct": _construct,
    "SequenceEmpty": _construct,
    "SequenceErase": _erase,
    "SequenceInsert": _insert,
    "SequenceLength": _length,
    "SequenceMap": _map,
    "SplitToSequence": _split,
}
