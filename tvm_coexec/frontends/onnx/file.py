"""ONNX models as their files have them: read and checked, which takes nothing of TVM."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import onnx

from tvm_coexec.errors import ModelError, in_one_line
from tvm_coexec.frontends.trace import check_model_file

from .attributes import check_attributes, write_activations
from .contributed import replace_contributed
from .scaling import SCALING
from .shapes import bind_inputs
from .values import DOMAINS, attributes, rounds_up, source_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike

_OLDEST_OPSET = 7
"""Before it, arithmetic broadcasts by attributes of its own."""

_IR_WITHOUT_LISTED_CONSTANTS = 4
"""From this version on constants need not be inputs too; older files that break the rule mean the same."""


def read_onnx(
    model: onnx.ModelProto | Path, shapes: Mapping[str, Sequence[int]], values: Mapping[str, ArrayLike]
) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """Read a model that follows ONNX's rules, all its operators ONNX's own and all its inputs' shapes known.

    ``shapes`` has those of inputs whose dimensions the model leaves open, ``values`` what other inputs are, of which
    the model has constants then; these are returned, too.

    Raises
    ------
    ModelError
        The file cannot be read, or naming the first input or node that does not follow the rules.
    """
    if isinstance(model, Path):
        proto = _read(model)
    else:
        proto = onnx.ModelProto()
        proto.CopyFrom(model)
    _check_opset(proto)
    _check_names(proto.graph)
    replace_contributed(proto)
    _write_axes(proto.graph)
    _check_operators(proto)
    fixed = bind_inputs(proto.graph, shapes, values)
    _check_consistency(proto, model)
    return proto, fixed


def _read(path: Path) -> onnx.ModelProto:
    check_model_file(path, "an ONNX")
    try:
        return onnx.load(path)
    except Exception as error:  # whatever damage leads onnx or protobuf to, besides what they foresee
        raise ModelError(
            f"cannot read {str(path)!r} as an ONNX model ({in_one_line(error)}); export it again"
        ) from error


def _check_opset(model: onnx.ModelProto) -> None:
    if not model.graph.node:
        raise ModelError("the model has no nodes, so it is empty or no ONNX model; export it again")
    if not model.graph.output:
        raise ModelError("the model has no outputs, so it computes nothing; export it again")
    for opset in model.opset_import:
        if opset.domain in ("", "ai.onnx") and opset.version < _OLDEST_OPSET:
            raise ModelError(
                f"the model has ONNX opset {opset.version}; opsets from {_OLDEST_OPSET} on are supported, "
                "so convert it with onnx.version_converter"
            )
        if opset.domain in ("", "ai.onnx") and opset.version > onnx.defs.onnx_opset_version():
            raise ModelError(
                f"the model has ONNX opset {opset.version}, and the package onnx here knows those up to "
                f"{onnx.defs.onnx_opset_version()}; update it, or convert the model with onnx.version_converter"
            )


def _check_names(graph: onnx.GraphProto) -> None:
    """Protobuf hands over what is no UTF-8 as bytes, which no file of a module could hold."""
    names = [value.name for values in (graph.input, graph.output, graph.initializer) for value in values]
    for node in graph.node:
        names += [node.name, node.op_type, node.domain, *node.input, *node.output]
    for name in names:
        if isinstance(name, bytes):
            raise ModelError(f"the model's name {name!r} is no UTF-8; export it again")


def _write_axes(graph: onnx.GraphProto) -> None:
    """Write the axes of normalisations that are the usual ones: ONNX's own inference misses them."""
    for node in graph.node:
        if node.op_type == "MeanVarianceNormalization" and not node.attribute:
            node.attribute.append(onnx.helper.make_attribute("axes", [0, 2, 3]))


def _check_operators(model: onnx.ModelProto) -> None:
    for node in all_nodes((*model.graph.node, *(node for function in model.functions for node in function.node))):
        write_activations(node)
        check_attributes(node, source_of(node))
    opset = next((item.version for item in model.opset_import if item.domain in ("", "ai.onnx")), 1)
    own = {(function.domain, function.name) for function in model.functions}
    for node in model.graph.node:
        source = source_of(node)
        if node.domain not in DOMAINS and (node.domain, node.op_type) not in own:
            raise ModelError(f"{source} is no operator of ONNX; replace it by some that are")
        if node.op_type == "GroupNormalization" and opset in range(18, 21):
            raise ModelError(
                f"{source} is of opset {opset}, from which ONNX withdrew it; export the model with opset 21"
            )
        if node.op_type == "BatchNormalization" and attributes(node).get("training_mode", 0):
            raise ModelError(f"{source} is in training mode; export the model for inference")


def all_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Give nodes, and those of their bodies."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                yield from all_nodes(body.node)


def _check_consistency(proto: onnx.ModelProto, model: onnx.ModelProto | Path) -> None:
    """Let ONNX check its own rules, types and shapes; from its file where the model has more than 2 GiB."""
    proto.ir_version = max(proto.ir_version, _IR_WITHOUT_LISTED_CONSTANTS)
    outputs = onnx.GraphProto(output=proto.graph.output).output
    del proto.graph.value_info[:], proto.graph.output[:]
    # sizes that the model computes have no shape, which ONNX's inference allows and its checker does not
    proto.graph.output.extend(value for value in outputs if value.type.tensor_type.HasField("shape"))
    if any(rounds_up(node) or node.op_type in SCALING for node in proto.graph.node):  # of which it counts otherwise
        for value in proto.graph.output:
            for size in value.type.tensor_type.shape.dim:
                size.Clear()
    is_large = isinstance(model, Path) and proto.ByteSize() >= onnx.checker.MAXIMUM_PROTOBUF
    try:
        onnx.checker.check_model(str(model) if is_large else proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError) as error:
        raise ModelError(f"the model breaks the rules of ONNX ({in_one_line(error)}); export it again") from error
    finally:
        del proto.graph.output[:]
        proto.graph.output.extend(outputs)
