"""Parts of a Relax function as programs of their own, for operators that are computed as Relax has them."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import tvm
from tvm import IRModule, ir, relax, tirx

from tvm_coexec.frontends.trace import OpaqueCall
from tvm_coexec.schedules.programs import as_text, parsed

from .names import with_own_names
from .places import keep_within


def cut_out(
    module: IRModule,
    variable: relax.Var,
    bound: Mapping[relax.Var, relax.Expr],
    values: Mapping[relax.Var, str],
    constants: Mapping[str, np.ndarray],
) -> OpaqueCall:
    """The program that computes ``variable`` from ``values``, of which some are ``constants``.

    ``bound`` has what every variable of the function is bound to.
    """
    return _Cut(module, bound, values, constants).program(variable)


@contextmanager
def building(builder: relax.BlockBuilder, parameters: Sequence[relax.Var]) -> Iterator[None]:
    """The function ``main`` of a builder, which is closed after errors as well: else TVM complains of it, in C++."""
    failure: Exception | None = None
    with builder.function("main", list(parameters)):
        try:
            yield
        except Exception as error:  # whatever it is, it is raised again
            failure = error
            builder.emit_func_output(relax.Tuple([]))
    if failure is not None:
        raise failure


_PRODUCTS = ("relax.divide", "relax.multiply")


class _Cut:
    def __init__(
        self,
        module: IRModule,
        bound: Mapping[relax.Var, relax.Expr],
        values: Mapping[relax.Var, str],
        constants: Mapping[str, np.ndarray],
    ) -> None:
        self.module, self.bound, self.values, self.constants = module, bound, values, constants
        self.builder = relax.BlockBuilder()
        self.made: dict[Any, relax.Expr] = {}
        self.inputs: dict[str, relax.Var] = {}
        self.arrays: list[np.ndarray] = []
        self.array_parameters: list[relax.Var] = []
        self.functions: dict[Any, Any] = {}

    def program(self, variable: relax.Var) -> OpaqueCall:
        while isinstance(self.bound.get(variable), relax.Var):
            variable = self.bound[variable]
        order: list[relax.Var] = []
        self._collect(self.bound[variable], order)
        order.append(variable)
        for name in order[:-1]:
            self._declare(self.bound[name])
        self._declare(self.bound[variable])
        with building(self.builder, [*self.inputs.values(), *self.array_parameters]):
            for name in order:
                self.made[name] = self.builder.emit(self._rebuilt(self.bound[name]))
            self.builder.emit_func_output(self.made[variable])
        return OpaqueCall(as_text(self.builder.get()), tuple(self.inputs), tuple(self.arrays))

    def _collect(self, value: Any, order: list[relax.Var]) -> None:
        """List the variables that ``value`` depends on and that no value is known for, in execution order."""
        for operand in _operands(value):
            if _shape(operand) is not None:
                continue
            if isinstance(operand, relax.Var) and operand not in self.values and operand not in order:
                self._collect(self.bound[operand], order)
                order.append(operand)
            elif not isinstance(operand, relax.Var):
                self._collect(operand, order)

    def _declare(self, value: Any) -> None:
        """Make parameters of the values and constants that ``value`` reads."""
        if _is_operator(value, "relax.shape_to_tensor"):
            self.made[value] = self._constant(np.array(_shape(value.args[0]), "int64"))
        for operand in [value, *_operands(value)]:
            if isinstance(operand, relax.Var) and operand in self.values and operand not in self.made:
                name = self.values[operand]
                if name in self.constants:
                    self.made[operand] = self._constant(self.constants[name])
                else:
                    self.made[operand] = self.inputs.setdefault(name, relax.Var(f"x{len(self.inputs)}", operand.ty))
            elif isinstance(operand, ir.GenericConst) and operand not in self.made:
                is_product = any(_is_operator(value, name) for name in _PRODUCTS)
                self.made[operand] = self._constant(operand.value.numpy(), is_factor=is_product)
            elif isinstance(operand, relax.Tuple) and operand is not value:
                self._declare(operand)

    def _constant(self, array: np.ndarray, is_factor: bool = False) -> relax.Expr:
        # TVM's parser does not read the infinite numbers that it prints, and its compiler makes 0 of 0 times or by NaN
        is_zero = is_factor and array.dtype.kind == "f" and array.size == 1 and array == 0
        if array.ndim == 0 and np.isfinite(array) and not is_zero:
            return relax.const(array, str(array.dtype))
        self.arrays.append(array)
        parameter = relax.Var(f"c{len(self.arrays) - 1}", relax.TensorType(array.shape, str(array.dtype)))
        self.array_parameters.append(parameter)
        return parameter

    def _rebuilt(self, value: Any) -> Any:
        if _shape(value) is not None:
            return relax.ShapeExpr(_shape(value))
        if isinstance(value, relax.Var | ir.GenericConst) or value in self.made:
            return self.made[value]
        if isinstance(value, relax.Tuple):
            return relax.Tuple([self._rebuilt(field) for field in value.fields])
        if isinstance(value, relax.TupleGetItem):
            return relax.TupleGetItem(self._rebuilt(value.tuple_value), value.index)
        return self._rebuilt_call(value)

    def _rebuilt_call(self, value: Any) -> Any:
        if isinstance(value, relax.Call):
            arguments = [self._rebuilt(argument) for argument in value.args]
            arguments = keep_within(value, arguments, self.builder)
            if _is_operator(value, "relax.take") and value.attrs.mode == "fast":  # of which TVM warns
                return relax.op.take(*arguments, axis=value.attrs.axis, mode="clip")
            if _is_operator(value, "relax.equal"):
                return self._equal(arguments)
            if _is_operator(value, "relax.not_equal"):
                # LLVM's comparison is false where one is no number
                return relax.op.logical_not(self.builder.emit(self._equal(arguments)))
            return relax.Call(value.op, arguments, value.attrs, value.ty_args)
        return self._function(value) if isinstance(value, ir.GlobalVar) else value

    def _equal(self, operands: Sequence[relax.Expr]) -> relax.Expr:
        """Compare truth values as numbers: LLVM compares none."""
        if str(operands[0].ty.dtype) == "bool":
            operands = [self.builder.emit(relax.op.astype(operand, "uint8")) for operand in operands]
        return relax.op.equal(*operands)

    def _function(self, name: ir.GlobalVar) -> ir.GlobalVar:
        if name not in self.functions:
            function = self.module[name]
            if isinstance(function, tirx.PrimFunc):
                function = with_own_names(function)
            self.functions[name] = self.builder.add_func(function, f"function{len(self.functions)}")
        return self.functions[name]


def _operands(value: Any) -> Sequence[Any]:
    if isinstance(value, relax.Call):
        return list(value.args)
    if isinstance(value, relax.Tuple):
        return list(value.fields)
    if isinstance(value, relax.Var):
        return [value]
    return [value.tuple_value] if isinstance(value, relax.TupleGetItem) else []


def _is_operator(value: Any, name: str) -> bool:
    return isinstance(value, relax.Call) and getattr(value.op, "name", "") == name


def _shape(value: Any) -> list[int] | None:
    """The numbers of what is a shape, all of them known."""
    of = getattr(value, "ty", None)
    if not isinstance(of, relax.ShapeType) or of.values is None:
        return None
    return [int(size) for size in of.values if isinstance(size, tirx.IntImm)]


def written(types: Sequence[relax.TensorType], compute: Callable[..., relax.Expr]) -> str:
    """The text of the program that ``compute`` makes of parameters of these types."""
    builder = relax.BlockBuilder()
    parameters = [relax.Var(f"x{index}", of) for index, of in enumerate(types)]
    with building(builder, parameters):
        builder.emit_func_output(builder.emit(compute(*parameters)))
    return as_text(builder.get())


def evaluate(opaque: OpaqueCall) -> np.ndarray:
    """What a program of constants alone computes."""
    result: np.ndarray = _run(parsed(opaque.text), opaque.constants).numpy()
    return result


def computed(module: IRModule) -> list[np.ndarray]:
    """What a module without inputs computes, whose function ``main`` returns a tuple."""
    return [result.numpy() for result in _run(module, ())]


def _run(module: IRModule, constants: Sequence[np.ndarray]) -> Any:
    # the class is made when TVM's runtime is loaded, where type checkers do not find it
    machine = importlib.import_module("tvm.relax").VirtualMachine
    executable = tvm.compile(module, target="llvm")
    return machine(executable, tvm.cpu())["main"](*[tvm.runtime.tensor(array) for array in constants])
