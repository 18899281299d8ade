"""Operators that ONNX defines by others: replaced by these while a model is simplified."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import FunctionProto, NodeProto, defs

from tvm_coexec.errors import ModelError
from tvm_coexec.frontends.trace import Source, axis_within, check_size

from .control import new_constant, new_value, set_outputs
from .simplifier import Handler, Simplifier
from .values import Scope, attributes

_FUNCTIONS = (
    "Attention",
    "CausalConvWithState",
    "Celu",
    "CenterCropPad",
    "FlexAttention",
    "GroupNormalization",
    "LinearAttention",
    "MeanVarianceNormalization",
    "NegativeLogLikelihoodLoss",
    "RotaryEmbedding",
    "SoftmaxCrossEntropyLoss",
    "SwiGLU",
    "Swish",
)
"""Operators that are computed as ONNX defines them by others."""

_BROADCASTING = 8
"""The first version of ONNX's operators in which all of these repeat a smaller operand by themselves."""

_PREVIEW = 1
"""Version of ONNX's operators that are not settled yet."""


def _expand(simplifier: Simplifier, node: NodeProto, scope: Scope, source: Source) -> bool:
    """Take in the nodes that ONNX defines a node by."""
    renamed = simplifier.renamed(node, scope, source)
    if simplifier.is_constant(renamed):
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
    """Put the caller's attributes into a function's node in place of references to them."""
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


def _expand_with_axis(simplifier: Simplifier, node: NodeProto, scope: Scope, source: Source) -> bool:
    """A root mean square is taken over an axis and those after it."""
    _check_axis(simplifier, node, scope, source)
    return _expand(simplifier, node, scope, source)


def _check_axis(simplifier: Simplifier, node: NodeProto, scope: Scope, source: Source) -> None:
    """Look at the number of an axis, as ONNX's definition and inference do not."""
    rank = len(simplifier.model.types[str(scope.find(node.input[0]))].shape)
    axis_within(attributes(node).get("axis", -1), rank, source)


def _expand_statistics(simplifier: Simplifier, node: NodeProto, scope: Scope, source: Source) -> bool:
    """A layer normalisation is expanded only where its mean or deviation is read, too."""
    _check_axis(simplifier, node, scope, source)
    return any(node.output[1:]) and _expand(simplifier, node, scope, source)


def _in_pairs(simplifier: Simplifier, node: NodeProto, scope: Scope, source: Source) -> bool:
    """Take a sum, a mean or an extreme of many operands one after the other: TVM would stack them all first."""
    renamed = simplifier.renamed(node, scope, source)
    is_mean, names = node.op_type == "Mean", list(renamed.input)
    if not simplifier.is_constant(renamed) and any(is_no_number(simplifier.constant(name)) for name in names):
        return set_outputs(node, [summed(simplifier, names, scope, source)], scope)
    if simplifier.is_constant(renamed) or len(names) < (2 if is_mean else 3) or scope.opset < _BROADCASTING:
        return False
    pair = "Sum" if is_mean else node.op_type
    result = functools.reduce(lambda so_far, name: new_value(simplifier, pair, [so_far, name], scope, source), names)
    if is_mean:
        kind = simplifier.model.types[result].dtype
        count = new_constant(simplifier, np.asarray(len(names), kind), f"{source.name}/count")
        result = new_value(simplifier, "Div", [result, count], scope, source)
    return set_outputs(node, [result], scope)


def is_no_number(array: np.ndarray | None) -> bool:
    """Whether a constant is a single NaN: compilers take comparisons with it for granted, each in its own way."""
    return array is not None and array.size == 1 and array.dtype.kind == "f" and bool(np.isnan(array).all())


def summed(simplifier: Simplifier, names: Sequence[str], scope: Scope, source: Source) -> str:
    """Add values up, which makes NaN of each element where one of them is that."""
    return functools.reduce(lambda so_far, name: new_value(simplifier, "Add", [so_far, name], scope, source), names)


def _affine_grid(simplifier: Simplifier, node: NodeProto, scope: Scope, source: Source) -> bool:
    """Map a grid's points by a matrix for each image, of which ONNX's own nodes take two or more."""
    count, _, *sizes = _sizes_of_grid(simplifier.constant(scope.find(node.input[1])), source)
    corners = attributes(node).get("align_corners", 0)
    # where there is a single point, ONNX Runtime takes the last corner
    axes = [np.linspace(1, -1, size)[::-1] if corners else (2 * np.arange(size) + 1) / size - 1 for size in sizes]
    points = np.stack([*np.meshgrid(*axes, indexing="ij")[::-1], np.ones(sizes)], axis=-1)
    matrices = str(scope.find(node.input[0]))
    given, rank = simplifier.model.types[matrices], len(sizes)
    if given.shape[0] != count:
        raise ModelError(f"{source} has {given.shape[0]} matrices for a grid of {count} images; give it as many")
    grid = new_constant(simplifier, points.reshape(1, -1, rank + 1).astype(given.dtype), f"{source.name}/grid")
    turned = new_value(simplifier, "Transpose", [matrices], scope, source, perm=[0, 2, 1])
    mapped = new_value(simplifier, "MatMul", [grid, turned], scope, source)
    shape = new_constant(simplifier, np.array([count, *sizes, rank]), f"{source.name}/shape")
    return set_outputs(node, [new_value(simplifier, "Reshape", [mapped, shape], scope, source)], scope)


def _sizes_of_grid(sizes: np.ndarray | None, source: Source) -> list[int]:
    if sizes is None:
        raise ModelError(f"{source} has a size that the model computes; make it a constant")
    if sizes.shape not in ((4,), (5,)) or min(sizes) < 1:
        raise ModelError(f"{source} has the size {sizes.tolist()}, and takes 4 or 5 numbers above 0; export it again")
    check_size(tuple(sizes.tolist()), str(source))
    return [int(size) for size in sizes]


HANDLERS: Mapping[str, Handler] = dict.fromkeys(_FUNCTIONS, _expand) | {
    **dict.fromkeys(("Max", "Mean", "Min", "Sum"), _in_pairs),
    "AffineGrid": _affine_grid,
    "LayerNormalization": _expand_statistics,
    "RMSNormalization": _expand_with_axis,
}
