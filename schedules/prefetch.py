"""Weights that are fetched before they are needed, by kernels of processors with caches.

In a network weights come from memory, since those of the other layers went through the caches meanwhile, and the first
block of rows waits for each tile's: a processor reads ahead by itself, but only by some lines and within a page. Here
each block of rows fetches a part of the next tile as well, and each step what the first-level cache needs soon.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from tvm import s_tir, tirx
from tvm.script.ir_builder import tirx as T

from tvm_coexec.layers import TILE

from .frame import Description
from .opencl_helpers import with_helpers

_LINE = 16
"""Elements of a cache line."""
_PREFETCH_STEPS = 16
"""Products of an element from the fetch of a weight into the first-level cache to its use."""
_MOST_LINES = 4
"""Cache lines of the next tile that are fetched at once: where few rows are computed, only memory counts anyway."""
_FIRST_LEVEL, _SECOND_LEVEL = 3, 2
"""LLVM's numbers for the cache that a line is fetched into."""

_OPENCL_FETCH = "COEXEC_FETCH"
_OPENCL_SOURCE = f"""\
#ifndef {_OPENCL_FETCH}
#ifdef __clang__
#define {_OPENCL_FETCH} __builtin_prefetch
#else
#define {_OPENCL_FETCH}(place, writes, level)
#endif
#endif
"""
"""OpenCL's own ``prefetch`` does nothing in PoCL."""


@dataclass(frozen=True)
class Nest:
    """Where the loops of a kernel are, counted from the outermost, and what a block of them computes.

    Parameters
    ----------
    row_blocks
        The loops over the blocks of rows.
    outside
        Loops around a block; the last of them goes through the channels of a tile.
    step, innermost
        The loop over the last axis of the reduction, and that of its steps which are written out, if there is one.
    tile_stays
        Whether a tile's blocks of rows follow each other: then they have time for the next one's weights.
    rows, channels
        Size of a block.
    """

    row_blocks: tuple[int, ...]
    outside: int
    step: int
    innermost: int
    tile_stays: bool
    rows: int
    channels: int


def prefetch_weights(sch: s_tir.Schedule, update: Any, description: Description, nest: Nest, *, opencl: bool) -> None:
    """Let each step of the reduction fetch weights; ``update`` is the block that adds its terms."""
    loops = sch.get_loops(update)
    nodes = [sch.get(loop) for loop in loops]
    *parameters, begin, _count = sch.mod["main"].params
    buffers = dict(zip((operand.name for operand in description.operands), parameters, strict=True))
    tile, _row, _sum, _channel, *reduction = nodes[-1].body.iter_values
    first_tile, first_row = (begin, 0) if description.unit_rows is None else (0, begin * description.unit_rows)
    row_block: Any = 0
    for position in nest.row_blocks:
        row_block = row_block * nodes[position].extent + nodes[position].loop_var
    # A row in the middle stands for the block: then conditions are the same, and its loop is left out as a whole.
    is_needed = description.is_needed(first_row + row_block * nest.rows + nest.rows // 2, *reduction)

    def fetch(index: list[Any], level: int) -> Any:
        assert description.weight is not None
        position = T.address_of(description.weight(buffers, [0, *index], first_tile))
        if opencl:
            return tirx.Evaluate(T.call_extern("void", _OPENCL_FETCH, position, 0, level))
        return tirx.Evaluate(T.call_intrin("void", "tirx.prefetch", position, 0, level, 1))

    def then(loop: Any, body: Any, fetches: list[Any]) -> Any:
        """The loop with fetches after its body."""
        if is_needed is not None and fetches:
            fetches = [tirx.IfThenElse(is_needed, tirx.SeqStmt(fetches) if len(fetches) > 1 else fetches[0], None)]
        body = tirx.SeqStmt([body, *fetches]) if fetches else body
        return tirx.For(loop.loop_var, loop.min, loop.extent, loop.kind, body, loop.thread_binding, loop.annotations)

    channel = nodes[nest.outside - 1].loop_var * nest.channels
    soon = [*reduction[:-1], reduction[-1] + _PREFETCH_STEPS // description.partial_sums]
    near = [
        fetch([tile, channel + line, number, *soon], _FIRST_LEVEL)
        for number in range(description.partial_sums)
        for line in range(0, nest.channels, _LINE)
    ]
    far = []
    if nest.tile_stays:
        step, steps = row_block, description.rows // nest.rows
        for node in nodes[nest.outside + 1 : nest.step + 1]:
            step, steps = step * node.extent + node.loop_var, steps * int(node.extent)
        lines = math.prod(description.reduction) * description.partial_sums * TILE // _LINE
        together = min(-(-lines // steps), _MOST_LINES)
        start = [0] * len(reduction)
        for line in range(together):
            element = T.min(step * together + line, lines - 1) * _LINE
            far.append(fetch([tile + 1, element, 0, *start], _SECOND_LEVEL))
    loop = nodes[nest.step]
    if nest.step == nest.innermost:
        longer = then(loop, loop.body, near + far)
    else:
        inner = nodes[nest.innermost]
        longer = then(loop, then(inner, inner.body, near), far)
    sch.state.replace(sch.get_sref(loops[nest.step]), longer)


def with_fetch(source: str) -> str:
    """OpenCL C as TVM writes it, with the definition of what its kernels call to fetch."""
    source = with_helpers(source)
    return _OPENCL_SOURCE + source if _OPENCL_FETCH in source else source
