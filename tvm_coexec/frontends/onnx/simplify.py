"""ONNX models made simple: what follows from constants and shapes is computed, control flow and functions are resolved.

What is left are nodes on tensors whose types are all known.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator

import onnx
from onnx import NodeProto, defs

from tvm_coexec.frontends.trace import COMPUTED_WIDER

from . import control as onnx_control
from . import counted as onnx_counted
from . import functions as onnx_functions
from . import sequences as onnx_sequences
from .simplifier import SimpleModel, Simplifier
from .values import HALVES, Scope, to_array

_HANDLERS = {**onnx_control.HANDLERS, **onnx_counted.HANDLERS, **onnx_functions.HANDLERS, **onnx_sequences.HANDLERS}


def simplify(model: onnx.ModelProto) -> SimpleModel:
    """Simplify a model whose inputs have fixed shapes.

    Raises
    ------
    ModelError
        Naming the first node of which the result's type, or the way through it, depends on what is computed.
    """
    opset = next((item.version for item in model.opset_import if item.domain in ("", "ai.onnx")), 1)
    _drop_unread_outputs(model.graph, opset)
    simplifier = Simplifier(opset, _HANDLERS)
    scope = Scope(None, None, opset)
    for tensor in model.graph.initializer:
        scope.meanings[tensor.name] = simplifier.add_constant(tensor.name, to_array(tensor))
        simplifier.has_halves |= tensor.data_type in HALVES
    for value in model.graph.input:
        if value.name not in scope.meanings:
            simplifier.add_input(value.name, value.type, scope)
    simplifier.add_nodes(model.graph.node, scope)
    for value in model.graph.output:
        simplifier.add_output(value, scope)
    _add_counts(simplifier.model)
    simplifier.model.nodes = simplifier.model.without_unused()
    if simplifier.has_halves:
        warnings.warn(COMPUTED_WIDER, stacklevel=2)
    return simplifier.model


def _add_counts(model: SimpleModel) -> None:
    """Make outputs of the numbers of rows of outputs, too."""
    hidden = dict.fromkeys(model.counts[value] for _, value in model.outputs if value in model.counts)
    model.outputs += [(count, count) for count in hidden]


def _drop_unread_outputs(graph: onnx.GraphProto, opset: int) -> None:
    """Take the names from optional results that nothing reads, so that nobody has to make them."""
    read = {value.name for value in graph.output} | set(_read_names(graph.node))
    for node in graph.node:
        if len(node.output) < 2 or node.domain not in ("", "ai.onnx"):
            continue
        declared = defs.get_schema(node.op_type, opset, "").outputs
        for index, name in enumerate(node.output):
            may_lack = index < len(declared) and declared[index].option == defs.OpSchema.FormalParameterOption.Optional
            if name not in read and may_lack:
                node.output[index] = ""


def _read_names(nodes: Iterable[NodeProto]) -> Iterator[str]:
    """List what nodes read, in their bodies too."""
    for node in nodes:
        yield from node.input
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                yield from (value.name for value in body.output)
                yield from _read_names(body.node)
