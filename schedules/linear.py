"""Linear layers: ``[m, k] × [k, n]``, reduced over ``k``.

Operands: ``input [rows, row stride]``, ``weights [tiles, k, 32]``, ``bias [tiles, 32]`` (zero where a tile has no
channel), ``residual`` and ``output [rows, row tiles, 32]``. Rows are padded to a whole number of blocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tvm_coexec.layers import TILE, Hardware, Linear, Variant, row_tiles

from .dispatch import Dispatch, cpu_dispatch, gpu_dispatch

if TYPE_CHECKING:
    from .frame import Description

IMPLEMENTATION = "direct"
_MAX_ROWS = 14
_ENOUGH_ACCUMULATORS = 8
"""Independent multiply-adds in flight that hide their latency on every core met so far."""


def operand_names(layer: Linear) -> tuple[str, ...]:
    """Names of a kernel's buffers in the order of its arguments; ``begin`` and ``count`` follow them."""
    fused = (name for name in ("bias", "residual") if name in layer.epilogue)
    return ("input", "weights", *fused, "output")


def pack(layer: Linear, params: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Constants as the kernels read them, from ``weights [k, n]`` and ``bias [n]``."""
    padded = np.zeros((layer.k, layer.units * TILE), np.float32)
    padded[:, : layer.n] = params["weights"]
    packed = {"weights": np.ascontiguousarray(padded.reshape(layer.k, layer.units, TILE).transpose(1, 0, 2))}
    if "bias" in layer.epilogue:
        packed["bias"] = np.zeros((layer.units, TILE), np.float32)
        packed["bias"].reshape(-1)[: layer.n] = params["bias"]
    return packed


def dispatch(layer: Linear, side: str, variant: Variant) -> Dispatch:
    """Launch geometry of a half."""
    return cpu_dispatch(variant, layer.m) if side == "cpu" else gpu_dispatch(variant, layer.m)


def default_variant(layer: Linear, side: str, hardware: Hardware) -> Variant:
    """A good variant for a layer that was never tuned."""
    return variants(layer, side, hardware)[0]


def variants(layer: Linear, side: str, hardware: Hardware) -> list[Variant]:
    """The search space of one side, the most promising first."""
    if side == "cpu":
        return _cpu_variants(layer, hardware)
    if hardware.opencl_type == "cpu":
        return _cpu_device_variants(layer, hardware)
    return _gpu_variants(layer, hardware)


def _register_tiles(layer: Linear, hardware: Hardware) -> list[tuple[int, int, int]]:
    """``(rows, channels, k_split)`` whose accumulators fit the registers, by estimated cost.

    The estimate counts padded rows, weights read again for each block of rows, and latency that stays exposed.
    """
    lanes = hardware.vector_bytes // 4
    ranked = []
    for channels in {TILE, max(TILE // 2, lanes), max(TILE // 4, lanes)}:
        vectors = channels // lanes
        for rows in range(1, min(_MAX_ROWS, layer.m) + 1):
            for k_split in (1, 2, 4):
                accumulators = rows * vectors * k_split
                if layer.k % k_split or accumulators + vectors > hardware.vector_registers:
                    continue
                padding = -(-layer.m // rows) * rows / layer.m
                exposed = max(1.0, _ENOUGH_ACCUMULATORS / accumulators)
                reload = 0.3 / rows + 0.1 * (TILE / channels - 1) + 0.02 * (k_split - 1)
                crowded = 0.05 if accumulators + vectors > hardware.vector_registers - 4 else 0.0
                ranked.append((padding * exposed * (1 + reload + crowded), (rows, channels, k_split)))
    return [tile for _, tile in sorted(ranked)]


def _unrolls(layer: Linear, k_split: int) -> list[int]:
    return [unroll for unroll in (1, 4) if (layer.k // k_split) % unroll == 0]


def _cpu_variants(layer: Linear, hardware: Hardware) -> list[Variant]:
    return [
        Variant.make(IMPLEMENTATION, rows=rows, channels=channels, k_split=k_split, order=order, unroll=unroll)
        for rows, channels, k_split in _register_tiles(layer, hardware)[:6]
        for order in ((0, 1) if layer.m > rows else (0,))
        for unroll in _unrolls(layer, k_split)
    ]


def _cpu_device_variants(layer: Linear, hardware: Hardware) -> list[Variant]:
    """One work-item to a work-group: a CPU device runs a work-group's items one after the other."""
    lanes = hardware.vector_bytes // 4
    whole_tiles = [tile for tile in _register_tiles(layer, hardware) if tile[1] == TILE]
    return [
        _gpu_variant((rows, lanes, 1, 1), k_split=k_split, order=order, unroll=unroll)
        for rows, _channels, k_split in whole_tiles[:6]
        for order in ((0, 1) if layer.m > rows else (0,))
        for unroll in _unrolls(layer, k_split)
    ]


def _gpu_variants(layer: Linear, hardware: Hardware) -> list[Variant]:
    """Work-groups of up to 256 items, each with a few rows of four or eight channels."""
    found = []
    for rows in (4, 8, 2, 1):
        for row_threads in (8, 4, 16, 1):
            block = rows * row_threads
            padded = -(-layer.m // block) * block
            for channel_threads, lanes in ((8, 4), (4, 8), (4, 4)):
                group = channel_threads * row_threads
                if group <= hardware.max_group_size and (padded <= 1.25 * layer.m or block <= 4):
                    for order in (0, 1):
                        geometry = (rows, lanes, channel_threads, row_threads)
                        found.append(_gpu_variant(geometry, k_split=1, order=order, unroll=1))
    return found


def _gpu_variant(geometry: tuple[int, int, int, int], **params: int) -> Variant:
    named = zip(("rows", "lanes", "channel_threads", "row_threads"), geometry, strict=True)
    return Variant.make(IMPLEMENTATION, **dict(named), **params)


def describe(layer: Linear, rows: int, k_split: int) -> Description:
    """The layer as a dense kernel over ``rows`` padded rows."""
    from .frame import Description, Operand

    shapes = {
        "input": (rows, row_tiles(layer.k) * TILE),
        "weights": (layer.units, layer.k, TILE),
        "bias": (layer.units, TILE),
        "residual": (rows, row_tiles(layer.n), TILE),
        "output": (rows, row_tiles(layer.n), TILE),
    }

    def term(buffers: dict[str, Any], index: list[Any], begin: Any) -> Any:
        i, t, j, s, k = index
        position = k * k_split + s
        return buffers["input"][i, position] * buffers["weights"][begin + t, position, j]

    return Description(
        layer=layer,
        operands=tuple(Operand(name, shapes[name]) for name in operand_names(layer)),
        rows=rows,
        reduction=(layer.k // k_split,),
        term=term,
        partial_sums=k_split,
    )


def build(layer: Linear, side: str, variant: Variant) -> tuple[Any, tuple[tuple[int, ...], ...]]:
    """The scheduled kernel, and the shapes of its buffers in the order of :func:`operand_names`."""
    from .frame import schedule_cpu, schedule_gpu

    params = dict(variant.params)
    description = describe(layer, dispatch(layer, side, variant).padded_rows, params.pop("k_split"))
    schedule = schedule_cpu if side == "cpu" else schedule_gpu
    return schedule(description, **params), tuple(operand.shape for operand in description.operands)
