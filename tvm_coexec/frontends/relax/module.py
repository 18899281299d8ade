"""Relax modules: each binding of ``main`` becomes an operation, or a constant if it depends on nothing else."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from tvm import IRModule, ir, relax

from tvm_coexec.errors import ModelError
from tvm_coexec.frontends.trace import OpaqueCall, Operation, Source, Trace, check_size, claim_name

from . import images as relax_images
from . import steps as relax_steps
from .binding import bound
from .calls import (
    OPERATIONS,
    attributes_of,
    axes_of,
    can_fold,
    check_float32,
    folded,
    operator_name,
    static_type,
    transpose_or_reshape,
)
from .joining import MOST_OPERANDS, add_concat, part_of
from .opaque import cut_out, evaluate, written

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


@dataclass(frozen=True)
class Known:
    """An operation that a front end reads from its own model, because Relax takes it apart beyond recognition."""

    op: str
    inputs: tuple[relax.Expr, ...]
    attributes: dict[str, Any]


@dataclass
class Naming:
    """What the user calls the parts of ``main``: its values, the operators that make them, and its outputs.

    Variables in ``inner`` are no operations of their own but parts of the next that reads them.
    """

    values: dict[relax.Var, str]
    sources: dict[relax.Var, Source]
    outputs: list[tuple[str, relax.Expr]]
    known: dict[relax.Var, Known] = field(default_factory=dict)
    counts: dict[str, str] = field(default_factory=dict)
    inner: set[relax.Var] = field(default_factory=set)


def trace_relax(
    module: IRModule,
    shapes: Mapping[str, Sequence[int]] | None = None,
    values: Mapping[str, ArrayLike] | None = None,
) -> Trace:
    """List the operations of a module's function ``main``, called by the names of their variables.

    ``shapes`` has those of parameters whose dimensions are symbolic, ``values`` what other parameters always are.

    Raises
    ------
    ModelError
        For an operator, a type or a shape that no layer can have, naming the operator and its variable.
    """
    functions = [variable.name_hint for variable in module.get_global_vars()]
    if "main" not in functions:
        raise ModelError(f"the Relax module has no function 'main', only {functions}; rename the one to build")
    if not isinstance(module["main"], relax.Function):
        raise ModelError("the Relax module's 'main' is a function of loops; call such another name")
    module, fixed = bound(module, shapes or {}, values or {})
    function = module["main"]
    names: dict[relax.Var, str] = {}
    sources: dict[relax.Var, Source] = {}
    taken: set[str] = set()
    for variable in function.params:
        names[variable] = claim_name(variable.name, taken)
    for binding in bindings(function):
        names[binding.var] = claim_name(binding.var.name, taken)
        sources[binding.var] = Source(operator_name(binding.value), names[binding.var], "variable")
    outputs = [(names.get(value, "output"), value) for value in returned(function)]
    return replace(trace_function(module, Naming(names, sources, outputs)), fixed=fixed)


def trace_function(module: IRModule, naming: Naming) -> Trace:
    """List the operations of a module's function ``main``, called by the names in ``naming``."""
    function = module["main"]
    tracer = _Tracer(module, naming)
    for parameter in function.params:
        tracer.add_input(parameter)
    for binding in _needed(function, naming):
        if binding.var not in naming.inner:
            tracer.add_binding(binding)
    for name, value in naming.outputs:
        tracer.add_output(name, value)
    tracer.trace.counts |= naming.counts
    tracer.trace.operations = tracer.trace.without_unused(tracer.trace.operations)
    return tracer.trace


def bindings(function: relax.Function) -> list[relax.Binding]:
    """List every binding of a function, in execution order."""
    return [binding for block in function.body.blocks for binding in block.bindings]


def returned(function: relax.Function) -> list[relax.Expr]:
    """The values that a function returns, a tuple taken apart."""
    result = function.body.body
    bound = {binding.var: binding.value for binding in bindings(function)}
    while isinstance(result, relax.Var) and isinstance(bound.get(result), relax.Var | relax.Tuple):
        result = bound[result]
    return list(result.fields) if isinstance(result, relax.Tuple) else [result]


def _needed(function: relax.Function, naming: Naming) -> list[relax.Binding]:
    """The bindings that the outputs depend on, in execution order; those behind known operations are not."""
    needed = {variable for _, value in naming.outputs for variable in relax.analysis.free_vars(value)}
    kept = []
    for binding in reversed(bindings(function)):
        if binding.var in needed:
            kept.append(binding)
            known = naming.known.get(binding.var)
            for value in [binding.value] if known is None else known.inputs:
                needed.update(relax.analysis.free_vars(value))
    return kept[::-1]


class _Tracer:
    """Collects the trace, and remembers which traced value or constant each variable stands for."""

    def __init__(self, module: IRModule, naming: Naming) -> None:
        self.module = module
        self.bound = {binding.var: binding.value for binding in bindings(module["main"])}
        self.trace = Trace([], [], {}, {}, [])
        self.naming = naming
        self.traced: dict[relax.Var, str] = {}
        self.tuples: dict[relax.Var, list[relax.Expr]] = {}
        self.splits: dict[relax.Var, relax.Call] = {}

    def add_input(self, parameter: relax.Var) -> None:
        name = self.naming.values[parameter]
        shape, dtype = static_type(parameter.ty, f"input {name!r}")
        self._set_type(name, dtype)
        if 0 in shape:
            raise ModelError(f"input {name!r} has shape {list(shape)}; no dimension may be 0")
        self.traced[parameter] = name
        self.trace.inputs.append(name)
        self.trace.shapes[name] = shape

    def add_output(self, name: str, value: relax.Expr) -> None:
        traced = self._operand(value, f"output {name!r}")
        if traced in self.trace.constants:
            traced = self._add_constant_output(name, self.trace.constants[traced])
        self.trace.outputs.append((name, traced))

    def _add_constant_output(self, name: str, array: np.ndarray) -> str:
        """A layer that copies a constant, and reads an input only since every layer does."""
        if not self.trace.inputs or not array.size:
            reason = "without elements" if self.trace.inputs else "of a model without inputs"
            raise ModelError(f"output {name!r} is a constant {reason}; remove it from the model's outputs")
        read, output = self.trace.inputs[0], f"{name}/constant"
        types = [relax.TensorType(self.trace.shapes[read], self.trace.dtypes.get(read, "float32"))]
        types.append(relax.TensorType(array.shape, str(array.dtype)))
        opaque = OpaqueCall(
            written(types, lambda _, constant: relax.op.reshape(constant, array.shape)), (read,), (array,)
        )
        self._set_type(output, str(array.dtype))
        self.trace.shapes[output] = array.shape
        source = Source("constant", name, "output")
        self.trace.operations.append(Operation("opaque", (read,), output, source, opaque=lambda: opaque))
        return output

    def add_binding(self, binding: relax.Binding) -> None:
        """Trace a binding as an operation that layers may know, or else as the whole that Relax has for it."""
        refusal = None
        try:
            self._add_known_or_call(binding)
        except ModelError as error:
            refusal = error
        if refusal is not None:
            self._add_opaque(binding, refusal)

    def _add_opaque(self, binding: relax.Binding, refusal: ModelError) -> None:
        variable, value = binding.var, binding.value
        if not isinstance(value, relax.Call | relax.TupleGetItem):
            raise refusal
        if isinstance(value, relax.Call) and isinstance(variable.ty, relax.TupleType):
            return  # whoever reads an item of the tuple computes it
        if isinstance(variable.ty, relax.ShapeType):
            return  # shapes are written into what reads them
        made_by = value.tuple_value if isinstance(value, relax.TupleGetItem) else variable
        source = self.naming.sources.get(made_by, self.naming.sources[variable])
        shape, dtype = static_type(variable.ty, str(source))
        if 0 in shape:
            raise refusal
        name = self.naming.values[variable]
        opaque = self._cut_out(variable)
        if not opaque.inputs:
            check_size(shape, str(source))
            self.traced[variable] = name
            self.trace.constants[name] = evaluate(opaque)
            return
        self._set_type(name, dtype)
        self._add(variable, Operation("opaque", opaque.inputs, name, source, opaque=lambda: opaque), shape)

    def _cut_out(self, variable: relax.Var) -> OpaqueCall:
        """The program that computes a variable from what was traced before it."""
        return cut_out(self.module, variable, self.bound, self.traced, self.trace.constants)

    def _set_type(self, name: str, dtype: str) -> None:
        if dtype != "float32":
            self.trace.dtypes[name] = dtype

    def _add_known_or_call(self, binding: relax.Binding) -> None:
        variable, value = binding.var, binding.value
        source = self.naming.sources[variable]
        if variable in self.naming.known:
            self._add_known(variable, self.naming.known[variable], source)
        elif isinstance(value, relax.Var | ir.GenericConst):
            self.traced[variable] = self._operand(value, str(source))
        elif isinstance(value, relax.TupleGetItem) and value.tuple_value in self.splits:
            self._add_part(variable, value, source)
        elif isinstance(value, relax.Call) and operator_name(value) == "relax.split":
            self.splits[variable] = value
        elif isinstance(value, relax.TupleGetItem) and value.tuple_value in self.traced:
            # dropout and batch norm make tuples; all but item 0 means nothing in inference
            if value.index == 0:
                self.traced[variable] = self.traced[value.tuple_value]
        elif isinstance(value, relax.TupleGetItem) and value.tuple_value in self.tuples:
            self._add_item(variable, self.tuples[value.tuple_value][value.index], source)
        elif isinstance(value, relax.TupleGetItem):
            raise ModelError(f"{source} takes an item of a tuple that no layer makes")
        elif isinstance(value, relax.Tuple):
            self.tuples[variable] = list(value.fields)
        elif isinstance(value, relax.Call) and operator_name(value) in OPERATIONS:
            self._add_call(variable, value, source)
        elif not isinstance(value, relax.ShapeExpr):
            raise ModelError(
                f"{source} is not supported; supported are the Relax operators "
                f"{', '.join(name.removeprefix('relax.') for name in OPERATIONS)}"
            )

    def _add_item(self, variable: relax.Var, field: relax.Expr, source: Source) -> None:
        """An item of a tuple that the model puts together; what no operator makes in inference is left out."""
        if isinstance(field, ir.GenericConst) or field in self.traced:
            self.traced[variable] = self._operand(field, str(source))

    def _operand(self, value: relax.Expr, reader: str) -> str:
        if isinstance(value, ir.GenericConst):
            name = f"constant {len(self.trace.constants)}"
            self.trace.constants[name] = value.value.numpy()
            return name
        if isinstance(value, relax.Var) and value in self.traced:
            return self.traced[value]
        raise ModelError(f"{reader} reads something that is no float32 tensor; only tensors can pass between operators")

    def _add_call(self, variable: relax.Var, call: relax.Call, source: Source) -> None:
        op = OPERATIONS[operator_name(call)]
        inputs = tuple(self._operand(operand, str(source)) for operand in self._operands(op, call))
        result_type = variable.ty.fields[0] if isinstance(variable.ty, relax.TupleType) else variable.ty
        shape, dtype = static_type(result_type, str(source))
        name = self.naming.values[variable]
        constants = [self.trace.constants[operand] for operand in inputs if operand in self.trace.constants]
        if len(constants) == len(inputs) and can_fold(op):
            check_size(shape, str(source))
            self.traced[variable] = name
            try:
                self.trace.constants[name] = folded(call, op, constants, shape).astype(dtype)
            except (ValueError, MemoryError) as error:
                raise ModelError(f"{source} of constants cannot be computed ({error}); replace it") from error
            return
        if len(constants) == len(inputs):
            raise ModelError(f"{source} is applied to constants alone; replace it by its result")
        if op == "concat" and len(inputs) > MOST_OPERANDS:
            self._set_type(name, dtype)
            axis = relax_images.concat_axis(call) % len(shape)
            self._add(variable, add_concat(self.trace, inputs, name, axis, source), shape)
            return
        check_float32(dtype, str(source))
        if operator_name(call) == "relax.astype":
            check_float32(self.trace.dtypes.get(inputs[0], "float32"), f"what {source} converts")
        if op == "broadcast" and shape == self.trace.shapes[inputs[0]]:
            op = "reshape"
        if op == "broadcast":
            raise ModelError(f"{source} repeats an activation; only constants can be broadcast to a shape")
        if operator_name(call) == "relax.permute_dims":
            op = transpose_or_reshape(axes_of(call, len(shape)), self.trace.shapes[inputs[0]])
        attributes = attributes_of(op, call, len(shape), source)
        if op == "clip":
            op, attributes = relax_steps.limited(*relax_steps.clip_bounds(call, source))
        if op == "prelu":
            inputs = (inputs[0], self._along(inputs[1], attributes["axis"], len(shape)))
            relax_steps.check_slope(self.trace.constants.get(inputs[1]), source)
        if op == "batch_norm":
            self._add_batch_norm(variable, inputs, attributes["epsilon"], source)
            return
        self._add(variable, Operation(op, inputs, name, source, attributes), shape)

    def _operands(self, op: str, call: relax.Call) -> list[relax.Expr]:
        """The tensors that a call reads; other arguments, such as shapes, are left out."""
        if op in ("broadcast", "clip", "cut", "reshape", "resize"):
            return list(call.args[:1])
        if op == "concat":
            listed = call.args[0]
            return self.tuples[listed] if listed in self.tuples else list(listed.fields)
        return list(call.args)

    def _along(self, name: str, axis: int, rank: int) -> str:
        """A constant vector along an axis of what it is broadcast to."""
        if name not in self.trace.constants:
            return name
        array = self.trace.constants[name]
        along = f"{name}/along"
        self.trace.constants[along] = array.reshape([array.size if position == axis else 1 for position in range(rank)])
        return along

    def _add_known(self, variable: relax.Var, known: Known, source: Source) -> None:
        shape, dtype = static_type(variable.ty, str(source))
        check_float32(dtype, str(source))
        inputs = tuple(self._operand(operand, str(source)) for operand in known.inputs)
        attributes = known.attributes
        if 0 in shape:
            raise ModelError(f"{source} makes a tensor without elements; remove it from the model")
        if known.op == "slice":
            attributes = _cut(self.trace.shapes[inputs[0]], shape, **attributes)
        self._add(variable, Operation(known.op, inputs, self.naming.values[variable], source, attributes), shape)

    def _add_part(self, variable: relax.Var, item: relax.TupleGetItem, source: Source) -> None:
        """One of the parts that a value is split into; others of many are not computed for it."""
        call, name = self.splits[item.tuple_value], self.naming.values[variable]
        shape, dtype = static_type(variable.ty, str(source))
        operand = self._operand(call.args[0], str(source))
        if operand in self.trace.constants or 0 in shape:
            raise ModelError(f"{source} splits a constant; replace it by its parts")
        axis = int(call.attrs.axis) % len(shape)
        begin = sum(int(part.shape[axis]) for part in call.ty.fields[: item.index])
        self._set_type(name, dtype)
        opaque = part_of(self.trace, operand, axis, begin, shape[axis])
        attributes = {"axis": axis, "begin": begin, "count": shape[axis]}
        self._add(variable, Operation("slice", (operand,), name, source, attributes, opaque=opaque), shape)

    def _add_batch_norm(self, variable: relax.Var, inputs: tuple[str, ...], epsilon: float, source: Source) -> None:
        """A batch normalisation becomes a product and a sum with constants."""
        parameters = [self.trace.constants.get(name) for name in inputs[1:]]
        if any(array is None for array in parameters):
            raise ModelError(f"{source} must have constant scale, shift, mean and variance; make them constants")
        scale, shift = relax_images.batch_norm([array for array in parameters if array is not None], epsilon)
        name, shape = self.naming.values[variable], self.trace.shapes[inputs[0]]
        rank_fits = (-1, *[1] * (len(shape) - 2))
        scaled = f"{name}/scaled"
        for suffix, array in (("scale", scale), ("shift", shift)):
            self.trace.constants[f"{name}/{suffix}"] = array.reshape(rank_fits)
        self.trace.shapes[scaled] = shape
        self.trace.operations.append(Operation("multiply", (inputs[0], f"{name}/scale"), scaled, source))
        self._add(variable, Operation("add", (scaled, f"{name}/shift"), name, source), shape)

    def _add(self, variable: relax.Var, operation: Operation, shape: tuple[int, ...]) -> None:
        if 0 in shape:
            raise ModelError(f"{operation.source} makes a tensor without elements; remove it from the model")
        if operation.op == "pad" and not any(operation.attributes.get("padding", (1,))):
            operation = replace(operation, op="reshape", attributes={})
        if operation.opaque is None and isinstance(variable.ty, relax.TensorType):
            operation = replace(operation, opaque=lambda: self._cut_out(variable))
        self.traced[variable] = operation.output
        self.trace.shapes[operation.output] = shape
        self.trace.operations.append(operation)


def _cut(shape: tuple[int, ...], result: tuple[int, ...], axis: int, begin: int) -> dict[str, int]:
    """The range of an axis that is left, counted from its start."""
    axis %= len(shape)
    begin = min(max(begin + shape[axis] if begin < 0 else begin, 0), shape[axis])
    return {"axis": axis, "begin": begin, "count": math.prod(result) * shape[axis] // math.prod(shape)}
