"""Winograd's convolution for 3×3 kernels of stride 1 takes fewer products, of transformed tiles.

F(4×4, 3×3) needs a quarter of the direct form's products, F(2×2, 3×3) 4/9. Their results differ from exact ones by
some 1e-5 and 3e-7 of the largest output. Weights are ``[tiles, points², in, 32]``, transformed when they are packed; a
module's file holds the kernels themselves, of which the runtime makes them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tvm_coexec.layers import MAX_NARROW, TILE, Conv2d, Hardware, ImageLayouts, Variant, line_block, tile_count

from . import winograd_tiles
from .dispatch import ERROR_BOUND, Dispatch, cpu_dispatch, dispatch_of_blocks, fitted, rows_of_group
from .packing import in_tiles, step_shapes
from .pixels import operand_names
from .search import WEIGHT_COST, Space, register_tiles
from .winograd_tiles import WinogradTiles
from .winograd_transforms import transform_weights

if TYPE_CHECKING:
    from .frame import Launch

IMPLEMENTATION = "winograd"
MULTIPLES = (4, 2)
"""Values of ``m``, the outputs of a tile's line."""
_ERROR_BOUNDS = {4: 1e-4, 2: ERROR_BOUND}
_TRANSFORM_COST = 4
"""Multiply-adds that an element costs on its way through the transforms."""
_CACHE_BYTES = 1 << 20
"""A core's own cache, roughly."""
_SHARED_CACHE_BYTES = 16 << 20
"""What a layer may find in the cache of all cores, roughly."""
_BLOCK_PARTS = (0.3, 0.8, 4.0)
"""Sizes of blocks, of that cache."""
_NEAR = 0.25
"""What a byte costs that comes from the shared cache, of one that comes from memory."""
_GPU_GEOMETRIES = ((4, 4, 8, 8), (2, 4, 8, 8), (4, 4, 8, 4), (4, 8, 4, 8), (2, 4, 8, 4), (2, 4, 8, 2), (1, 4, 8, 4))
"""Work-groups of a GPU: rows, lanes, channel threads, row threads."""


def can_compute(layer: Conv2d) -> bool:
    """Whether the layer is a dense 3×3 convolution whose input has whole tiles."""
    plain = layer.stride == (1, 1) and layer.dilation == (1, 1) and layer.groups == 1
    return layer.kernel == (3, 3) and plain and layer.in_channels > MAX_NARROW and bool(_multiples(layer))


def weights_name(variant: Variant) -> str:
    """Name of the operand that holds the weights."""
    return winograd_tiles.weights_name(variant["m"])


def pack_weights(layer: Conv2d, weights: np.ndarray, variant: Variant) -> np.ndarray:
    """Pack weights ``[out, in, 3, 3]`` as the kernels read them."""
    return _in_tiles(transform_weights(weights, variant["m"]))


def pack_kernels(weights: np.ndarray) -> np.ndarray:
    """Pack weights ``[out, in, 3, 3]`` for a file, as what the kernels read is made of them: ``[tiles, 9, in, 32]``."""
    return _in_tiles(weights.reshape(*weights.shape[:2], -1))


def _in_tiles(factors: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(in_tiles(factors.T).transpose(2, 0, 1, 3))


def error_bound(variant: Variant) -> float:
    """Bound the error of a result, relative to the largest value of the output."""
    return _ERROR_BOUNDS[variant["m"]]


def terms(layer: Conv2d, variant: Variant) -> int:
    """Products that are added up for one channel of a tile of pixels."""
    return (variant["m"] + 2) ** 2 * layer.in_channels


def weight_bytes(layer: Conv2d, variant: Variant) -> int:
    """Count the bytes of the transformed weights."""
    return _weight_bytes(layer, variant["m"])


def _weight_bytes(layer: Conv2d, m: int) -> int:
    return layer.item_bytes * (m + 2) ** 2 * layer.in_channels * layer.out_channels


def cost(layer: Conv2d) -> float:
    """Estimated time, in multiply-adds."""
    return min(_cost(layer, m) for m in _multiples(layer))


def _cost(layer: Conv2d, m: int) -> float:
    tiles = WinogradTiles(layer, ImageLayouts.alone(layer), m)
    pairs = layer.in_channels * layer.out_channels
    transforms = _TRANSFORM_COST * tiles.count * (layer.in_channels + layer.out_channels)
    return tiles.points**2 * ((tiles.count + WEIGHT_COST) * pairs + transforms)


def variants(layer: Conv2d, side: str, hardware: Hardware, layouts: ImageLayouts) -> list[Variant]:
    """List the search space of one side, the most promising first."""
    search = _cpu_variants if side == "cpu" else _cpu_device_variants
    if side == "gpu" and hardware.opencl_type == "gpu":
        if layer.axis == "lines":
            return []
        search = _gpu_variants
    hardware = hardware.for_channels(_vector_width(layouts))
    return [
        variant
        for m in sorted(_multiples(layer), key=lambda m: _cost(layer, m))
        for variant in search(WinogradTiles(layer, layouts, m), hardware)
    ]


def _vector_width(layouts: ImageLayouts) -> int:
    """The channels that a vector may have: of narrow images no more than of a pixel."""
    return min(layouts.input.tile_width, layouts.output.tile_width)


def _fitted(variant: Variant, layouts: ImageLayouts) -> Variant:
    """The variant with vectors and work-groups for the pixels that it meets."""
    lanes = min(variant["lanes"], _vector_width(layouts))
    narrowed = Variant.make(variant.implementation, **(dict(variant.params) | {"lanes": lanes}))
    return fitted(narrowed, layouts.output.tile_width)


def _multiples(layer: Conv2d) -> list[int]:
    """Values of ``m`` of which units of lines hold whole tiles."""
    return [m for m in MULTIPLES if layer.axis == "channels" or line_block(layer.out_h) % m == 0]


def _space(tiles: WinogradTiles) -> Space:
    return Space(
        rows=tiles.count,
        padded_rows=lambda rows: -(-tiles.count // rows) * rows,
        reduction=1,
        width=tiles.layouts.output.tile_width,
    )


def _cpu_variants(tiles: WinogradTiles, hardware: Hardware) -> list[Variant]:
    lanes = hardware.lanes
    return [
        Variant.make(IMPLEMENTATION, m=tiles.m, rows=rows, channels=channels, lanes=lanes, **block)
        for rows, channels, _ in register_tiles(hardware, _space(tiles))[:2]
        for block in _blocks(tiles, rows)
    ]


def _blocks(tiles: WinogradTiles, rows: int, workers: int = 1) -> list[dict[str, int]]:
    """Choose how many groups of tiles a worker transforms before it multiplies them, and the order; best first."""
    groups = -(-tiles.at_once // (rows * workers))
    group_bytes = tiles.layer.item_bytes * tiles.points**2 * rows * tiles.layer.in_channels
    cuts = {min(groups, max(1, round(_CACHE_BYTES * part / group_bytes))) for part in _BLOCK_PARTS}
    sizes = {-(-groups // -(-groups // cut)) for cut in cuts}
    found = [(size, order) for size in sorted(sizes) for order in ((0, 1) if size > 1 else (0,))]
    found.sort(key=lambda block: _passing_cost(tiles, groups, group_bytes, *block))
    return [{"block_groups": size, "order": order} for size, order in found]


def _passing_cost(tiles: WinogradTiles, groups: int, group_bytes: int, size: int, order: int) -> float:
    """What it costs that a core's own cache does not hold everything, in bytes from memory, the products left out.

    All weights are read again for each further block of ``size`` groups, and a block that is larger than the cache for
    each unit. Group by group (``order`` 0) a unit's weights are read again for each group, unless they and a group fit
    into the cache.
    """
    weights, units = _weight_bytes(tiles.layer, tiles.m), tile_count(tiles.layer.out_channels)
    blocks = -(-groups // size)
    near = far = 0.0
    if weights > _SHARED_CACHE_BYTES:
        far = (blocks - 1) * weights
    elif weights + size * group_bytes > _CACHE_BYTES:
        near = (blocks - 1) * weights
    if size * group_bytes > _CACHE_BYTES:
        near += units * groups * group_bytes
    if order == 0 and weights / units + group_bytes > _CACHE_BYTES:
        near += (groups - blocks) * weights
    return far + _NEAR * near


def _cpu_device_variants(tiles: WinogradTiles, hardware: Hardware) -> list[Variant]:
    """Blocks, but for those that leave a core idle; single groups as well where there are several cores."""
    lanes = hardware.lanes
    width = tiles.layouts.output.tile_width
    ranked = [tile for tile in register_tiles(hardware, _space(tiles)) if tile[1] >= min(2 * lanes, width)]
    blocked = [
        _opencl_variant(
            tiles,
            (rows, lanes, 1, 1),
            workers=hardware.workers,
            **({"channels": channels} if channels < TILE else {}),
            **block,
        )
        for rows, channels, _ in ranked[:2]
        for block in _blocks(tiles, rows, hardware.workers)
    ]
    if hardware.workers == 1:
        return blocked
    busy = [v for v in blocked if tiles.at_once > v["rows"] * v["block_groups"] * (hardware.workers - 1)]
    if tiles.unit_count is not None:
        return busy or blocked
    whole = [rows for rows, channels, _ in ranked if channels == width]
    single = [_opencl_variant(tiles, (rows, lanes, 1, 1), order=order) for rows in whole[:2] for order in (0, 1)]
    return [*busy, *single] or blocked


def _gpu_variants(tiles: WinogradTiles, hardware: Hardware) -> list[Variant]:
    fitting = [g for g in _GPU_GEOMETRIES if g[2] * g[3] <= hardware.max_group_size]
    ranked = sorted(fitting, key=lambda g: -(-tiles.count // (g[0] * g[3])) * g[0] * g[3])
    return [_opencl_variant(tiles, geometry, order=order) for geometry in ranked for order in (0, 1)]


def _opencl_variant(tiles: WinogradTiles, geometry: tuple[int, int, int, int], **params: int) -> Variant:
    named = zip(("rows", "lanes", "channel_threads", "row_threads"), geometry, strict=True)
    return Variant.make(IMPLEMENTATION, m=tiles.m, **dict(named), **params)


def _is_joined(variant: Variant) -> bool:
    """Whether one work-item keeps the products of a group, as on a CPU device."""
    return variant["channel_threads"] * variant["row_threads"] == 1


def _is_blocked(variant: Variant) -> bool:
    """Whether a work-item takes all three steps, block by block."""
    return "block_groups" in dict(variant.params)


def dispatch(layer: Conv2d, side: str, variant: Variant, layouts: ImageLayouts) -> Dispatch:
    """Launch geometry of the kernel that multiplies; its rows are tiles of pixels.

    Its blocks are register tiles, as in a half on the CPU: a core computes one after the other.
    """
    variant = _fitted(variant, layouts)
    tiles = WinogradTiles(layer, layouts, variant["m"])
    rows = rows_of_group(variant)
    groups = -(-tiles.count // rows)
    if _is_blocked(variant) and tiles.unit_count is not None:
        unit_groups, channel_tiles = -(-tiles.unit_count // rows), tile_count(layer.out_channels)
        return Dispatch((unit_groups, channel_tiles), (1, 1), 0, padded_rows=groups * rows)
    if _is_blocked(variant):
        return cpu_dispatch(variant, groups * rows)
    return dispatch_of_blocks(groups if _is_joined(variant) else groups * tiles.points**2, variant, groups * rows)


def launches(layer: Conv2d, side: str, variant: Variant, layouts: ImageLayouts) -> tuple[Launch, ...]:
    """Launch one kernel on the CPU and, in blocks, on a CPU device; else two there, three on a GPU."""
    from .frame import Launch, Operand
    from .winograd_kernels import cpu_kernel
    from .winograd_opencl import OpenCLKernels, blocked_launch

    variant = _fitted(variant, layouts)
    tiles = WinogradTiles(layer, layouts, variant["m"])
    weights = weights_name(variant)
    shapes = {
        **tiles.shapes(),
        weights: (tile_count(layer.out_channels), tiles.points**2, layer.in_channels, TILE),
        **step_shapes(layer),
    }
    operands = tuple(Operand(name, shapes[name]) for name in operand_names(layer, weights))
    if side == "cpu":
        return (Launch(cpu_kernel(tiles, variant, operands), operands, dispatch(layer, side, variant, layouts)),)
    if _is_blocked(variant):
        return (blocked_launch(tiles, variant, operands),)
    kernels = OpenCLKernels(tiles, variant, operands)
    return kernels.joined() if _is_joined(variant) else kernels.separate()
