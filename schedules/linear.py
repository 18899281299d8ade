"""Linear layers multiply ``[m, k] × [k, n]``, reduced over ``k``.

Operands: ``input [rows, row stride]``, ``weights [tiles, k, 32]``, the epilogue's constants ``[tiles, 32]`` (zero
where a tile has no channel), ``residual`` and ``output [rows, row tiles, 32]``. Rows are padded to a whole number of
blocks. Register tiles serve CPUs and every OpenCL device; a GPU has the kernels of :mod:`.gpu_products` as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tvm_coexec.layers import TILE, Hardware, ImageLayouts, Linear, Variant, fused_operands, row_tiles

from . import gpu_products
from .dispatch import ERROR_BOUND, Dispatch, dense_dispatch
from .packing import in_tiles, pack_steps, step_shapes
from .product import Extents
from .search import Space, dense_variants

if TYPE_CHECKING:
    from .frame import Description, Launch, Operand
    from .product import Product

IMPLEMENTATION = "direct"


def operand_names(layer: Linear, variant: Variant) -> tuple[str, ...]:
    """Names of the buffers that a half reads and writes."""
    return ("input", "weights", *fused_operands(layer.epilogue), "output")


def pack(layer: Linear, params: Mapping[str, np.ndarray], variant: Variant) -> dict[str, np.ndarray]:
    """Pack ``weights [k, n]`` and vectors of ``n`` elements as the kernels read them."""
    weights = np.ascontiguousarray(in_tiles(params["weights"]).transpose(1, 0, 2))
    return {"weights": weights} | pack_steps(layer, params)


def error_bound(variant: Variant) -> float:
    """Bound the error of a result, relative to the largest value of the output."""
    return ERROR_BOUND


def dispatch(layer: Linear, side: str, variant: Variant) -> Dispatch:
    """Launch geometry of a half."""
    if gpu_products.computes(variant):
        return gpu_products.dispatch(extents(layer), variant)
    return dense_dispatch(side, variant, layer.m)


def extents(layer: Linear) -> Extents:
    """How large the layer is as a product."""
    return Extents(layer.m, layer.n, layer.k)


def default_variant(layer: Linear, side: str, hardware: Hardware) -> Variant:
    """A good variant for a layer that was never tuned."""
    return variants(layer, side, hardware)[0]


def variants(layer: Linear, side: str, hardware: Hardware) -> list[Variant]:
    """List the search space of one side, the most promising first."""
    space = Space(
        rows=layer.m, padded_rows=lambda block: -(-layer.m // block) * block, reduction=layer.k, weighted=True
    )
    on_gpu = gpu_products.variants(extents(layer), hardware) if side == "gpu" else ()
    return [*on_gpu, *dense_variants(IMPLEMENTATION, side, hardware, space)]


def describe(layer: Linear, variant: Variant, rows: int) -> Description:
    """Describe the layer as a dense kernel over ``rows`` padded rows."""
    from .frame import Description

    k_split = variant["k_split"]

    def weight(buffers: dict[str, Any], index: list[Any], begin: Any) -> Any:
        _i, t, j, s, k = index
        return buffers["weights"][begin + t, k * k_split + s, j]

    def term(buffers: dict[str, Any], index: list[Any], begin: Any) -> Any:
        i, _t, _j, s, k = index
        return buffers["input"][i, k * k_split + s] * weight(buffers, index, begin)

    return Description(
        layer=layer,
        operands=_operands(layer, variant, (rows, row_tiles(layer.k) * TILE), rows),
        rows=rows,
        channels=layer.n,
        reduction=(layer.k // k_split,),
        term=term,
        weight=weight,
        partial_sums=k_split,
    )


def _operands(layer: Linear, variant: Variant, input_shape: tuple[int, ...], rows: int) -> tuple[Operand, ...]:
    from .frame import Operand

    shapes = {
        "input": input_shape,
        "weights": (layer.units, layer.k, TILE),
        **step_shapes(layer),
        "residual": (rows, row_tiles(layer.n), TILE),
        "output": (rows, row_tiles(layer.n), TILE),
    }
    return tuple(Operand(name, shapes[name]) for name in operand_names(layer, variant))


def _product(layer: Linear, variant: Variant) -> Product:
    """The layer as a GPU's kernels see it: a row of the input is one run."""
    from .product import Product

    stride = row_tiles(layer.k) * TILE
    return Product(
        layer=layer,
        operands=_operands(layer, variant, (layer.m * stride,), layer.m),
        extents=extents(layer),
        first_element=lambda row: row * stride,
        aligned=layer.k % 4 == 0,
    )


def build(layer: Linear, side: str, variant: Variant, layouts: ImageLayouts | None = None) -> tuple[Launch, ...]:
    """Build the one kernel of a half."""
    from .register_tiles import launch

    if gpu_products.computes(variant):
        return gpu_products.launches(_product(layer, variant), variant)
    params = dict(variant.params)
    del params["k_split"]
    description = describe(layer, variant, dispatch(layer, side, variant).padded_rows)
    return (launch(description, side, variant, params),)
