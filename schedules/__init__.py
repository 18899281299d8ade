"""What a layer computes and how: one file per operator family, CPU and GPU side by side.

A family module gives, for its layer class: ``variants``, ``default_variant``, ``operand_names``, ``pack``, ``dispatch``
(none of which needs a compiler) and ``build``, which makes the scheduled kernels of a half. The two halves of a layer
may read different packings of its parameters, so an operand's name says how it is packed. ``halo`` and
``halo_kernels`` are no family: they have the kernel that follows one whose output shares memory with others; nor is
``gpu_products``, which has kernels of several.
"""

from __future__ import annotations

from types import ModuleType

from tvm_coexec.layers import Layer

from . import attention, conv2d, gpu_products, images, linear, matmul, opaque, place_rows, rowwise

__all__ = ["family", "gpu_products"]

_FAMILIES = {
    "attention": attention,
    "concat": images,
    "conv2d": conv2d,
    "elementwise": images,
    "linear": linear,
    "local_norm": images,
    "matmul": matmul,
    "opaque": opaque,
    "place": place_rows,
    "pool": images,
    "rearrange": images,
    "resize": images,
    "rowwise": rowwise,
}


def family(layer: Layer) -> ModuleType:
    """The module that knows how to compute a layer."""
    return _FAMILIES[layer.op]
