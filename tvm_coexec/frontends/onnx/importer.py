"""Simplified ONNX models become Relax modules: each node by a converter of our own or else by TVM's, and checked."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from tvm import IRModule, ir, relax
from tvm.relax.frontend.onnx import onnx_frontend

from tvm_coexec.errors import ModelError, last_line
from tvm_coexec.frontends.relax.calls import static_type
from tvm_coexec.frontends.relax.opaque import building
from tvm_coexec.frontends.trace import Source

from .call import Call
from .operators import CONVERTERS, SECOND_RESULTS
from .simplifier import SimpleModel, SimpleNode
from .simplify import no_converter
from .values import ValueType


def import_simple(model: SimpleModel) -> tuple[IRModule, dict[str, relax.Expr]]:
    """The module, and what each value of the model is in it: a variable, or a constant.

    Raises
    ------
    ModelError
        Naming the first node that neither converter takes, or whose result is not what ONNX says it is.
    """
    importer = _Importer(model)
    with building(importer.builder, list(importer.parameters.values())):
        for node in model.nodes:
            importer.add(node)
        importer.builder.emit_func_output(relax.Tuple([importer.operand(value) for _, value in model.outputs]))
    return importer.builder.get(), importer.made


class _Importer:
    def __init__(self, model: SimpleModel) -> None:
        self.model = model
        self.builder = relax.BlockBuilder()
        # names of our own: TVM's loops take over what may be no name in its language, such as "class"
        self.parameters = {
            name: relax.Var(f"parameter{index}", relax.TensorType(known.shape, known.dtype))
            for index, (name, known) in enumerate(model.inputs.items())
        }
        self.made: dict[str, relax.Expr] = dict(self.parameters)
        self.tvm = onnx_frontend.ONNXGraphImporter({}, {}, sanitize=False)

    def add(self, node: SimpleNode) -> None:
        call = Call(self.builder, node, self.model, [self.operand(name) for name in node.proto.input])
        try:
            own = CONVERTERS.get(node.proto.op_type)
            result = own(call) if own is not None else None
            if result is None:
                result = self._by_tvm(node, call)
            further = SECOND_RESULTS.get(node.proto.op_type) if "".join(node.proto.output[1:]) else None
            results = [*_items(result), *([] if further is None else [further(call)])]
            results = [self.builder.normalize(each) for each in results]
        except ModelError:
            raise
        except Exception as error:  # converters raise whatever they stumble over
            reason = last_line(error, type(error).__name__)
            raise ModelError(f"TVM cannot import {node.source} ({reason}); replace it in the model") from error
        for name, each in zip(node.proto.output, self._flat(results), strict=False):
            if name and name not in self.made:
                self._set(name, each, node)

    def operand(self, name: str) -> relax.Expr | None:
        if name and name not in self.made and name in self.model.constants:
            self.made[name] = _constant(self.model.constants[name])
        if name and name not in self.made:
            raise ModelError(f"the output {name!r} of {self._maker(name)} is read, which cannot be made; leave it out")
        return self.made[name] if name else None

    def _maker(self, name: str) -> Source:
        return next(node.source for node in self.model.nodes if name in node.proto.output)

    def _set(self, name: str, value: relax.Expr, node: SimpleNode) -> None:
        """Let a value of the model be what its node was converted to, if that has the type that it should have."""
        expected = self.model.types[name]
        found = ValueType(*static_type(value.ty, str(node.source))[::-1])
        if found != expected:
            raise ModelError(
                f"{node.source} would make {found} where ONNX says {expected}: TVM imports it wrongly; replace it in "
                "the model"
            )
        self.made[name] = value if isinstance(value, ir.GenericConst) else self.builder.emit(value)

    def _flat(self, results: Sequence[relax.Expr]) -> list[relax.Expr]:
        """The results, where they are one tuple its items."""
        if len(results) == 1 and isinstance(results[0].ty, relax.TupleType):
            whole = self.builder.emit(results[0])
            return [self.builder.normalize(relax.TupleGetItem(whole, index)) for index in range(len(whole.ty.fields))]
        return list(results)

    def _by_tvm(self, node: SimpleNode, call: Call) -> Any:
        proto = node.proto
        converter = onnx_frontend._get_convert_map().get(proto.op_type)
        if converter is None:  # a newer ONNX has operators that are not listed yet
            raise no_converter(node.source)
        values = self.tvm._parse_attr(proto.attribute)
        values["tvm_custom"] = {"name": proto.name, "num_outputs": len(proto.output)}
        operands = onnx_frontend.onnx_input()
        operands.extend(call.operands)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            return converter.get_converter(node.opset)(self.builder, operands, values, [{}, {}])


def _constant(array: np.ndarray) -> relax.Expr:
    """A constant of the array's own type; TVM makes float32 of float64 where none is named."""
    return relax.const(array, str(array.dtype))


def _items(result: Any) -> list[relax.Expr]:
    if isinstance(result, relax.Tuple):
        return list(result.fields)
    return list(result) if isinstance(result, list | tuple) else [result]
