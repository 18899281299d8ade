"""The state of an ONNX model's simplification: names, constants, types, and the nodes that are left."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, TypeProto, defs, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from tvm_coexec.errors import ModelError, in_one_line
from tvm_coexec.frontends.trace import Source, check_size, claim_name

from .operands import misfit
from .padding import with_explicit_padding, without_empty_windows
from .reaches import overreach
from .scaling import SCALING, scaled_shape
from .values import (
    DOMAINS,
    DTYPES,
    HALVES,
    Meaning,
    Scope,
    ValueType,
    attributes,
    source_of,
    to_array,
    type_of,
    type_of_array,
)

_RANDOM = ("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike")

_TYPE_ATTRIBUTES = ("dtype", "output_dtype", "precision", "softmax_precision", "stash_type", "to")

_MOST_INFERENCE_ELEMENTS = 4096
"""Larger constants are no shapes, axes or counts, which inference would want to know."""

_GROWING = ("ConstantOfShape", "Expand", "EyeLike", "OneHot", "Pad", "Range", "Resize", "Tile", "Upsample")

_OF_SHAPES = ("EyeLike", "Shape", "Size")
"""Operators whose results depend on the type of what they read alone."""

_MOST_NODES = 100_000


class RulesError(ModelError):
    """A node breaks ONNX's own rules, for the shapes that its operands have; ``reason`` says which."""

    def __init__(self, source: Source, reason: str) -> None:
        super().__init__(f"{source} breaks the rules of ONNX ({reason}); export the model again")
        self.reason = reason


@dataclass(frozen=True)
class SimpleNode:
    """A node whose inputs and outputs have names that are unique in the whole model."""

    proto: NodeProto
    source: Source
    opset: int


@dataclass
class SimpleModel:
    """Nodes in execution order; ``outputs`` pairs the names that the user sees with values.

    ``counts`` has values of which only the first rows count, and the values that say how many these are.
    """

    inputs: dict[str, ValueType] = field(default_factory=dict)
    outputs: list[tuple[str, str]] = field(default_factory=list)
    nodes: list[SimpleNode] = field(default_factory=list)
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    types: dict[str, ValueType] = field(default_factory=dict)
    counts: dict[str, str] = field(default_factory=dict)

    def without_unused(self) -> list[SimpleNode]:
        """The nodes that the outputs depend on."""
        needed = {value for _, value in self.outputs}
        kept = []
        for node in reversed(self.nodes):
            if needed.intersection(node.proto.output):
                kept.append(node)
                needed.update(node.proto.input)
        return kept[::-1]


Handler: TypeAlias = "Callable[[Simplifier, NodeProto, Scope, Source], bool]"


class Simplifier:
    """Takes in one node after another.

    Parameters
    ----------
    opset
        Version of ONNX's operators.
    handlers
        What resolves nodes of other kinds than those that make tensors of tensors, by operators' names. A handler says
        whether it has taken the node in.
    """

    def __init__(self, opset: int, handlers: Mapping[str, Handler]) -> None:
        self.handlers = handlers
        self.model = SimpleModel()
        self.opset = opset
        self.taken: set[str] = set()
        self.has_halves = False

    def add_constant(self, name: str, array: np.ndarray) -> str:
        name = claim_name(name, self.taken)
        self.model.constants[name] = array
        self.model.types[name] = type_of_array(array)
        return name

    def add_input(self, name: str, proto: TypeProto, scope: Scope) -> None:
        known = type_of(proto)
        if known is None:
            raise ModelError(f"input {name!r} is no tensor of fixed shape; give every input one")
        self.taken.add(name)
        self.model.inputs[name] = self.model.types[name] = known
        scope.meanings[name] = name
        if proto.tensor_type.elem_type == TensorProto.FLOAT16:
            wide = helper.make_node("Cast", [name], [f"{name}/float32"], to=TensorProto.FLOAT)
            self.add_nodes([wide], scope)
            scope.meanings[name] = scope.find(f"{name}/float32")
            self.has_halves = True

    def add_output(self, value: onnx.ValueInfoProto, scope: Scope) -> None:
        meaning = scope.find(value.name)
        if not isinstance(meaning, str) or not meaning:
            raise ModelError(f"output {value.name!r} is a sequence of tensors; make its tensors outputs")
        if value.type.tensor_type.elem_type == TensorProto.BFLOAT16:
            raise ModelError(f"output {value.name!r} is bfloat16, which numpy does not know; cast it to float32")
        if value.type.tensor_type.elem_type == TensorProto.FLOAT16:
            narrow = f"{value.name}/float16"
            self.emit(helper.make_node("Cast", [meaning], [narrow], to=TensorProto.FLOAT16), scope, keep_half=True)
            meaning = narrow
        self.model.outputs.append((value.name, meaning))

    def add_nodes(self, nodes: Iterable[NodeProto], scope: Scope) -> None:
        for node in nodes:
            source = scope.source or source_of(node)
            if node.domain not in DOMAINS:
                raise ModelError(f"{source} is no operator of ONNX; replace it by some that are")
            if len(self.model.nodes) > _MOST_NODES:
                raise ModelError(f"{source} would become more than {_MOST_NODES} nodes; make the model smaller")
            handler = self.handlers.get(node.op_type)
            if handler is not None and handler(self, node, scope, source):
                continue
            self.add_plain(node, scope, source)

    def add_plain(self, node: NodeProto, scope: Scope, source: Source) -> None:
        """Take in a node that makes tensors of tensors, computed if its operands are constants."""
        _refuse_randomness(node, source)
        renamed = self.renamed(node, scope, source)
        if self.is_constant(renamed):
            self._check_constants(renamed, source)
            self._check_size(renamed, scope.opset, source)
            if self._evaluate(renamed, node, scope):
                return
        for index, name in enumerate(node.output):
            renamed.output[index] = claim_name(name, self.taken) if name else ""
            scope.meanings[name] = renamed.output[index]
        scope.meanings[""] = ""
        self.emit(renamed, scope, source=source)

    def renamed(self, node: NodeProto, scope: Scope, source: Source) -> NodeProto:
        """Rename a node's inputs to those of the simplified model, and write float32 for halves."""
        renamed = NodeProto()
        renamed.CopyFrom(node)
        self._widen(renamed)
        del renamed.input[:]
        for name in node.input:
            meaning = scope.find(name)
            if not isinstance(meaning, str):
                raise ModelError(f"{source} reads the sequence {name!r}, which it cannot; give it a tensor")
            renamed.input.append(meaning)
        return renamed

    def emit(self, node: NodeProto, scope: Scope, *, source: Source | None = None, keep_half: bool = False) -> None:
        """Append a node under the names that it has, once its result's type is known."""
        source = source or scope.source or source_of(node)
        self._check_constants(node, source)
        inferred = self.inferred(node, scope.opset, source)
        for name in filter(None, node.output):
            known = type_of(inferred[name]) if name in inferred else None
            if known is None:
                raise ModelError(_unknown_type(source, inferred.get(name)))
            if known.dtype == "float16" and not keep_half:
                known = ValueType("float32", known.shape)
            if len(known.shape) > 2:
                shape = without_empty_windows(node, self.model.types[node.input[0]].shape, known.shape)
                known = ValueType(known.dtype, shape)
            if node.op_type in SCALING:
                constants = [self.model.constants.get(read) for read in node.input]
                shape = scaled_shape(node, self.model.types[node.input[0]].shape, known.shape, constants)
                known = ValueType(known.dtype, shape)
            self.model.types[name] = known
        self.check_operands(node, source, self.model.types[node.output[0]].shape if node.output[0] else ())
        for name in filter(None, node.output):
            known = self.model.types[name]
            if 0 in known.shape:  # without elements, it cannot depend on anything
                self.model.constants[name] = np.zeros(known.shape, known.dtype)
        if all(name in self.model.constants for name in node.output if name):
            return
        self._follow_counts(node, source)
        if node.op_type == "Concat":
            kept = [name for name in node.input if 0 not in self.model.types[name].shape]
            del node.input[:]
            node.input.extend(kept)
        explicit = with_explicit_padding(node, lambda name: self.model.types[name].shape)
        self.model.nodes.append(SimpleNode(explicit, source, scope.opset))

    def check_operands(self, node: NodeProto, source: Source, result: tuple[int, ...] = ()) -> None:
        """Refuse a node whose operands' shapes do not fit each other, or its result's."""
        shapes = [self.model.types[name].shape if name else None for name in node.input]
        reason = misfit(node, shapes, result)
        if reason is not None:
            raise RulesError(source, reason)

    def _check_constants(self, node: NodeProto, source: Source) -> None:
        """Refuse indices, padding and sizes that are constants beyond what a node reads."""
        if node.input and node.input[0]:
            shape = self.model.types[node.input[0]].shape
            reason = overreach(node, shape, [self.model.constants.get(name) for name in node.input])
            if reason is not None:
                raise RulesError(source, reason)

    def _follow_counts(self, node: NodeProto, source: Source) -> None:
        """Let the result of a node have the count of what it reads, if it makes each row of one row."""
        counted = [index for index, name in enumerate(node.input) if name in self.model.counts]
        if not counted:
            return
        counts = {self.model.counts[node.input[index]] for index in counted}
        if len(counts) > 1 or not keeps_rows(node, counted, self.model):
            raise ModelError(
                f"{source} reads {node.input[counted[0]]!r}, which has as many rows as the model computes; leave it "
                "out of the model and do it to the model's output"
            )
        self.model.counts |= dict.fromkeys(filter(None, node.output), counts.pop())

    def inferred(self, node: NodeProto, opset: int, source: Source) -> Mapping[str, TypeProto]:
        """What ONNX's own inference says of a node's results."""
        small = {
            name: numpy_helper.from_array(self.model.constants[name], name)
            for name in node.input
            if name in self.model.constants and self.model.constants[name].size <= _MOST_INFERENCE_ELEMENTS
        }
        try:
            schema = defs.get_schema(node.op_type, opset, "")
            types = {name: self.model.types[name].proto for name in node.input if name}
            opsets = [helper.make_opsetid("", opset)]
            found: Mapping[str, TypeProto] = onnx.shape_inference.infer_node_outputs(
                schema, node, types, small, opset_imports=opsets, ir_version=8
            )
            if schema.has_function and any(name not in found or type_of(found[name]) is None for name in node.output):
                # some versions of operators that others define have no inference of their own
                return _inferred_as_model(node, types, opsets)
            return found
        except defs.SchemaError as error:
            raise ModelError(f"{source} is no operator of ONNX's opset {opset}; export the model again") from error
        except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError, RuntimeError) as error:
            raise RulesError(source, in_one_line(error)) from error

    def constant(self, meaning: Meaning) -> np.ndarray | None:
        """The tensor that a value always is; None if it depends on the model's inputs."""
        return self.model.constants.get(meaning) if isinstance(meaning, str) else None

    def is_constant(self, node: NodeProto) -> bool:
        """Whether a renamed node's results follow from constants, or from the type of what it reads."""
        if node.op_type in _OF_SHAPES:
            return node.input[0] not in self.model.counts
        return all(name in self.model.constants for name in node.input if name)

    def _check_size(self, renamed: NodeProto, opset: int, source: Source) -> None:
        """Refuse to compute what memory does not hold, of operators that make more than they read."""
        if renamed.op_type not in _GROWING:
            return
        with contextlib.suppress(RulesError):  # which is told where the node is not computed
            for proto in self.inferred(renamed, opset, source).values():
                known = type_of(proto)
                if known is not None:
                    check_size(known.shape, str(source))

    def _evaluate(self, renamed: NodeProto, node: NodeProto, scope: Scope) -> bool:
        """Compute what a node makes of constants; False if only TVM may be able to."""
        arrays = evaluate(renamed, self._operands(renamed), scope.opset)
        if arrays is None or any(str(array.dtype) not in DTYPES.values() for array in arrays):
            return False
        for name, array in zip(node.output, arrays, strict=False):
            if name:
                scope.meanings[name] = self.add_constant(name, array)
        return True

    def _operands(self, node: NodeProto) -> dict[str, np.ndarray]:
        if node.op_type in _OF_SHAPES:
            known = self.model.types[node.input[0]]
            return {node.input[0]: np.broadcast_to(np.zeros((), known.dtype), known.shape)}
        return {name: self.model.constants[name] for name in node.input if name}

    def _widen(self, node: NodeProto) -> None:
        """Let a node that would make float16 or bfloat16 make float32."""
        for attribute in node.attribute:
            if attribute.name in _TYPE_ATTRIBUTES and attribute.i in HALVES and node.op_type != "BitCast":
                attribute.i = TensorProto.FLOAT
                self.has_halves = True
            elif attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type in HALVES:
                attribute.t.CopyFrom(numpy_helper.from_array(to_array(attribute.t)))
                self.has_halves = True


def _inferred_as_model(
    node: NodeProto, types: Mapping[str, TypeProto], opsets: Sequence[onnx.OperatorSetIdProto]
) -> Mapping[str, TypeProto]:
    """What ONNX's inference says of a node's results through the nodes that define it."""
    inputs = [onnx.ValueInfoProto(name=name, type=proto) for name, proto in types.items()]
    model = helper.make_model(helper.make_graph([node], "node", inputs, []), opset_imports=opsets)
    return {value.name: value.type for value in onnx.shape_inference.infer_shapes(model).graph.value_info}


def evaluate(node: NodeProto, arrays: Mapping[str, np.ndarray], opset: int) -> list[np.ndarray] | None:
    """Compute a node of constants; None if ONNX's evaluator does not know it, in its version or in the newest."""
    inputs = [onnx.ValueInfoProto(name=name) for name in arrays]
    outputs = [onnx.ValueInfoProto(name=name) for name in node.output if name]
    graph = helper.make_graph([node], "constant", inputs, outputs)
    for version in (opset, defs.onnx_opset_version()):
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", version)])
        try:
            with np.errstate(all="ignore"):
                found = iter(ReferenceEvaluator(model).run(None, dict(arrays)))
            return [np.asarray(next(found)) if name else np.zeros(0) for name in node.output]
        except Exception:  # the evaluator raises whatever it stumbles over
            continue
    return None


def keeps_rows(node: NodeProto, counted: Sequence[int], model: SimpleModel) -> bool:
    """Whether a node makes each row of its result of the same row of the operands at these indices."""
    shapes = [model.types[name].shape for name in node.input if name]
    rows, result = shapes[counted[0]][0], model.types[node.output[0]].shape
    values = attributes(node)
    if not result or result[0] != rows:
        return False
    if node.op_type in ("Gather", "GatherND"):
        takes_rows = values.get("axis", 0) % len(shapes[0]) == 0
        return counted == [1] and not values.get("batch_dims", 0) if takes_rows else counted == [0]
    if node.op_type == "Slice":
        axes = model.constants.get(node.input[3]) if len(node.input) > 3 else None
        return axes is not None and all(int(axis) % len(shapes[0]) for axis in axes)
    if node.op_type == "Concat":
        return values["axis"] % len(result) != 0 and len(counted) == len(shapes)
    if node.op_type in ("Cast", "Squeeze", "Unsqueeze"):
        return node.op_type == "Cast" or _keeps_first_axis(node, model, max(len(shapes[0]), len(result)))
    wide = [shape for index, shape in enumerate(shapes) if index not in counted]
    is_elementwise = node.op_type in ("Add", "Div", "Mul", "Sub")
    return is_elementwise and all(len(shape) < len(result) or shape[0] == 1 for shape in wide)


def _keeps_first_axis(node: NodeProto, model: SimpleModel, rank: int) -> bool:
    """Whether none of the axes that are dropped or new is the first."""
    axes = attributes(node).get("axes") or (model.constants.get(node.input[1]) if len(node.input) > 1 else None)
    return axes is not None and all(int(axis) % rank for axis in axes)


def _refuse_randomness(node: NodeProto, source: Source) -> None:
    if node.op_type in _RANDOM:
        raise ModelError(f"{source} makes random numbers, which no module can; make them an input of the model")


def _unknown_type(source: Source, proto: TypeProto | None) -> str:
    if proto is not None and proto.WhichOneof("value") == "tensor_type":
        element = proto.tensor_type.elem_type
        if element and element not in DTYPES and element not in HALVES:
            name = TensorProto.DataType.Name(element).lower()
            return f"{source} makes elements of type {name}; supported are {', '.join(DTYPES.values())}"
        return (
            f"{source} makes a tensor whose size depends on what the model computes, but sizes are fixed when a module "
            "is built; leave it out of the model and do it to the model's output"
        )
    return f"{source} makes no tensor, which no module can hold; leave it out of the model"
