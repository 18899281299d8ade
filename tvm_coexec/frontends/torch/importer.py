"""TVM's importer of exported programs is mended here: it folds constants by torch, checks types, and names refusals."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from tvm import IRModule, relax
from tvm.relax.frontend.torch.exported_program_translator import ExportedProgramImporter

from tvm_coexec.errors import ModelError, last_line
from tvm_coexec.frontends.relax.module import Known
from tvm_coexec.frontends.trace import Source

if TYPE_CHECKING:
    from torch import fx
    from torch.export import ExportedProgram

Converter = Callable[[Any, "Importer"], Any]
"""What makes Relax's expression of a node, or a list of those of several results; it may ask the importer."""

_RANDOM = ("bernoulli", "binomial", "exponential", "multinomial", "normal", "poisson", "rand", "uniform")
"""How the names of operators begin that make random numbers."""

_MAXIMA_ALONE = frozenset(f"{kind}_max_pool{axes}d.default" for kind in ("adaptive", "fractional") for axes in (2, 3))
"""Operators whose second results, the places of the maxima, are not computed."""

_NUMPY_KINDS = ("float", "int", "uint", "bool")


def source_of(node: fx.Node) -> Source:
    """Where a node stands in the network: the path of its module, and its own name where that has more than one."""
    while node.target is operator.getitem:  # a part of what another node makes
        node = node.args[0]
    operator_called = str(getattr(node.target, "_name", node.target)).replace("::", ".")
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path, kind = stack[-1] if stack else ("", "")
    if not path:
        return Source(operator_called, node.name, "node")
    kind = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
    is_leaf = kind.startswith("torch.nn.modules.")
    return Source(operator_called, path if is_leaf else f"{path}.{node.name}", "module" if is_leaf else "node")


def _check_is_computed(node: fx.Node) -> None:
    """Refuse random numbers, divisors of averages, which TVM leaves out, and to read the places of maxima."""
    name = getattr(node.target, "__name__", "")
    if name.startswith(_RANDOM):
        raise ModelError(f"{source_of(node)} makes random numbers, which no module can; make them an input")
    if name.startswith("avg_pool") and node.args[6:] and node.args[6] is not None:
        raise ModelError(f"{source_of(node)} has a divisor_override, which is no average; multiply an average instead")
    if node.target is not operator.getitem or not node.args[1]:
        return
    if getattr(node.args[0].target, "__name__", "") in _MAXIMA_ALONE:
        raise ModelError(
            f"{source_of(node)} is read for the indices of its maxima, which are not computed; return the maxima alone"
        )


class Importer(ExportedProgramImporter):
    """Imports one program, by TVM's converters but for the operators that have one of ours in ``converters``.

    Attributes
    ----------
    nodes
        The node that each of Relax's variables, by name, is the value of.
    known
        What variables are, by name, that Relax would take apart.
    """

    def __init__(self, program: ExportedProgram, converters: Mapping[str, Converter]) -> None:
        super().__init__()
        self.converters = converters
        self.program = program
        self.parameters = dict(_parameters(program))
        self.nodes: dict[str, fx.Node] = {}
        self.known: dict[str, Known] = {}
        self.folded = _folded(program, self.parameters)

    def module(self) -> IRModule:
        """Make the Relax module of the program.

        Raises
        ------
        ModelError
            Naming the first operator that cannot be imported.
        """
        self.update_convert_map(dict(self.converters))
        try:
            return self.from_exported_program(self.program, False, True, False, None)
        except Exception as error:  # TVM's importer raises whatever it stumbles over
            # a builder that dies with an open block says so on the standard error stream
            with contextlib.suppress(Exception):
                self.block_builder._end_block()
            if isinstance(error, ModelError):
                raise
            reason = last_line(error, type(error).__name__)
            raise ModelError(f"TVM cannot import the exported program ({reason}); replace what it names") from error

    def constant(self, argument: Any) -> np.ndarray | None:
        """The numbers of an argument that depends on no input; None for others."""
        tensor = self.folded.get(argument, self.parameters.get(argument)) if hasattr(argument, "op") else None
        array: np.ndarray | None = None if tensor is None else tensor.detach().contiguous().numpy()
        return array

    def known_slice(self, value: relax.Expr, x: relax.Expr, axis: int, begin: int) -> relax.Var:
        """Emit a value that is some places of an axis of ``x``, from ``begin`` on, or one without the axis."""
        result = self.block_builder.emit(value)
        self.known[result.name] = Known("slice", (x,), {"axis": axis, "begin": begin})
        return result

    def _check_unsupported_func_type(self, nodes: Any) -> None:
        missing = [
            node
            for node in nodes
            if node.op == "call_function" and node.target.__name__ not in self.convert_map and node not in self.folded
        ]
        if missing:
            others = len({node.target for node in missing}) - 1
            rest = f", nor {others} other operators of this program" if others else ""
            raise ModelError(
                f"{source_of(missing[0])} is no operator that TVM can import{rest}; replace it in the network"
            )

    def _translate_fx_graph(self, graph_module: Any, nodes: Any, inputs_vars: Any, custom_ops: Any = None) -> Any:
        result: Any = None
        for node in nodes:
            if node.op == "placeholder":
                self.env.setdefault(node, inputs_vars.get(node.name))
            elif node.op == "get_attr":
                self.env[node] = getattr(graph_module, node.target)
            elif node.op == "output":
                result = self.retrieve_args(node)[0]
            elif node in self.folded:
                self._add_constant(node)
            else:
                self._convert(node)
        return self._flatten_output_args(result)

    def _add_constant(self, node: fx.Node) -> None:
        """Make a constant of what torch computed, if a node reads it that is none."""
        tensor = self.folded[node]
        if all(user in self.folded for user in node.users) or isinstance(tensor, tuple | list):
            return
        self.env[node] = self.block_builder.emit(relax.const(tensor.detach().contiguous().numpy()))
        self.nodes[self.env[node].name] = node

    def _convert(self, node: fx.Node) -> None:
        _check_is_computed(node)
        try:
            with_all_arguments = _arguments_in_order(node)
            converter = self.convert_map[node.target.__name__]
            own = self.converters.get(node.target.__name__) is converter
            value = converter(with_all_arguments, self) if own else converter(with_all_arguments)
            self.env[node] = self._emitted(value)
        except ModelError:
            raise
        except Exception as error:  # TVM's converters raise whatever they stumble over
            reason = last_line(error, type(error).__name__)
            raise ModelError(f"TVM cannot import {source_of(node)}: {reason}; replace it in the network") from error
        self._check_type(node, self.env[node])
        if isinstance(self.env[node], relax.Var):
            self.nodes.setdefault(self.env[node].name, node)

    def _emitted(self, value: Any) -> Any:
        return self.block_builder.emit(value) if isinstance(value, relax.Call) else value

    def _check_type(self, node: fx.Node, value: Any) -> None:
        """Compare the type of what was imported to what torch says."""
        expected = node.meta.get("val")
        found = getattr(value, "ty", None)
        if not hasattr(expected, "shape") or not isinstance(found, relax.TensorType) or found.shape is None:
            return
        shape = [int(size) if isinstance(size, int) else None for size in expected.shape]
        own = [int(size) if hasattr(size, "value") else None for size in found.shape]
        same = len(shape) == len(own) and all(a == b or None in (a, b) for a, b in zip(shape, own, strict=True))
        dtype = self._convert_data_type(expected.dtype)
        if not same or str(found.dtype) != dtype:
            raise ModelError(
                f"TVM imports {source_of(node)} as {found.dtype} of shape {own} instead of {dtype} of shape {shape}; "
                "replace it in the network"
            )


def _arguments_in_order(node: fx.Node) -> fx.Node:
    """Give all positional arguments of a node by position: TVM's converters look for them nowhere else."""
    schema = getattr(node.target, "_schema", None)
    if schema is None or not node.kwargs:
        return node
    positional = [argument for argument in schema.arguments if not argument.kwarg_only]
    given = [index for index, argument in enumerate(positional) if argument.name in node.kwargs]
    if not given:
        return node
    args, kwargs = list(node.args), dict(node.kwargs)
    for argument in positional[len(args) : max(given) + 1]:
        args.append(kwargs.pop(argument.name, argument.default_value))
    node.args, node.kwargs = tuple(args), kwargs
    return node


def _folded(program: ExportedProgram, parameters: dict[fx.Node, Any]) -> dict[fx.Node, Any]:
    """What torch computes of parameters and constants alone."""
    import torch

    known = dict(parameters)
    folded: dict[fx.Node, Any] = {}
    with torch.no_grad():
        for node in program.graph.nodes:
            if node.op != "call_function" or not _can_fold(node, known):
                continue
            args, kwargs = _with_values(node.args, known), _with_values(node.kwargs, known)
            try:
                value = node.target(*args, **kwargs)
            except Exception:  # torch raises whatever it stumbles over; what cannot be folded is converted
                continue
            if _is_for_numpy(value):
                known[node] = folded[node] = value
    return folded


def _parameters(program: ExportedProgram) -> Any:
    """List the placeholders of parameters, buffers and constants, each with its tensor."""
    targets = {spec.arg.name: spec.target for spec in program.graph_signature.input_specs if spec.target is not None}
    for node in program.graph.nodes:
        target = targets.get(node.name) if node.op == "placeholder" else None
        tensor = program.state_dict.get(target, program.constants.get(target)) if target is not None else None
        if tensor is not None:
            yield node, tensor


def _can_fold(node: fx.Node, known: dict[fx.Node, Any]) -> bool:
    import torch

    if node.target is operator.getitem:
        return node.args[0] in known
    is_operator = isinstance(node.target, torch._ops.OpOverload)
    random = is_operator and torch.Tag.nondeterministic_seeded in node.target.tags
    return is_operator and not random and all(read in known for read in node.all_input_nodes)


def _with_values(arguments: Any, known: dict[fx.Node, Any]) -> Any:
    """Put the values of nodes into arguments in their places."""
    from torch.fx.node import map_arg

    return map_arg(arguments, known.__getitem__)


def _is_for_numpy(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(_is_for_numpy(item) for item in value)
    dtype = str(getattr(value, "dtype", "")).removeprefix("torch.")
    return dtype.startswith(_NUMPY_KINDS) and not dtype.startswith("float8")
