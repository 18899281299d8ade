"""Programs of torch.export: brought to operators that TVM imports well, and traced by torch's own names."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tvm import relax

from tvm_coexec.errors import ModelError, last_line
from tvm_coexec.frontends.relax.module import Known, Naming, bindings, operator_name, returned, trace_function
from tvm_coexec.frontends.trace import COMPUTED_WIDER, Source, Trace, claim_name

from .importer import Importer, source_of
from .operators import CONVERTERS, NOT_DECOMPOSED

if TYPE_CHECKING:
    from torch.export import ExportedProgram


def trace_torch(program: ExportedProgram) -> Trace:
    """List the operations of an exported program.

    Raises
    ------
    ModelError
        TVM cannot import it, or no layer can compute what is in it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        widened = _widened(program)
        decomposed = _decomposed(widened)
        _check_stateless(decomposed)
        importer = Importer(decomposed, CONVERTERS)
        module = importer.module()
    if widened is not program:
        warnings.warn(COMPUTED_WIDER, stacklevel=2)
    return trace_function(module, _naming(module["main"], decomposed, importer))


def _widened(program: ExportedProgram) -> ExportedProgram:
    """The program in float32, exported again where its parameters or inputs have two bytes, or values bfloat16."""
    import torch
    from torch.utils import _pytree

    narrow = (torch.float16, torch.bfloat16)
    args, kwargs = program.example_inputs or ((), {})
    tensors = [*program.state_dict.values(), *_pytree.tree_leaves((args, kwargs))]
    # numpy has no bfloat16 in which to keep a constant
    inside = [getattr(node.meta.get("val"), "dtype", None) == torch.bfloat16 for node in program.graph.nodes]
    if not any(inside) and not any(getattr(tensor, "dtype", None) in narrow for tensor in tensors):
        return program

    if program.example_inputs is None:
        raise ModelError(
            "the exported program has numbers of two bytes and no example inputs, from which it would be exported in"
            " float32; export it again, or in float32"
        )

    def wide(value: Any) -> Any:
        if isinstance(value, torch.dtype):
            return torch.float32 if value in narrow else value
        return value.float() if getattr(value, "dtype", None) in narrow else value

    args, kwargs = _pytree.tree_map(wide, (args, kwargs))
    module = copy.deepcopy(program.module()).float()  # its parameters are the user's own
    for node in list(module.graph.nodes):
        if node.target is torch.ops.aten._assert_tensor_metadata.default:  # it holds the type that was
            module.graph.erase_node(node)
        else:
            node.args, node.kwargs = _pytree.tree_map(wide, (node.args, node.kwargs))
    module.recompile()
    try:
        return torch.export.export(module, args, kwargs)
    except Exception as error:  # torch raises whatever it stumbles over
        reason = last_line(error, type(error).__name__)
        raise ModelError(f"the exported program cannot be widened to float32 ({reason}); export it so") from error


def _check_stateless(program: ExportedProgram) -> None:
    """Refuse what changes from one run to the next: a module computes the same of the same inputs."""
    signature = program.graph_signature
    changed = [*signature.buffers_to_mutate.values(), *signature.user_inputs_to_mutate.values()]
    if changed:
        raise ModelError(
            f"the exported program changes {', '.join(map(str, changed))} when it runs; export it after .eval(), or "
            "let it take such state as inputs and return it"
        )


def _decomposed(program: ExportedProgram) -> ExportedProgram:
    """The program in fewer kinds of operators; those that say more than their parts stay."""
    import torch

    table = torch.export.default_decompositions()
    for operator in list(table):
        if str(operator).removeprefix("aten.") in NOT_DECOMPOSED:
            table.pop(operator)
    try:
        return program.run_decompositions(table)
    except Exception as error:  # torch raises whatever it stumbles over
        reason = last_line(error, type(error).__name__)
        raise ModelError(
            f"torch cannot decompose the exported program ({reason}); export it in another form"
        ) from error


def _naming(function: relax.Function, program: ExportedProgram, importer: Importer) -> Naming:
    """Name values and operators after the modules of the network that they stand in."""
    values: dict[relax.Var, str] = {}
    sources: dict[relax.Var, Source] = {}
    taken: set[str] = set()
    for parameter in function.params:
        values[parameter] = claim_name(parameter.name, taken)
    source = None
    for binding in reversed(bindings(function)):
        # a converter's last binding is the node's value and has its name, what it emits before are parts of it
        node = importer.nodes.get(binding.var.name)
        source = source_of(node) if node is not None else source
        sources[binding.var] = source or Source(operator_name(binding.value), binding.var.name, "variable")
        values[binding.var] = claim_name(sources[binding.var].name, taken)
    outputs = returned(function)
    named = list(zip(_output_names(program, len(outputs)), outputs, strict=True))
    return Naming(values, sources, named, _known(values, importer))


def _known(values: dict[relax.Var, str], importer: Importer) -> dict[relax.Var, Known]:
    """What the importer knows, of the variables of the finished function."""
    variables = {variable.name: variable for variable in values}
    return {
        variables[name]: replace(known, inputs=tuple(variables[value.name] for value in known.inputs))
        for name, known in importer.known.items()
        if name in variables
    }


def _output_names(program: ExportedProgram, count: int) -> list[str]:
    """Keys and places of the outputs, as the network's ``forward`` gives them."""
    if count == 1:
        return ["output"]
    from torch.utils import _pytree  # the one place where torch says how outputs are nested

    spec: Any = program.call_spec.out_spec
    paths = [path for path, _ in _pytree.tree_flatten_with_path(_pytree.tree_unflatten(list(range(count)), spec))[0]]
    names = ["_".join(str(getattr(key, "key", getattr(key, "idx", key))) for key in path) for path in paths]
    return [name if name.isidentifier() else f"output_{name}" for name in names]
