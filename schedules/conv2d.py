"""Convolutions: which implementation computes a half, and what all of them share.

Activations are images of tiles (``layers.ImageLayout``), constants come from ``weights [out, in / groups, kernel]``
and ``bias [out]``. The two halves of a layer may use different implementations; each reads weights of its own packing.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from tvm_coexec.layers import Conv2d, Hardware, ImageLayouts, Variant

from . import conv2d_direct, conv2d_products, depthwise, gpu_products, winograd
from .dispatch import Dispatch
from .packing import Stored, as_read, pack_steps
from .pixels import operand_names as names_with
from .product import Extents

if TYPE_CHECKING:
    from .frame import Launch

_IMPLEMENTATIONS: dict[str, ModuleType] = {
    module.IMPLEMENTATION: module for module in (depthwise, conv2d_direct, winograd)
}
_MODULES = (*_IMPLEMENTATIONS.values(), conv2d_products)


def _implementation(variant: Variant) -> ModuleType:
    return conv2d_products if gpu_products.computes(variant) else _IMPLEMENTATIONS[variant.implementation]


def operand_names(layer: Conv2d, variant: Variant) -> tuple[str, ...]:
    """Names of the buffers that a half reads and writes."""
    return names_with(layer, weights_name(variant))


def pack(layer: Conv2d, params: Mapping[str, np.ndarray], variant: Variant) -> dict[str, np.ndarray]:
    """Pack constants as the kernels of a variant read them."""
    module = _implementation(variant)
    weights = {module.weights_name(variant): module.pack_weights(layer, params["weights"], variant)}
    return weights | pack_steps(layer, params)


def store(layer: Conv2d, params: Mapping[str, np.ndarray], variant: Variant) -> dict[str, Stored]:
    """Pack constants for a module's file: of Winograd's weights it holds the kernels, which are smaller."""
    if variant.implementation != winograd.IMPLEMENTATION:
        return as_read(pack(layer, params, variant))
    kernels = Stored(winograd.pack_kernels(params["weights"]), variant["m"])
    return {weights_name(variant): kernels} | as_read(pack_steps(layer, params))


def default_variant(layer: Conv2d, side: str, hardware: Hardware) -> Variant:
    """A good variant for a layer that was never tuned."""
    return variants(layer, side, hardware)[0]


def variants(layer: Conv2d, side: str, hardware: Hardware) -> list[Variant]:
    """List the search space of one side, the most promising first.

    A variant suits every layout, not equally: blocks of pixels that run across the lines of an image lose by a halo.
    """
    layouts = ImageLayouts.alone(layer)
    able = [module for module in _MODULES if module.can_compute(layer)]
    able.sort(key=lambda module: module.cost(layer))
    return [variant for module in able for variant in module.variants(layer, side, hardware, layouts)]


def terms(layer: Conv2d, variant: Variant) -> int:
    """Products that a half adds up for one element of a row that :func:`dispatch` counts, a pixel or a tile of them."""
    count: int = _implementation(variant).terms(layer, variant)
    return count


def weights_name(variant: Variant) -> str:
    """Name the packed weights that the kernels of a variant read."""
    name: str = _implementation(variant).weights_name(variant)
    return name


def weight_bytes(layer: Conv2d, variant: Variant) -> int:
    """Count the bytes of the weights as the kernels of a variant read them."""
    size: int = _implementation(variant).weight_bytes(layer, variant)
    return size


def extents(layer: Conv2d) -> Extents:
    """How large a layer without groups is as a product."""
    return conv2d_products.extents(layer, ImageLayouts.alone(layer))


def error_bound(variant: Variant) -> float:
    """Bound the error of a result, relative to the largest value of the output."""
    bound: float = _implementation(variant).error_bound(variant)
    return bound


def dispatch(layer: Conv2d, side: str, variant: Variant) -> Dispatch:
    """Launch geometry of a half's main kernel."""
    return _implementation(variant).dispatch(layer, side, variant, ImageLayouts.alone(layer))


def build(layer: Conv2d, side: str, variant: Variant, layouts: ImageLayouts | None = None) -> tuple[Launch, ...]:
    """The kernels of a half, in the order in which they run."""
    return _implementation(variant).launches(layer, side, variant, layouts or ImageLayouts.alone(layer))
