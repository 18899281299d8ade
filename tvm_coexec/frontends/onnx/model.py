"""ONNX models that were read and simplified: imported by TVM's operators, and traced by the names of their values."""

from __future__ import annotations

from collections.abc import Mapping

from tvm import relax

from tvm_coexec.errors import ModelError
from tvm_coexec.frontends.relax.module import Known, Naming, bindings, trace_function
from tvm_coexec.frontends.trace import Source, Trace

from .importer import import_simple
from .nodes import known_operation
from .simplifier import SimpleModel

_SMALL = 16
"""Constants of more elements are no bounds, paddings or axes."""


def trace_onnx(simple: SimpleModel) -> Trace:
    """List the operations of a model, called by the names of its values and nodes.

    Raises
    ------
    ModelError
        Naming the first node that cannot be built.
    """
    module, values = import_simple(simple)
    return trace_function(module, _naming(module["main"], simple, values))


def _naming(function: relax.Function, model: SimpleModel, by_name: Mapping[str, relax.Expr]) -> Naming:
    values = dict(zip(function.params, model.inputs, strict=True))
    sources: dict[relax.Var, Source] = {}
    for node in model.nodes:
        for name in node.proto.output:
            value = by_name.get(name)
            if isinstance(value, relax.Var) and value not in values:
                values[value], sources[value] = name, node.source
    # one ONNX operator may become several bindings, of which the last makes its value
    source = Source("the result", model.outputs[0][0], "output")
    for index, binding in reversed(list(enumerate(bindings(function)))):
        source = sources.setdefault(binding.var, source)
        values.setdefault(binding.var, f"{source.name}/{index}")
    outputs = [(name, by_name[value]) for name, value in model.outputs]
    counts = {name: model.counts[value] for name, value in model.outputs if value in model.counts}
    return Naming(values, sources, outputs, _known(model, by_name), counts)


def _known(model: SimpleModel, by_name: Mapping[str, relax.Expr]) -> dict[relax.Var, Known]:
    """What is read from nodes instead of from Relax."""
    numbers = {name: array for name, array in model.constants.items() if array.size <= _SMALL}
    known = {}
    for node in model.nodes:
        made = model.types.get(node.proto.output[0])
        if made is None or made.dtype != "float32":
            continue  # no layer with kernels of its own takes it
        variable = by_name.get(node.proto.output[0])
        try:
            operation = known_operation(node.proto, node.source, numbers) if isinstance(variable, relax.Var) else None
        except ModelError:
            continue  # no layer of its own computes it, so Relax's form is read
        if operation is not None and all(name in by_name for name in operation[1]):
            op, inputs, values = operation
            known[variable] = Known(op, tuple(by_name[name] for name in inputs), values)
    return known
