"""Dense products on a GPU: which kernels there are for one, the most promising first."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from functools import cache, lru_cache
from typing import TYPE_CHECKING

from tvm_coexec.layers import TILE, Hardware, Variant

from . import few_rows
from .dispatch import Dispatch
from .few_rows import Reading
from .gpu_bound import Columns, Steps, reading_steps, tile_steps, tiling_columns
from .plain_tiles import ImageTiling, PlainTiling
from .product import LANES, Extents
from .tiles import Tiling
from .weight_images import fits_image

if TYPE_CHECKING:
    from .frame import Launch
    from .product import Product

_OFFERED = 32
"""Kernels that the search space of a product keeps."""
_OFFERED_WITH_IMAGES = 8
"""How many of them read weights as an image, on a device that can: the bound knows nothing of the textures' cache."""
_ALIKE = 3
"""Tilings that are kept of those which differ in depth, slices and parts alone."""
_ITEM_ROWS = (2, 4, 5, 6, 7, 8, 10, 13)
_ITEM_COLUMNS = (4, 8)
_ITEMS_DOWN = (4, 8, 16)
_COLUMNS = (32, 64, 128)
_DEPTHS = (8, 16, 32)
_SLICES = (1, 2, 4)
_PARTS = (1, 2, 3, 4, 6, 8, 12, 16, 24)
"""Sizes that tilings are made of: an item's rows and columns, items and columns of a work-group, the depth of a chunk,
and slices and parts of the reduction."""
_ITEMS = (32, 512)
"""Fewest and most items of a work-group: a GPU runs 32 or 64 side by side."""
_READING_COLUMNS = (TILE, TILE // 2, TILE // 4)
_READING_SLICES = (8, 16, 32, 64, 128)
_READING_PARTS = (1, 2, 4, 8)
"""The same of kernels that read weights for few rows: columns of a work-group, slices and parts of the reduction."""


_TILINGS: dict[str, type[Tiling]] = {kind.implementation: kind for kind in (Tiling, PlainTiling, ImageTiling)}


def computes(variant: Variant) -> bool:
    """Whether a variant is one of these kernels."""
    return variant.implementation in (*_TILINGS, few_rows.IMPLEMENTATION)


def _tiling(variant: Variant) -> Tiling | None:
    """The tiling that a variant is; None if it is none."""
    kind = _TILINGS.get(variant.implementation)
    return None if kind is None else kind.of(variant)


@lru_cache(maxsize=512)
def variants(extents: Extents, hardware: Hardware) -> tuple[Variant, ...]:
    """Give the search space of a product; nothing where no GPU computes it."""
    if hardware.opencl_type != "gpu":
        return ()
    ranked = _ranked(extents, hardware, *(_tilings() if hardware.has_local_memory else _plain_tilings(PlainTiling)))
    readings = list(_readings(extents))
    if readings:
        ranked += zip(reading_steps(extents, readings).cycles(hardware), readings, strict=True)
    images = list[tuple[float, Tiling | Reading]]()
    if fits_image(extents.weight_elements, hardware):
        images = _best(_ranked(extents, hardware, *_plain_tilings(ImageTiling)), _OFFERED_WITH_IMAGES)
    best = _best(ranked, _OFFERED - len(images))
    return tuple(kernel.variant() for _, kernel in (*best[:1], *_best([*best[1:], *images], _OFFERED)))


def _best(ranked: list[tuple[float, Tiling | Reading]], most: int) -> list[tuple[float, Tiling | Reading]]:
    """Those of the least cycles that the device can run."""
    return sorted((pair for pair in ranked if math.isfinite(pair[0])), key=lambda pair: pair[0])[:most]


def _ranked(
    extents: Extents, hardware: Hardware, tilings: list[Tiling], columns: Columns
) -> list[tuple[float, Tiling | Reading]]:
    """Rank tilings by their cycles, and keep the best few of each shape of tiles."""
    cycles = tile_steps(extents, columns).cycles(hardware)
    return list(_various(sorted(zip(cycles, tilings, strict=True), key=lambda pair: pair[0])))


def _various(ranked: list[tuple[float, Tiling]]) -> Iterator[tuple[float, Tiling | Reading]]:
    """Keep the best few of each shape of tiles."""
    alike: dict[tuple[int, ...], int] = {}
    for cycles, tiling in ranked:
        shape = (tiling.rows, tiling.columns, tiling.item_rows, tiling.item_columns)
        alike[shape] = alike.get(shape, 0) + 1
        if alike[shape] <= _ALIKE:
            yield cycles, tiling


@cache
def _tilings() -> tuple[list[Tiling], Columns]:
    """List every tiling with its properties."""
    shapes = itertools.product(_ITEM_ROWS, _ITEM_COLUMNS, _ITEMS_DOWN, _COLUMNS)
    found = (
        Tiling(item_rows * down, columns, item_rows, item_columns, depth, slices, parts)
        for item_rows, item_columns, down, columns in shapes
        for depth, slices, parts in itertools.product(_DEPTHS, _SLICES, _PARTS)
    )
    return _of_fit_groups(found)


@cache
def _plain_tilings(kind: type[PlainTiling]) -> tuple[list[Tiling], Columns]:
    """List every tiling of a kind of kernels without local memory, with its properties."""
    shapes = itertools.product(_ITEM_ROWS, _ITEM_COLUMNS, _ITEMS_DOWN, _COLUMNS, _PARTS)
    return _of_fit_groups(
        kind(item_rows * down, columns, item_rows, item_columns, parts=parts)
        for item_rows, item_columns, down, columns, parts in shapes
    )


def _of_fit_groups(found: Iterator[Tiling]) -> tuple[list[Tiling], Columns]:
    tilings = [tiling for tiling in found if _ITEMS[0] <= tiling.items <= _ITEMS[1]]
    return tilings, tiling_columns(tilings)


def _readings(extents: Extents) -> Iterator[Reading]:
    if extents.rows <= few_rows.MAX_ROWS and extents.taps == 1 and extents.unit_rows is None:
        for choice in itertools.product(_READING_COLUMNS, _READING_SLICES, _READING_PARTS):
            yield Reading(*choice)


def dispatch(extents: Extents, variant: Variant) -> Dispatch:
    """Launch geometry of a half."""
    tiling = _tiling(variant)
    if tiling is not None:
        return tiling.dispatch(extents)
    return Reading.of(variant).dispatch(extents)


def steps(extents: Extents, variant: Variant) -> Steps:
    """What the kernel of a variant does for the whole product."""
    tiling = _tiling(variant)
    if tiling is not None:
        return tile_steps(extents, tiling_columns([tiling]))
    return reading_steps(extents, [Reading.of(variant)])


def accumulators(extents: Extents, variant: Variant) -> int:
    """Sums that a work-item keeps."""
    if variant.implementation in _TILINGS:
        return variant["item_rows"] * variant["item_columns"]
    return extents.rows * LANES


def launches(product: Product, variant: Variant) -> tuple[Launch, ...]:
    """Build the one kernel of a half."""
    from .few_rows_kernel import FewRowsKernel
    from .plain_tiles_kernel import PlainTileKernel
    from .split_sums import scratch
    from .tiles_kernel import TileKernel
    from .weight_images import with_image

    extents, tiling = product.extents, _tiling(variant)
    if tiling is not None:
        kernel = PlainTileKernel if isinstance(tiling, PlainTiling) else TileKernel
        output_tiles = tiling.row_blocks(extents) * tiling.column_blocks(extents)
        passed_on = scratch(tiling.parts, output_tiles, tiling.rows * tiling.columns)
        operands = with_image(product.operands) if isinstance(tiling, ImageTiling) else product.operands
        return (kernel(replace(product, operands=(*operands, *passed_on)), tiling).launch(),)
    reading = Reading.of(variant)
    output_tiles = extents.tiles * (TILE // reading.columns)
    passed_on = scratch(reading.parts, output_tiles, extents.rows * reading.columns)
    return (FewRowsKernel(replace(product, operands=(*product.operands, *passed_on)), reading).launch(),)
