"""ONNX models made simple: what follows from constants and shapes is computed, control flow and functions are resolved.

What is left are nodes on tensors whose types are all known. TVM, which takes seconds to load, is not needed for it, so
that what no module can compute is told before.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator

import onnx
import onnx.inliner
from onnx import NodeProto, defs

from tvm_coexec.errors import ModelError
from tvm_coexec.frontends.trace import COMPUTED_WIDER, Source
from tvm_coexec.graph import check_extents

from . import control as onnx_control
from . import counted as onnx_counted
from . import functions as onnx_functions
from . import sequences as onnx_sequences
from .attributes import check_attributes
from .file import all_nodes
from .simplifier import SimpleModel, Simplifier
from .values import HALVES, Scope, source_of, to_array

_HANDLERS = {**onnx_control.HANDLERS, **onnx_counted.HANDLERS, **onnx_functions.HANDLERS, **onnx_sequences.HANDLERS}

WITHOUT_CONVERTERS = (
    *("BlackmanWindow", "Col2Im", "DFT", "DeformConv", "Det", "HammingWindow", "HannWindow", "ImageDecoder"),
    *("MelWeightMatrix", "RegexFullMatch", "STFT", "StringConcat", "StringNormalizer", "StringSplit", "TensorScatter"),
    "TfIdfVectorizer",
)
"""ONNX's operators that neither this package nor TVM converts; of constants ONNX's own evaluator computes them."""


def simplify(model: onnx.ModelProto) -> SimpleModel:
    """Simplify a model that :func:`read_onnx` has read.

    Raises
    ------
    ModelError
        Naming the first node of which the result's type, or the way through it, depends on what is computed, or else
        the first that nothing converts.
    """
    if model.functions:
        model = onnx.inliner.inline_local_functions(model, convert_version=True)
        for node in all_nodes(model.graph.node):
            check_attributes(node, source_of(node))
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
    for name in simplifier.model.inputs:
        check_extents(name, simplifier.model.types[name].shape)
    for name, value in simplifier.model.outputs:
        shape = simplifier.model.types[value].shape
        check_extents(name, shape)
        if 0 in shape:
            raise ModelError(f"output {name!r} has no elements; remove it from the model's outputs")
    _add_counts(simplifier.model)
    simplifier.model.nodes = simplifier.model.without_unused()
    for one in simplifier.model.nodes:
        if one.proto.op_type in WITHOUT_CONVERTERS:
            raise no_converter(one.source)
    if simplifier.has_halves:
        warnings.warn(COMPUTED_WIDER, stacklevel=2)
    return simplifier.model


def no_converter(source: Source) -> ModelError:
    """The error of an operator that nothing converts."""
    return ModelError(f"{source} is an operator that cannot be imported; replace it in the model")


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
