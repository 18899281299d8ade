"""An opaque layer's kernels copy out of the network's layouts, run Relax's own loops, and copy back."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import tvm_ffi
from tvm import ir, relax, s_tir, te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from tvm_coexec.layers import SCRATCH, ImageLayout, ImageLayouts, Opaque, constant_name
from tvm_coexec.layers import Operand as Seen

from .dispatch import Dispatch
from .extrema import keeping_nan
from .frame import Launch, Operand, begin_kernel
from .programs import parsed

_SCOPE_PRAGMA = "pragma_scope"
"""Means nothing to LLVM, which complains."""


class UnsupportedError(ValueError):
    """Relax makes something else than plain loops of an operator."""


@dataclass(frozen=True)
class _Step:
    """One kernel of the legalised program; ``names`` are those of its operands, results last."""

    function: tirx.PrimFunc
    operands: tuple[Operand, ...]


def launches(
    layer: Opaque, inputs: Mapping[str, Seen], layouts: ImageLayouts, dispatch: Dispatch
) -> tuple[Launch, ...]:
    """The kernels of the layer's half in their order; ``inputs`` are its activations by their roles."""
    made = []
    names = []
    for (role, seen), layout in zip(inputs.items(), layouts.inputs, strict=True):
        names.append(role)
        if not _is_compact(seen, layout, is_written=False):
            names[-1] = f"{SCRATCH}{role}"
            made.append(_copy(role, names[-1], seen, layout, dispatch))
    names += [constant_name(index) for index in range(len(layer.constants))]
    is_direct = _is_compact(layer.output, layouts.output, is_written=True)
    result = "output" if is_direct else f"{SCRATCH}output"
    steps = program_steps(legalised(layer.program), names, result)
    made += [Launch(_scheduled(step.function), step.operands, dispatch) for step in steps]
    if not is_direct:
        made.append(_copy(result, "output", layer.output, layouts.output, dispatch))
    return tuple(made)


def _tile(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """Split a loop into repetitions and elements: LLVM 22 makes wrong AVX-512 code of the remainders in TVM's loops."""
    shape, result = ([int(size) for size in each.ty.shape] for each in (call.args[0], call))
    sizes = [1] * (len(result) - len(shape)) + shape

    def statement(source: Any, target: Any) -> Any:
        x, tiled = T.buffer_proxy(source), T.buffer_proxy(target)
        with IRBuilder() as ir_builder, ExitStack() as loops:
            read: Any = 0
            written: Any = 0
            for size, extent in zip(sizes, result, strict=True):
                repetition = loops.enter_context(T.serial(0, extent // size))
                element = loops.enter_context(T.serial(0, size))
                read, written = read * size + element, written * extent + repetition * size + element
            tiled[written] = x[read]
        return ir_builder.get()

    def compute(x: te.Tensor) -> te.Tensor:
        return te.extern([result], [x], lambda ins, outs: statement(ins[0], outs[0]), dtype=[x.dtype], name="tiled")

    return builder.call_te(compute, call.args[0])


_LOOPS = {"relax.tile": _tile}
"""Operators whose loops are others than TVM's own."""


@lru_cache(maxsize=256)
def legalised(program: str) -> ir.IRModule:
    """Replace the program's operators by loops, once for the check of a model and the code that it gets.

    Raises
    ------
    UnsupportedError
        Relax cannot do that for all of them.
    """
    module = relax.transform.LegalizeOps(_LOOPS)(parsed(program))
    for binding in _bindings(module):
        value = binding.value
        if isinstance(value, ir.Call) and value.op.name != "relax.call_tir":
            raise UnsupportedError(f"Relax has no loops for {value.op.name}")
        if not isinstance(value, ir.Call | relax.Var | relax.TupleGetItem):
            raise UnsupportedError(f"it makes a {type(value).__name__}")
    for name, function in module.functions.items():
        if isinstance(function, tirx.PrimFunc):
            _check_plain(function)
            module[name] = keeping_nan(_serial(function))
    return module


def _serial(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """Make the loops serial: those that TVM spreads over threads call its run-time library."""

    def loop(found: tirx.For) -> tirx.For:
        if found.kind != tirx.ForKind.PARALLEL:
            return found
        serial = tirx.ForKind.SERIAL
        bounds = (found.loop_var, found.min, found.extent)
        return tirx.For(*bounds, serial, found.body, found.thread_binding, found.annotations, found.step)

    def inner(found: tirx.AttrStmt) -> tirx.Stmt:
        return found.body if found.attr_key == _SCOPE_PRAGMA else found

    return tvm_ffi.structural_map(function, [(tirx.For, loop), (tirx.AttrStmt, inner)])


def _check_plain(function: tirx.PrimFunc) -> None:
    """Refuse calls of TVM's own run-time library, which modules are not linked with."""

    called = re.search(r"T\.\w*packed\w*\(\"([^\"]+)", function.script())
    if called:
        raise UnsupportedError(f"its loops call {called[1]}, a function of TVM's run-time library")


def _bindings(module: ir.IRModule) -> list[relax.Binding]:
    return [binding for block in module["main"].body.blocks for binding in block.bindings]


def program_steps(module: ir.IRModule, inputs: Sequence[str], result: str) -> list[_Step]:
    """The kernels of a legalised program, whose arguments are called ``inputs`` and whose value is ``result``."""
    main = module["main"]
    known: dict[relax.Var, list[str]] = {var: [name] for var, name in zip(main.params, inputs, strict=True)}
    returned = _names_of_result(module)
    steps: list[_Step] = []
    for number, binding in enumerate(_bindings(module)):
        value = binding.value
        if isinstance(value, relax.Var):
            known[binding.var] = known[value]
        elif isinstance(value, relax.TupleGetItem):
            known[binding.var] = [known[value.tuple_value][value.index]]
        else:
            read = []
            for position, argument in enumerate(_fields(value.args[1])):
                if isinstance(argument, relax.Var):
                    read += known[argument]
                else:
                    read.append(f"{SCRATCH}{number}_{position}")
                    steps.append(_fill(argument.value.numpy(), read[-1]))
            count = len(binding.var.ty.fields) if isinstance(binding.var.ty, relax.TupleType) else 1
            made = [
                result if returned == (binding.var, index) else f"{SCRATCH}{number}.{index}" for index in range(count)
            ]
            known[binding.var] = made
            function = module[value.args[0]]
            steps.append(_Step(function, tuple(map(_operand, [*read, *made], function.params))))
    return steps


def _names_of_result(module: ir.IRModule) -> tuple[relax.Var, int]:
    """Find the variable that the program's value comes from, and its place there."""
    bound = {binding.var: binding.value for binding in _bindings(module)}
    value, index = module["main"].body.body, 0
    while isinstance(bound.get(value), relax.Var | relax.TupleGetItem):
        made = bound[value]
        value, index = (made.tuple_value, made.index) if isinstance(made, relax.TupleGetItem) else (made, index)
    if value not in bound:
        raise UnsupportedError("it gives back what it reads")
    return value, index


def _fields(arguments: Any) -> list[Any]:
    return list(arguments.fields) if isinstance(arguments, relax.Tuple) else [arguments]


def _operand(name: str, parameter: Any) -> Operand:
    shape = tuple(int(extent) for extent in parameter.shape)
    return Operand(name, shape, str(parameter.dtype))


def _fill(value: np.ndarray, name: str) -> _Step:
    """Writes a constant of one element."""
    operand = Operand(name, value.shape, str(value.dtype))
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        buffers, _, _ = begin_kernel([operand])
        with T.grid(1, 1) as loops, T.sblock("fill"):
            for loop in loops:
                T.axis.spatial(1, loop)
            T.buffer_store(buffers[name], tirx.const(value.item(), operand.dtype), [0] * value.ndim)
    return _Step(builder.get(), (operand,))


def _scheduled(function: tirx.PrimFunc) -> ir.IRModule:
    """Sums run outside of the innermost loop over elements, so that the compiler makes vectors of it."""
    if len(function.params) < 2 or str(function.params[-1]) != "count":
        extra = [tirx.Var("begin", "int32"), tirx.Var("count", "int32")]
        function = tirx.PrimFunc([*function.params, *extra], function.body, attrs=function.attrs)
    function = function.with_attrs({"global_symbol": "main", "tirx.noalias": True})
    sch = s_tir.Schedule(ir.IRModule({"main": function}))
    for block in _leaf_blocks(sch):
        kinds = [variable.iter_type for variable in sch.get(block).iter_vars]
        loops = sch.get_loops(block)
        if tirx.IterVar.CommReduce not in kinds or len(loops) != len(kinds):
            continue
        reduction = [loop for loop, kind in zip(loops, kinds, strict=True) if kind == tirx.IterVar.CommReduce]
        spatial = [loop for loop, kind in zip(loops, kinds, strict=True) if kind != tirx.IterVar.CommReduce]
        if spatial and int(sch.get(spatial[-1]).extent) > 1:
            sch.reorder(*spatial[:-1], *reduction, spatial[-1])
            sch.decompose_reduction(block, reduction[0])
    return sch.mod


def _leaf_blocks(sch: s_tir.Schedule) -> list[Any]:
    root = sch.get_sblock(sch.mod["main"].body.block.name_hint)  # loops that are written out are the root themselves
    return [block for block in sch.get_child_blocks(root) if not sch.get_child_blocks(block)]


def _image(seen: Seen) -> tuple[int, int, int, int]:
    """Batch, height, width and channels, rows being the pixels of images of one line."""
    if len(seen.size) == 4:
        batch, h, w, channels = seen.size
        return batch, h, w, channels
    batch = seen.batch if seen.channels_first else 1
    return batch, 1, seen.rows // batch, seen.size[-1]


def _memory(seen: Seen, layout: ImageLayout) -> tuple[int, int, int, int]:
    """Give the extents of the tensor in the network, halo and padding included."""
    batch, h, w, channels = _image(seen)
    return batch, *layout.extents(h, w), layout.pixel(channels)


def _is_compact(seen: Seen, layout: ImageLayout, *, is_written: bool) -> bool:
    """Whether the operator can work on the network's memory: same order, and no gaps that it would have to keep."""
    if seen.is_reordered or math.prod(_memory(seen, layout)[:3]) != seen.rows:
        return False
    is_whole = layout.pixel(seen.size[-1]) == seen.size[-1]
    return is_whole or (seen.rows == 1 and not is_written)


def _copy(source: str, target: str, seen: Seen, layout: ImageLayout, dispatch: Dispatch) -> Launch:
    """Copies between the network's memory and compact scratch; what only fills up tiles is written as zero."""
    unpacks = target.startswith(SCRATCH)
    batch, h, w, channels = _image(seen)
    outside = _memory(seen, layout)
    between = seen.is_reordered and seen.batch != batch  # channels stand between height and width
    compact: tuple[int, ...] = (batch, channels, h, w) if seen.is_reordered else (batch, h, w, channels)
    if between:
        compact = (seen.batch, channels, seen.rows // seen.batch)
    shapes = (outside, compact) if unpacks else (compact, outside)
    operands = tuple(Operand(name, shape, seen.dtype) for name, shape in zip((source, target), shapes, strict=True))
    top, left = layout.halo
    padding = 0 if unpacks else outside[3] - channels
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        buffers, _, _ = begin_kernel(operands)
        in_order = unpacks and not between
        extents = compact if in_order else (batch, h, w, channels)
        with T.grid(*extents) as loops, T.sblock("copy"):
            positions = [T.axis.spatial(extent, loop) for extent, loop in zip(extents, loops, strict=True)]
            b, y, x, c = [positions[axis] for axis in (0, 2, 3, 1)] if in_order and seen.is_reordered else positions
            inside = [b, c, y, x] if seen.is_reordered else [b, y, x, c]
            if between:
                pixel = (b * h + y) * w + x
                inside = [pixel // compact[2], c, pixel % compact[2]]
            around = [b, y + top, x + left, c]
            read, written = (around, inside) if unpacks else (inside, around)
            T.buffer_store(buffers[target], buffers[source][tuple(read)], written)
        if padding:
            with T.grid(batch, h, w, padding) as loops, T.sblock("zero"):
                b, y, x, c = (
                    T.axis.spatial(extent, loop) for extent, loop in zip((batch, h, w, padding), loops, strict=True)
                )
                T.buffer_store(buffers[target], tirx.const(0, seen.dtype), [b, y + top, x + left, channels + c])
    return Launch(ir.IRModule({"main": builder.get()}), operands, dispatch)
