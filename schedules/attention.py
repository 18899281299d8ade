"""Attention scores every query with every key, and multiplies their softmax with the values, a head at a time.

Operands: ``input``, ``input1`` and ``input2`` (queries, keys and values; ``[rows, row stride]``), ``input3`` or
``mask`` ``[mask rows, keys]`` (rows of whole tiles), ``output [rows, row stride]``. In OpenCL a first kernel packs a
head's keys and values as :mod:`.attention_kernels` reads them, and a second one computes; on the CPU one kernel does
both. A GPU has the one of :mod:`.attention_groups` too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from tvm_coexec.layers import TILE, Attention, Hardware, ImageLayouts, Variant, row_tiles

from . import group_geometry
from .dispatch import ERROR_BOUND, Dispatch

if TYPE_CHECKING:
    from .frame import Launch, Operand

IMPLEMENTATION = "heads"
GROUPS = "groups"
_GROUP_ROWS = (16, 8, 32, 4)
"""Queries of a work-group, the best number first."""

_GPU_THREADS = (16, 32, 8)
"""Work-items of a group, in the order in which they are tried."""


def operand_names(layer: Attention, variant: Variant) -> tuple[str, ...]:
    """Names of the buffers that a half reads and writes."""
    mask = (Attention.MASK_OPERANDS[layer.mask],) if layer.mask in Attention.MASK_OPERANDS else ()
    return ("input", "input1", "input2", *mask, "output")


def pack(layer: Attention, params: Mapping[str, np.ndarray], variant: Variant) -> dict[str, np.ndarray]:
    """Pack a constant mask ``[mask rows, keys]`` as the kernels read it."""
    if layer.mask != "constant":
        return {}
    packed = np.zeros((layer.mask_rows, row_tiles(layer.keys) * TILE), np.float32)
    packed[:, : layer.keys] = params["mask"]
    return {"mask": packed}


def error_bound(variant: Variant) -> float:
    """Bound the error of a result, relative to the largest value of the output."""
    return ERROR_BOUND


def accumulators(layer: Attention, variant: Variant) -> int:
    """Sums that a work-item, or a core, keeps."""
    if variant.implementation == GROUPS:
        return group_geometry.LANES * group_geometry.own_vectors(layer)
    return variant["rows"] * variant["channels"]


def blocks(layer: Attention, variant: Variant) -> int:
    """Blocks of queries that are computed together, for one item of the batch."""
    return -(-layer.queries // variant["rows"])


def dispatch(layer: Attention, side: str, variant: Variant) -> Dispatch:
    """Launch geometry of the kernel that computes; its groups are blocks of queries."""
    if variant.implementation == GROUPS:
        return group_geometry.dispatch(layer, variant["rows"])
    count = blocks(layer, variant)
    padded_rows = layer.batch * count * variant["rows"]
    if side == "cpu":
        return Dispatch(grid=(layer.batch * count, 1), group=(1, 1), unit_axis=1, padded_rows=padded_rows)
    threads = variant["row_threads"]
    return Dispatch(
        grid=(-(-layer.batch * count // threads), 1), group=(threads, 1), unit_axis=1, padded_rows=padded_rows
    )


def default_variant(layer: Attention, side: str, hardware: Hardware) -> Variant:
    """A good variant for a layer that was never tuned."""
    return variants(layer, side, hardware)[0]


def variants(layer: Attention, side: str, hardware: Hardware) -> list[Variant]:
    """List the search space of one side, the most promising first."""
    if side == "gpu" and hardware.opencl_type == "gpu":
        threads = [count for count in _GPU_THREADS if count <= hardware.max_group_size] or [1]
        single = [_variant(rows, 4, 8, row_threads=count) for rows in (4, 2, 1) for count in threads]
        held = [rows for rows in _GROUP_ROWS if group_geometry.fits(layer, rows, hardware)]
        return [Variant.make(GROUPS, rows=rows) for rows in held] + single
    lanes = hardware.lanes
    extra = {"row_threads": 1} if side == "gpu" else {}
    fitting = [
        (_cost(layer, rows, vectors), rows, vectors)
        for vectors in (2, 3, 4)
        for rows in range(1, 15)
        if rows * vectors + vectors + 1 <= hardware.vector_registers and rows <= layer.queries
    ]
    return [_variant(rows, lanes, vectors * lanes, **extra) for _, rows, vectors in sorted(fitting)[:4]]


def _cost(layer: Attention, rows: int, vectors: int) -> float:
    """Queries computed in vain, latency that stays exposed, and loads, over what is wanted."""
    padding = -(-layer.queries // rows) * rows / layer.queries
    return padding * max(1.0, 8 / (rows * vectors)) * (1 + 0.3 / rows + 0.3 / vectors)


def _variant(rows: int, lanes: int, channels: int, **params: int) -> Variant:
    return Variant.make(IMPLEMENTATION, rows=rows, lanes=lanes, channels=channels, **params)


def operands(layer: Attention, variant: Variant) -> tuple[Operand, ...]:
    """List every buffer of a half but scratch."""
    from .frame import Operand

    sizes = dict(zip(("input", "input1", "input2", "input3"), layer.input_sizes, strict=False))
    sizes |= {"mask": (layer.mask_rows, layer.keys), "output": layer.output_size}
    shapes = {name: (rows, row_tiles(channels) * TILE) for name, (rows, channels) in sizes.items()}
    return tuple(Operand(name, shapes[name]) for name in operand_names(layer, variant))


def build(layer: Attention, side: str, variant: Variant, layouts: ImageLayouts | None = None) -> tuple[Launch, ...]:
    """Build the one kernel of the CPU's half or of a GPU's work-groups, or the two of an OpenCL device's items."""
    from .attention_groups import GroupKernel
    from .attention_kernels import cpu_launch, opencl_launches

    geometry, arguments = dispatch(layer, side, variant), operands(layer, variant)
    if variant.implementation == GROUPS:
        return (GroupKernel(layer, arguments, variant["rows"]).launch(geometry),)
    if side == "cpu":
        return (cpu_launch(layer, variant, arguments, geometry),)
    return opencl_launches(layer, variant, arguments, geometry)
