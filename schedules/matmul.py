"""Matrix products of two activations: dense kernels that read both operands where they are.

Operands: ``input`` and ``input1 [rows, row stride]``, the epilogue's constants ``[tiles, 32]``, ``residual`` and
``output [rows, row tiles, 32]``. Nothing is packed: where a row of the right matrix lies in one row of its tensor,
vectors of channels are read, elsewhere one element after the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tvm_coexec.layers import TILE, Hardware, ImageLayouts, MatMul, Variant, fused_operands, row_tiles, tile_count

from .dispatch import ERROR_BOUND, Dispatch, dense_dispatch
from .packing import pack_steps, step_shapes
from .search import Space, dense_variants

if TYPE_CHECKING:
    from .frame import Description, Launch

IMPLEMENTATION = "in place"


def operand_names(layer: MatMul, variant: Variant) -> tuple[str, ...]:
    """Names of the buffers that a half reads and writes."""
    return ("input", "input1", *fused_operands(layer.epilogue), "output")


def pack(layer: MatMul, params: Mapping[str, np.ndarray], variant: Variant) -> dict[str, np.ndarray]:
    """Pack the constants of the epilogue as the kernels read them."""
    return pack_steps(layer, params)


def error_bound(variant: Variant) -> float:
    """Bound the error of a result, relative to the largest value of the output."""
    return ERROR_BOUND


def dispatch(layer: MatMul, side: str, variant: Variant) -> Dispatch:
    """Launch geometry of a half."""
    return dense_dispatch(side, variant, layer.rows)


def default_variant(layer: MatMul, side: str, hardware: Hardware) -> Variant:
    """A good variant for a layer that was never tuned."""
    return variants(layer, side, hardware)[0]


def variants(layer: MatMul, side: str, hardware: Hardware) -> list[Variant]:
    """List the search space of one side, the most promising first."""
    space = Space(rows=layer.rows, padded_rows=lambda block: -(-layer.rows // block) * block, reduction=layer.k)
    return dense_variants(IMPLEMENTATION, side, hardware, space)


def describe(layer: MatMul, variant: Variant, rows: int) -> Description:
    """Describe the layer as a dense kernel over ``rows`` padded rows."""
    from .frame import Description, Operand, one_if_channel

    k_split = variant["k_split"]
    sizes = {"input": layer.left.size, "input1": layer.right.size}
    of_result = (layer.rows, row_tiles(layer.out_channels), TILE)
    shapes = {
        **{name: (count, row_tiles(channels) * TILE) for name, (count, channels) in sizes.items()},
        **step_shapes(layer),
        "residual": of_result,
        "output": of_result,
    }

    def term(buffers: dict[str, Any], index: list[Any], begin: Any) -> Any:
        i, t, j, s, k = index
        item, head, row, column = _position(layer, i, begin + t, j)
        at_left, at_right = (item, head, row, k * k_split + s), (item, head, k * k_split + s, column)
        left = buffers["input"][layer.left.row(*at_left), layer.left.channel(*at_left)]
        return left * buffers["input1"][layer.right.row(*at_right), layer.right.channel(*at_right)]

    def finish(buffers: dict[str, Any], index: list[Any], begin: Any, total: Any) -> Any:
        _i, t, j = index
        scaled = total if layer.scale == 1 else total * np.float32(layer.scale)
        return scaled if layer.out_channels % TILE == 0 else scaled * one_if_channel(layer.out_channels, begin + t, j)

    return Description(
        layer=layer,
        operands=tuple(Operand(name, shapes[name]) for name in operand_names(layer, variant)),
        rows=rows,
        channels=layer.out_channels,
        reduction=(layer.k // k_split,),
        term=term,
        partial_sums=k_split,
        output_row=lambda row: _existing_row(layer, row),
        residual_row=lambda row: _existing_row(layer, row),
        is_stored=lambda row: None if rows == layer.rows else row < layer.rows,
        finish=finish,
    )


def _existing_row(layer: MatMul, row: Any) -> Any:
    """Give the row itself; the last one stands in for those that fill up the last block."""
    from tvm.script.ir_builder import tirx as T

    return T.min(row, layer.rows - 1)


def _position(layer: MatMul, row: Any, tile: Any, lane: Any) -> tuple[Any, Any, Any, Any]:
    """Item, head, and row and column of the matrix, of an element of the result; padding repeats the last column."""
    from tvm.script.ir_builder import tirx as T

    row = _existing_row(layer, row)
    if layer.heads_in_rows:
        item, head = T.floordiv(row, layer.heads * layer.m), T.floormod(T.floordiv(row, layer.m), layer.heads)
        return item, head, T.floormod(row, layer.m), _within(layer, tile * TILE + lane, layer.n)
    item = T.floordiv(row, layer.m)
    if layer.n % TILE == 0:
        tiles = layer.n // TILE
        return item, T.floordiv(tile, tiles), T.floormod(row, layer.m), T.floormod(tile, tiles) * TILE + lane
    column = T.min(tile * TILE + lane, layer.out_channels - 1)
    return item, T.floordiv(column, layer.n), T.floormod(row, layer.m), T.floormod(column, layer.n)


def _within(layer: MatMul, column: Any, columns: int) -> Any:
    """A column that exists, unless what lies behind the last one can be read like it."""
    from tvm.script.ir_builder import tirx as T

    right = layer.right
    is_contiguous = right.row_steps[3] == 0 and right.channel_steps[3] == 1
    last = right.channel(layer.batch - 1, layer.heads - 1, layer.k - 1, tile_count(columns) * TILE - 1)
    if columns % TILE == 0 or (is_contiguous and last < row_tiles(right.size[1]) * TILE):
        return column
    return T.min(column, columns - 1)


def build(layer: MatMul, side: str, variant: Variant, layouts: ImageLayouts | None = None) -> tuple[Launch, ...]:
    """Build the one kernel of a half."""
    from .register_tiles import launch

    params = dict(variant.params)
    del params["k_split"]
    description = describe(layer, variant, dispatch(layer, side, variant).padded_rows)
    return (launch(description, side, variant, params),)
