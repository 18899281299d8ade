"""Operators that ONNX defines by others: replaced by these while a model is simplified."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx
from onnx import FunctionProto, NodeProto, defs

from .onnx_values import Scope
from .trace import Source

if TYPE_CHECKING:
    from .onnx_simplify import Simplifier

FUNCTIONS = (
    "AffineGrid",
    "Attention",
    "CausalConvWithState",
    "Celu",
    "CenterCropPad",
    "FlexAttention",
    "GroupNormalization",
    "LinearAttention",
    "MeanVarianceNormalization",
    "NegativeLogLikelihoodLoss",
    "RMSNormalization",
    "RotaryEmbedding",
    "SoftmaxCrossEntropyLoss",
    "SwiGLU",
    "Swish",
)
"""Operators that are computed as ONNX defines them by others."""

_PREVIEW = 1
"""Version of ONNX's operators that are not settled yet."""


def expand_function(simplifier: Simplifier, renamed: NodeProto, node: NodeProto, scope: Scope, source: Source) -> bool:
    """Take in the nodes that ONNX defines a node by, if that is how it is computed."""
    has_statistics = node.op_type == "LayerNormalization" and any(node.output[1:])
    if node.op_type not in FUNCTIONS and not has_statistics:
        return False
    version = scope.opset if node.domain in ("", "ai.onnx") else _PREVIEW
    schema = defs.get_schema(node.op_type, version, node.domain)
    function = _function_of(simplifier, renamed, schema, version)
    if function is None:
        return False
    inner = Scope(None, source, scope.opset)
    padded = [*renamed.input, *[""] * (len(function.input) - len(renamed.input))]
    inner.meanings |= dict(zip(function.input, padded, strict=False))
    given = {attribute.name: attribute for attribute in node.attribute}
    defaults = {name: value.default_value for name, value in schema.attributes.items() if value.default_value.name}
    simplifier.add_nodes([_with_attributes(each, defaults | given) for each in function.node], inner)
    for name, inside in zip(node.output, function.output, strict=False):
        if name:
            scope.meanings[name] = inner.find(inside)
    return True


def _function_of(simplifier: Simplifier, node: NodeProto, schema: defs.OpSchema, opset: int) -> FunctionProto | None:
    if schema.has_context_dependent_function:
        versions = [v for v in schema.context_dependent_function_opset_versions if v <= opset]
        types = [simplifier.model.types[name].proto.SerializeToString() if name else b"" for name in node.input]
        for version in versions[::-1]:
            found = schema.get_context_dependent_function_with_opset_version(version, node.SerializeToString(), types)
            if found:
                return FunctionProto.FromString(found)
    if schema.has_function:
        versions = [v for v in schema.function_opset_versions if v <= opset] or list(schema.function_opset_versions)
        found = schema.get_function_with_opset_version(versions[-1])
        return FunctionProto.FromString(found) if isinstance(found, bytes) else found
    return None


def _with_attributes(node: NodeProto, given: dict[str, onnx.AttributeProto]) -> NodeProto:
    """The node of a function with the caller's attributes in place of references to them."""
    copy = NodeProto()
    copy.CopyFrom(node)
    del copy.attribute[:]
    for attribute in node.attribute:
        if not attribute.ref_attr_name:
            copy.attribute.append(attribute)
        elif attribute.ref_attr_name in given:
            copy.attribute.append(given[attribute.ref_attr_name])
            copy.attribute[-1].name = attribute.name
    return copy
