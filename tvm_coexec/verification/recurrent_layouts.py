"""Recurrent operators whose sequences come first, in the order of axes that ONNX Runtime has kernels for.

ONNX's reference evaluator would take them as they are, but ignores activations, bounds and lengths of sequences.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx
from onnx import NodeProto, helper

_OPERATORS = ("GRU", "LSTM", "RNN")
_SWAPPED = (1, 0, 2)
_STEPS_BEHIND = (2, 0, 1, 3)
"""Orders of axes: batch and steps of inputs and states exchanged, and the steps of outputs behind the batch."""


def with_steps_first(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A model in which every recurrent operator reads and makes steps first, with transposes around it.

    It is the very model that is given, if no sequences come first there.
    """
    if not any(map(_has_sequences_first, proto.graph.node)):
        return proto
    changed = onnx.ModelProto()
    changed.CopyFrom(proto)
    nodes = [each for node in proto.graph.node for each in _nodes(node)]
    del changed.graph.node[:]
    changed.graph.node.extend(nodes)
    return changed


def _has_sequences_first(node: NodeProto) -> bool:
    return node.op_type in _OPERATORS and any(each.name == "layout" and each.i == 1 for each in node.attribute)


def _nodes(node: NodeProto) -> Iterator[NodeProto]:
    """The node itself or, if its sequences come first, what computes the same."""
    if not _has_sequences_first(node):
        yield node
        return
    inner = NodeProto()
    inner.CopyFrom(node)
    del inner.attribute[:]
    inner.attribute.extend(attribute for attribute in node.attribute if attribute.name != "layout")
    made = next(filter(None, node.output))
    for position, name in enumerate(node.input):
        if name and position in (0, 5, 6):  # the input, and the states before
            inner.input[position] = f"{made}/input{position}"
            yield helper.make_node("Transpose", [name], [inner.input[position]], perm=_SWAPPED)
    for position, name in enumerate(node.output):
        inner.output[position] = name and f"{name}/steps_first"
    yield inner
    for position, name in enumerate(node.output):
        if name:
            order = _SWAPPED if position else _STEPS_BEHIND
            yield helper.make_node("Transpose", [inner.output[position]], [name], perm=order)
