"""Schedules of the frame's kernels, for LLVM and for OpenCL: a tile of sums stays in registers as terms are added."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tvm
from tvm import s_tir

from tvm_coexec.layers import Variant, tile_count

from .dispatch import dense_dispatch, fitted
from .frame import Description, Launch
from .prefetch import Nest, prefetch_weights

_UPDATE = "accumulate_update"
"""What ``decompose_reduction`` calls the block that adds terms to an accumulator."""


def _inner_blocks(sch: s_tir.Schedule, description_stages: int) -> list[Any]:
    """The blocks that move under the storing one, in the order in which ``compute_at`` wants them."""
    names = [f"stage_{number}" for number in reversed(range(description_stages))]
    return [sch.get_sblock(name) for name in [*names, "accumulate"]]


def _stage_count(func: Any) -> int:
    return str(func).count('T.sblock("stage_')


def schedule_cpu(
    description: Description, *, rows: int, channels: int, order: int, unroll: int, prefetch: int = 0
) -> tvm.IRModule:
    """Keep ``rows × channels`` accumulators in vector registers.

    Parameters
    ----------
    rows, channels
        The register tile; ``rows`` divides the description's rows, ``channels`` what is computed of a tile.
    order
        0: a tile's weights stay in the cache while the rows go by; 1: a block of rows stays while the tiles go by.
    unroll
        Steps of the innermost reduction loop that are written out; divides it.
    prefetch
        Whether weights are fetched before they are needed.
    """
    func = description.prim_func(together=channels)
    sch = s_tir.Schedule(tvm.IRModule({"main": func}))
    store = sch.get_sblock("store")
    t, i, j = sch.get_loops(store)
    i0, i1 = sch.split(i, [None, rows])
    j0, j1 = sch.split(j, [None, channels])
    outer = [t, i0, j0] if order == 0 else [i0, t, j0]
    sch.reorder(*outer, i1, j1)
    sch.vectorize(j1)
    sch.unroll(i1)
    for block in _inner_blocks(sch, _stage_count(func)):
        sch.compute_at(block, j0, preserve_unit_loops=True)
        sch.set_scope(block, 0, "local")
        reduced = _registers(sch, block, description, skip=len(outer), lanes=None, unroll=unroll)
        if prefetch and reduced:
            nest = Nest((1 - order,), len(outer), *reduced, tile_stays=order == 0, rows=rows, channels=channels)
            prefetch_weights(sch, sch.get_sblock(_UPDATE), description, nest, opencl=False)
    return sch.mod


def schedule_gpu(
    description: Description,
    *,
    rows: int,
    lanes: int,
    channel_threads: int,
    row_threads: int,
    order: int,
    unroll: int,
    run: int = 1,
    channels: int | None = None,
    prefetch: int = 0,
) -> tvm.IRModule:
    """A work-group of ``channel_threads × row_threads`` items computes one tile of a block of rows.

    Parameters
    ----------
    rows, lanes
        A work-item computes ``rows`` rows in vectors of ``lanes`` channels, and of a tile a part for each thread.
    order
        0: row blocks are the fastest axis of the grid, so that neighbouring groups share weights; 1: tiles are.
    unroll
        As in :func:`schedule_cpu`.
    run
        Blocks of rows that a work-item computes one after the other.
    channels
        Channels that it computes at once; all of its own, if not given.
    prefetch
        As in :func:`schedule_cpu`, where a work-group is one work-item.
    """
    channels = channels or description.output_width // channel_threads
    func = description.prim_func(together=channels)
    sch = s_tir.Schedule(tvm.IRModule({"main": func}))
    store = sch.get_sblock("store")
    t, i, j = sch.get_loops(store)
    i0, iw, ir, i1 = sch.split(i, [None, row_threads, run, rows])
    jw, jr, ju, jv = sch.split(j, [channel_threads, None, channels // lanes, lanes])
    sch.reorder(t, i0, iw, jw, ir, jr, i1, ju, jv)
    sch.bind(t, "blockIdx.y" if order == 0 else "blockIdx.x")
    sch.bind(i0, "blockIdx.x" if order == 0 else "blockIdx.y")
    sch.bind(jw, "threadIdx.x")
    sch.bind(iw, "threadIdx.y")
    sch.vectorize(jv)
    sch.unroll(ju)
    sch.unroll(i1)
    for block in _inner_blocks(sch, _stage_count(func)):
        sch.compute_at(block, jr, preserve_unit_loops=True)
        sch.set_scope(block, 0, "local")
        reduced = _registers(sch, block, description, skip=6, lanes=lanes, unroll=unroll)
        if prefetch and reduced:
            nest = Nest((1, 4), 6, *reduced, tile_stays=order == 0, rows=rows, channels=channels)
            prefetch_weights(sch, sch.get_sblock(_UPDATE), description, nest, opencl=True)
    return sch.mod


def _registers(
    sch: s_tir.Schedule, block: Any, description: Description, *, skip: int, lanes: int | None, unroll: int
) -> tuple[int, int] | None:
    """Hold a block's values in registers: vectors over the channels, everything else but the reduction unrolled.

    Returns the indices of the reduction's last loop and of the innermost one, which is another where steps are written
    out; None where nothing is reduced.
    """
    loops = sch.get_loops(block)[skip:]
    if sch.get(block).name_hint == "accumulate":
        _t, i, s, j, *reduction = loops
        spatial = [i, s]
    else:
        _t, i, j = loops
        spatial, reduction = [i], []
    if lanes is not None:
        ju, j = sch.split(j, [None, lanes])
        spatial.append(ju)
    sch.reorder(*reduction, *spatial, j)
    # TVM wants vectors and loops that are written out before the reduction is taken apart.
    sch.vectorize(j)
    for loop in spatial:
        sch.unroll(loop)
    if not reduction:
        return None
    outermost = reduction[0]
    for axis in description.written_out:
        sch.unroll(reduction[axis])
    if unroll > 1:
        last_outer, last_inner = sch.split(reduction[-1], [None, unroll])
        sch.unroll(last_inner)
        outermost = last_outer if len(reduction) == 1 else outermost
    sch.decompose_reduction(block, outermost)
    return skip + len(reduction), skip + len(reduction) + (unroll > 1)


def launch(description: Description, side: str, variant: Variant, params: Mapping[str, int]) -> Launch:
    """Schedule a dense kernel for a side by ``params``, the variant's own but for those that described it."""
    schedule = schedule_cpu if side == "cpu" else schedule_gpu
    variant = fitted(variant, description.output_width)
    tiles = tile_count(description.channels)
    dispatch = dense_dispatch(side, variant, description.rows, description.unit_rows, tiles)
    fitting = {name: variant[name] for name in params}
    return Launch(schedule(description, **fitting), description.operands, dispatch)
